package netdev

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flows selects what a change of published ports makes wrong in the kernel's table of connections. A rule is asked only for the first
// packet of a connection; the others follow the table.
type flows struct {
	closed map[target]bool     // no longer published: what was translated so goes on to a guest that may be another by now
	opened map[target]bool     // newly published, UDP: what came before had no end that the kernel could see, and goes on to the host itself
	local  map[netip.Addr]bool // the host's addresses
}

// MatchConntrackFlow reports whether a connection is to be forgotten.
func (f *flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	to, okTo := netip.AddrFromSlice(c.Forward.DstIP.To4())
	from, okFrom := netip.AddrFromSlice(c.Reverse.SrcIP.To4())
	if !okTo || !okFrom {
		return false
	}
	t := target{protocol: c.Forward.Protocol, port: c.Forward.DstPort}
	in := func(set map[target]bool) bool {
		on := t
		on.host = to
		return set[t] || set[on]
	}
	if to == from && c.Forward.DstPort == c.Reverse.SrcPort { // not translated
		return (f.local[to] || to.IsLoopback()) && in(f.opened)
	}
	t.guest = netip.AddrPortFrom(from, c.Reverse.SrcPort)
	return in(f.closed)
}

// forget removes connections from the kernel's table that the change from one set of published ports to the next made wrong.
func forget(ctx context.Context, from, to []target) error {
	const op = "forget connections to published ports"
	f := flows{closed: make(map[target]bool), opened: make(map[target]bool)}
	for _, t := range from {
		f.closed[t] = true
	}
	for _, t := range to {
		if f.closed[t] {
			delete(f.closed, t)
		} else if t.protocol == unix.IPPROTO_UDP {
			t.guest = netip.AddrPort{}
			f.opened[t] = true
		}
	}
	if len(f.closed) == 0 && len(f.opened) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return explain(op, featNone, err)
	}
	f.local = make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			f.local[ip] = true
		}
	}
	_, err = dump(func() (uint, error) {
		return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, &f)
	})
	if err != nil {
		return explain(op, featConntrack, fmt.Errorf("connection table: %w", err))
	}
	return nil
}
