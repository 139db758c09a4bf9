package daemon

import (
	"testing"

	"github.com/volantvm/volant/client/api"
)

// TestMemory looks what the daemon asks of the memory of a machine, by what its
// hypervisor can.
func TestMemory(t *testing.T) {
	for name, c := range map[string]struct {
		can, keep, merge bool
		balloon, merged  bool
	}{
		"as it is":               {can: true, balloon: true},
		"free pages are kept":    {can: true, keep: true},
		"merged":                 {can: true, merge: true, balloon: true, merged: true},
		"hypervisor can neither": {merge: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			caps, err := w.hv.Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			caps.Balloon, caps.Merge = c.can, c.can
			w.hv.SetCapabilities(caps)
			d := w.start(options{config: func(cfg *Config) { cfg.KeepFreePages, cfg.MergeMemory = c.keep, c.merge }})
			d.equip()
			d.create("web", "serve")
			vm := d.must("web", api.WaitRunning)
			if spec := w.hv.Machine(vm.ID).Spec(); spec.Balloon != c.balloon || spec.MergeMemory != c.merged {
				t.Errorf("balloon %v, merged %v, want %v and %v", spec.Balloon, spec.MergeMemory, c.balloon, c.merged)
			}
		})
	}
}
