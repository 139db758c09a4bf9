package netdev

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Publish is a port of a guest that is reached through the host.
type Publish struct {
	// HostIP is the host's IPv4 address that it is reached at; the zero Addr and 0.0.0.0 are all of them.
	HostIP              netip.Addr
	HostPort, GuestPort uint16
	Protocol            string // "tcp" or "udp"
}

// String is as people write it: "8080/tcp", "127.0.0.1:53/udp".
func (p Publish) String() string {
	if p.everywhere() {
		return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
	}
	return fmt.Sprintf("%s:%d/%s", p.HostIP, p.HostPort, p.Protocol)
}

func (p Publish) everywhere() bool { return !p.HostIP.IsValid() || p.HostIP == netip.IPv4Unspecified() }

func (p Publish) check() error {
	switch {
	case p.HostIP.IsValid() && !p.HostIP.Is4():
		return fmt.Errorf("publish %s: only IPv4 addresses", p)
	case p.HostIP.IsMulticast(), p.HostIP == broadcastAddr():
		return fmt.Errorf("publish %s: not a unicast address", p)
	case p.HostPort == 0, p.GuestPort == 0:
		return fmt.Errorf("publish %s to %d: ports are 1 to 65535", p, p.GuestPort)
	case p.protocol() == 0:
		return fmt.Errorf("publish %s: protocol %q is neither tcp nor udp", p, p.Protocol)
	}
	return nil
}

func broadcastAddr() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// protocol is the number of the protocol in an IPv4 header, or 0.
func (p Publish) protocol() uint8 {
	switch p.Protocol {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	}
	return 0
}

// overlaps reports whether one packet could be meant by both.
func (p Publish) overlaps(q Publish) bool {
	return p.Protocol == q.Protocol && p.HostPort == q.HostPort && (p.everywhere() || q.everywhere() || p.HostIP == q.HostIP)
}

// checkPublish refuses what is published twice.
func checkPublish(ports []Port) error {
	type number struct {
		protocol string
		port     uint16
	}
	type owned struct {
		Publish
		tap string
	}
	seen := make(map[number][]owned)
	for _, p := range ports {
		for _, pub := range p.Publish {
			if err := pub.check(); err != nil {
				return fmt.Errorf("port %s: %w", p.Tap, err)
			}
			n := number{pub.Protocol, pub.HostPort}
			for _, other := range seen[n] {
				if pub.overlaps(other.Publish) {
					return fmt.Errorf("port %s: publish %s: %s is published for %s", p.Tap, pub, other.Publish, other.tap)
				}
			}
			seen[n] = append(seen[n], owned{pub, p.Tap})
		}
	}
	return nil
}

// target is one published port as the kernel has it.
type target struct {
	host     netip.Addr // zero for all
	protocol uint8
	port     uint16
	guest    netip.AddrPort
}

// targets lists what the ports publish.
func targets(ports []Port) []target {
	var ts []target
	for _, p := range ports {
		for _, pub := range p.Publish {
			t := target{protocol: pub.protocol(), port: pub.HostPort, guest: netip.AddrPortFrom(p.IP, pub.GuestPort)}
			if !pub.everywhere() {
				t.host = pub.HostIP
			}
			ts = append(ts, t)
		}
	}
	return ts
}

// Maps of published ports: those of all the host's addresses, and those of one.
const (
	publishMap   = "publish"
	publishOnMap = "publish_on"
)

// publishMaps describes both maps. Ids are unique in the transaction, as that of the set of ports.
func publishMaps(t *nftables.Table) (all, one *nftables.Set, err error) {
	key, err := nftables.ConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return nil, nil, err
	}
	keyOn, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return nil, nil, err
	}
	data, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return nil, nil, err
	}
	all = &nftables.Set{Table: t, ID: 2, Name: publishMap, IsMap: true, Concatenation: true, KeyType: key, DataType: data}
	one = &nftables.Set{Table: t, ID: 3, Name: publishOnMap, IsMap: true, Concatenation: true, KeyType: keyOn, DataType: data}
	return all, one, nil
}

// element is a target as an element of its map: every part padded to four bytes.
func (t target) element() nftables.SetElement {
	var key []byte
	if t.host.IsValid() {
		key = t.host.AsSlice()
	}
	key = append(key, t.protocol, 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, t.port), 0, 0)
	val := append(binary.BigEndian.AppendUint16(t.guest.Addr().AsSlice(), t.guest.Port()), 0, 0)
	return nftables.SetElement{Key: key, Val: val}
}

// parseTarget is the reverse of element. It reports false for what element does not make.
func parseTarget(e nftables.SetElement) (t target, ok bool) {
	key := e.Key
	if len(key) == 12 {
		t.host = netip.AddrFrom4([4]byte(key))
		key = key[4:]
	}
	if len(key) != 8 || len(e.Val) != 8 {
		return target{}, false
	}
	t.protocol, t.port = key[0], binary.BigEndian.Uint16(key[4:])
	t.guest = netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val)), binary.BigEndian.Uint16(e.Val[4:]))
	return t, true
}

// publishRules adds to the IPv4 table:
//
//	map publish { type inet_proto . inet_service : ipv4_addr . inet_service }
//	map publish_on { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//	chain raw {
//		type filter hook prerouting priority raw
//		iifname BRIDGE ip daddr 127.0.0.0/8 drop
//		iifname BRIDGE ip saddr 127.0.0.0/8 drop
//	}
//	chain published {
//		dnat ip to ip daddr . meta l4proto . th dport map @publish_on
//		dnat ip to meta l4proto . th dport map @publish
//	}
//	chain prerouting { type nat hook prerouting priority -100; fib daddr type local jump published }
//	chain output     { type nat hook output priority -100; fib daddr type local jump published }
//
// The first chain is what route_localnet would otherwise open: see setRouteLocalnet. It stands before connection tracking, which
// gives answers to the host's loopback their address 127.0.0.1 back.
func (n *Network) publishRules(c *nftables.Conn, t *nftables.Table, ports []Port) error {
	all, one, err := publishMaps(t)
	if err != nil {
		return err
	}
	var elements, elementsOn []nftables.SetElement
	for _, t := range targets(ports) {
		if t.host.IsValid() {
			elementsOn = append(elementsOn, t.element())
		} else {
			elements = append(elements, t.element())
		}
	}
	if err := addSet(c, all, elements); err != nil {
		return err
	}
	if err := addSet(c, one, elementsOn); err != nil {
		return err
	}

	raw := c.AddChain(&nftables.Chain{Name: "raw", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	for _, offset := range []uint32{ipDest, ipSource} {
		c.AddRule(&nftables.Rule{Table: t, Chain: raw, Exprs: concat(
			n.iface(expr.MetaKeyIIFNAME, expr.CmpOpEq), addrIn(offset, loopbackNet()), []expr.Any{verdict(expr.VerdictDrop, "")},
		)})
	}

	published := c.AddChain(&nftables.Chain{Name: "published", Table: t})
	protocol := func(register uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register} }
	port := func(register uint32) expr.Any { return load(expr.PayloadBaseTransportHeader, portDest, 2, register) }
	dnat := func(m *nftables.Set) []expr.Any {
		return []expr.Any{
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG32_00, RegProtoMin: unix.NFT_REG32_01},
		}
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: published, Exprs: concat(
		[]expr.Any{load(expr.PayloadBaseNetworkHeader, ipDest, 4, unix.NFT_REG32_00), protocol(unix.NFT_REG32_01), port(unix.NFT_REG32_02)}, dnat(one),
	)})
	c.AddRule(&nftables.Rule{Table: t, Chain: published, Exprs: concat(
		[]expr.Any{protocol(unix.NFT_REG32_00), port(unix.NFT_REG32_01)}, dnat(all),
	)})
	for _, hook := range []struct {
		name string
		hook *nftables.ChainHook
	}{
		{"prerouting", nftables.ChainHookPrerouting}, // what comes from elsewhere
		{"output", nftables.ChainHookOutput},         // the host's own
	} {
		chain := c.AddChain(&nftables.Chain{Name: hook.name, Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: hook.hook, Priority: nftables.ChainPriorityNATDest})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true, ResultADDRTYPE: true},
			equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
			verdict(expr.VerdictJump, published.Name),
		}})
	}
	return nil
}

// published reads from the kernel what the rules publish; nothing if there are none, or those of a version that had no maps.
func published(ctx context.Context) ([]target, error) {
	c, err := nftConn(ctx)
	if err != nil {
		return nil, explain("nftables", featNftables, err)
	}
	defer c.CloseLasting()
	all, one, err := publishMaps(ipTable())
	if err != nil {
		return nil, err
	}
	var ts []target
	for _, m := range []*nftables.Set{all, one} {
		_, err := c.GetSetByName(m.Table, m.Name) // the next call does not say why it failed
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var elements []nftables.SetElement
		if err == nil {
			elements, err = c.GetSetElements(m)
		}
		if err != nil {
			return nil, explain("list published ports", featNftables, err)
		}
		for _, e := range elements {
			if t, ok := parseTarget(e); ok {
				ts = append(ts, t)
			}
		}
	}
	return ts, nil
}

func loopbackNet() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8) }

// needsLocalnet reports whether a port is published on the host's loopback.
func needsLocalnet(ports []Port) bool {
	for _, p := range ports {
		for _, pub := range p.Publish {
			if pub.everywhere() || pub.HostIP.IsLoopback() {
				return true
			}
		}
	}
	return false
}

// setRouteLocalnet says whether the bridge may carry packets from and to 127.0.0.0/8 (net.ipv4.conf.BRIDGE.route_localnet). A connection of
// the host to 127.0.0.1 is on its way to the bridge before its source is translated, and an answer is on its way from there
// after. The switch also lets guests reach 127.0.0.1, so it is on only while a port is published there, only on the
// bridge, and under the rules of the chain raw, which are there whenever this is called.
func (n *Network) setRouteLocalnet(on bool) error {
	name := "/proc/sys/net/ipv4/conf/" + n.cfg.Bridge + "/route_localnet"
	want := []byte("0\n")
	if on {
		want = []byte("1\n")
	}
	is, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no bridge: a new one begins with 0
	}
	if err != nil || bytes.Equal(is, want) {
		return err
	}
	return os.WriteFile(name, want, 0)
}
