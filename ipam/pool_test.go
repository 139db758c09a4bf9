package ipam_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/ipam"
)

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func span(first, last string) ipam.Range {
	return ipam.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func mustPool(t testing.TB, prefix, gateway string, reserved ...ipam.Range) ipam.Pool {
	t.Helper()
	p, err := ipam.NewPool(netip.MustParsePrefix(prefix), netip.MustParseAddr(gateway), reserved...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewPool(t *testing.T) {
	tests := []struct {
		name     string
		prefix   string
		gateway  string
		reserved []ipam.Range
		size     uint64
		err      error  // errors.Is, when the sentence has a sentinel
		text     string // part of the message; "" means ok
	}{
		{name: "default", prefix: "192.168.127.0/24", gateway: "192.168.127.1", size: 253},
		{name: "host bits ignored", prefix: "192.168.127.77/24", gateway: "192.168.127.1", size: 253},
		{name: "gateway in the middle", prefix: "10.0.0.0/29", gateway: "10.0.0.4", size: 5},
		{name: "whole /16", prefix: "10.1.0.0/16", gateway: "10.1.0.1", size: 65533},
		{name: "largest", prefix: "10.0.0.0/8", gateway: "10.0.0.1", size: 1<<24 - 3},
		{name: "/30", prefix: "10.0.0.4/30", gateway: "10.0.0.5", size: 1},
		{name: "/31 low gateway", prefix: "10.0.0.4/31", gateway: "10.0.0.4", size: 1},
		{name: "/31 high gateway", prefix: "10.0.0.4/31", gateway: "10.0.0.5", size: 1},
		{name: "overlapping reserved", prefix: "10.0.0.0/24", gateway: "10.0.0.1", size: 224,
			reserved: []ipam.Range{span("10.0.0.10", "10.0.0.30"), span("10.0.0.20", "10.0.0.38"), span("10.0.0.0", "10.0.0.1")}},
		{name: "reserved to the end", prefix: "223.255.255.0/24", gateway: "223.255.255.1", size: 1,
			reserved: []ipam.Range{span("223.255.255.3", "223.255.255.255")}},

		{name: "/32", prefix: "10.0.0.4/32", gateway: "10.0.0.4", text: "leave no address"},
		{name: "all reserved", prefix: "10.0.0.0/30", gateway: "10.0.0.1", text: "leave no address",
			reserved: []ipam.Range{span("10.0.0.2", "10.0.0.2")}},
		{name: "IPv6", prefix: "fd00::/64", gateway: "fd00::1", err: ipam.ErrFamily, text: "only IPv4"},
		{name: "IPv6 gateway", prefix: "10.0.0.0/24", gateway: "fd00::1", err: ipam.ErrFamily, text: "gateway fd00::1"},
		{name: "mapped gateway", prefix: "10.0.0.0/24", gateway: "::ffff:10.0.0.1", err: ipam.ErrFamily, text: "only IPv4"},
		{name: "too short", prefix: "0.0.0.0/0", gateway: "10.0.0.1", text: "shorter than /8"},
		{name: "loopback", prefix: "127.0.0.0/8", gateway: "127.0.0.1", text: "not a range"},
		{name: "multicast", prefix: "224.1.0.0/16", gateway: "224.1.0.1", text: "not a range"},
		{name: "this network", prefix: "0.1.0.0/16", gateway: "0.1.0.1", text: "not a range"},
		{name: "class E", prefix: "250.1.0.0/16", gateway: "250.1.0.1", text: "not a range"},
		{name: "gateway outside", prefix: "10.0.0.0/24", gateway: "10.0.1.1", err: ipam.ErrOutside, text: "gateway 10.0.1.1"},
		{name: "gateway is network", prefix: "10.0.0.0/24", gateway: "10.0.0.0", text: "network or broadcast"},
		{name: "gateway is broadcast", prefix: "10.0.0.0/24", gateway: "10.0.0.255", text: "network or broadcast"},
		{name: "reserved outside", prefix: "10.0.0.0/24", gateway: "10.0.0.1", err: ipam.ErrOutside, text: "reserved 10.0.0.9-10.0.1.9",
			reserved: []ipam.Range{span("10.0.0.9", "10.0.1.9")}},
		{name: "reserved backwards", prefix: "10.0.0.0/24", gateway: "10.0.0.1", text: "before the first",
			reserved: []ipam.Range{span("10.0.0.9", "10.0.0.8")}},
		{name: "reserved IPv6", prefix: "10.0.0.0/24", gateway: "10.0.0.1", err: ipam.ErrFamily, text: "only IPv4",
			reserved: []ipam.Range{span("fd00::1", "fd00::2")}},
		{name: "reserved half empty", prefix: "10.0.0.0/24", gateway: "10.0.0.1", text: "first and a last",
			reserved: []ipam.Range{{First: netip.MustParseAddr("10.0.0.9")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ipam.NewPool(netip.MustParsePrefix(tt.prefix), netip.MustParseAddr(tt.gateway), tt.reserved...)
			if tt.text == "" {
				if err != nil || p.Size() != tt.size {
					t.Errorf("NewPool(%s, %s) has size %d, error %v, want %d", tt.prefix, tt.gateway, p.Size(), err, tt.size)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.text) || (tt.err != nil && !errors.Is(err, tt.err)) {
				t.Errorf("NewPool(%s, %s) = %v, want %q (%v)", tt.prefix, tt.gateway, err, tt.text, tt.err)
			}
		})
	}
	t.Run("zero values", func(t *testing.T) {
		if _, err := ipam.NewPool(netip.Prefix{}, netip.MustParseAddr("10.0.0.1")); err == nil {
			t.Error("NewPool(zero prefix) = nil, want an error")
		}
		if _, err := ipam.NewPool(netip.MustParsePrefix("10.0.0.0/24"), netip.Addr{}); err == nil {
			t.Error("NewPool(zero gateway) = nil, want an error")
		}
		var p ipam.Pool
		if a, err := p.Lowest(nil); !errors.Is(err, ipam.ErrExhausted) {
			t.Errorf("zero Pool: Lowest = %v, %v, want %v", a, err, ipam.ErrExhausted)
		}
		if err := p.Check(netip.MustParseAddr("10.0.0.1"), nil); !errors.Is(err, ipam.ErrOutside) {
			t.Errorf("zero Pool: Check = %v, want %v", err, ipam.ErrOutside)
		}
	})
}

func TestLowest(t *testing.T) {
	tests := []struct {
		name     string
		prefix   string
		gateway  string
		reserved []ipam.Range
		taken    []netip.Addr
		want     string // "" means exhausted
	}{
		{name: "first", prefix: "192.168.127.0/24", gateway: "192.168.127.1", want: "192.168.127.2"},
		{name: "numeric, not textual", prefix: "10.0.0.0/24", gateway: "10.0.0.1", want: "10.0.0.9",
			taken: addrs("10.0.0.10", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.100")},
		{name: "gap", prefix: "10.0.0.0/24", gateway: "10.0.0.1", taken: addrs("10.0.0.2", "10.0.0.4"), want: "10.0.0.3"},
		{name: "duplicates", prefix: "10.0.0.0/24", gateway: "10.0.0.1", taken: addrs("10.0.0.2", "10.0.0.2", "10.0.0.2"), want: "10.0.0.3"},
		{name: "gateway last", prefix: "10.0.0.0/24", gateway: "10.0.0.254", want: "10.0.0.1"},
		{name: "over the gateway", prefix: "10.0.0.0/24", gateway: "10.0.0.2", taken: addrs("10.0.0.1"), want: "10.0.0.3"},
		{name: "over a reserved range", prefix: "10.0.0.0/24", gateway: "10.0.0.1", want: "10.0.0.100",
			reserved: []ipam.Range{span("10.0.0.2", "10.0.0.99")}},
		{name: "over an octet", prefix: "10.0.0.0/23", gateway: "10.0.0.1", want: "10.0.0.255",
			reserved: []ipam.Range{span("10.0.0.2", "10.0.0.254")}},
		{name: "foreign addresses", prefix: "10.0.0.0/24", gateway: "10.0.0.1", want: "10.0.0.2",
			taken: addrs("10.0.1.2", "9.255.255.255", "10.0.0.0", "10.0.0.1", "10.0.0.255", "fd00::2", "::ffff:10.0.0.2")},
		{name: "invalid address", prefix: "10.0.0.0/24", gateway: "10.0.0.1", taken: []netip.Addr{{}}, want: "10.0.0.2"},
		{name: "/30 free", prefix: "10.0.0.0/30", gateway: "10.0.0.2", want: "10.0.0.1"},
		{name: "/30 full", prefix: "10.0.0.0/30", gateway: "10.0.0.2", taken: addrs("10.0.0.1")},
		{name: "/31 free", prefix: "10.0.0.0/31", gateway: "10.0.0.0", want: "10.0.0.1"},
		{name: "/31 full", prefix: "10.0.0.0/31", gateway: "10.0.0.0", taken: addrs("10.0.0.1")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustPool(t, tt.prefix, tt.gateway, tt.reserved...)
			got, err := p.Lowest(tt.taken)
			if tt.want == "" {
				if !errors.Is(err, ipam.ErrExhausted) {
					t.Errorf("Lowest(%v) = %v, %v, want %v", tt.taken, got, err, ipam.ErrExhausted)
				}
				return
			}
			if err != nil || got != netip.MustParseAddr(tt.want) {
				t.Errorf("Lowest(%v) = %v, %v, want %v", tt.taken, got, err, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	taken := addrs("10.0.0.7", "10.0.0.5")
	tests := []struct {
		addr string
		want error
		text string
	}{
		{addr: "10.0.0.2"},
		{addr: "10.0.0.254"},
		{addr: "10.0.0.5", want: ipam.ErrTaken, text: "10.0.0.5"},
		{addr: "10.0.0.0", want: ipam.ErrReserved, text: "network address"},
		{addr: "10.0.0.1", want: ipam.ErrReserved, text: "gateway"},
		{addr: "10.0.0.255", want: ipam.ErrReserved, text: "broadcast address"},
		{addr: "10.0.0.33", want: ipam.ErrReserved, text: "10.0.0.30-10.0.0.39"},
		{addr: "10.0.1.2", want: ipam.ErrOutside, text: "10.0.0.0/24"},
		{addr: "fd00::2", want: ipam.ErrFamily, text: "fd00::2"},
		{addr: "::ffff:10.0.0.2", want: ipam.ErrFamily, text: "::ffff:10.0.0.2"},
	}
	p := mustPool(t, "10.0.0.0/24", "10.0.0.1", span("10.0.0.30", "10.0.0.39"))
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			err := p.Check(netip.MustParseAddr(tt.addr), taken)
			if !errors.Is(err, tt.want) || (err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("Check(%s) = %v, want %v with %q", tt.addr, err, tt.want, tt.text)
			}
		})
	}
	if err := p.Check(netip.Addr{}, nil); !errors.Is(err, ipam.ErrOutside) {
		t.Errorf("Check(zero) = %v, want %v", err, ipam.ErrOutside)
	}
	if err := mustPool(t, "10.0.0.0/31", "10.0.0.1").Check(netip.MustParseAddr("10.0.0.0"), nil); err != nil {
		t.Errorf("Check(low end of a /31) = %v, want nil", err)
	}
}

// TestLowestIsLowest holds Lowest and Check against their definition: walk the prefix from its start and take the first
// address that Check admits.
func TestLowestIsLowest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 400 {
		bits := 24 + rng.IntN(8)
		base := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))}), bits).Masked()
		var all []netip.Addr
		for a := base.Addr(); base.Contains(a); a = a.Next() {
			all = append(all, a)
		}
		pick := func() netip.Addr { return all[rng.IntN(len(all))] }
		var reserved []ipam.Range
		for range rng.IntN(4) {
			r := ipam.Range{First: pick(), Last: pick()}
			if r.Last.Less(r.First) {
				r.First, r.Last = r.Last, r.First
			}
			reserved = append(reserved, r)
		}
		p, err := ipam.NewPool(base, pick(), reserved...)
		if err != nil {
			continue // gateway on an edge, or nothing left: covered by TestNewPool
		}

		var taken []netip.Addr
		for _, i := range rng.Perm(len(all))[:rng.IntN(len(all)+1)] {
			taken = append(taken, all[i])
		}
		before := slices.Clone(taken)
		want := slices.IndexFunc(all, func(a netip.Addr) bool { return p.Check(a, taken) == nil })
		got, err := p.Lowest(taken)
		if !slices.Equal(before, taken) {
			t.Fatalf("round %d: Lowest changed its argument", round)
		}
		switch {
		case want < 0:
			if !errors.Is(err, ipam.ErrExhausted) {
				t.Fatalf("round %d: %s %v: Lowest(%v) = %v, %v, want %v", round, base, reserved, taken, got, err, ipam.ErrExhausted)
			}
		case err != nil || got != all[want]:
			t.Fatalf("round %d: %s %v: Lowest(%v) = %v, %v, want %v", round, base, reserved, taken, got, err, all[want])
		}
	}
}

// TestFillAndFree leases a /24 to its end, in order, then frees addresses and gets exactly those back.
func TestFillAndFree(t *testing.T) {
	p := mustPool(t, "192.168.127.0/24", "192.168.127.1", span("192.168.127.100", "192.168.127.109"))
	var taken []netip.Addr
	for range p.Size() {
		a, err := p.Lowest(taken)
		if err != nil {
			t.Fatalf("Lowest with %d taken: %v", len(taken), err)
		}
		if len(taken) > 0 && !taken[len(taken)-1].Less(a) {
			t.Fatalf("Lowest gave %v after %v", a, taken[len(taken)-1])
		}
		taken = append(taken, a)
	}
	if a, err := p.Lowest(taken); !errors.Is(err, ipam.ErrExhausted) {
		t.Fatalf("full pool: Lowest = %v, %v, want %v", a, err, ipam.ErrExhausted)
	}
	for i := range taken {
		rest := slices.Delete(slices.Clone(taken), i, i+1)
		if a, err := p.Lowest(rest); err != nil || a != taken[i] {
			t.Fatalf("after freeing %v: Lowest = %v, %v", taken[i], a, err)
		}
	}
}

func FuzzPool(f *testing.F) {
	f.Add("192.168.127.0/24", "192.168.127.1", "192.168.127.9", "192.168.127.12", "192.168.127.2")
	f.Add("10.0.0.0/31", "10.0.0.0", "10.0.0.0", "10.0.0.0", "10.0.0.1")
	f.Add("255.255.255.0/24", "255.255.255.1", "255.255.255.254", "255.255.255.255", "255.255.255.2")
	f.Fuzz(func(t *testing.T, prefix, gateway, first, last, taken string) {
		pfx, _ := netip.ParsePrefix(prefix)
		gw, _ := netip.ParseAddr(gateway)
		var r ipam.Range
		r.First, _ = netip.ParseAddr(first)
		r.Last, _ = netip.ParseAddr(last)
		used, _ := netip.ParseAddr(taken)
		p, err := ipam.NewPool(pfx, gw, r)
		if err != nil {
			return
		}
		a, err := p.Lowest([]netip.Addr{used})
		if err != nil {
			if p.Size() > 1 {
				t.Fatalf("size %d, one taken: %v", p.Size(), err)
			}
			return
		}
		if err := p.Check(a, []netip.Addr{used}); err != nil {
			t.Fatalf("Lowest gave %v, Check says %v", a, err)
		}
	})
}

// BenchmarkLowest is what each create pays at the 5,000th VM of a /16.
func BenchmarkLowest(b *testing.B) {
	p := mustPool(b, "10.0.0.0/16", "10.0.0.1")
	var taken []netip.Addr
	for a := netip.MustParseAddr("10.0.0.2"); len(taken) < 5000; a = a.Next() {
		taken = append(taken, a)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(taken), func(i, j int) { taken[i], taken[j] = taken[j], taken[i] })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Lowest(taken); err != nil {
			b.Fatal(err)
		}
	}
}
