package netdev_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vnetHdr is the size of struct virtio_net_hdr in front of each frame on a tap.
const vnetHdr = 10

func broadcast() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }

// ethernet builds a frame: destination, source, EtherType, payload.
func ethernet(dst, src net.HardwareAddr, etherType uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst...), src...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	f = append(f, payload...)
	for len(f) < 60 { // the least that Ethernet carries
		f = append(f, 0)
	}
	return f
}

// arpRequest builds the body of an ARP request (RFC 826).
func arpRequest(sha net.HardwareAddr, spa, tpa netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, sha...), spa.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), tpa.AsSlice()...)
}

// udp builds an IPv4 packet with a UDP datagram (RFC 791, 768); the UDP checksum is left out, as IPv4 allows.
func udp(src, dst netip.Addr, sport, dport uint16, payload string) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	return append(b, payload...)
}

// send writes a frame to a tap, as the VMM does when the guest sends it.
func send(t testing.TB, tap *os.File, frame []byte) {
	t.Helper()
	if _, err := tap.Write(append(make([]byte, vnetHdr), frame...)); err != nil {
		t.Fatalf("write to %s: %v", tap.Name(), err)
	}
}

// receive reads the next frame that the host sends to a guest, or nil if none comes in time.
func receive(t testing.TB, tap *os.File, wait time.Duration) []byte {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(tap.Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		n, err := unix.Poll(fds, max(0, int(left.Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return nil
		}
		b := make([]byte, 4096)
		n, err = tap.Read(b)
		if err != nil {
			t.Fatalf("read from %s: %v", tap.Name(), err)
		}
		return b[vnetHdr:n]
	}
}

// arrives sends frame into one tap, then the mark, and reads the other tap until the mark comes out. It reports whether the
// frame came before. The bridge keeps the order of frames, so there is nothing to wait for in the "no" case.
func arrives(t testing.TB, from, to *os.File, frame, mark []byte) bool {
	t.Helper()
	send(t, from, frame)
	send(t, from, mark)
	arrived := false
	for range 1000 {
		got := receive(t, to, 10*time.Second)
		switch {
		case got == nil:
			t.Fatal("the mark did not arrive")
		case bytes.Equal(got, mark):
			return arrived
		case bytes.Equal(got, frame):
			arrived = true
		}
	}
	t.Fatal("1,000 frames and no mark")
	return false
}
