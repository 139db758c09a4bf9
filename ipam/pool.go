package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
)

// Errors of this package. They arrive wrapped with the address and pool they are about; test with errors.Is.
var (
	// ErrExhausted: every address that the pool can lease is taken.
	ErrExhausted = errors.New("no free address")
	// ErrOutside: the address does not lie in the pool's prefix.
	ErrOutside = errors.New("address is outside the pool")
	// ErrReserved: the address lies in the prefix but is never leased (network, broadcast, gateway, reserved range).
	ErrReserved = errors.New("address is reserved")
	// ErrTaken: the address is held by another VM.
	ErrTaken = errors.New("address is taken")
	// ErrFamily: an address or prefix is not IPv4.
	ErrFamily = errors.New("only IPv4 is supported")
)

// minBits is the shortest prefix accepted. Nobody owns more than a /8 of private addresses, so a shorter one is a slip of
// the pen (10.0.0.0/0) that would route half of the internet onto the bridge.
const minBits = 8

// Range is a run of addresses, both ends included.
type Range struct {
	First, Last netip.Addr
}

// String gives "first-last", or the address alone if the range holds one.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Pool is a prefix from which addresses are leased. It never changes once made and may be shared. The zero Pool leases
// nothing: its Lowest fails with ErrExhausted and its Check with ErrOutside.
type Pool struct {
	prefix   netip.Prefix // masked
	gateway  netip.Addr
	reserved []Range // as given, for messages

	free []span // what may be leased: disjoint, ascending, never touching
	size uint64 // addresses in free
}

// span is a run of leasable addresses, both ends included, with the number of leasable addresses that precede it.
type span struct {
	first, last uint32
	before      uint64
}

// NewPool describes the leasable addresses of prefix: all but the network and broadcast address, the gateway (the host's own
// address) and the reserved ranges. Bits of prefix beyond its length are ignored. In a /31 both addresses are usable (RFC 3021),
// so a gateway leaves one; a /32 leaves none and is refused, as is any combination that leaves nothing to lease.
//
// Reserved ranges may overlap each other but must lie inside the prefix.
func NewPool(prefix netip.Prefix, gateway netip.Addr, reserved ...Range) (Pool, error) {
	if !prefix.IsValid() {
		return Pool{}, errors.New("pool: prefix is missing or malformed; write it as 192.168.127.0/24")
	}
	if !prefix.Addr().Is4() {
		return Pool{}, fmt.Errorf("pool %s: %w", prefix, ErrFamily)
	}
	prefix = prefix.Masked()
	if prefix.Bits() < minBits {
		return Pool{}, fmt.Errorf("pool %s: prefix is shorter than /%d", prefix, minBits)
	}
	if a := prefix.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || number(a)>>24 == 0 || number(a)>>28 == 15 {
		return Pool{}, fmt.Errorf("pool %s: not a range that hosts can use; take a private one such as 192.168.127.0/24", prefix)
	}

	first, last := bounds(prefix)
	blocked := make([]span, 0, 3+len(reserved))
	if prefix.Bits() < 31 {
		blocked = append(blocked, span{first: first, last: first}, span{first: last, last: last})
	}

	switch {
	case !gateway.IsValid():
		return Pool{}, fmt.Errorf("pool %s: gateway is missing", prefix)
	case !gateway.Is4():
		return Pool{}, fmt.Errorf("pool %s: gateway %s: %w", prefix, gateway, ErrFamily)
	case !prefix.Contains(gateway):
		return Pool{}, fmt.Errorf("pool %s: gateway %s: %w", prefix, gateway, ErrOutside)
	}
	g := number(gateway)
	for _, b := range blocked {
		if g == b.first {
			return Pool{}, fmt.Errorf("pool %s: gateway %s is the network or broadcast address", prefix, gateway)
		}
	}
	blocked = append(blocked, span{first: g, last: g})

	for _, r := range reserved {
		if !r.First.IsValid() || !r.Last.IsValid() {
			return Pool{}, fmt.Errorf("pool %s: reserved range needs a first and a last address", prefix)
		}
		if !r.First.Is4() || !r.Last.Is4() {
			return Pool{}, fmt.Errorf("pool %s: reserved %s: %w", prefix, r, ErrFamily)
		}
		if r.Last.Less(r.First) {
			return Pool{}, fmt.Errorf("pool %s: reserved %s: last address comes before the first", prefix, r)
		}
		if !prefix.Contains(r.First) || !prefix.Contains(r.Last) {
			return Pool{}, fmt.Errorf("pool %s: reserved %s: %w", prefix, r, ErrOutside)
		}
		blocked = append(blocked, span{first: number(r.First), last: number(r.Last)})
	}

	p := Pool{prefix: prefix, gateway: gateway, reserved: slices.Clone(reserved)}
	p.free, p.size = gaps(first, last, blocked)
	if p.size == 0 {
		return Pool{}, fmt.Errorf("pool %s: gateway and reserved ranges leave no address for a VM; take a larger prefix", prefix)
	}
	return p, nil
}

// gaps returns what blocked leaves of first..last, and how many addresses that is. It sorts blocked.
func gaps(first, last uint32, blocked []span) ([]span, uint64) {
	slices.SortFunc(blocked, func(a, b span) int {
		if a.first < b.first {
			return -1
		}
		if a.first > b.first {
			return 1
		}
		return 0
	})
	var free []span
	var size uint64
	next := uint64(first) // 64 bits: one past 255.255.255.255 must not wrap to 0
	add := func(end uint64) {
		if next < end {
			free = append(free, span{first: uint32(next), last: uint32(end - 1), before: size})
			size += end - next
		}
	}
	for _, b := range blocked {
		add(uint64(b.first))
		next = max(next, uint64(b.last)+1)
	}
	add(uint64(last) + 1)
	return free, size
}

// Prefix is the pool's network, host bits zero.
func (p Pool) Prefix() netip.Prefix { return p.prefix }

// Gateway is the host's own address in the pool.
func (p Pool) Gateway() netip.Addr { return p.gateway }

// GatewayPrefix is the gateway's address with the pool's length, as a bridge carries it: 192.168.127.1/24.
func (p Pool) GatewayPrefix() netip.Prefix { return netip.PrefixFrom(p.gateway, p.prefix.Bits()) }

// Size is the number of addresses that the pool can lease in all, taken or not.
func (p Pool) Size() uint64 { return p.size }

// Lowest returns the numerically lowest leasable address that is not in taken, or ErrExhausted.
//
// taken may be in any order, hold an address twice, and hold addresses that this pool does not lease (left from an earlier
// configuration); those have no effect. The answer is always among the first len(taken)+1 leasable addresses, so Lowest marks
// only these: O(n log r) time for n taken and r reserved ranges, one allocation of n/8 bytes, whatever the prefix's size.
func (p Pool) Lowest(taken []netip.Addr) (netip.Addr, error) {
	used := newBitmap(min(uint64(len(taken))+1, p.size))
	for _, a := range taken {
		if n, ok := p.rank(a); ok {
			used.set(n)
		}
	}
	n, ok := used.firstClear()
	if !ok {
		return netip.Addr{}, fmt.Errorf("pool %s: %w: all %d are taken", p.prefix, ErrExhausted, p.size)
	}
	return p.at(n), nil
}

// Check says whether a VM may have the address addr that its user asked for: nil, or ErrFamily, ErrOutside, ErrReserved or ErrTaken.
// Like Lowest it takes taken in any order; O(n).
func (p Pool) Check(addr netip.Addr, taken []netip.Addr) error {
	switch {
	case addr.IsValid() && !addr.Is4():
		return fmt.Errorf("address %s: %w", addr, ErrFamily)
	case !p.prefix.Contains(addr):
		return fmt.Errorf("address %s: %w %s", addr, ErrOutside, p.prefix)
	}
	if _, ok := p.rank(addr); !ok {
		return fmt.Errorf("address %s: %w: %s", addr, ErrReserved, p.why(addr))
	}
	if slices.Contains(taken, addr) {
		return fmt.Errorf("address %s: %w", addr, ErrTaken)
	}
	return nil
}

// why says what keeps an address of the prefix from being leased.
func (p Pool) why(addr netip.Addr) string {
	first, last := bounds(p.prefix)
	switch n := number(addr); {
	case addr == p.gateway:
		return "it is the gateway of " + p.prefix.String()
	case p.prefix.Bits() < 31 && n == first:
		return "it is the network address of " + p.prefix.String()
	case p.prefix.Bits() < 31 && n == last:
		return "it is the broadcast address of " + p.prefix.String()
	}
	for _, r := range p.reserved {
		if !addr.Less(r.First) && !r.Last.Less(addr) {
			return "it lies in the reserved range " + r.String()
		}
	}
	return "the pool does not lease it"
}

// rank returns how many leasable addresses lie below addr, and whether addr is leasable itself.
func (p Pool) rank(addr netip.Addr) (uint64, bool) {
	if !addr.Is4() {
		return 0, false
	}
	n := number(addr)
	i := sort.Search(len(p.free), func(i int) bool { return p.free[i].last >= n })
	if i == len(p.free) || n < p.free[i].first {
		return 0, false
	}
	return p.free[i].before + uint64(n-p.free[i].first), true
}

// at is the inverse of rank. n must be below p.size.
func (p Pool) at(n uint64) netip.Addr {
	i := sort.Search(len(p.free), func(i int) bool { return p.free[i].before > n }) - 1
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], p.free[i].first+uint32(n-p.free[i].before))
	return netip.AddrFrom4(b)
}

// number is an IPv4 address as an integer; numeric order is address order.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// bounds returns the first and last address of a masked IPv4 prefix.
func bounds(p netip.Prefix) (first, last uint32) {
	first = number(p.Addr())
	return first, first | uint32(uint64(1)<<(32-p.Bits())-1)
}
