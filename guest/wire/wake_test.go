package wire

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func sampleWake() Wake {
	boot := sampleBoot()
	id := boot.Identity()
	return Wake{Epoch: 2, Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Seed: bytes.Repeat([]byte{1}, 64), Identity: &id}
}

func TestWakeValidate(t *testing.T) {
	tests := []struct {
		field string // the error must name it; "" for none
		edit  func(*Wake)
	}{
		{"", func(w *Wake) {}},
		{"", func(w *Wake) { w.Epoch, w.Seed, w.Identity = 0, nil, nil }},
		{"", func(w *Wake) { w.Identity.Network = nil }},
		{"time", func(w *Wake) { w.Time = time.Time{} }},
		{"time", func(w *Wake) { w.Time = time.Unix(0, 0) }},
		{"seed", func(w *Wake) { w.Seed = w.Seed[:31] }},
		{"seed", func(w *Wake) { w.Seed = append(w.Seed, 1) }},
		{"identity: vm", func(w *Wake) { w.Identity.VM = "" }},
		{"identity: incarnation", func(w *Wake) { w.Identity.Incarnation = 0 }},
		{"identity: hostname", func(w *Wake) { w.Identity.Hostname = "a b" }},
		{"identity: machine_id", func(w *Wake) { w.Identity.MachineID = "0123" }},
		{"identity: network: mac", func(w *Wake) { w.Identity.Network.MAC = "02:56" }},
		{"identity: network: gateway", func(w *Wake) { w.Identity.Network.Gateway = netip.MustParseAddr("192.0.2.1") }},
	}
	for _, tt := range tests {
		w := sampleWake()
		tt.edit(&w)
		err := w.Validate()
		if (err == nil) != (tt.field == "") || err != nil && !strings.HasPrefix(err.Error(), tt.field) {
			t.Errorf("Validate() = %v, want an error about %q", err, tt.field)
		}
	}
}

func FuzzWake(f *testing.F) {
	good, err := json.Marshal(sampleWake())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"epoch":18446744073709551615,"time":"9999-12-31T23:59:59Z","identity":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w Wake
		if json.Unmarshal(b, &w) != nil || w.Validate() != nil {
			return
		}
		// What a guest acts on can be told again.
		again, err := json.Marshal(w)
		if err != nil {
			t.Fatalf("cannot be encoded: %v", err)
		}
		var w2 Wake
		if err := json.Unmarshal(again, &w2); err != nil {
			t.Fatal(err)
		}
		if err := w2.Validate(); err != nil {
			t.Errorf("%s is valid, and encoded again it is not: %v", b, err)
		}
	})
}
