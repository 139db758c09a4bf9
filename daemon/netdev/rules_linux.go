package netdev

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// tableName is the name of both tables.
	tableName = "volant"
	portsSet  = "ports"

	// antiSpoofPriority is NF_BR_PRI_NAT_DST_BRIDGED: before the bridge hands IPv4 frames to the IPv4 hooks, so a forged frame is
	// dropped before anything looks into it.
	antiSpoofPriority nftables.ChainPriority = -300

	// elementsPerMessage keeps a set's elements under the 64 KiB that a netlink attribute can hold; each takes 40 bytes.
	elementsPerMessage = 1000
	// socketBuffer holds the whole transaction, which is sent as one datagram: some 45 bytes a VM. The kernel's default (208 KiB)
	// fails with EMSGSIZE between 5,000 and 10,000 VMs. It is memory only while messages are in flight.
	socketBuffer = 16 << 20
	// transactionTimeout ends a wait for the kernel's answer where ctx has no deadline. A transaction takes milliseconds; the rest is a
	// commit waiting for other users of nftables.
	transactionTimeout = 30 * time.Second
)

// Port says which guest is behind a tap: what it may put into its frames, and what of it is published.
type Port struct {
	Tap     string           // interface name, as AddTap returned it
	MAC     net.HardwareAddr // the guest's, not the tap's own
	IP      netip.Addr
	Publish []Publish
}

// checkPorts refuses what would open more than the caller meant.
func (n *Network) checkPorts(ports []Port) error {
	taps := make(map[string]bool, len(ports))
	macs := make(map[[6]byte]string, len(ports))
	ips := make(map[netip.Addr]string, len(ports))
	for _, p := range ports {
		if err := checkIfaceName(p.Tap); err != nil {
			return fmt.Errorf("port %q: %w", p.Tap, err)
		}
		if !tapPattern(p.Tap) {
			return fmt.Errorf("port %s: not the name of a tap: those begin with %s", p.Tap, tapPrefix)
		}
		if len(p.MAC) != 6 || p.MAC[0]&1 != 0 {
			return fmt.Errorf("port %s: MAC %q is not a unicast Ethernet address", p.Tap, p.MAC)
		}
		if !p.IP.Is4() || !n.cfg.Prefix.Contains(p.IP) || p.IP == n.cfg.Prefix.Addr() {
			return fmt.Errorf("port %s: %v is not an address for a guest of %s", p.Tap, p.IP, n.cfg.Prefix)
		}
		mac := [6]byte(p.MAC)
		switch {
		case taps[p.Tap]:
			return fmt.Errorf("port %s: named twice", p.Tap)
		case macs[mac] != "":
			return fmt.Errorf("port %s: MAC %s is also that of %s", p.Tap, p.MAC, macs[mac])
		case ips[p.IP] != "":
			return fmt.Errorf("port %s: address %s is also that of %s", p.Tap, p.IP, ips[p.IP])
		}
		taps[p.Tap], macs[mac], ips[p.IP] = true, p.Tap, p.Tap
	}
	return checkPublish(ports)
}

// nftConn opens a netlink socket for one transaction, with a deadline.
func nftConn(ctx context.Context) (*nftables.Conn, error) {
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(transactionTimeout); !ok || deadline.After(limit) {
		deadline = limit
	}
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *mdnetlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *mdnetlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
		func(c *mdnetlink.Conn) error { return c.SetDeadline(deadline) },
	))
}

// transact fills one transaction and commits it: all of it takes effect at once, or nothing does.
func transact(ctx context.Context, fill func(*nftables.Conn) error) error {
	const op = "nftables"
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := nftConn(ctx)
	if err != nil {
		return explain(op, featNftables, err)
	}
	defer c.CloseLasting()
	if err := fill(c); err != nil {
		return explain(op, featNftables, err)
	}
	return explain(op, featNftables, c.Flush())
}

func ipTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
}

func bridgeTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
}

// tablesExist reports whether both tables are there.
func tablesExist(ctx context.Context) (bool, error) {
	c, err := nftConn(ctx)
	if err != nil {
		return false, explain("nftables", featNftables, err)
	}
	defer c.CloseLasting()
	found := 0
	for _, want := range []*nftables.Table{ipTable(), bridgeTable()} {
		tables, err := c.ListTablesOfFamily(want.Family)
		if err != nil {
			return false, explain("list nftables tables", featNftables, err)
		}
		for _, t := range tables {
			if t.Name == want.Name {
				found++
			}
		}
	}
	return found == 2, nil
}

// renew empties a table within a transaction: adding one that exists is no error, deleting one that does not is.
func renew(c *nftables.Conn, t *nftables.Table) *nftables.Table {
	c.AddTable(t)
	c.DelTable(t)
	return c.AddTable(t)
}

// replaceTables makes both tables anew with these ports.
func (n *Network) replaceTables(ctx context.Context, ports []Port) error {
	return transact(ctx, func(c *nftables.Conn) error {
		if err := guestRules(c, renew(c, bridgeTable()), ports); err != nil {
			return err
		}
		t := renew(c, ipTable())
		n.routeRules(c, t)
		return n.publishRules(c, t, ports)
	})
}

// removeTables deletes both tables, there or not.
func removeTables(ctx context.Context) error {
	return transact(ctx, func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{bridgeTable(), ipTable()} {
			c.AddTable(t)
			c.DelTable(t)
		}
		return nil
	})
}

// Offsets into headers, in bytes. Link layer: IEEE 802.3; IPv4: RFC 791; ARP: RFC 826 for Ethernet and IPv4; TCP: RFC 9293; UDP: RFC 768.
const (
	linkSource = 6
	linkType   = 12
	ipSource   = 12
	ipDest     = 16
	portDest   = 2 // of the TCP or UDP header
	arpHeader  = 0 // hardware type, protocol, address lengths: 6 bytes
	arpHWAddr  = 8
	arpIP      = 14
)

// The registers that hold a key of the set "ports" side by side: interface name (16 bytes), MAC (6, padded to 8), IPv4 (4).
const (
	regTap = unix.NFT_REG_1
	regMAC = unix.NFT_REG_2
	regIP  = unix.NFT_REG32_06
)

// guestRules fills the bridge table:
//
//	set ports { type ifname . ether_addr . ipv4_addr }
//	chain guest {
//		ether type ip iifname . ether saddr . ip saddr @ports accept
//		arp htype 1 arp ptype ip arp hlen 6 arp plen 4
//			iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
//		counter drop
//	}
//	chain prerouting { type filter hook prerouting priority -300; iifname "vlt*" jump guest }
//
// The EtherType is read from the frame itself and not from what the kernel made of it: the kernel takes a VLAN tag off before
// the hooks run and then calls the frame IPv4.
func guestRules(c *nftables.Conn, t *nftables.Table, ports []Port) error {
	key, err := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	if err != nil {
		return err
	}
	// An id of our own, unique in the transaction: the library counts in a variable that it does not lock.
	set := &nftables.Set{Table: t, ID: 1, Name: portsSet, KeyType: key, Concatenation: true}
	elements := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		elements[i].Key = portKey(p)
	}
	if err := addSet(c, set, elements); err != nil {
		return err
	}

	inPorts := &expr.Lookup{SourceRegister: regTap, SetName: set.Name, SetID: set.ID}
	tap := &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: regTap}
	frameMAC := load(expr.PayloadBaseLLHeader, linkSource, 6, regMAC)

	guest := c.AddChain(&nftables.Chain{Name: "guest", Table: t})
	c.AddRule(&nftables.Rule{Table: t, Chain: guest, Exprs: []expr.Any{
		load(expr.PayloadBaseLLHeader, linkType, 2, unix.NFT_REG_1),
		equal(be16(unix.ETH_P_IP)),
		tap, frameMAC, load(expr.PayloadBaseNetworkHeader, ipSource, 4, regIP), inPorts,
		verdict(expr.VerdictAccept, ""),
	}})
	c.AddRule(&nftables.Rule{Table: t, Chain: guest, Exprs: []expr.Any{
		load(expr.PayloadBaseLLHeader, linkType, 2, unix.NFT_REG_1),
		equal(be16(unix.ETH_P_ARP)),
		load(expr.PayloadBaseNetworkHeader, arpHeader, 6, unix.NFT_REG_1),
		equal([]byte{0, 1, 8, 0, 6, 4}), // Ethernet, IPv4, their address lengths
		tap, frameMAC, load(expr.PayloadBaseNetworkHeader, arpIP, 4, regIP), inPorts,
		tap, load(expr.PayloadBaseNetworkHeader, arpHWAddr, 6, regMAC), load(expr.PayloadBaseNetworkHeader, arpIP, 4, regIP), inPorts,
		verdict(expr.VerdictAccept, ""),
	}})
	c.AddRule(&nftables.Rule{Table: t, Chain: guest, Exprs: []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop, "")}})

	priority := antiSpoofPriority
	prerouting := c.AddChain(&nftables.Chain{Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: &priority})
	c.AddRule(&nftables.Rule{Table: t, Chain: prerouting, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		equal([]byte(tapPrefix)), // no closing zero: all names that begin so
		verdict(expr.VerdictJump, guest.Name),
	}})
	return nil
}

// addSet adds a set or map with its elements.
func addSet(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(elements, elementsPerMessage) {
		if err := c.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// routeRules fills the IPv4 table, but for published ports:
//
//	chain postrouting {
//		type nat hook postrouting priority srcnat
//		ip saddr PREFIX oifname != BRIDGE masquerade
//		ip saddr PREFIX oifname BRIDGE ct status dnat masquerade  # else the answer would not come back through the host
//		ip saddr 127.0.0.0/8 oifname BRIDGE masquerade            # nobody can answer to that
//	}
//	chain forward {
//		type filter hook forward priority filter
//		iifname BRIDGE oifname BRIDGE drop                                     # with Isolate
//		iifname != BRIDGE oifname BRIDGE ct state established,related accept
//		iifname != BRIDGE oifname BRIDGE ct status dnat accept
//		iifname != BRIDGE oifname BRIDGE counter drop
//	}
func (n *Network) routeRules(c *nftables.Conn, t *nftables.Table) {
	postrouting := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	for _, who := range [][]expr.Any{
		concat(addrIn(ipSource, n.cfg.Prefix), n.iface(expr.MetaKeyOIFNAME, expr.CmpOpNeq)),
		concat(addrIn(ipSource, n.cfg.Prefix), n.iface(expr.MetaKeyOIFNAME, expr.CmpOpEq), ctHas(expr.CtKeySTATUS, ctStatusDNAT)),
		concat(addrIn(ipSource, loopbackNet()), n.iface(expr.MetaKeyOIFNAME, expr.CmpOpEq)),
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: postrouting, Exprs: concat(who, []expr.Any{&expr.Masq{}})})
	}

	forward := c.AddChain(&nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	if n.cfg.Isolate {
		c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: concat(
			n.iface(expr.MetaKeyIIFNAME, expr.CmpOpEq), n.iface(expr.MetaKeyOIFNAME, expr.CmpOpEq), []expr.Any{verdict(expr.VerdictDrop, "")},
		)})
	}
	inbound := concat(n.iface(expr.MetaKeyIIFNAME, expr.CmpOpNeq), n.iface(expr.MetaKeyOIFNAME, expr.CmpOpEq))
	for _, what := range [][]expr.Any{
		concat(ctHas(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), []expr.Any{verdict(expr.VerdictAccept, "")}),
		concat(ctHas(expr.CtKeySTATUS, ctStatusDNAT), []expr.Any{verdict(expr.VerdictAccept, "")}),
		{&expr.Counter{}, verdict(expr.VerdictDrop, "")},
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: concat(inbound, what)})
	}
}

// ctStatusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctStatusDNAT = 1 << 5

// portKey is a port as an element of the set: each part padded to four bytes.
func portKey(p Port) []byte {
	key := make([]byte, 0, unix.IFNAMSIZ+8+4)
	key = append(key, ifname(p.Tap)...)
	key = append(key, p.MAC...)
	key = append(key, 0, 0)
	ip := p.IP.As4()
	return append(key, ip[:]...)
}

// ifname is an interface name as the kernel compares it: IFNAMSIZ bytes.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// iface matches the bridge as input or output interface.
func (n *Network) iface(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: ifname(n.cfg.Bridge)},
	}
}

// ctHas matches a connection with any of the bits.
func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: make([]byte, 4)},
	}
}

// addrIn matches packets whose address at that offset of the IPv4 header is in the prefix.
func addrIn(offset uint32, prefix netip.Prefix) []expr.Any {
	network := prefix.Masked().Addr().As4()
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, 4, unix.NFT_REG_1),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: net.CIDRMask(prefix.Bits(), 32), Xor: make([]byte, 4)},
		equal(network[:]),
	}
}

func load(base expr.PayloadBase, offset, length, register uint32) *expr.Payload {
	return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
}

// equal compares what was last loaded into the first register.
func equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data}
}

func verdict(kind expr.VerdictKind, chain string) *expr.Verdict {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// concat joins parts of a rule in a slice of its own.
func concat(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
