package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// nicTimeout is how long the NIC may take to appear.
	nicTimeout = 10 * time.Second
	// carrierTimeout is how long the NIC, once up, may take to carry frames:
	// longer than the second for which the kernel may put off noticing.
	carrierTimeout = 1500 * time.Millisecond
)

func (kernel) Loopback() error {
	if err := mine("configure the network"); err != nil {
		return err
	}
	return loopbackUp()
}

func (kernel) Network(cfg wire.NetworkConfig) error {
	if err := mine("configure the network"); err != nil {
		return err
	}
	return configureNIC(cfg, nicTimeout)
}

func (kernel) Rewire(from string, to *wire.NetworkConfig) error {
	if err := mine("configure the network"); err != nil {
		return err
	}
	return rewireNIC(from, to, nicTimeout)
}

// loopback is the index that lo has in every network namespace:
// LOOPBACK_IFINDEX of include/net/net_namespace.h.
const loopback = 1

// loopbackUp brings lo up; the kernel gives it its addresses.
func loopbackUp() error {
	return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopback}})
}

// configureNIC configures the link with cfg's MAC in the network namespace of
// the calling thread.
func configureNIC(cfg wire.NetworkConfig, timeout time.Duration) error {
	link, err := awaitLink(cfg.MAC, timeout)
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	if cfg.MTU != 0 {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("%s: mtu %d: %w", name, cfg.MTU, err)
		}
	}
	// The address comes last: the host may ask for it, by ARP, as soon as it is
	// there, and an answer that is sent before the link carries frames is lost.
	// The host asks again a second later. With the address first that happened
	// in 5 of 21 boots, this way in none of 14.
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	if err := awaitCarrier(link); err != nil {
		return fmt.Errorf("%s: carrier: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   cfg.Address.Addr().AsSlice(),
		Mask: net.CIDRMask(cfg.Address.Bits(), cfg.Address.Addr().BitLen()),
	}}
	if cfg.Address.Addr().Is6() {
		// The host assigned it to nobody else; do not wait for detection.
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("%s: address %s: %w", name, cfg.Address, err)
	}
	if !cfg.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: cfg.Gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("%s: default route by %s: %w", name, cfg.Gateway, err)
	}
	return nil
}

// rewireNIC is Rewire in the network namespace of the calling thread.
func rewireNIC(from string, to *wire.NetworkConfig, timeout time.Duration) error {
	link, err := findLink(from)
	if err == nil && to != nil {
		var there netlink.Link
		if there, err = findLink(to.MAC); there != nil {
			link = there
		}
	}
	if err != nil {
		return err
	}
	if link != nil {
		if err := stripNIC(link); err != nil {
			return fmt.Errorf("%s: %w", link.Attrs().Name, err)
		}
	}
	if to == nil {
		return nil
	}
	if link != nil && link.Attrs().HardwareAddr.String() != to.MAC {
		mac, err := net.ParseMAC(to.MAC)
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link, mac)
		}
		if err != nil {
			return fmt.Errorf("%s: MAC address %s: %w", link.Attrs().Name, to.MAC, err)
		}
	}
	return configureNIC(*to, timeout)
}

// stripNIC takes a NIC down, with which the kernel forgets its routes and all of
// its neighbours, and removes its addresses.
func stripNIC(link netlink.Link) error {
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// awaitCarrier waits until the kernel lets frames through a link that is up. It
// notes the carrier in a work queue, up to a second later; from Linux 6.7 on,
// being asked for the link makes it do so at once. A link that has no carrier
// in time is left as it is: the network beyond it may come later.
func awaitCarrier(link netlink.Link) error {
	deadline := time.Now().Add(carrierTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := netlink.LinkByIndex(link.Attrs().Index)
		if err != nil {
			return err
		}
		switch l.Attrs().OperState {
		case netlink.OperUp, netlink.OperUnknown: // unknown: the driver does not tell
			return nil
		}
		if time.Now().After(deadline) {
			return nil
		}
		time.Sleep(wait)
	}
}

// awaitLink waits for the link with a MAC address.
func awaitLink(mac string, timeout time.Duration) (netlink.Link, error) {
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if l, err := findLink(mac); l != nil || err != nil {
			return l, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no NIC with the address %s within %s", mac, timeout)
		}
		time.Sleep(wait)
	}
}

// findLink returns the link with a MAC address, nil where there is none.
func findLink(mac string) (netlink.Link, error) {
	if mac == "" {
		return nil, nil
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	for _, l := range links {
		if l.Attrs().HardwareAddr.String() == mac {
			return l, nil
		}
	}
	return nil, nil
}

// PowerButton listens to the kernel's ACPI events (drivers/acpi/event.c), which
// it multicasts by generic netlink.
func (kernel) PowerButton(pressed func()) error {
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = os.ErrNotExist
		}
		return err
	}
	group := -1
	for _, g := range family.Groups {
		if g.Name == "acpi_mc_group" {
			group = int(g.ID)
		}
	}
	if group < 0 {
		return os.ErrNotExist
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "acpi_event")
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err == nil {
		err = os.NewSyscallError("join acpi_mc_group", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	}
	if err != nil {
		f.Close()
		return err
	}
	go func() {
		defer f.Close()
		b := make([]byte, 8192)
		for {
			n, err := f.Read(b)
			if err != nil && !errors.Is(err, syscall.ENOBUFS) {
				return
			}
			if isPowerButton(b[:max(n, 0)]) {
				pressed()
			}
		}
	}()
	return nil
}
