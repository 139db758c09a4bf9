package guest

import (
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// TestConfigureNIC works in a network namespace of its own, which ends with the
// test's thread.
func TestConfigureNIC(t *testing.T) {
	requireRoot(t, "a network namespace")
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
	for range 2 { // a second time changes nothing
		if err := configureNIC(cfg, time.Second); err != nil {
			t.Error(err)
			return
		}
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
	cfg.Gateway = netip.MustParseAddr("198.51.100.1")
	if err := configureNIC(cfg, time.Second); err == nil || !strings.Contains(err.Error(), "198.51.100.1") {
		t.Errorf("with a gateway out of reach configureNIC() = %v, want an error that names it", err)
	}
}
