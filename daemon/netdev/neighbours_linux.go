package netdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pinNeighbours makes the bridge's permanent ARP entries those of the ports. Addresses and MACs are known before a guest
// boots, so nobody has to ask: a guest that claims another's address changes nothing, and a connection opened
// while the guest still boots gets through the moment it listens. Without the entry the kernel asks at once, then once a second,
// and an early client waits for the rest of that second.
func (n *Network) pinNeighbours(ctx context.Context, ports []Port) error {
	link, err := findLink(n.cfg.Bridge)
	if err != nil || link == nil {
		return err
	}
	index := link.Attrs().Index
	want := make(map[netip.Addr]Port, len(ports))
	for _, p := range ports {
		want[p.IP] = p
	}
	known, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", n.cfg.Bridge, err)
	}
	for _, e := range known {
		ip, ok := netip.AddrFromSlice(e.IP.To4())
		if !ok || e.State&unix.NUD_PERMANENT == 0 || !n.cfg.Prefix.Contains(ip) {
			continue
		}
		if p, ok := want[ip]; ok && bytes.Equal(p.MAC, e.HardwareAddr) {
			delete(want, ip)
		} else if !ok {
			if err := netlink.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget neighbour %s: %w", ip, err)
			}
		}
	}
	for ip, p := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		entry := &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: unix.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: p.MAC}
		if err := netlink.NeighSet(entry); err != nil {
			return fmt.Errorf("pin neighbour %s: %w", ip, err)
		}
	}
	return nil
}
