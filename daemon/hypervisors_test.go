package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
)

// TestHypervisorOfVM has a VM that asks for another driver than new VMs get: at
// every start, over restarts of the daemon, and when that cannot run.
func TestHypervisorOfVM(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	second := hvtest.NewFake()
	caps, err := second.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	caps.Driver = api.HypervisorQEMU
	second.SetCapabilities(caps)
	second.SetGuest(w.boot)
	both := options{config: func(c *Config) { c.Others = []hv.Driver{second} }}
	d := w.start(both)
	m := d.manifest("serve")
	m.Name, m.Hypervisor = "particular", api.HypervisorQEMU
	d.equip(m)

	d.create("usual", "serve")
	d.create("particular", "particular")
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "asked", Plugin: "serve", Hypervisor: api.HypervisorQEMU}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "waived", Plugin: "particular", Hypervisor: api.HypervisorAuto}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for name, want := range map[string]string{
			"usual": hvtest.FakeName, "waived": hvtest.FakeName, "particular": api.HypervisorQEMU, "asked": api.HypervisorQEMU,
		} {
			if vm := d.must(name, api.WaitHealthy); vm.Hypervisor != want {
				t.Errorf("%s runs with %s, want %s", name, vm.Hypervisor, want)
			}
		}
		if a, b := len(w.hv.Running()), len(second.Running()); a != 2 || b != 2 {
			t.Errorf("%d and %d machines run, want two each", a, b)
		}
	}
	check()
	d.stop()
	d = w.start(both)
	check()
	for _, name := range []string{"asked", "usual"} {
		if _, err := d.RestartVM(ctx, name, api.VMStop{}); err != nil {
			t.Fatal(err)
		}
	}
	check()

	// What it asks for does not work any more, and then is not there at all.
	if _, err := d.StopVM(ctx, "asked", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("asked", api.WaitStopped)
	d.stop()
	second.Fail(hvtest.OpProbe, fmt.Errorf("%w: its binary is not in PATH", hv.ErrUnavailable))
	for _, tt := range []struct {
		opt  options
		want string
	}{
		{both, "is to run with qemu, which cannot run here: hypervisor is not available: its binary is not in PATH"},
		{options{}, "is to run with qemu, which cannot run here: this volantd does not know it"},
	} {
		d = w.start(tt.opt)
		<-d.Ready()
		_, err := d.StartVM(ctx, "asked")
		if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("StartVM = %v, want unavailable and %q", err, tt.want)
		}
		d.stop()
	}
	if _, err := w.start(options{}).CreateVM(ctx, api.VMCreate{Name: "odd", Plugin: "serve", Hypervisor: "xen"}); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "hypervisor") {
		t.Errorf("CreateVM for xen = %v, want invalid", err)
	}
}
