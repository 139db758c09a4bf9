package netdev_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
	"github.com/volantvm/volant/ipam"
)

// A peer is a process in a network namespace of its own with a real TCP/IP stack, either a guest behind one of our taps or a machine beyond
// the host. It serves TCP and UDP on servicePort, answering "NAME saw ADDRESS", and dials when told to.
const (
	servicePort = 80
	peerEnv     = "VOLANT_TEST_PEER"     // "NAME PREFIX GATEWAY"
	askTimeout  = 10 * time.Second       // where an answer is expected
	noTimeout   = 300 * time.Millisecond // where none is
)

type peer struct {
	t    testing.TB
	name string
	in   io.Writer
	out  *bufio.Reader
}

// startPeer starts the helper process. f is the tap that it serves as a VMM does; without, it gets the far end of the veth pair wan0, wan1.
func startPeer(t testing.TB, name, prefix, gateway string, f *os.File) *peer {
	t.Helper()
	runtime.LockOSThread() // for Pdeathsig
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=peer", peerEnv+"="+strings.Join([]string{name, prefix, gateway}, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if f != nil {
		cmd.ExtraFiles = []*os.File{f}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	p := &peer{t: t, name: name, in: in, out: bufio.NewReader(out)}
	if f == nil {
		joinVeth(t, cmd.Process.Pid)
	}
	if got := p.tell("go"); got != "ready" {
		t.Fatalf("%s: %s", name, got)
	}
	return p
}

// joinVeth makes the pair wan0, wan1 and gives wan1 away.
func joinVeth(t testing.TB, pid int) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan1"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("wan0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	if err := netlink.LinkSetNsPid(link(t, "wan1"), pid); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{wanHost, wanHost2} {
		addr, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link(t, "wan0"), addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link(t, "wan0")); err != nil {
		t.Fatal(err)
	}
}

// newPeerGuest makes a VM's tap and a peer behind it.
func newPeerGuest(t testing.TB, n *netdev.Network, vm, ip string, publish ...netdev.Publish) (netdev.Port, *peer) {
	t.Helper()
	name, err := n.AddTap(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.OpenTap(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := startPeer(t, vm, ip+"/24", "192.168.127.1", f)
	return netdev.Port{Tap: name, MAC: ipam.MAC(vm), IP: netip.MustParseAddr(ip), Publish: publish}, p
}

// tell sends a command and returns the answer.
func (p *peer) tell(command string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		p.t.Fatalf("%s: %s: %v", p.name, command, err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%s: %s: %v", p.name, command, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// ask connects to an address and returns what the service there says, or "" if there is none.
func (p *peer) ask(network, addr string, wait time.Duration) string {
	p.t.Helper()
	if p.name == "host" {
		return ask(network, addr, wait)
	}
	return p.tell(fmt.Sprintf("ask %s %s %s", network, addr, wait))
}

// ask is what a peer does to ask.
func ask(network, addr string, wait time.Duration) string {
	conn, err := net.DialTimeout(network, addr, wait)
	if err != nil {
		return ""
	}
	defer conn.Close()
	return askAgain(conn, wait)
}

// askAgain asks on a connection that is open. A datagram may come while the bridge port is not yet forwarding, so it is sent a few times.
func askAgain(conn net.Conn, wait time.Duration) string {
	b := make([]byte, 200)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		if _, err := io.WriteString(conn, "who?"); err != nil {
			return ""
		}
		_ = conn.SetReadDeadline(time.Now().Add(min(wait, time.Second)))
		n, err := conn.Read(b)
		if err == nil {
			return string(b[:n])
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.ECONNREFUSED) {
			return ""
		}
	}
	return ""
}

// peerMain is the helper process. It ends when its standard input does.
func peerMain() int {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return 1
	}
	var name, prefix, gateway string
	if _, err := fmt.Sscan(os.Getenv(peerEnv), &name, &prefix, &gateway); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := peerNetwork(name, prefix, gateway); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := peerServe(name); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	var held net.Conn
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0
		}
		var verb, network, addr, wait string
		_, _ = fmt.Sscan(line, &verb, &network, &addr, &wait)
		d, err := time.ParseDuration(wait)
		if err != nil {
			fmt.Println(err)
			continue
		}
		switch verb {
		case "ask":
			fmt.Println(ask(network, addr, d))
		case "hold": // as ask, and the connection stays
			if held, err = net.DialTimeout(network, addr, d); err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println(askAgain(held, d))
		case "again": // on that connection
			fmt.Println(askAgain(held, d))
		}
	}
}

// peerNetwork configures the peer's interface: the far end of a veth pair, or a tap whose frames are copied to and from the host's.
func peerNetwork(name, prefix, gateway string) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	dev := "wan1"
	if name != "wan" {
		dev = "eth0"
		if err := peerTap(dev, name); err != nil {
			return fmt.Errorf("tap: %w", err)
		}
	}
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway)})
}

// peerTap makes the guest's NIC: a tap of its own namespace, with the host's tap (file 3) as the wire.
func peerTap(dev, vm string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq(dev)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(l, ipam.MAC(vm)); err != nil {
		return err
	}
	wire := func(from, to int) {
		b := make([]byte, 1<<16)
		for {
			n, err := unix.Read(from, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return
			}
			_, _ = unix.Write(to, b[:n]) // a NIC that is down loses frames
		}
	}
	go wire(fd, 3)
	go wire(3, fd)
	return nil
}

// peerServe answers everybody who asks.
func peerServe(name string) error {
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: servicePort})
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: servicePort})
	if err != nil {
		return err
	}
	answer := func(from net.Addr) []byte {
		return fmt.Appendf(nil, "%s saw %s", name, netip.MustParseAddrPort(from.String()).Addr())
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 200)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write(answer(c.RemoteAddr())); err != nil {
						return
					}
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 200)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(answer(from), from)
		}
	}()
	return nil
}
