package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store/row"
)

// woken returns what the guest was told of its pauses.
func (g *fakeGuest) woken() []wire.Wake {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.wakes)
}

// checkPaused wants the machine to stand still exactly if the row says so.
func (in *instance) checkPaused(t *testing.T, vm *row.VM) {
	t.Helper()
	m := in.w.hv.Machine(vm.ID)
	if m == nil {
		t.Fatal("no machine")
	}
	if still := m.State() == hv.StatePaused; still != (vm.Status == api.VMPaused) || vm.WantPaused != still || vm.AgentUp == still {
		t.Errorf("the machine is %s, the row says %s, wanted paused %v, agent up %v", m.State(), vm.Status, vm.WantPaused, vm.AgentUp)
	}
}

func (in *instance) pause(name string) api.VM {
	in.w.t.Helper()
	if _, err := in.PauseVM(context.Background(), name); err != nil {
		in.w.t.Fatal(err)
	}
	return in.must(name, api.WaitPaused)
}

func TestPause(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	w.guest(vm.ID).set(func(s *wire.Status) { s.Epoch, s.Exit = 3, &wire.WorkloadExit{Code: 9} }) // it was restored so often
	d.eventually("web", "is known as it is", func(vm row.VM) bool { return vm.Exit != nil && vm.Exit.Code == 9 })
	for range 2 { // idempotent
		if got := d.pause("web"); got.Status != api.VMPaused || got.AgentUp || !got.Healthy {
			t.Errorf("paused: %+v", got)
		}
	}
	vms := d.settle()
	w.checkWorld(vms)
	d.checkPaused(t, &vms[0])

	// What needs a guest that runs says at once that this one does not.
	begun := time.Now()
	_, execErr := d.VMExec(ctx, "web", api.Exec{Args: []string{"true"}})
	_, attachErr := d.VMAttach(ctx, "web")
	_, statErr := d.VMStat(ctx, "web", "/", false)
	_, workErr := d.VMWorkload(ctx, "web")
	_, startErr := d.StartVM(ctx, "web")
	_, waitErr := d.WaitVM(ctx, "web", api.WaitHealthy)
	for what, err := range map[string]error{"exec": execErr, "attach": attachErr, "stat": statErr, "workload": workErr, "start": startErr, "wait": waitErr} {
		if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "is paused") {
			t.Errorf("%s: %v, want a conflict that says so", what, err)
		}
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("they took %v to say so", took)
	}
	// Its log is here, and can be read.
	n := 0
	if err := d.VMLogs(ctx, "web", api.LogQuery{}, func(e []api.LogEntry) error { n += len(e); return nil }); err != nil || n == 0 {
		t.Errorf("VMLogs of a paused VM: %d lines, %v", n, err)
	}

	if _, err := d.ResumeVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	if got := d.must("web", api.WaitRunning); !got.AgentUp || !got.StartedAt.Equal(*vms[0].StartedAt) {
		t.Errorf("resumed: %+v", got)
	}
	wakes := w.guest(vm.ID).woken()
	if len(wakes) != 1 || wakes[0].Epoch != 3 || time.Since(wakes[0].Time).Abs() > time.Minute {
		t.Errorf("the guest was told %+v, want the time once", wakes)
	}
	if _, err := d.ResumeVM(ctx, "web"); err != nil { // idempotent
		t.Error(err)
	}
	vms = d.settle()
	d.checkPaused(t, &vms[0])
	want := []api.EventType{api.EventVMCreated, api.EventVMStarting, api.EventVMRunning, api.EventVMHealthy, api.EventVMPaused, api.EventVMResumed}
	if got := d.eventTypes("web"); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}

	d.pause("web")
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if got := d.must("web", api.WaitStopped); got.Status != api.VMStopped || got.Exit == nil || got.Exit.Signal != "SIGTERM" {
		t.Errorf("stopped: %+v, want its workload to have been asked", got)
	}
	for op, call := range map[string]func(context.Context, string) (api.VM, error){"pause": d.PauseVM, "resume": d.ResumeVM} {
		if _, err := call(ctx, "web"); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "is stopped") {
			t.Errorf("%s of a stopped VM: %v", op, err)
		}
	}
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy) // and not paused
	d.pause("web")
	if err := d.DeleteVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitDeleted)
}

// eventTypes lists what the journal tells of a VM.
func (in *instance) eventTypes(name string) (types []api.EventType) {
	in.w.t.Helper()
	err := in.Events(context.Background(), api.EventFilter{VM: name}, false, func(e api.Event) error {
		types = append(types, e.Type)
		return nil
	})
	if err != nil {
		in.w.t.Fatal(err)
	}
	return types
}

// A paused VM stays so while daemons come and go, and goes on for the one that
// is asked to.
func TestPauseOutlivesDaemon(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.pause("web")
	d.stop()

	d = w.start(options{})
	vms := d.settle()
	w.checkWorld(vms)
	d.checkPaused(t, &vms[0])
	if len(vms) != 1 || vms[0].Status != api.VMPaused || vms[0].Incarnation != 1 || w.hv.Machine(vm.ID).State() != hv.StatePaused {
		t.Fatalf("VMs %+v, machine %s", vms, w.hv.Machine(vm.ID).State())
	}
	if _, err := d.ResumeVM(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	if n := len(w.guest(vm.ID).woken()); n != 1 {
		t.Errorf("the guest was woken %d times, want once", n)
	}

	// One that somebody else has paused goes on.
	d.stop()
	attached, err := w.hv.Attach(context.Background(), w.hv.Machine(vm.ID).Record())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(attached.Pause(context.Background()), attached.Detach()); err != nil {
		t.Fatal(err)
	}
	d = w.start(options{})
	d.settle()
	for deadline := time.Now().Add(patience); w.hv.Machine(vm.ID).State() != hv.StateRunning; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the machine stands still")
		}
	}
}

// A guest that its hypervisor stops is shown as it is, and let go on as soon as
// that lasts.
func TestStalled(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	vm := d.must("web", api.WaitHealthy)
	m := w.hv.Machine(vm.ID)
	again := 4
	w.hv.SetHook(hvtest.OpResumed, func(context.Context, string) error {
		again--
		switch { // there is no room yet
		case again == 1:
			time.AfterFunc(5*time.Millisecond, m.Stall)
		case again > 1: // the guest stands again before the daemon knows that it ran
			m.Stall()
			time.Sleep(5 * time.Millisecond) // for the event
		}
		return nil
	})
	m.Stall()
	stands := func(vm row.VM) bool { return vm.Status == api.VMPaused && vm.Reason != "" && !vm.AgentUp }
	d.eventually("web", "stands still, and says why", stands)
	d.eventually("web", "goes on", func(vm row.VM) bool {
		return w.hv.Calls(hvtest.OpResume) >= 4 && vm.Status == api.VMRunning && vm.Reason == "" && vm.AgentUp && m.State() == hv.StateRunning
	})
	// It may have run for a moment before it stood still again.
	got := d.eventTypes("web")[4:]
	for i, e := range got {
		if want := []api.EventType{api.EventVMPaused, api.EventVMResumed}[i%2]; e != want {
			t.Errorf("events %v, want paused and resumed in turns", got)
		}
	}
	if len(got) < 2 || len(got)%2 != 0 {
		t.Errorf("events %v, want each stop to end", got)
	}
	if wakes := w.guest(vm.ID).woken(); len(wakes) == 0 {
		t.Error("the guest was not told what time it is")
	}

	// Whoever wants it to stop need not wait for room.
	w.hv.SetHook(hvtest.OpResume, func(context.Context, string) error {
		time.AfterFunc(time.Millisecond, m.Stall)
		return nil
	})
	m.Stall()
	d.eventually("web", "stands still again", stands)
	if _, err := d.StopVM(ctx, "web", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
}

// A hypervisor that does not do as told is asked again, and a wish that is
// withdrawn meanwhile leaves nothing behind.
func TestPauseFails(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	w.hv.FailNext(hvtest.OpPause, 2, errors.New("not now"))
	d.pause("web")
	w.hv.FailNext(hvtest.OpResume, 2, errors.New("not now"))
	if _, err := d.ResumeVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitRunning)

	w.hv.Fail(hvtest.OpPause, errors.New("never"))
	if _, err := d.PauseVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	for w.hv.Calls(hvtest.OpPause) < 6 {
		time.Sleep(time.Millisecond)
	}
	if _, err := d.ResumeVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	vms := d.settle()
	if vms[0].Status != api.VMRunning || !vms[0].AgentUp {
		t.Errorf("VM %+v", vms[0])
	}
	w.hv.SetHook(hvtest.OpPause, nil)

	// A VMM that dies while it stands still has crashed.
	d.pause("web")
	w.hv.Machine(vms[0].ID).Crash()
	if got, err := d.wait("web", api.WaitStopped); err != nil || got.Status != api.VMCrashed {
		t.Errorf("after the VMM's death: %s, %v", got.Status, err)
	}

	caps, err := w.hv.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	caps.Pause = false
	w.hv.SetCapabilities(caps)
	d.stop()
	d = w.start(options{})
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	if _, err := d.PauseVM(ctx, "web"); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("PauseVM where that is not possible: %v, want unsupported", err)
	}
}
