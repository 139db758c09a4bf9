package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/testdata/need"
)

const testPrefix = "192.168.127.1/24"

func testConfig() netdev.Config {
	return netdev.Config{Bridge: "vbr0", Prefix: netip.MustParsePrefix(testPrefix)}
}

// newNetwork returns a network that is torn down, and checked to be gone, at the end of the test.
func newNetwork(t testing.TB, cfg netdev.Config) *netdev.Network {
	t.Helper()
	needNetns(t)
	n, err := netdev.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	before := devices(t)
	t.Cleanup(func() {
		if err := n.Teardown(context.Background()); err != nil {
			t.Errorf("Teardown: %v", err)
		}
		if after := devices(t); !slices.Equal(before, after) {
			t.Errorf("devices after Teardown: %v, want %v", after, before)
		}
		if tables := tables(t); len(tables) > 0 {
			t.Errorf("tables after Teardown: %v, want none", tables)
		}
	})
	return n
}

func ensure(t testing.TB, n *netdev.Network) netdev.Report {
	t.Helper()
	r, err := n.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// devices lists the names of all interfaces.
func devices(t testing.TB) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// tables lists all nftables tables.
func tables(t testing.TB) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tb := range list {
		names = append(names, fmt.Sprintf("%d %s", tb.Family, tb.Name))
	}
	return names
}

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addrsOf(t testing.TB, name string) []string {
	t.Helper()
	list, err := netlink.AddrList(link(t, name), netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var ss []string
	for _, a := range list {
		ss = append(ss, a.IPNet.String())
	}
	return ss
}

func TestNew(t *testing.T) {
	tests := []struct {
		name string
		edit func(*netdev.Config)
		text string // "" means ok
	}{
		{name: "ok", edit: func(c *netdev.Config) {}},
		{name: "15 characters", edit: func(c *netdev.Config) { c.Bridge = "br-456789012345" }},
		{name: "no name", edit: func(c *netdev.Config) { c.Bridge = "" }, text: "1 to 15"},
		{name: "16 characters", edit: func(c *netdev.Config) { c.Bridge = "br-4567890123456" }, text: "1 to 15"},
		{name: "path", edit: func(c *netdev.Config) { c.Bridge = "../x" }, text: "letters"},
		{name: "space", edit: func(c *netdev.Config) { c.Bridge = "a b" }, text: "letters"},
		{name: "tap name", edit: func(c *netdev.Config) { c.Bridge = "vlt0" }, text: "are for taps"},
		{name: "no prefix", edit: func(c *netdev.Config) { c.Prefix = netip.Prefix{} }, text: "malformed"},
		{name: "no host", edit: func(c *netdev.Config) { c.Prefix = netip.MustParsePrefix("10.0.0.0/24") }, text: "network or broadcast"},
		{name: "IPv6", edit: func(c *netdev.Config) { c.Prefix = netip.MustParsePrefix("fd00::1/64") }, text: "only IPv4"},
		{name: "small MTU", edit: func(c *netdev.Config) { c.MTU = 100 }, text: "MTU 100"},
		{name: "large MTU", edit: func(c *netdev.Config) { c.MTU = 65536 }, text: "MTU 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			tt.edit(&cfg)
			_, err := netdev.New(cfg)
			if (err == nil) != (tt.text == "") || (err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("New(%+v) = %v, want %q", cfg, err, tt.text)
			}
		})
	}
}

func TestTapName(t *testing.T) {
	// Pinned: a daemon must find the taps that an older one made.
	if got, want := netdev.TapName("web"), "vlta712ad54bf9f"; got != want {
		t.Errorf("TapName(web) = %s, want %s", got, want)
	}
	seen := map[string]bool{}
	for i := range 5000 {
		name := netdev.TapName(fmt.Sprint(i))
		if len(name) > 15 || seen[name] {
			t.Fatalf("TapName(%d) = %s: too long or seen before", i, name)
		}
		seen[name] = true
	}
}

func TestEnsure(t *testing.T) {
	n := newNetwork(t, testConfig())
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	r := ensure(t, n)
	if !r.BridgeCreated || !r.ForwardingEnabled {
		t.Errorf("first Ensure = %+v, want bridge created and forwarding enabled", r)
	}
	br := link(t, "vbr0")
	a := br.Attrs()
	if br.Type() != "bridge" || a.Alias != "volant" || a.MTU != 1500 || a.Flags&unix.IFF_UP == 0 {
		t.Errorf("bridge is %s, alias %q, MTU %d, flags %x", br.Type(), a.Alias, a.MTU, a.Flags)
	}
	if a.HardwareAddr.String() != ipam.MAC("bridge vbr0").String() {
		t.Errorf("bridge MAC is %s, want the derived %s", a.HardwareAddr, ipam.MAC("bridge vbr0"))
	}
	if got := addrsOf(t, "vbr0"); !slices.Equal(got, []string{testPrefix}) {
		t.Errorf("bridge addresses are %v, want %s", got, testPrefix)
	}
	if b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(b) != "1\n" {
		t.Errorf("ip_forward is %q, want 1", b)
	}
	if got := len(tables(t)); got != 2 {
		t.Errorf("%d tables, want 2", got)
	}

	port := netdev.Port{Tap: netdev.TapName("web"), MAC: ipam.MAC("web"), IP: netip.MustParseAddr("192.168.127.2")}
	if err := n.ApplyRules(t.Context(), []netdev.Port{port}); err != nil {
		t.Fatal(err)
	}
	r = ensure(t, n)
	if r.BridgeCreated || r.ForwardingEnabled {
		t.Errorf("second Ensure = %+v, want nothing changed", r)
	}
	if again := link(t, "vbr0").Attrs(); again.Index != a.Index {
		t.Errorf("second Ensure made another bridge: index %d, was %d", again.Index, a.Index)
	}
	if got := len(portsOf(t)); got != 1 {
		t.Errorf("second Ensure left %d ports, want 1", got)
	}
}

// TestBridgeAddressChange moves our own bridge to another prefix, which is refused while taps use it.
func TestBridgeAddressChange(t *testing.T) {
	n := newNetwork(t, testConfig())
	ensure(t, n)
	cfg := testConfig()
	cfg.Prefix, cfg.MTU = netip.MustParsePrefix("10.99.0.1/16"), 9000
	moved, err := netdev.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.AddTap(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := moved.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "1 VMs use it") {
		t.Errorf("Ensure with another prefix and a tap = %v, want a refusal", err)
	}
	if got := addrsOf(t, "vbr0"); !slices.Equal(got, []string{testPrefix}) {
		t.Errorf("after the refusal the bridge has %v, want %s", got, testPrefix)
	}
	if err := n.RemoveTap(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	ensure(t, moved)
	if got := addrsOf(t, "vbr0"); !slices.Equal(got, []string{"10.99.0.1/16"}) || link(t, "vbr0").Attrs().MTU != 9000 {
		t.Errorf("after the move the bridge has %v and MTU %d, want 10.99.0.1/16 and 9000", got, link(t, "vbr0").Attrs().MTU)
	}
}

func TestForeignBridge(t *testing.T) {
	addBridge := func(t *testing.T, mac net.HardwareAddr, addrs ...string) {
		t.Helper()
		needNetns(t)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "vbr0", mac
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if l, err := netlink.LinkByName("vbr0"); err == nil {
				_ = netlink.LinkDel(l)
			}
		})
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link(t, "vbr0"), a); err != nil {
				t.Fatal(err)
			}
		}
	}
	refused := func(t *testing.T, text string) {
		t.Helper()
		n := newNetwork(t, testConfig()) // its Cleanup shows that Teardown leaves the device
		before := addrsOf(t, "vbr0")
		_, err := n.Ensure(t.Context())
		if !errors.Is(err, netdev.ErrForeign) || !strings.Contains(err.Error(), text) {
			t.Errorf("Ensure = %v, want %v with %q", err, netdev.ErrForeign, text)
		}
		if after := addrsOf(t, "vbr0"); !slices.Equal(before, after) || link(t, "vbr0").Attrs().Alias != "" {
			t.Errorf("Ensure changed the bridge: %v to %v", before, after)
		}
	}
	t.Run("no address", func(t *testing.T) {
		addBridge(t, nil)
		refused(t, "has no address instead of "+testPrefix)
	})
	t.Run("another address", func(t *testing.T) {
		addBridge(t, nil, "10.1.2.3/8")
		refused(t, "has 10.1.2.3/8 instead of "+testPrefix)
	})
	t.Run("another length", func(t *testing.T) {
		addBridge(t, nil, "192.168.127.1/16")
		refused(t, "has 192.168.127.1/16")
	})
	t.Run("our address and another", func(t *testing.T) {
		addBridge(t, nil, testPrefix, "10.1.2.3/8")
		refused(t, "10.1.2.3/8")
	})
	t.Run("not a bridge", func(t *testing.T) {
		needNetns(t)
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vbr0"}, PeerName: "vbr0peer"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link(t, "vbr0")) })
		refused(t, "is a veth, not a bridge")
	})
	t.Run("same address is used and left", func(t *testing.T) {
		addBridge(t, nil, testPrefix)
		n := newNetwork(t, testConfig())
		if r := ensure(t, n); r.BridgeCreated {
			t.Error("Ensure says that it created the bridge")
		}
		if a := link(t, "vbr0").Attrs(); a.Alias != "" || a.Flags&unix.IFF_UP == 0 {
			t.Errorf("bridge has alias %q, flags %x, want none and up", a.Alias, a.Flags)
		}
	})
	t.Run("our own half made", func(t *testing.T) {
		needNetns(t)
		n := newNetwork(t, testConfig()) // first, so that the bridge counts as left behind if it stays
		addBridge(t, ipam.MAC("bridge vbr0"))
		if r := ensure(t, n); r.BridgeCreated {
			t.Error("Ensure says that it created the bridge")
		}
		if a := link(t, "vbr0").Attrs(); a.Alias != "volant" {
			t.Errorf("alias is %q, want volant", a.Alias)
		}
	})
}

func TestTap(t *testing.T) {
	n := newNetwork(t, testConfig())
	ctx := t.Context()
	if _, err := n.AddTap(ctx, "web"); !errors.Is(err, netdev.ErrNoBridge) {
		t.Errorf("AddTap before Ensure = %v, want %v", err, netdev.ErrNoBridge)
	}
	ensure(t, n)
	name, err := n.AddTap(ctx, "web")
	if err != nil || name != netdev.TapName("web") {
		t.Fatalf("AddTap(web) = %s, %v, want %s", name, err, netdev.TapName("web"))
	}
	l := link(t, name)
	a := l.Attrs()
	if a.Alias != "volant:web" || a.MasterIndex != link(t, "vbr0").Attrs().Index || a.Flags&unix.IFF_UP == 0 || a.MTU != 1500 {
		t.Errorf("tap has alias %q, master %d, flags %x, MTU %d", a.Alias, a.MasterIndex, a.Flags, a.MTU)
	}
	if tt, ok := l.(*netlink.Tuntap); !ok || tt.Mode != netlink.TUNTAP_MODE_TAP || tt.NonPersist || tt.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 {
		t.Errorf("tap is %+v, want a persistent single-queue tap", l)
	}

	t.Run("again", func(t *testing.T) {
		if err := netlink.LinkSetDown(l); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetNoMaster(l); err != nil {
			t.Fatal(err)
		}
		if again, err := n.AddTap(ctx, "web"); err != nil || again != name {
			t.Fatalf("AddTap(web) again = %s, %v", again, err)
		}
		b := link(t, name).Attrs()
		if b.Index != a.Index || b.MasterIndex != a.MasterIndex || b.Flags&unix.IFF_UP == 0 {
			t.Errorf("tap after the second AddTap: index %d, master %d, flags %x; was %d, %d", b.Index, b.MasterIndex, b.Flags, a.Index, a.MasterIndex)
		}
	})
	t.Run("traffic", func(t *testing.T) {
		f, err := n.OpenTap(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, before, err := n.Traffic(ctx, "web")
		if err != nil {
			t.Fatal(err)
		}
		const header, frame = 10, 600 // struct virtio_net_hdr, and what the guest sends
		if _, err := f.Write(make([]byte, header+frame)); err != nil {
			t.Fatal(err)
		}
		if received, sent, err := n.Traffic(ctx, "web"); err != nil || sent != before+frame || received < 0 {
			t.Errorf("Traffic(web) = %d, %d, %v, want %d sent", received, sent, err, before+frame)
		}
		if _, _, err := n.Traffic(ctx, "none"); !errors.Is(err, netdev.ErrNoTap) {
			t.Errorf("Traffic of a VM without tap: %v, want ErrNoTap", err)
		}
	})
	t.Run("list", func(t *testing.T) {
		if _, err := n.AddTap(ctx, "db"); err != nil {
			t.Fatal(err)
		}
		want := []netdev.Tap{{Name: netdev.TapName("web"), VM: "web"}, {Name: netdev.TapName("db"), VM: "db"}}
		slices.SortFunc(want, func(a, b netdev.Tap) int { return strings.Compare(a.Name, b.Name) })
		if got, err := n.Taps(ctx); err != nil || !slices.Equal(got, want) {
			t.Errorf("Taps() = %v, %v, want %v", got, err, want)
		}
	})
	t.Run("open", func(t *testing.T) {
		f, err := n.OpenTap(name)
		if err != nil {
			t.Fatal(err)
		}
		req, err := unix.NewIfreq("")
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNGETIFF, req); err != nil {
			t.Fatal(err)
		}
		want := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_PERSIST)
		if req.Name() != name || req.Uint16() != want {
			t.Errorf("file is bound to %s with flags %#x, want %s with %#x", req.Name(), req.Uint16(), name, want)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("file descriptor flags %x, %v, want close-on-exec", flags, err)
		}
		if _, err := n.OpenTap(name); !errors.Is(err, netdev.ErrBusy) {
			t.Errorf("second OpenTap = %v, want %v", err, netdev.ErrBusy)
		}
		f.Close()
		f, err = n.OpenTap(name)
		if err != nil {
			t.Fatalf("OpenTap after Close: %v", err)
		}
		f.Close()
	})
	t.Run("open none", func(t *testing.T) {
		if _, err := n.OpenTap("vlt000000000000"); !errors.Is(err, netdev.ErrNoTap) {
			t.Errorf("OpenTap of no tap = %v, want %v", err, netdev.ErrNoTap)
		}
		if _, err := n.OpenTap("vbr0"); !errors.Is(err, netdev.ErrForeign) {
			t.Errorf("OpenTap of the bridge = %v, want %v", err, netdev.ErrForeign)
		}
		if _, err := n.OpenTap("%d"); err == nil {
			t.Error("OpenTap of a pattern = nil, want an error")
		}
	})
	t.Run("remove", func(t *testing.T) {
		for i := range 2 {
			if err := n.RemoveTap(ctx, "web"); err != nil {
				t.Errorf("RemoveTap %d: %v", i, err)
			}
		}
		if slices.Contains(devices(t), name) {
			t.Errorf("%s is still there", name)
		}
	})
	t.Run("bad id", func(t *testing.T) {
		for _, id := range []string{"", "a b", "a\nb", "ä", strings.Repeat("x", 129)} {
			if _, err := n.AddTap(ctx, id); err == nil {
				t.Errorf("AddTap(%q) = nil, want an error", id)
			}
			if err := n.RemoveTap(ctx, id); err == nil {
				t.Errorf("RemoveTap(%q) = nil, want an error", id)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := n.AddTap(gone, "late"); !errors.Is(err, context.Canceled) {
			t.Errorf("AddTap = %v, want %v", err, context.Canceled)
		}
		if slices.Contains(devices(t), netdev.TapName("late")) {
			t.Error("AddTap made a tap all the same")
		}
	})
}

// TestForeignTap puts devices in the way that have a tap's name and are not that VM's.
func TestForeignTap(t *testing.T) {
	tests := []struct {
		name  string
		alias string
		kind  netlink.TuntapMode
		text  string
	}{
		{name: "no alias", kind: netlink.TUNTAP_MODE_TAP, text: `alias ""`},
		{name: "alias of another program", alias: "libvirt", kind: netlink.TUNTAP_MODE_TAP, text: `alias "libvirt"`},
		{name: "tap of another VM", alias: "volant:db", kind: netlink.TUNTAP_MODE_TAP, text: `VM "db"`},
		{name: "not a tap", alias: "volant:web", kind: netlink.TUNTAP_MODE_TUN, text: "has the name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, testConfig())
			ensure(t, n)
			tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: netdev.TapName("web")}, Mode: tt.kind, Flags: netlink.TUNTAP_NO_PI}
			if err := netlink.LinkAdd(tap); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = netlink.LinkDel(tap) })
			if err := netlink.LinkSetAlias(tap, tt.alias); err != nil {
				t.Fatal(err)
			}
			before := link(t, tap.Name).Attrs()
			if _, err := n.AddTap(t.Context(), "web"); !errors.Is(err, netdev.ErrForeign) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("AddTap = %v, want %v with %q", err, netdev.ErrForeign, tt.text)
			}
			if err := n.RemoveTap(t.Context(), "web"); !errors.Is(err, netdev.ErrForeign) {
				t.Errorf("RemoveTap = %v, want %v", err, netdev.ErrForeign)
			}
			after := link(t, tap.Name).Attrs()
			if after.Index != before.Index || after.Alias != tt.alias || after.MasterIndex != 0 {
				t.Errorf("device changed: index %d alias %q master %d", after.Index, after.Alias, after.MasterIndex)
			}
			if tt.alias == "volant:db" { // a tap of ours, though not this VM's, goes with Teardown
				if err := netlink.LinkSetAlias(tap, "other"); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Teardown(t.Context()); err != nil {
				t.Errorf("Teardown: %v", err)
			}
			if !slices.Contains(devices(t), tap.Name) {
				t.Error("Teardown removed a device that is not ours")
			}
			if err := netlink.LinkDel(tap); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestManyTaps adds and removes taps for many VMs at once.
func TestManyTaps(t *testing.T) {
	const vms = 50
	n := newNetwork(t, testConfig())
	ensure(t, n)
	each := func(do func(vm string) error) time.Duration {
		start := time.Now()
		var wg sync.WaitGroup
		for i := range vms {
			wg.Go(func() {
				if err := do(fmt.Sprintf("vm-%d", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	added := each(func(vm string) error { _, err := n.AddTap(t.Context(), vm); return err })
	if taps, err := n.Taps(t.Context()); err != nil || len(taps) != vms {
		t.Errorf("Taps() has %d, %v, want %d", len(taps), err, vms)
	}
	removed := each(func(vm string) error { return n.RemoveTap(t.Context(), vm) })
	if taps, err := n.Taps(t.Context()); err != nil || len(taps) != 0 {
		t.Errorf("Taps() has %v, %v, want none", taps, err)
	}
	t.Logf("%d taps: added in %v, removed in %v", vms, added, removed)
}

// TestBridgeFull attaches one VM too many, and so also shows that an AddTap that fails half way leaves nothing.
func TestBridgeFull(t *testing.T) {
	need.Long(t) // 1,023 taps: 5 s
	n := newNetwork(t, testConfig())
	ensure(t, n)
	for i := range 1023 {
		if _, err := n.AddTap(t.Context(), fmt.Sprintf("vm-%d", i)); err != nil {
			t.Fatalf("AddTap %d: %v", i, err)
		}
	}
	if _, err := n.AddTap(t.Context(), "one-more"); !errors.Is(err, netdev.ErrFull) {
		t.Errorf("AddTap 1024 = %v, want %v", err, netdev.ErrFull)
	}
	if slices.Contains(devices(t), netdev.TapName("one-more")) {
		t.Error("the tap that could not be attached is still there")
	}
	if taps, err := n.Taps(t.Context()); err != nil || len(taps) != 1023 {
		t.Errorf("Taps() has %d, %v, want 1023", len(taps), err)
	}
	start := time.Now()
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("Teardown of 1023 taps took %v", time.Since(start))
}

// portsOf reads the elements of the set of ports.
func portsOf(t testing.TB) []nftables.SetElement {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	set, err := c.GetSetByName(&nftables.Table{Name: "volant", Family: nftables.TableFamilyBridge}, "ports")
	if err != nil {
		t.Fatal(err)
	}
	es, err := c.GetSetElements(set)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

// ruleset lists all rules as the stock nft shows them.
func ruleset(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

func TestApplyRules(t *testing.T) {
	needNetns(t)
	need.Tool(t, "nft")
	cfg := testConfig()
	cfg.Isolate = true
	n := newNetwork(t, cfg)
	ensure(t, n)
	other := exec.Command("nft", "add", "table", "inet", "other")
	if out, err := other.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command("nft", "delete", "table", "inet", "other").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}()
	web := netdev.Port{Tap: "vltaaaaaaaaaaaa", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, IP: netip.MustParseAddr("192.168.127.2"),
		Publish: []netdev.Publish{everywhere(8080, 80, "tcp"), on("127.0.0.1", 53, 5353, "udp")}}
	db := netdev.Port{Tap: "vltbbbbbbbbbbbb", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, IP: netip.MustParseAddr("192.168.127.3")}
	apply := func(ports ...netdev.Port) error { return n.ApplyRules(t.Context(), ports) }

	if err := apply(web); err != nil {
		t.Fatal(err)
	}
	const want = `table bridge volant {
	set ports {
		type ifname . ether_addr . ipv4_addr
		elements = { "vltaaaaaaaaaaaa" . 02:00:00:00:00:01 . 192.168.127.2 }
	}

	chain guest {
		iifname . ether saddr . ip saddr @ports accept
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
		counter drop
	}

	chain prerouting {
		type filter hook prerouting priority dstnat; policy accept;
		iifname "vlt*" jump guest
	}
}
table ip volant {
	map publish {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 192.168.127.2 . 80 }
	}

	map publish_on {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 127.0.0.1 . udp . 53 : 192.168.127.2 . 5353 }
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 192.168.127.0/24 oifname != "vbr0" masquerade
		ip saddr 192.168.127.0/24 oifname "vbr0" ct status dnat masquerade
		ip saddr 127.0.0.0/8 oifname "vbr0" masquerade
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "vbr0" oifname "vbr0" drop
		iifname != "vbr0" oifname "vbr0" ct state established,related accept
		iifname != "vbr0" oifname "vbr0" ct status dnat accept
		iifname != "vbr0" oifname "vbr0" counter drop
	}

	chain raw {
		type filter hook prerouting priority raw; policy accept;
		iifname "vbr0" ip daddr 127.0.0.0/8 drop
		iifname "vbr0" ip saddr 127.0.0.0/8 drop
	}

	chain published {
		dnat ip to ip daddr . meta l4proto . th dport map @publish_on
		dnat ip to meta l4proto . th dport map @publish
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump published
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump published
	}
}
table inet other {
}
`
	sorted := func(s string) string { // the order of tables is that of their making
		parts := strings.SplitAfter(s, "\n}\n")
		slices.Sort(parts)
		return strings.Join(parts, "")
	}
	if got := ruleset(t); sorted(got) != sorted(want) {
		t.Errorf("rules are\n%s\nwant\n%s", got, want)
	}

	t.Run("again", func(t *testing.T) {
		if err := apply(web); err != nil {
			t.Fatal(err)
		}
		if got := ruleset(t); sorted(got) != sorted(want) {
			t.Errorf("rules are\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("replaced whole", func(t *testing.T) {
		if err := apply(db); err != nil {
			t.Fatal(err)
		}
		if got := ruleset(t); strings.Contains(got, web.Tap) || !strings.Contains(got, db.Tap) {
			t.Errorf("rules are\n%s\nwant %s and not %s", got, db.Tap, web.Tap)
		}
	})
	t.Run("refused", func(t *testing.T) {
		before := ruleset(t)
		edit := func(p netdev.Port, f func(*netdev.Port)) netdev.Port { f(&p); return p }
		publish := func(ps ...netdev.Publish) func(*netdev.Port) { return func(p *netdev.Port) { p.Publish = ps } }
		for _, tt := range []struct {
			text  string
			ports []netdev.Port
		}{
			{"named twice", []netdev.Port{web, edit(db, func(p *netdev.Port) { p.Tap = web.Tap })}},
			{"is also that of", []netdev.Port{web, edit(db, func(p *netdev.Port) { p.MAC = web.MAC })}},
			{"is also that of", []netdev.Port{web, edit(db, func(p *netdev.Port) { p.IP = web.IP })}},
			{"not the name of a tap", []netdev.Port{edit(web, func(p *netdev.Port) { p.Tap = "eth0" })}},
			{"1 to 15", []netdev.Port{edit(web, func(p *netdev.Port) { p.Tap = "vlt" + strings.Repeat("x", 13) })}},
			{"not a unicast", []netdev.Port{edit(web, func(p *netdev.Port) { p.MAC = broadcast() })}},
			{"not a unicast", []netdev.Port{edit(web, func(p *netdev.Port) { p.MAC = nil })}},
			{"not an address for a guest", []netdev.Port{edit(web, func(p *netdev.Port) { p.IP = netip.Addr{} })}},
			{"not an address for a guest", []netdev.Port{edit(web, func(p *netdev.Port) { p.IP = netip.MustParseAddr("192.168.127.1") })}},
			{"not an address for a guest", []netdev.Port{edit(web, func(p *netdev.Port) { p.IP = netip.MustParseAddr("192.168.128.2") })}},
			{"not an address for a guest", []netdev.Port{edit(web, func(p *netdev.Port) { p.IP = netip.MustParseAddr("fd00::2") })}},
			{"publish 127.0.0.1:8080/tcp: 8080/tcp is published for " + web.Tap, []netdev.Port{web, edit(db, publish(on("127.0.0.1", 8080, 1, "tcp")))}},
			{"publish 53/udp: 127.0.0.1:53/udp is published for " + web.Tap, []netdev.Port{web, edit(db, publish(everywhere(53, 1, "udp")))}},
			{"publish 80/tcp: 80/tcp is published for " + db.Tap, []netdev.Port{edit(db, publish(everywhere(80, 1, "tcp"), everywhere(80, 2, "tcp")))}},
			{"neither tcp nor udp", []netdev.Port{edit(db, publish(everywhere(80, 1, "icmp")))}},
		} {
			if err := apply(tt.ports...); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("ApplyRules(%v) = %v, want %q", tt.ports, err, tt.text)
			}
		}
		if after := ruleset(t); before != after {
			t.Errorf("a refused call changed the rules to\n%s", after)
		}
	})
}

// TestManyPorts applies 10,000 ports, which takes more than one message and more than a default socket buffer.
func TestManyPorts(t *testing.T) {
	cfg := testConfig()
	cfg.Prefix = netip.MustParsePrefix("10.0.0.1/16")
	n := newNetwork(t, cfg)
	ensure(t, n)
	var ports []netdev.Port
	ip := netip.MustParseAddr("10.0.0.2")
	for i := range 10000 {
		id := fmt.Sprintf("vm-%d", i)
		ports = append(ports, netdev.Port{Tap: netdev.TapName(id), MAC: ipam.MAC(id), IP: ip,
			Publish: []netdev.Publish{everywhere(uint16(20000+i), 80, "tcp"), on("10.0.0.1", uint16(20000+i), 53, "udp")}})
		ip = ip.Next()
	}
	start := time.Now()
	if err := n.ApplyRules(t.Context(), ports); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ports in %v", len(ports), time.Since(start))
	if got := len(portsOf(t)); got != len(ports) {
		t.Errorf("set has %d elements, want %d", got, len(ports))
	}
}

// TestNoPrivilege calls everything as an ordinary user.
func TestNoPrivilege(t *testing.T) {
	n := newNetwork(t, testConfig())
	ensure(t, n)
	if _, err := n.AddTap(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	other := testConfig()
	other.Bridge = "vbr1"
	second, err := netdev.New(other)
	if err != nil {
		t.Fatal(err)
	}
	calls := []struct {
		name string
		do   func() error
	}{
		{"Ensure", func() error { _, err := second.Ensure(t.Context()); return err }},
		{"AddTap", func() error { _, err := n.AddTap(t.Context(), "db"); return err }},
		{"RemoveTap", func() error { return n.RemoveTap(t.Context(), "web") }},
		{"OpenTap", func() error { _, err := n.OpenTap(netdev.TapName("web")); return err }},
		{"ApplyRules", func() error { return n.ApplyRules(t.Context(), nil) }},
	}
	errs := make([]error, len(calls))
	unprivileged(t, func() {
		for i, c := range calls {
			errs[i] = c.do()
		}
	})
	for i, c := range calls {
		if err := errs[i]; !errors.Is(err, fs.ErrPermission) || strings.Count(err.Error(), "needs root or CAP_NET_ADMIN") != 1 {
			t.Errorf("%s = %v, want one hint at CAP_NET_ADMIN", c.name, err)
		}
	}
}

// TestTapOwner opens a tap as an ordinary user, on a host where everybody may open /dev/net/tun, as distributions have it.
// A tap without an owner is open to all.
func TestTapOwner(t *testing.T) {
	needNetns(t)
	dir := t.TempDir() // in a directory of mode 0700
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	tun := dir + "/tun"
	if err := unix.Mknod(tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tun, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		owner uint32
		want  error
	}{
		{owner: 0, want: fs.ErrPermission},
		{owner: nobody + 1, want: fs.ErrPermission},
		{owner: nobody},
	} {
		t.Run(fmt.Sprint(tt.owner), func(t *testing.T) {
			cfg := testConfig()
			cfg.TapOwner = tt.owner
			n := newNetwork(t, cfg)
			ensure(t, n)
			n.SetTunDev(tun)
			name, err := n.AddTap(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			unprivileged(t, func() {
				f, err := n.OpenTap(name)
				if err == nil {
					f.Close()
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("OpenTap as %d of a tap of %d = %v, want %v", nobody, tt.owner, err, tt.want)
				}
			})
		})
	}
}

// nobody is a user without privileges.
const nobody = 65534

// unprivileged runs f as nobody, on a thread that ends with it.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		// The system call itself: the function of that name changes all threads.
		if _, _, errno := unix.Syscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- errno
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNoTunDevice(t *testing.T) {
	n := newNetwork(t, testConfig())
	ensure(t, n)
	n.SetTunDev(t.TempDir() + "/tun")
	_, err := n.AddTap(t.Context(), "web")
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "load the module tun") {
		t.Errorf("AddTap = %v, want %v and what to do", err, errors.ErrUnsupported)
	}
}
