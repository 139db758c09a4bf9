package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store/row"
)

// checkSize wants the machine to have the size that the row says.
func (in *instance) checkSize(t *testing.T, vm *row.VM) {
	t.Helper()
	m := in.w.hv.Machine(vm.ID)
	if m == nil {
		t.Fatal("no machine")
	}
	if s := m.Spec(); s.VCPUs != vm.CPUCores || s.MemoryMiB != vm.MemoryMB || vm.Has.VCPUs != vm.CPUCores || vm.Has.MemoryMiB != vm.MemoryMB {
		t.Errorf("the machine has %d vCPUs and %d MiB, the row says %d and %d, and that it has %+v", s.VCPUs, s.MemoryMiB, vm.CPUCores, vm.MemoryMB, vm.Has)
	}
}

func TestScale(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{config: func(c *Config) { c.HostMemoryMiB = 4096 }})
	d.equip()
	vm := d.create("web", "serve") // 64 MiB
	d.must("web", api.WaitHealthy)

	// Live, and the limits with it.
	got, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 192})
	if err != nil || got.MemoryMB != 192 || got.Incarnation != 1 {
		t.Fatalf("ScaleVM = %+v, %v", got, err)
	}
	vms := d.settle()
	d.checkSize(t, &vms[0])
	w.checkWorld(vms)
	if got, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 192}); err != nil || got.Incarnation != 1 { // idempotent
		t.Errorf("ScaleVM again = %+v, %v", got, err)
	}
	if events := d.eventTypes("web"); !slices.Contains(events, api.EventVMScaled) {
		t.Errorf("events %v, want one of scaling", events)
	}

	// Beyond its room only a restart helps, and that must be asked for.
	if _, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1000}); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "room for 192 MiB") || !strings.Contains(err.(*api.Error).Hint, "--restart") {
		t.Errorf("ScaleVM beyond its room: %v", err)
	}
	if got, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1000, Restart: true}); err != nil || got.MemoryMB != 1000 {
		t.Fatalf("ScaleVM with a restart = %+v, %v", got, err)
	}
	if got := d.must("web", api.WaitHealthy); got.Incarnation != 2 {
		t.Errorf("incarnation %d, want 2", got.Incarnation)
	}
	vms = d.settle()
	d.checkSize(t, &vms[0])

	// What the hypervisor will not do after all is taken back.
	w.hv.FailNext(hvtest.OpResize, 1, fmt.Errorf("%w: not in blocks of 128", hv.ErrInvalidSpec))
	if _, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1500}); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "blocks of 128") {
		t.Errorf("ScaleVM that the hypervisor refuses: %v", err)
	}
	vms = d.settle()
	d.checkSize(t, &vms[0])
	if vms[0].MemoryMB != 1000 {
		t.Errorf("%d MiB, want what it had", vms[0].MemoryMB)
	}
	// What only fails is tried again.
	w.hv.FailNext(hvtest.OpResize, 2, errors.New("busy"))
	if got, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1512}); err != nil || got.MemoryMB != 1512 {
		t.Errorf("ScaleVM at the third try = %+v, %v", got, err)
	}

	d.pause("web")
	if _, err := d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1640}); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "is paused") {
		t.Errorf("ScaleVM of a paused VM: %v", err)
	}
	if _, err := d.StopVM(ctx, "web", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	if got, err := d.ScaleVM(ctx, "web", api.VMScale{CPUCores: 3, MemoryMB: 64}); err != nil || got.CPUCores != 3 || got.Status != api.VMStopped {
		t.Errorf("ScaleVM of a stopped VM = %+v, %v", got, err)
	}
	for _, bad := range []api.VMScale{{}, {Restart: true}, {CPUCores: -1}, {MemoryMB: 1}, {CPUCores: 100000}} {
		if _, err := d.ScaleVM(ctx, "web", bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("ScaleVM(%+v): %v, want invalid", bad, err)
		}
	}

	caps, err := w.hv.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	caps.ResizeCPU, caps.ResizeMemory = false, false
	w.hv.SetCapabilities(caps)
	d.stop()
	d = w.start(options{})
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	if s := w.hv.Machine(vm.ID).Spec(); s.VCPUs != 3 || s.MemoryMiB != 64 || s.MaxVCPUs != 0 || s.MaxMemoryMiB != 0 {
		t.Errorf("it was started with %+v", s)
	}
	if _, err := d.ScaleVM(ctx, "web", api.VMScale{CPUCores: 2}); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "cannot change vCPUs") {
		t.Errorf("ScaleVM where that is not possible: %v", err)
	}
}

func TestAdmission(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	limited := options{config: func(c *Config) { c.HostMemoryMiB, c.MemoryOvercommit, c.MemoryReserveMiB = 400, 1.5, 200 }} // 400 MiB for VMs of 64
	d := w.start(limited)
	d.equip()
	// All at once: six fit, whoever they are.
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() { _, errs[i] = d.CreateVM(ctx, api.VMCreate{Name: fmt.Sprintf("vm%d", i), Plugin: "serve"}) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		switch {
		case err == nil:
			made++
		case api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "64 MiB are wanted, but of the 400 MiB that this host has for VMs 384 are taken"):
			t.Errorf("refused with %v", err)
		case !strings.Contains(err.(*api.Error).Hint, "has 64"):
			t.Errorf("the hint is %q, want it to say who has the memory", err.(*api.Error).Hint)
		}
	}
	if made != 6 {
		t.Errorf("%d VMs were admitted, want 6", made)
	}
	vms := d.settle()
	// One that does not run needs no memory, but cannot be started; nor can the others grow.
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "off", Plugin: "serve", Stopped: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartVM(ctx, "off"); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("StartVM without memory: %v", err)
	}
	if _, err := d.RestartVM(ctx, "off", api.VMStop{}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("RestartVM of a stopped VM without memory: %v", err)
	}
	if _, err := d.ScaleVM(ctx, vms[0].Name, api.VMScale{MemoryMB: 192}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("ScaleVM without memory: %v", err)
	}
	if _, err := d.ScaleVM(ctx, "off", api.VMScale{MemoryMB: 500}); err != nil {
		t.Errorf("ScaleVM of a stopped VM: %v", err)
	}
	if _, err := d.StartVM(ctx, "off"); api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.(*api.Error).Hint, "ask for less") {
		t.Errorf("StartVM of one larger than the host: %v", err)
	}
	// Those that have been admitted stay: one that runs can be told so again, and
	// restarted, also by a daemon that would admit fewer.
	d.stop()
	limited.config = func(c *Config) { c.HostMemoryMiB, c.MemoryOvercommit, c.MemoryReserveMiB = 400, 1, 300 }
	d = w.start(limited)
	d.settle()
	if _, err := d.StartVM(ctx, vms[0].Name); err != nil {
		t.Errorf("StartVM of one that runs: %v", err)
	}
	if _, err := d.RestartVM(ctx, vms[0].Name, api.VMStop{Force: true}); err != nil {
		t.Errorf("RestartVM of one that runs: %v", err)
	}
	d.must(vms[0].Name, api.WaitHealthy)
	if got := len(d.settle()); got != 7 {
		t.Errorf("%d VMs, want 7", got)
	}
}

// A size is part of the configuration: each that a VM gets is a version of it, and
// one that is refused, at once or by the machine, is none.
func TestScaleIsConfiguration(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{config: func(c *Config) { c.HostMemoryMiB, c.MemoryOvercommit = 8192, 1 }})
	d.equip()
	d.create("web", "serve") // 64 MiB, one vCPU
	d.must("web", api.WaitHealthy)
	want := func(version, memory int, pending bool, changed ...string) {
		t.Helper()
		v, err := d.VMConfig(ctx, "web", 0)
		if err != nil || v.Version != version || v.Config.MemoryMB != memory || v.Pending != pending || version > 1 && !slices.Equal(v.Changed, changed) {
			t.Errorf("version %d of %d MiB, pending %v, changed %q, %v; want version %d of %d MiB, %v, %q", v.Version, v.Config.MemoryMB, v.Pending, v.Changed, err, version, memory, pending, changed)
		}
		history, err := d.VMConfigHistory(ctx, "web", 0)
		if err != nil || len(history) != version || history[0].Version != version {
			t.Errorf("history %+v, %v; want %d versions", history, err, version)
		}
	}
	scale := func(in api.VMScale) error {
		t.Helper()
		in.By = "uid 7"
		_, err := d.ScaleVM(ctx, "web", in)
		return err
	}

	if err := scale(api.VMScale{MemoryMB: 192}); err != nil { // live
		t.Fatal(err)
	}
	want(2, 192, false, "memory_mb")
	if v, err := d.VMConfig(ctx, "web", 2); err != nil || v.By != "uid 7" {
		t.Errorf("version 2 = %+v, %v; want who asked for it", v, err)
	}
	if v, err := d.VMConfig(ctx, "web", 1); err != nil || v.Config.MemoryMB != 64 {
		t.Errorf("version 1 = %+v, %v; want what the VM was made with", v, err)
	}
	if err := scale(api.VMScale{MemoryMB: 192}); err != nil {
		t.Fatal(err)
	}
	if err := scale(api.VMScale{MemoryMB: 1000}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("ScaleVM beyond its room: %v", err)
	}
	if err := scale(api.VMScale{MemoryMB: 9000, Restart: true}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("ScaleVM beyond the host: %v", err)
	}
	w.hv.FailNext(hvtest.OpResize, 1, fmt.Errorf("%w: not today", hv.ErrInvalidSpec))
	if err := scale(api.VMScale{MemoryMB: 64}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("ScaleVM that the hypervisor refuses: %v", err)
	}
	d.settle()
	want(2, 192, false, "memory_mb")

	// While another version waits, a live size is in both.
	d.patch("web", `{"env": {"MODE": "x"}}`)
	if err := scale(api.VMScale{MemoryMB: 128}); err != nil {
		t.Fatal(err)
	}
	want(4, 128, true, "memory_mb")
	if vm := mustVM(t, d, "web"); vm.MemoryMB != 128 || vm.Env["MODE"] != "" {
		t.Errorf("the VM that runs: %+v", vm)
	}
	// A restart takes all of it over.
	if err := scale(api.VMScale{MemoryMB: 2000, CPUCores: 2, Restart: true}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	w.checkWorld(d.settle())
	want(5, 2000, false, "cpu_cores", "memory_mb")
	if vm := mustVM(t, d, "web"); vm.MemoryMB != 2000 || vm.CPUCores != 2 || vm.Env["MODE"] != "x" || vm.Incarnation != 2 {
		t.Errorf("the VM after its restart: %+v", vm)
	}

	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	if err := scale(api.VMScale{MemoryMB: 256}); err != nil {
		t.Fatal(err)
	}
	want(6, 256, false, "memory_mb")
	if v, err := d.SetVMConfig(ctx, "web", api.VMConfigChange{Version: 1}); err != nil || v.Config.MemoryMB != 64 || v.Config.CPUCores != 1 {
		t.Errorf("back to version 1: %+v, %v", v, err)
	}
}
