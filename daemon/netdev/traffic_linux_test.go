package netdev_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/testdata/need"
)

// guest is the far end of a tap: the test plays the VM.
type guest struct {
	netdev.Port
	file *os.File
}

// filler makes a datagram long enough to need no padding: br_netfilter takes padding off, and the frame would not come out as
// it went in.
const filler = ", and so that this is a frame of more than 60 bytes"

// newGuest makes a VM's tap and opens it, as its VMM would.
func newGuest(t testing.TB, n *netdev.Network, vm, ip string) guest {
	t.Helper()
	name, err := n.AddTap(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.OpenTap(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return guest{netdev.Port{Tap: name, MAC: ipam.MAC(vm), IP: netip.MustParseAddr(ip)}, f}
}

func (g guest) hello(text string) []byte {
	return ethernet(broadcast(), g.MAC, unix.ETH_P_IP, udp(g.IP, netip.MustParseAddr("192.168.127.255"), 9, 9, text+filler))
}

// connect sends frames from a to b until one arrives: the kernel takes a moment to enable a bridge port once its tap is open.
func connect(t testing.TB, a, b guest) {
	t.Helper()
	for i := range 200 {
		frame := a.hello(fmt.Sprint("connect ", i))
		send(t, a.file, frame)
		for got := receive(t, b.file, 50*time.Millisecond); got != nil; got = receive(t, b.file, 50*time.Millisecond) {
			if bytes.Equal(got, frame) {
				return
			}
		}
	}
	t.Fatal("no frame from one guest arrives at the other")
}

func apply(t testing.TB, n *netdev.Network, guests ...guest) {
	t.Helper()
	var ports []netdev.Port
	for _, g := range guests {
		ports = append(ports, g.Port)
	}
	if err := n.ApplyRules(t.Context(), ports); err != nil {
		t.Fatal(err)
	}
}

// TestAntiSpoof sends frames from one guest and looks which of them come out at another, first without rules, to show that
// each frame is one that the bridge forwards, then with them.
func TestAntiSpoof(t *testing.T) {
	t.Run("bridge-nf-call-iptables=0", func(t *testing.T) { testAntiSpoof(t, "0") })
	t.Run("bridge-nf-call-iptables=1", func(t *testing.T) { testAntiSpoof(t, "1") })
}

// setBridgeNF chooses whether bridged frames pass the IPv4 hooks too.
func setBridgeNF(t *testing.T, value string) {
	t.Helper()
	needNetns(t)
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(value), 0); err != nil && value != "0" {
		need.Elsewhere(t, "%v: without br_netfilter it is as with 0", err)
	}
}

func testAntiSpoof(t *testing.T, bridgeNF string) {
	setBridgeNF(t, bridgeNF)
	n := newNetwork(t, testConfig())
	ensure(t, n)
	a, b := newGuest(t, n, "a", "192.168.127.2"), newGuest(t, n, "b", "192.168.127.3")
	all, gateway := netip.MustParseAddr("192.168.127.255"), netip.MustParseAddr("192.168.127.1")
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 99}
	ipv4 := func(mac net.HardwareAddr, src netip.Addr) []byte {
		return ethernet(broadcast(), mac, unix.ETH_P_IP, udp(src, all, 9, 9, filler))
	}
	arp := func(frameMAC, sha net.HardwareAddr, spa netip.Addr) []byte {
		return ethernet(broadcast(), frameMAC, unix.ETH_P_ARP, arpRequest(sha, spa, b.IP))
	}
	body := udp(a.IP, all, 9, 9, filler)
	ipv6 := append([]byte{0x60, 0, 0, 0, 0, 40, 59, 64}, make([]byte, 32+40)...)
	ieee := func(dst string, payload []byte) []byte { // IEEE 802.3: a length where Ethernet II has a type
		mac, err := net.ParseMAC(dst)
		if err != nil {
			t.Fatal(err)
		}
		return ethernet(mac, a.MAC, uint16(len(payload)), payload)
	}
	vlan := func(inner uint16, payload []byte) []byte {
		return ethernet(broadcast(), a.MAC, unix.ETH_P_8021Q, append(binary.BigEndian.AppendUint16([]byte{0, 5}, inner), payload...))
	}
	badARP := func(at int, value byte) []byte {
		r := arpRequest(a.MAC, a.IP, b.IP)
		r[at] = value
		return ethernet(broadcast(), a.MAC, unix.ETH_P_ARP, r)
	}
	type testCase struct {
		name  string
		frame []byte
		pass  bool
	}
	cases := []testCase{
		{"own IPv4", ipv4(a.MAC, a.IP), true},
		{"own ARP", arp(a.MAC, a.MAC, a.IP), true},
		{"unicast", ethernet(b.MAC, a.MAC, unix.ETH_P_IP, udp(a.IP, b.IP, 9, 9, filler)), true},

		{"MAC of nobody", ipv4(stranger, a.IP), false},
		{"MAC of the other guest", ipv4(b.MAC, a.IP), false},
		{"MAC and address of the other guest", ipv4(b.MAC, b.IP), false},
		{"address of the other guest", ipv4(a.MAC, b.IP), false},
		{"address of the gateway", ipv4(a.MAC, gateway), false},
		{"address of nobody", ipv4(a.MAC, netip.MustParseAddr("192.0.2.1")), false},
		{"DHCP request", ethernet(broadcast(), a.MAC, unix.ETH_P_IP,
			udp(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 68, 67, filler)), false},
		{"ARP for the gateway's address", arp(a.MAC, a.MAC, gateway), false},
		{"ARP for the other's address", arp(a.MAC, a.MAC, b.IP), false},
		{"ARP with the other's MAC inside", arp(a.MAC, b.MAC, a.IP), false},
		{"ARP in a frame of the other's MAC", arp(b.MAC, a.MAC, a.IP), false},
		{"ARP probe", arp(a.MAC, a.MAC, netip.IPv4Unspecified()), false},
		{"ARP of another hardware", badARP(1, 6), false},
		{"ARP with long addresses", badARP(4, 8), false},
		{"RARP", ethernet(broadcast(), a.MAC, unix.ETH_P_RARP, arpRequest(a.MAC, a.IP, b.IP)), false},
		{"IPv6", ethernet(broadcast(), a.MAC, unix.ETH_P_IPV6, ipv6), false},
		{"VLAN with IPv4 inside", vlan(unix.ETH_P_IP, body), false},
		{"VLAN with ARP inside", vlan(unix.ETH_P_ARP, arpRequest(a.MAC, b.IP, b.IP)), false},
		{"MPLS", ethernet(broadcast(), a.MAC, unix.ETH_P_MPLS_UC, body), false},
		{"PPPoE", ethernet(broadcast(), a.MAC, unix.ETH_P_PPP_SES, body), false},
		{"spanning tree", ieee("01:80:c2:00:00:00", []byte{0x42, 0x42, 3, 0, 0, 0, 0}), false},
		{"LLC", ieee("ff:ff:ff:ff:ff:ff", []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}), false},
	}
	if bridgeNF == "0" { // br_netfilter drops broken packets itself, so there is nothing to see
		short := append(append(append([]byte{}, broadcast()...), a.MAC...), 8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0)
		cases = append(cases, testCase{"IPv4 cut short", short, false})
	}

	if err := netdev.RemoveTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, a, b)
	mark := 0
	pass := func(t *testing.T, frame []byte) bool {
		t.Helper()
		mark++
		return arrives(t, a.file, b.file, frame, a.hello(fmt.Sprint("mark ", mark)))
	}
	for _, tt := range cases {
		t.Run("without rules/"+tt.name, func(t *testing.T) {
			if !pass(t, tt.frame) {
				t.Errorf("frame % x did not arrive: the case would show nothing", tt.frame)
			}
		})
	}
	apply(t, n, a, b)
	connect(t, b, a) // some frames above taught the bridge that b is behind a's tap
	for _, tt := range cases {
		t.Run("with rules/"+tt.name, func(t *testing.T) {
			if got := pass(t, tt.frame); got != tt.pass {
				t.Errorf("frame % x arrived: %v, want %v", tt.frame, got, tt.pass)
			}
		})
	}

	// A bridge learns from frames to link-local groups before any hook, unless told otherwise.
	t.Run("learning from link-local groups", func(t *testing.T) {
		for group := range byte(16) {
			forged := net.HardwareAddr{2, 0, 0, 0, 0x77, group}
			lldp := ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, group}, forged, 0x88cc, make([]byte, 46))
			pass(t, lldp)
			if learnt(t, forged) {
				t.Errorf("the bridge learnt a forged MAC from a frame to group %x", group)
			}
		}
		if err := netdev.RemoveTables(t.Context()); err != nil {
			t.Fatal(err)
		}
		forged := net.HardwareAddr{2, 0, 0, 0, 0x77, 0x0e}
		pass(t, ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, forged, 0x88cc, make([]byte, 46)))
		if !learnt(t, forged) {
			t.Error("the bridge does not learn it without rules either: this test shows nothing")
		}
	})
}

// learnt reports whether the bridge believes to know where a MAC is.
func learnt(t *testing.T, mac net.HardwareAddr) bool {
	t.Helper()
	fdb, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range fdb {
		if bytes.Equal(e.HardwareAddr, mac) {
			return true
		}
	}
	return false
}

// TestClosedUntilApplied shows that a tap can send nothing before a port names it, and nothing after it is not named any more.
func TestClosedUntilApplied(t *testing.T) {
	n := newNetwork(t, testConfig())
	ensure(t, n)
	a, b, c := newGuest(t, n, "a", "192.168.127.2"), newGuest(t, n, "b", "192.168.127.3"), newGuest(t, n, "c", "192.168.127.4")
	apply(t, n, a, b, c)
	connect(t, a, c)
	connect(t, b, c)
	before := func(what string) bool {
		frame, mark := b.hello(what), a.hello("mark "+what)
		send(t, b.file, frame)
		send(t, a.file, mark)
		seen := false
		for range 1000 {
			switch got := receive(t, c.file, 10*time.Second); {
			case got == nil:
				t.Fatalf("%s: the mark did not arrive", what)
			case bytes.Equal(got, frame):
				seen = true
			case bytes.Equal(got, mark):
				return seen
			}
		}
		t.Fatal("1,000 frames and no mark")
		return false
	}
	if !before("open") {
		t.Error("b has a port and its frame did not arrive")
	}
	apply(t, n, a, c)
	if before("closed") {
		t.Error("b has no port any more and its frame arrived")
	}
	apply(t, n, a, b, c)
	if !before("open again") {
		t.Error("b has a port again and its frame did not arrive")
	}
}

// TestApplyIsAtomic replaces the rules again and again under traffic: no good frame is lost and no forged one gets through.
func TestApplyIsAtomic(t *testing.T) {
	const rounds = 40
	n := newNetwork(t, testConfig())
	ensure(t, n)
	a, b := newGuest(t, n, "a", "192.168.127.2"), newGuest(t, n, "b", "192.168.127.3")
	apply(t, n, a, b)
	connect(t, a, b)

	done := make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			if err := n.ApplyRules(t.Context(), []netdev.Port{a.Port, b.Port}); err != nil {
				t.Errorf("ApplyRules: %v", err)
				return
			}
		}
	}()
	forged := ethernet(broadcast(), b.MAC, unix.ETH_P_IP, udp(a.IP, netip.MustParseAddr("192.168.127.255"), 9, 9, filler))
	for sent := 0; ; sent++ {
		select {
		case <-done:
			t.Logf("%d frames while rules were replaced %d times", sent, rounds)
			return
		default:
		}
		if arrives(t, a.file, b.file, forged, a.hello(fmt.Sprint("good ", sent))) {
			t.Fatal("a forged frame arrived while rules were replaced")
		}
	}
}

// TestBeyondTheHost sends a guest's datagram out and the answer back, and looks at what the world sees.
func TestBeyondTheHost(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			setBridgeNF(t, nf)
			n := newNetwork(t, testConfig())
			if r := ensure(t, n); r.BridgeFiltered != (nf == "1") {
				t.Errorf("Ensure = %+v, want BridgeFiltered as set", r)
			}
			startWAN(t)
			a, b := newGuest(t, n, "a", "192.168.127.2"), newGuest(t, n, "b", "192.168.127.3")
			apply(t, n, a, b)
			connect(t, a, b)
			wan := netip.MustParsePrefix(wanAddr).Addr()
			say := func(sport uint16, text string) {
				send(t, a.file, ethernet(link(t, "vbr0").Attrs().HardwareAddr, a.MAC, unix.ETH_P_IP, udp(a.IP, wan, sport, wanPort, text)))
			}

			host := netip.MustParsePrefix(wanHost).Addr()
			saw := "saw " + host.String()

			say(4000, "hello")
			if got := hear(t, a, 4000); got[4000] != saw {
				t.Errorf("the guest hears %v, want that the world saw the host's own %s", got, host)
			}
			apply(t, n, a, b) // a connection lives through a change of rules
			say(4000, "hello again")
			if got := hear(t, a, 4000); got[4000] != saw {
				t.Errorf("after another ApplyRules the guest hears %v, want that the world saw %s", got, host)
			}

			// It knows the way, but may only answer. It knocks first and answers then.
			knock := "knock " + netip.AddrPortFrom(a.IP, 5000).String()
			say(4001, knock)
			if got := hear(t, a, 4001); got[4001] != saw || got[5000] != "" {
				t.Errorf("the guest hears %v, want only the answer", got)
			}
			if err := netdev.RemoveTables(t.Context()); err != nil {
				t.Fatal(err)
			}
			say(4002, knock)
			if got := hear(t, a, 5000); got[5000] != "knock" {
				t.Errorf("without rules the guest hears %v, want the knock", got)
			}
		})
	}
}

// hear reads the UDP datagrams that reach a guest, by its port, up to the first one to the port until.
func hear(t *testing.T, g guest, until uint16) map[uint16]string {
	t.Helper()
	heard := map[uint16]string{}
	for range 1000 {
		f := receive(t, g.file, 10*time.Second)
		if f == nil {
			t.Fatalf("nothing came to port %d; heard %v", until, heard)
		}
		if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IP || f[23] != unix.IPPROTO_UDP || !bytes.Equal(f[30:34], g.IP.AsSlice()) {
			continue
		}
		port := binary.BigEndian.Uint16(f[36:])
		heard[port] = string(f[42 : 34+int(binary.BigEndian.Uint16(f[38:]))])
		if port == until {
			return heard
		}
	}
	t.Fatalf("1,000 frames and none to port %d", until)
	return nil
}

// TestIsolate keeps guests apart on the bridge and through the gateway; without isolation both ways are open.
func TestIsolate(t *testing.T) {
	setBridgeNF(t, "0") // else the rule against routing would also stop what the ports are to stop
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprint(isolate), func(t *testing.T) {
			cfg := testConfig()
			n := newNetwork(t, cfg)
			ensure(t, n)
			a, b := newGuest(t, n, "a", "192.168.127.2"), newGuest(t, n, "b", "192.168.127.3")
			apply(t, n, a, b)
			connect(t, a, b)
			if isolate {
				cfg.Isolate = true
				var err error
				if n, err = netdev.New(cfg); err != nil {
					t.Fatal(err)
				}
				ensure(t, n)
				for _, vm := range []string{"a", "b"} { // an existing tap takes the new setting
					if _, err := n.AddTap(t.Context(), vm); err != nil {
						t.Fatal(err)
					}
				}
				apply(t, n, a, b)
			}
			gw := link(t, "vbr0").Attrs().HardwareAddr
			send(t, a.file, ethernet(b.MAC, a.MAC, unix.ETH_P_IP, udp(a.IP, b.IP, 9, 6000, "bridged")))
			send(t, a.file, ethernet(gw, a.MAC, unix.ETH_P_IP, udp(a.IP, b.IP, 9, 6001, "routed")))
			// From the host to b: comes after both, and isolation does not concern it.
			conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.IP, 6002)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("host")); err != nil {
				t.Fatal(err)
			}
			heard := map[string]bool{}
			for !heard["host"] {
				f := receive(t, b.file, 10*time.Second)
				if f == nil {
					t.Fatal("the host's datagram did not arrive")
				}
				for _, text := range []string{"bridged", "routed", "host"} {
					if bytes.Contains(f, []byte(text)) {
						heard[text] = true
					}
				}
			}
			if heard["bridged"] == isolate || heard["routed"] == isolate {
				t.Errorf("with Isolate %v b heard %v", isolate, heard)
			}
		})
	}
}
