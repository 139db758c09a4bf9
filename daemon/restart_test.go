package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store/row"
)

// restarting creates a VM of the plugin with a restart policy: "on-failure:3".
func (in *instance) restarting(name, plugin, policy string) api.VM {
	in.w.t.Helper()
	r := api.Restart{Policy: policy}
	if kind, n, ok := strings.Cut(policy, ":"); ok {
		r.Policy = kind
		fmt.Sscan(n, &r.MaxRetries)
	}
	return in.createFrom(api.VMCreate{Name: name, Plugin: plugin, Restart: &r})
}

// TestGuestPolicy says what guests are told of a policy.
func TestGuestPolicy(t *testing.T) {
	for _, tc := range []struct {
		policy api.Restart
		used   int
		want   wire.RestartPolicy
		most   int
	}{
		{api.Restart{Policy: "never"}, 0, wire.RestartNever, 0},
		{api.Restart{Policy: "always"}, 7, wire.RestartAlways, 0},
		{api.Restart{Policy: "unless-stopped"}, 7, wire.RestartAlways, 0},
		{api.Restart{Policy: "on-failure"}, 7, wire.RestartOnFailure, 0},
		{api.Restart{Policy: "on-failure", MaxRetries: 3}, 0, wire.RestartOnFailure, 3},
		{api.Restart{Policy: "on-failure", MaxRetries: 3}, 2, wire.RestartOnFailure, 1},
		{api.Restart{Policy: "on-failure", MaxRetries: 3}, 3, wire.RestartNever, 0},
		{api.Restart{Policy: "on-failure", MaxRetries: 3}, 9, wire.RestartNever, 0},
	} {
		got, most := guestPolicy(&row.VM{VM: api.VM{RestartCount: tc.used}}, &api.Manifest{Restart: &tc.policy})
		if got != tc.want || most != tc.most {
			t.Errorf("%s after %d: guest does %s, %d times; want %s, %d", tc.policy, tc.used, got, most, tc.want, tc.most)
		}
	}
}

// TestRestartsAreCounted wants the restarts of workload and VM to add up to the
// most that a policy allows.
func TestRestartsAreCounted(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.restarting("web", "serve", "on-failure:3")
	if vm.Restart == nil || *vm.Restart != (api.Restart{Policy: "on-failure", MaxRetries: 3}) {
		t.Errorf("policy is shown as %v", vm.Restart)
	}
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	if c := g.cfg.Workload; c.Restart != wire.RestartOnFailure || c.RestartMax != 3 {
		t.Errorf("first guest: %s, %d", c.Restart, c.RestartMax)
	}
	at := time.Now().Add(time.Minute).Round(0)
	g.set(func(s *wire.Status) {
		s.Workload, s.RetryAt, s.Streak, s.Restarts = wire.WorkloadBackoff, &at, 3, 2
		s.Exit = &wire.WorkloadExit{Code: 9, Time: time.Now()}
	})
	got := d.eventually("web", "to be started again", func(vm row.VM) bool { return vm.NextStartAt != nil })
	if got.RestartCount != 2 || !got.NextStartAt.Equal(at) || !got.CrashLoop || got.Status != api.VMRunning {
		t.Errorf("in backoff: %d restarts, next %v, loop %v, %s", got.RestartCount, got.NextStartAt, got.CrashLoop, got.Status)
	}
	// Another daemon does not count them twice.
	d.stop()
	d = w.start(options{})
	g.set(func(s *wire.Status) { s.Workload, s.RetryAt, s.PID = wire.WorkloadRunning, nil, 8 })
	got = d.eventually("web", "running again", func(vm row.VM) bool { return vm.NextStartAt == nil })
	if got.RestartCount != 2 {
		t.Errorf("%d restarts after a restart of the daemon, want 2", got.RestartCount)
	}
	w.hv.Machine(vm.ID).Panic()
	d.eventually("web", "in its second incarnation", func(vm row.VM) bool { return vm.Incarnation == 2 && vm.Status == api.VMRunning })
	if c := w.guest(vm.ID).cfg.Workload; c.Restart != wire.RestartNever || c.RestartMax != 0 {
		t.Errorf("second guest: %s, %d, want never: there is none left", c.Restart, c.RestartMax)
	}
	w.hv.Machine(vm.ID).Panic()
	last := d.must("web", api.WaitStopped)
	if last.Status != api.VMCrashed || last.RestartCount != 3 || last.CrashLoop || last.NextStartAt != nil ||
		!strings.Contains(last.Reason, "panicked; it was started again 3 times, and is not any more (restart policy on-failure:3)") {
		t.Errorf("given up: %+v", last)
	}
	w.checkWorld(d.settle())
	if got := d.journal("web", 1, api.EventVMRestarted); got[0] != "RESTARTED the workload exited with status 9, and was started again (restart 2)" {
		t.Errorf("events: %q", got)
	}
	// The operator says start: all begins anew.
	if _, err := d.StartVM(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitRunning); vm.RestartCount != 0 || w.guest(vm.ID).cfg.Workload.RestartMax != 3 {
		t.Errorf("started by its operator: %d restarts, guest %+v", vm.RestartCount, w.guest(vm.ID).cfg.Workload)
	}
}

// TestGuestTime has a guest whose clock is beyond what a row can hold.
func TestGuestTime(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.restarting("web", "serve", "always")
	d.must("web", api.WaitHealthy)
	late, err := time.Parse(time.RFC3339, "9999-12-31T23:59:59-23:00")
	if err != nil {
		t.Fatal(err)
	}
	w.guest(vm.ID).set(func(s *wire.Status) {
		s.Workload, s.RetryAt, s.Restarts = wire.WorkloadBackoff, &late, -7
		s.Exit = &wire.WorkloadExit{Code: 9, Time: late}
	})
	got := d.eventually("web", "in backoff", func(vm row.VM) bool { return vm.Exit != nil })
	if !got.Exit.Time.IsZero() || got.NextStartAt == nil || !got.NextStartAt.IsZero() || got.RestartCount != 0 {
		t.Errorf("exit %+v, next start %v, %d restarts", got.Exit, got.NextStartAt, got.RestartCount)
	}
}

// TestCrashLoop has a VM crash again and again, and then run.
func TestCrashLoop(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{timing: func(t *timing) { t.steady = 500 * time.Millisecond }})
	d.equip()
	vm := d.restarting("web", "serve", "always")
	for n := 1; n <= crashLoop; n++ {
		d.eventually("web", "running", func(vm row.VM) bool { return vm.Incarnation == n && vm.Status == api.VMRunning })
		if n == crashLoop { // held back for a look
			d.stop()
			w.hv.Machine(vm.ID).Panic()
			d = w.start(options{timing: func(t *timing) { t.steady, t.restartMin, t.restartMax = 500*time.Millisecond, time.Hour, time.Hour }})
			break
		}
		w.hv.Machine(vm.ID).Panic()
	}
	got := d.eventually("web", "crashed", func(vm row.VM) bool { return vm.CrashLoop })
	if got.Status != api.VMCrashed || got.Desired != api.DesiredRunning || got.RestartCount != crashLoop || got.NextStartAt == nil || time.Until(*got.NextStartAt) < 50*time.Minute {
		t.Errorf("in a crash loop: %+v", got)
	}
	if _, err := d.wait("web", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "crash loop: the guest kernel panicked") {
		t.Errorf("waiting for it = %v, want conflict", err)
	}
	d.settleBackoff("web")
	w.checkWorld([]row.VM{got})

	// A daemon that comes later keeps to the time, and an operator need not.
	d.stop()
	d = w.start(options{timing: func(t *timing) { t.steady, t.restartMax = 500*time.Millisecond, time.Hour }})
	time.Sleep(30 * time.Millisecond)
	if vm := mustVM(t, d, "web"); vm.Incarnation != crashLoop || !vm.CrashLoop {
		t.Errorf("after a restart of the daemon: %+v", vm)
	}
	if _, err := d.StartVM(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitHealthy); vm.CrashLoop || vm.RestartCount != 0 || vm.Incarnation != crashLoop+1 {
		t.Errorf("started by its operator: %+v", vm)
	}

	// Once more, by its workload; and when it runs on, it is forgotten.
	g := w.guest(vm.ID)
	g.set(func(s *wire.Status) { s.Restarts, s.Streak = 3, 3 })
	d.eventually("web", "in a crash loop", func(vm row.VM) bool { return vm.CrashLoop && vm.RestartCount == 3 })
	g.set(func(s *wire.Status) { s.Streak = 0 })
	d.eventually("web", "steady", func(vm row.VM) bool { return !vm.CrashLoop && vm.Tries.Streak == 0 })
	want := []string{"CRASH_LOOP 3 times in a row: the guest kernel panicked", "CRASH_LOOP 3 times in a row: the workload ended", "STEADY"}
	if got := d.journal("web", 3, api.EventVMCrashLoop, api.EventVMSteady); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

// settleBackoff waits until the VM's worker has cleaned up and waits.
func (in *instance) settleBackoff(name string) {
	in.w.t.Helper()
	vm := mustVM(in.w.t, in, name)
	deadline := time.Now().Add(patience)
	for dirs := subdirs(in.w.t, in.runDirs(""), 2); len(dirs) > 0; dirs = subdirs(in.w.t, in.runDirs(""), 2) {
		if time.Now().After(deadline) {
			in.w.t.Fatalf("VM %s: directories are left: %v", vm.ID, dirs)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestStopInBackoff ends the wish of a VM that waits for its next start.
func TestStopInBackoff(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{timing: func(t *timing) { t.restartMin, t.restartMax = time.Hour, time.Hour }})
	d.equip()
	vm := d.restarting("web", "serve", "unless-stopped")
	d.must("web", api.WaitHealthy)
	w.hv.Machine(vm.ID).Crash()
	d.eventually("web", "in backoff", func(vm row.VM) bool { return vm.NextStartAt != nil })
	if _, err := d.StopVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	got := d.must("web", api.WaitStopped)
	if got.Status != api.VMCrashed || got.NextStartAt != nil || got.Incarnation != 1 {
		t.Errorf("stopped in backoff: %+v", got)
	}
	w.checkWorld(d.settle())
}

// TestStartsThatFail tells the operator's start, which fails, from an automatic
// one, which is tried again.
func TestStartsThatFail(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("panic"))
	w.hv.FailNext(hvtest.OpLaunch, 1, errors.New("no memory"))
	vm := d.restarting("web", "serve", "on-failure")
	if got, err := d.wait("web", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || got.Status != api.VMFailed || got.Desired != api.DesiredStopped {
		t.Errorf("operator's start that fails: %v, %+v", err, got)
	}
	if _, err := d.StartVM(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	w.hv.FailNext(hvtest.OpLaunch, 2, errors.New("no memory"))
	w.hv.Machine(vm.ID).Crash()
	got := d.eventually("web", "running again", func(vm row.VM) bool { return vm.Status == api.VMRunning && vm.RestartCount == 3 })
	if got.Incarnation != 5 {
		t.Errorf("incarnation %d after two failed starts, want 5", got.Incarnation)
	}
	if evs := d.journal("web", 2, api.EventVMFailed); evs[0] != "FAILED launch: no memory" && !strings.Contains(evs[0], "no memory") {
		t.Errorf("events: %q", evs)
	}
	// A guest that panics while it boots has ended too.
	d.restarting("early", "panic", "always")
	if _, err := d.wait("early", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "crash loop: the guest kernel panicked before it was up") {
		t.Errorf("waiting for a guest that panics = %v", err)
	}
	if err := d.DeleteVM(context.Background(), "early", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("early", api.WaitDeleted)
	w.checkWorld(d.settle())
}
