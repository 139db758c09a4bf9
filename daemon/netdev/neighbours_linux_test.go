package netdev_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
)

// TestNeighbours wants the bridge's permanent ARP entries to follow the ports,
// and those of others to stay.
func TestNeighbours(t *testing.T) {
	needNetns(t)
	n := newNetwork(t, testConfig())
	ensure(t, n)
	bridge := link(t, "vbr0").Attrs().Index
	entries := func() []string {
		t.Helper()
		list, err := netlink.NeighList(bridge, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range list {
			if e.State&unix.NUD_PERMANENT != 0 {
				out = append(out, e.IP.String()+" "+e.HardwareAddr.String())
			}
		}
		slices.Sort(out)
		return out
	}
	port := func(last byte) netdev.Port {
		return netdev.Port{Tap: "vlt" + string('a'+rune(last)), MAC: net.HardwareAddr{2, 0, 0, 0, 0, last}, IP: netip.AddrFrom4([4]byte{192, 168, 127, last})}
	}
	moved := port(3)
	moved.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}

	for _, step := range []struct {
		name  string
		ports []netdev.Port
		want  []string
	}{
		{"two", []netdev.Port{port(2), port(3)}, []string{"192.168.127.2 02:00:00:00:00:02", "192.168.127.3 02:00:00:00:00:03"}},
		{"again", []netdev.Port{port(3), port(2)}, []string{"192.168.127.2 02:00:00:00:00:02", "192.168.127.3 02:00:00:00:00:03"}},
		{"one gone, one with another MAC", []netdev.Port{moved}, []string{"192.168.127.3 02:00:00:00:00:09"}},
		{"none", nil, nil},
	} {
		if err := n.ApplyRules(t.Context(), step.ports); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := entries(); !slices.Equal(got, step.want) {
			t.Errorf("%s: permanent neighbours = %v, want %v", step.name, got, step.want)
		}
	}
}

// TestNeighboursOnForeignBridge wants a bridge that outlives us to keep its administrator's entries and none of ours.
func TestNeighboursOnForeignBridge(t *testing.T) {
	needNetns(t)
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vbr0"}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	addr, err := netlink.ParseAddr(testPrefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(br, addr); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t, testConfig())
	ensure(t, n)
	outside := net.IPv4(10, 9, 8, 7)
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: br.Index, State: unix.NUD_PERMANENT, IP: outside, HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}}); err != nil {
		t.Fatal(err)
	}
	port := netdev.Port{Tap: "vltweb", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, IP: netip.MustParseAddr("192.168.127.2")}
	if err := n.ApplyRules(t.Context(), []netdev.Port{port}); err != nil {
		t.Fatal(err)
	}
	permanent := func() []string {
		t.Helper()
		list, err := netlink.NeighList(br.Index, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		var ips []string
		for _, e := range list {
			if e.State&unix.NUD_PERMANENT != 0 {
				ips = append(ips, e.IP.String())
			}
		}
		slices.Sort(ips)
		return ips
	}
	if got, want := permanent(), []string{outside.String(), port.IP.String()}; !slices.Equal(got, want) {
		t.Errorf("permanent neighbours = %v, want %v", got, want)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := permanent(), []string{outside.String()}; !slices.Equal(got, want) {
		t.Errorf("permanent neighbours after Teardown = %v, want %v", got, want)
	}
}
