package netdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/ipam"
)

// bridgeAlias marks the bridge as ours.
const bridgeAlias = "volant"

// dumpTries bounds how often a listing that changed under the kernel's hands is asked for again.
const dumpTries = 8

// dump repeats a netlink listing while the kernel says that it was interrupted by a change (NLM_F_DUMP_INTR): such an answer
// may lack entries. Seen when many VMs start at once.
func dump[T any](list func() (T, error)) (T, error) {
	var v T
	var err error
	for range dumpTries {
		if v, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return v, err
}

// findLink returns the device of that name, or nil if there is none.
func findLink(name string) (netlink.Link, error) {
	l, err := dump(func() (netlink.Link, error) { return netlink.LinkByName(name) })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	return l, err
}

// ensureBridge makes the bridge what Config says and reports whether it had to create it.
func (n *Network) ensureBridge(ctx context.Context) (created bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	op := "bridge " + n.cfg.Bridge
	link, err := findLink(n.cfg.Bridge)
	if err != nil {
		return false, explain(op, featNone, err)
	}
	if link == nil {
		if link, err = n.createBridge(); err != nil {
			return false, explain(op, featBridge, err)
		}
		created = true
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return created, explain(op, featNone, err)
	}
	ours, err := n.ownBridge(link, addrs)
	if err != nil {
		return created, fmt.Errorf("%s: %w", op, err)
	}
	if !ours {
		if len(addrs) != 1 || addrs[0] != n.cfg.Prefix {
			return created, fmt.Errorf("%s: %w and has %s instead of %s: choose another bridge name, or give that bridge this address",
				op, ErrForeign, listAddrs(addrs), n.cfg.Prefix)
		}
		if link.Attrs().Flags&unix.IFF_UP == 0 {
			return created, explain(op, featNone, netlink.LinkSetUp(link))
		}
		return created, nil
	}
	return created, explain(op, featNone, n.configureBridge(link, addrs))
}

// createBridge makes the bridge. Its address is set, because a bridge without one of its own takes the lowest of its ports
// and so changes whenever a VM comes or goes, and derived from the name, so that guests' ARP caches stay right if the
// bridge is made anew. The kernel makes bridges with spanning tree off and forwarding without delay.
func (n *Network) createBridge() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.cfg.Bridge
	attrs.MTU = n.cfg.MTU
	attrs.HardwareAddr = bridgeMAC(n.cfg.Bridge)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, err
	}
	return netlink.LinkByName(n.cfg.Bridge)
}

// bridgeMAC cannot meet a guest's: the identity of a VM contains no space.
func bridgeMAC(name string) []byte { return ipam.MAC("bridge " + name) }

// ownBridge reports whether the bridge is ours: by its alias, or, where the daemon was killed before it could set that, by the
// address that only we give, as long as nobody has put the bridge to use.
func (n *Network) ownBridge(link netlink.Link, addrs []netip.Prefix) (bool, error) {
	if link.Type() != "bridge" {
		return false, fmt.Errorf("%w: a device of that name exists and is a %s, not a bridge", ErrForeign, link.Type())
	}
	a := link.Attrs()
	if a.Alias == bridgeAlias {
		return true, nil
	}
	return a.Alias == "" && len(addrs) == 0 && bytes.Equal(a.HardwareAddr, bridgeMAC(n.cfg.Bridge)), nil
}

// configureBridge brings our own bridge to the configured state.
func (n *Network) configureBridge(link netlink.Link, addrs []netip.Prefix) error {
	a := link.Attrs()
	if a.Alias != bridgeAlias {
		if err := netlink.LinkSetAlias(link, bridgeAlias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	if a.MTU != n.cfg.MTU {
		if err := netlink.LinkSetMTU(link, n.cfg.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", n.cfg.MTU, err)
		}
	}
	if err := n.configureAddr(link, addrs); err != nil {
		return err
	}
	if a.Flags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return nil
}

// configureAddr gives our bridge the configured address and no other. While VMs are attached an address is not taken away: they
// were told that it is their gateway.
func (n *Network) configureAddr(link netlink.Link, addrs []netip.Prefix) error {
	there := false
	for _, p := range addrs {
		if p == n.cfg.Prefix {
			there = true
			continue
		}
		taps, err := attachedTaps(link.Attrs().Index)
		if err != nil {
			return err
		}
		if len(taps) > 0 {
			return fmt.Errorf("has the address %s and not %s, and %d VMs use it: stop them first, or keep the address", p, n.cfg.Prefix, len(taps))
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	if there {
		return nil
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(n.cfg.Prefix)}); err != nil {
		return fmt.Errorf("add address %s: %w", n.cfg.Prefix, err)
	}
	return nil
}

// attachedTaps returns those of our taps whose master is the bridge with that index.
func attachedTaps(bridge int) ([]netlink.Link, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var taps []netlink.Link
	for _, l := range links {
		if _, ours := tapVM(l); ours && l.Attrs().MasterIndex == bridge {
			taps = append(taps, l)
		}
	}
	return taps, nil
}

// removeBridge deletes the bridge if it is ours.
func (n *Network) removeBridge(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	op := "delete bridge " + n.cfg.Bridge
	link, err := findLink(n.cfg.Bridge)
	if err != nil || link == nil {
		return explain(op, featNone, err)
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return explain(op, featNone, err)
	}
	if ours, err := n.ownBridge(link, addrs); err != nil || !ours {
		return nil // somebody else's: Ensure refused it, or used it as it was
	}
	return explain(op, featNone, ignoreGone(netlink.LinkDel(link)))
}

// ignoreGone turns "no such device" into success, for deletions.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// linkAddrs returns the IPv4 addresses of a device.
func linkAddrs(link netlink.Link) ([]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var ps []netip.Prefix
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		ps = append(ps, netip.PrefixFrom(ip, ones))
	}
	return ps, nil
}

func listAddrs(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "no address"
	}
	var ss []string
	for _, p := range ps {
		ss = append(ss, p.String())
	}
	return strings.Join(ss, ", ")
}

const (
	forwardFile  = "/proc/sys/net/ipv4/ip_forward"
	bridgeNFFile = "/proc/sys/net/bridge/bridge-nf-call-iptables"
)

// enableForwarding turns on IPv4 routing in this network namespace and reports whether it was off.
func enableForwarding() (changed bool, err error) {
	b, err := os.ReadFile(forwardFile)
	if err != nil {
		return false, fmt.Errorf("read net.ipv4.ip_forward: %w", err)
	}
	if strings.TrimSpace(string(b)) != "0" {
		return false, nil
	}
	if err := os.WriteFile(forwardFile, []byte("1\n"), 0); err != nil {
		return false, explain("set net.ipv4.ip_forward=1, without which VMs reach nothing beyond the host", featNone, err)
	}
	return true, nil
}

// bridgeFiltered reports whether bridged IPv4 frames also pass the IPv4 hooks. Without br_netfilter there is no such file.
func bridgeFiltered() bool {
	b, err := os.ReadFile(bridgeNFFile)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}
