package guest

import (
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

// TestConfigureNIC works in a network namespace of its own, which ends with the
// test's thread.
func TestConfigureNIC(t *testing.T) {
	need.Root(t, "a network namespace")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		testConfigureNIC(t)
	}()
	<-done
}

func testConfigureNIC(t *testing.T) {
	cfg := wire.NetworkConfig{
		MAC: "02:56:00:00:00:07", Address: netip.MustParsePrefix("192.0.2.7/24"),
		Gateway: netip.MustParseAddr("192.0.2.1"), MTU: 1300,
	}
	if err := configureNIC(cfg, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), cfg.MAC) {
		t.Errorf("without the NIC configureNIC() = %v, want an error that names its address", err)
	}
	if err := loopbackUp(); err != nil {
		t.Error(err)
	}
	mac, _ := net.ParseMAC(cfg.MAC)
	nic := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nic", HardwareAddr: mac}, PeerName: "peer"}
	if err := netlink.LinkAdd(nic); err != nil {
		t.Errorf("add a veth: %v", err)
		return
	}
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Error(err)
		return
	}
	// A NIC without a carrier is configured all the same, a little later.
	start := time.Now()
	if err := configureNIC(cfg, time.Second); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < carrierTimeout || took > time.Minute {
		t.Errorf("without a carrier configureNIC() took %v, want about %v", took, carrierTimeout)
	}
	if err := netlink.LinkSetUp(peer); err != nil {
		t.Error(err)
	}
	if err := netlink.LinkSetDown(nic); err != nil {
		t.Error(err)
	}
	if err := netlink.AddrDel(nic, &netlink.Addr{IPNet: &net.IPNet{IP: cfg.Address.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Error(err)
	}
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		t.Error(err)
		return
	}
	defer news.Close()
	for range 2 { // a second time changes nothing
		if err := configureNIC(cfg, time.Second); err != nil {
			t.Error(err)
			return
		}
	}
	if state := stateAtFirstAddress(t, news, nic.Index); state != netlink.OperUp {
		t.Errorf("the NIC was %s when it got its address, want up", state)
	}
	link, err := netlink.LinkByName("nic")
	if err != nil {
		t.Error(err)
		return
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "192.0.2.7/24" {
		t.Errorf("addresses = %v, %v", addrs, err)
	}
	if link.Attrs().MTU != 1300 || link.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("link = %+v", link.Attrs())
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Error(err)
	}
	found := false
	for _, r := range routes {
		found = found || r.Gw.String() == "192.0.2.1"
	}
	if !found {
		t.Errorf("no default route in %v", routes)
	}
	testRewireNIC(t, cfg)
	cfg.Gateway = netip.MustParseAddr("198.51.100.1")
	if err := configureNIC(cfg, time.Second); err == nil || !strings.Contains(err.Error(), "198.51.100.1") {
		t.Errorf("with a gateway out of reach configureNIC() = %v, want an error that names it", err)
	}
}

// testRewireNIC gives the NIC of cfg another configuration, and then that back.
func testRewireNIC(t *testing.T, cfg wire.NetworkConfig) {
	t.Helper()
	to := wire.NetworkConfig{MAC: "02:56:00:00:00:08", Address: netip.MustParsePrefix("203.0.113.8/25"), Gateway: netip.MustParseAddr("203.0.113.1")}
	index := func() int {
		l, err := netlink.LinkByName("nic")
		if err != nil {
			t.Error(err)
			return 0
		}
		return l.Attrs().Index
	}()
	for _, ip := range []string{"192.0.2.1", "192.0.2.99"} {
		n := &netlink.Neigh{LinkIndex: index, IP: net.ParseIP(ip), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		if err := netlink.NeighAdd(n); err != nil {
			t.Error(err)
		}
	}
	_, elsewhere, _ := net.ParseCIDR("198.51.100.0/24")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: elsewhere, Gw: net.ParseIP("192.0.2.99")}); err != nil {
		t.Error(err)
	}
	check := func(want wire.NetworkConfig) {
		t.Helper()
		link, err := netlink.LinkByName("nic")
		if err != nil {
			t.Error(err)
			return
		}
		if link.Attrs().HardwareAddr.String() != want.MAC || link.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("link = %+v, want %s, up", link.Attrs(), want.MAC)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != want.Address.String() {
			t.Errorf("addresses = %v, %v, want %s", addrs, err, want.Address)
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		if err != nil || len(routes) != 2 { // to the gateway, and to its network
			t.Errorf("routes = %v, %v", routes, err)
		}
		neighbours, err := netlink.NeighList(index, netlink.FAMILY_V4)
		if err != nil {
			t.Error(err)
		}
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				t.Errorf("the neighbour %v is left", n)
			}
		}
	}
	for range 2 { // what was done in part, or all of it, can be done again
		if err := rewireNIC(cfg.MAC, &to, time.Second); err != nil {
			t.Error(err)
		}
		check(to)
	}
	if err := rewireNIC(to.MAC, nil, time.Second); err != nil {
		t.Error(err)
	}
	if link, err := netlink.LinkByName("nic"); err != nil || link.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("without a network the NIC is %+v, %v, want it down", link, err)
	}
	if err := rewireNIC(to.MAC, &cfg, time.Second); err != nil {
		t.Error(err)
	}
	check(cfg)
	if err := rewireNIC("", &wire.NetworkConfig{MAC: "02:56:00:00:00:99"}, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no NIC") {
		t.Errorf("without any such NIC rewireNIC() = %v", err)
	}
}

// stateAtFirstAddress reads what the kernel told of a link and its addresses,
// up to its first address, and returns the state that the link had then.
func stateAtFirstAddress(t *testing.T, news *nl.NetlinkSocket, index int) netlink.LinkOperState {
	t.Helper()
	if err := news.SetReceiveTimeout(&unix.Timeval{Sec: 10}); err != nil {
		t.Error(err)
	}
	state := netlink.LinkOperState(netlink.OperNotPresent)
	for {
		messages, _, err := news.Receive()
		if err != nil {
			t.Errorf("no address was added: %v", err)
			return state
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_NEWADDR {
				return state
			}
			link, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: m.Header.Type}, m.Data)
			if err != nil {
				t.Error(err)
			} else if link.Attrs().Index == index {
				state = link.Attrs().OperState
			}
		}
	}
}
