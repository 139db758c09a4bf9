package netdev_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
)

const wanHost2 = "198.51.100.3/24" // a second address of the host, on the same interface as wanHost

func everywhere(host, guest uint16, protocol string) netdev.Publish {
	return netdev.Publish{HostPort: host, GuestPort: guest, Protocol: protocol}
}

func on(ip string, host, guest uint16, protocol string) netdev.Publish {
	return netdev.Publish{HostIP: netip.MustParseAddr(ip), HostPort: host, GuestPort: guest, Protocol: protocol}
}

// world is a host with two guests and a machine beyond.
type world struct {
	n            *netdev.Network
	a, b         netdev.Port
	guestA, wan  *peer
	guestB, host *peer
}

func newWorld(t *testing.T, cfg netdev.Config) *world {
	t.Helper()
	w := &world{n: newNetwork(t, cfg), host: &peer{t: t, name: "host"}}
	ensure(t, w.n)
	w.a, w.guestA = newPeerGuest(t, w.n, "a", "192.168.127.2")
	w.b, w.guestB = newPeerGuest(t, w.n, "b", "192.168.127.3")
	w.wan = startPeer(t, "wan", wanAddr, "198.51.100.1", nil)
	w.publish(t)
	// The guests' ports forward from here on.
	for _, g := range []string{"192.168.127.2:80", "192.168.127.3:80"} {
		if got := w.host.ask("tcp4", g, askTimeout); !strings.HasSuffix(got, " saw 192.168.127.1") {
			t.Fatalf("the guest at %s says %q to the host", g, got)
		}
	}
	return w
}

// publish publishes ports of guest b.
func (w *world) publish(t *testing.T, publish ...netdev.Publish) {
	t.Helper()
	w.b.Publish = publish
	if err := w.n.ApplyRules(t.Context(), []netdev.Port{w.a, w.b}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) peer(name string) *peer {
	switch name {
	case "a":
		return w.guestA
	case "b":
		return w.guestB
	case "wan":
		return w.wan
	}
	return w.host
}

// TestPublish asks for a published port from everywhere, and looks who the guest believes is asking.
func TestPublish(t *testing.T) {
	const (
		yes  = "yes"  // guest b answers, and saw what the case says
		none = "none" // nobody answers
	)
	cases := []struct {
		from, addr string
		port       uint16
		answer     string
		saw        string
	}{
		{"wan", "198.51.100.1", 8080, yes, "198.51.100.2"},
		{"wan", "198.51.100.3", 8080, yes, "198.51.100.2"},
		{"host", "127.0.0.1", 8080, yes, "192.168.127.1"},
		{"host", "127.1.2.3", 8080, yes, "192.168.127.1"},
		{"host", "198.51.100.1", 8080, yes, "198.51.100.1"},
		{"host", "192.168.127.1", 8080, yes, "192.168.127.1"},
		{"a", "192.168.127.1", 8080, yes, "192.168.127.1"},
		{"a", "198.51.100.1", 8080, yes, "192.168.127.1"},
		{"b", "198.51.100.1", 8080, yes, "192.168.127.1"}, // itself
		{"b", "192.168.127.1", 8080, yes, "192.168.127.1"},

		// One address.
		{"wan", "198.51.100.3", 8081, yes, "198.51.100.2"},
		{"wan", "198.51.100.1", 8081, none, ""},
		{"host", "198.51.100.3", 8081, yes, "198.51.100.1"}, // the interface's first address
		{"host", "127.0.0.1", 8081, none, ""},
		{"a", "198.51.100.3", 8081, yes, "192.168.127.1"},
		{"a", "192.168.127.1", 8081, none, ""},

		// Loopback.
		{"host", "127.0.0.1", 8082, yes, "192.168.127.1"},
		{"host", "198.51.100.1", 8082, none, ""},
		{"wan", "198.51.100.1", 8082, none, ""},
		{"a", "192.168.127.1", 8082, none, ""},

		// Not published, and another protocol's.
		{"wan", "198.51.100.1", 80, none, ""},
		{"wan", "198.51.100.1", 8083, none, ""},
		{"wan", "192.168.127.3", 80, none, ""},
		// What passes the host on its way elsewhere is not the host's.
		{"a", "198.51.100.2", 8080, none, ""},
	}
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			setBridgeNF(t, nf)
			w := newWorld(t, testConfig())
			for _, network := range []string{"tcp4", "udp4"} {
				protocol, other := "tcp", "udp"
				if network == "udp4" {
					protocol, other = other, protocol
				}
				w.publish(t, everywhere(8080, servicePort, protocol), on("198.51.100.3", 8081, servicePort, protocol),
					on("127.0.0.1", 8082, servicePort, protocol), everywhere(8083, servicePort, other))
				for _, c := range cases {
					wait := askTimeout
					if c.answer == none {
						wait = noTimeout
					}
					addr := netip.AddrPortFrom(netip.MustParseAddr(c.addr), c.port).String()
					got, want := w.peer(c.from).ask(network, addr, wait), ""
					if c.answer == yes {
						want = "b saw " + c.saw
					}
					if got != want {
						t.Errorf("%s asks %s %s: %q, want %q", c.from, network, addr, got, want)
					}
				}
			}
		})
	}
}

// TestUnpublish shows that a port opens and closes with the rules, for connections that are open as well.
func TestUnpublish(t *testing.T) {
	setBridgeNF(t, "0")
	for _, protocol := range []string{"tcp", "udp"} {
		t.Run(protocol, func(t *testing.T) {
			w := newWorld(t, testConfig())
			network := protocol + "4"
			const addr, answer = "198.51.100.1:8080", "b saw 198.51.100.2"
			if protocol == "udp" {
				// A client that asks before there is a guest, and goes on with the same socket.
				if got := w.wan.tell(fmt.Sprintf("hold udp4 %s %s", addr, noTimeout)); got != "" {
					t.Errorf("before: %q, want nothing", got)
				}
				w.publish(t, everywhere(8080, servicePort, protocol))
				if got := w.wan.tell(fmt.Sprintf("again - - %s", askTimeout)); got != answer {
					t.Errorf("the client that was early hears %q, want %q", got, answer)
				}
			}
			w.publish(t, everywhere(8080, servicePort, protocol))
			if got := w.wan.tell(fmt.Sprintf("hold %s %s %s", network, addr, askTimeout)); got != answer {
				t.Errorf("published: %q, want %q", got, answer)
			}
			w.publish(t, everywhere(8080, servicePort, protocol), everywhere(8081, servicePort, "tcp"))
			if got := w.wan.tell(fmt.Sprintf("again - - %s", askTimeout)); got != answer {
				t.Errorf("an open connection after another change: %q, want %q", got, answer)
			}
			w.publish(t)
			if got := w.wan.tell(fmt.Sprintf("again - - %s", noTimeout)); got != "" {
				t.Errorf("an open connection after the port was closed: %q, want nothing", got)
			}
			if got := w.wan.ask(network, addr, noTimeout); got != "" {
				t.Errorf("closed: %q, want nothing", got)
			}
			// Another guest may have the port at once.
			w.a.Publish = []netdev.Publish{everywhere(8080, servicePort, protocol)}
			w.publish(t)
			if got, want := w.wan.ask(network, addr, askTimeout), "a saw 198.51.100.2"; got != want {
				t.Errorf("published for another guest: %q, want %q", got, want)
			}
		})
	}
}

// TestPublishIsolated shows that a published port is no way around isolation.
func TestPublishIsolated(t *testing.T) {
	setBridgeNF(t, "0")
	cfg := testConfig()
	cfg.Isolate = true
	w := newWorld(t, cfg)
	w.publish(t, everywhere(8080, servicePort, "tcp"))
	if got, want := w.wan.ask("tcp4", "198.51.100.1:8080", askTimeout), "b saw 198.51.100.2"; got != want {
		t.Errorf("from beyond: %q, want %q", got, want)
	}
	if got, want := w.host.ask("tcp4", "127.0.0.1:8080", askTimeout), "b saw 192.168.127.1"; got != want {
		t.Errorf("from the host: %q, want %q", got, want)
	}
	if got := w.guestA.ask("tcp4", "198.51.100.1:8080", noTimeout); got != "" {
		t.Errorf("from the other guest: %q, want nothing", got)
	}
}

// TestLoopbackGuard sends frames to and from 127.0.0.0/8 into the bridge while a port is published on loopback.
func TestLoopbackGuard(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			setBridgeNF(t, nf)
			n := newNetwork(t, testConfig())
			ensure(t, n)
			const sysctl = "/proc/sys/net/ipv4/conf/vbr0/route_localnet"
			want := func(what, value string) {
				t.Helper()
				if b, err := os.ReadFile(sysctl); err != nil || string(b) != value+"\n" {
					t.Errorf("%s: route_localnet is %q, %v, want %s", what, b, err, value)
				}
			}
			g := newGuest(t, n, "a", "192.168.127.2")
			b := newGuest(t, n, "b", "192.168.127.3")
			apply(t, n, g, b)
			connect(t, g, b)
			want("nothing published", "0")
			g.Publish = []netdev.Publish{on("192.168.127.1", 8080, 80, "udp")}
			apply(t, n, g, b)
			want("published on another address", "0")
			g.Publish = []netdev.Publish{everywhere(8080, 80, "udp")}
			apply(t, n, g, b)
			want("published everywhere", "1")

			lo, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7000})
			if err != nil {
				t.Fatal(err)
			}
			defer lo.Close()
			all, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 168, 127, 1), Port: 7000})
			if err != nil {
				t.Fatal(err)
			}
			defer all.Close()
			gw := link(t, "vbr0").Attrs().HardwareAddr
			say := func(src, dst, text string) {
				send(t, g.file, ethernet(gw, g.MAC, unix.ETH_P_IP, udp(netip.MustParseAddr(src), netip.MustParseAddr(dst), 9, 7000, text)))
			}
			hears := func(c *net.UDPConn, wait time.Duration) string {
				buf := make([]byte, 100)
				_ = c.SetReadDeadline(time.Now().Add(wait))
				k, _, err := c.ReadFromUDP(buf)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				return string(buf[:k])
			}
			say("192.168.127.2", "127.0.0.1", "attack")
			say("192.168.127.2", "192.168.127.1", "mark")
			if got := hears(all, askTimeout); got != "mark" {
				t.Fatalf("the gateway's address hears %q, want the mark", got)
			}
			if got := hears(lo, time.Millisecond); got != "" {
				t.Errorf("127.0.0.1 hears %q from a guest, want nothing", got)
			}

			// Without the rules both would arrive: the test shows something.
			if err := netdev.RemoveTables(t.Context()); err != nil {
				t.Fatal(err)
			}
			say("192.168.127.2", "127.0.0.1", "attack")
			if got := hears(lo, askTimeout); got != "attack" {
				t.Errorf("without rules 127.0.0.1 hears %q: the case would show nothing", got)
			}

			g.Publish = nil
			apply(t, n, g, b)
			want("nothing published any more", "0")
			g.Publish = []netdev.Publish{on("127.0.0.1", 8080, 80, "udp")}
			apply(t, n, g, b)
			want("published on loopback", "1")
			if err := n.Teardown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(sysctl); err == nil {
				t.Error("the bridge survived Teardown")
			}
		})
	}
}

// TestLoopbackDisguise sends a frame from 127.0.0.1 out of a bridge port that is not a tap of ours, as an administrator may add one, into a
// host that does not look whether a source is its own address (accept_local).
func TestLoopbackDisguise(t *testing.T) {
	setBridgeNF(t, "0")
	n := newNetwork(t, testConfig())
	ensure(t, n)
	g := newGuest(t, n, "a", "192.168.127.2")
	g.Publish = []netdev.Publish{everywhere(8080, 80, "udp")}
	apply(t, n, g)
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/vbr0/accept_local", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	wire := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, NonPersist: true, Queues: 1}
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	defer wire.Fds[0].Close()
	if err := netlink.LinkSetMaster(wire, link(t, "vbr0")); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(wire); err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 168, 127, 1), Port: 7000})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	gw := link(t, "vbr0").Attrs().HardwareAddr
	say := func(src, text string) {
		send(t, wire.Fds[0], ethernet(gw, net.HardwareAddr{2, 0, 0, 0, 0, 9}, unix.ETH_P_IP,
			udp(netip.MustParseAddr(src), netip.MustParseAddr("192.168.127.1"), 9, 7000, text)))
	}
	// hears sends from 127.0.0.1, then marks until one arrives, and reports whether the former came before.
	hears := func() bool {
		t.Helper()
		buf := make([]byte, 100)
		for range 100 {
			say("127.0.0.1", "disguise")
			say("192.168.127.9", "mark")
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			switch k, _, err := conn.ReadFromUDP(buf); {
			case err == nil:
				return string(buf[:k]) == "disguise"
			case !errors.Is(err, os.ErrDeadlineExceeded):
				t.Fatal(err)
			}
		}
		t.Fatal("the mark did not arrive")
		return false
	}
	if hears() {
		t.Error("the host hears a packet from 127.0.0.1 that came over the bridge")
	}
	if err := netdev.RemoveTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !hears() {
		t.Error("without rules it does not either: this test shows nothing")
	}
}
