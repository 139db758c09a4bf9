package daemon

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
)

// TestPorts follows reservations of host ports along those of taps.
func TestPorts(t *testing.T) {
	web := Publish{HostPort: 8080, GuestPort: 80, Protocol: "tcp"}
	port := func(tap string, publish ...Publish) Port {
		return Port{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, IP: netip.MustParseAddr("192.168.127.2"), Publish: publish}
	}
	check := func(t *testing.T, n *memNetwork, taps []string, kept ...string) {
		t.Helper()
		var gotTaps, gotKept []string
		for _, p := range n.rules {
			gotTaps = append(gotTaps, p.Tap)
		}
		for vm, ps := range n.kept {
			if len(ps) > 0 {
				gotKept = append(gotKept, vm)
			}
		}
		slices.Sort(gotKept)
		if !slices.Equal(gotTaps, taps) || !slices.Equal(gotKept, kept) {
			t.Errorf("rules for %v, ports kept for %v; want %v and %v", gotTaps, gotKept, taps, kept)
		}
	}
	ctx := t.Context()

	t.Run("put and drop", func(t *testing.T) {
		n := newMemNetwork()
		p := newPorts(n)
		if err := p.put(ctx, "a", port("vlta", web)); err != nil {
			t.Fatal(err)
		}
		if err := p.put(ctx, "b", port("vltb", web)); !errors.Is(err, ErrPortInUse) {
			t.Errorf("put of a taken port = %v, want %v", err, ErrPortInUse)
		}
		check(t, n, []string{"vlta"}, "a")
		if err := p.put(ctx, "c", port("vltc")); err != nil { // the refusal concerns nobody else
			t.Fatal(err)
		}
		check(t, n, []string{"vlta", "vltc"}, "a")
		for range 2 {
			if err := p.drop(ctx, "a"); err != nil {
				t.Fatal(err)
			}
		}
		check(t, n, []string{"vltc"})
		if err := p.put(ctx, "b", port("vltb", web)); err != nil {
			t.Errorf("put of a port that was given up = %v, want ok", err)
		}
		check(t, n, []string{"vltb", "vltc"}, "b")
	})
	t.Run("reset", func(t *testing.T) {
		n := newMemNetwork()
		n.busy[8080] = true
		p := newPorts(n)
		dns := Publish{HostPort: 53, GuestPort: 53, Protocol: "udp"}
		taken, err := p.reset(ctx, map[string]Port{"a": port("vlta", web), "b": port("vltb", dns)})
		if err != nil || len(taken) != 1 || !errors.Is(taken["a"], ErrPortInUse) {
			t.Errorf("reset = %v, %v, want %v for a", taken, err, ErrPortInUse)
		}
		check(t, n, []string{"vlta", "vltb"}, "b")
	})
}
