package hvtest

import (
	"context"
	"errors"
	"time"

	"github.com/volantvm/volant/hv"
)

func testShutdown(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/poweroff")
	r.wantExit(vm, hv.ExitShutdown)
	r.wantEvents(vm, hv.EventGuestShutdown, hv.EventExited)
}

func testReset(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/reset")
	r.wantExit(vm, hv.ExitReset)
	r.wantEvents(vm, hv.EventGuestReset, hv.EventExited)
}

func testPanic(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/panic")
	r.wantExit(vm, hv.ExitPanic)
	r.wantEvents(vm, hv.EventGuestPanic, hv.EventExited)
}

func testPowerButton(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64) // the guest listens by now
	if err := vm.PowerButton(r.ctx); err != nil {
		r.Fatalf("PowerButton: %v", err)
	}
	r.wantExit(vm, hv.ExitShutdown)
	r.wantEvents(vm, hv.EventGuestShutdown, hv.EventExited)
}

func testCrash(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64)
	r.Crash(r, vm.Record())
	r.wantExit(vm, hv.ExitCrashed)
	r.wantEvents(vm, hv.EventExited)
}

func testUnattended(r *run) {
	for _, end := range []struct {
		path string
		want hv.ExitReason
	}{
		{"/reset", hv.ExitReset}, // which query-status cannot tell from a power-off
		{"/panic", hv.ExitPanic},
	} {
		vm := r.launch(r.spec())
		r.post(vm, end.path+"?after=300ms")
		if err := vm.Detach(); err != nil {
			r.Fatalf("Detach: %v", err)
		}
		time.Sleep(time.Second)
		again := r.attach(vm.Record())
		r.wantExit(again, end.want)
	}
}

func testCancel(r *run) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond} {
		r.cancelLaunch(r.spec(), after)
	}
}

// cancelLaunch ends a launch after a while, and wants nothing to be left of it.
func (r *run) cancelLaunch(spec hv.Spec, after time.Duration) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, after)
	defer cancel()
	vm, err := r.driver.Launch(ctx, spec)
	if err == nil {
		// It was faster. The machine is ours then, whatever ctx says.
		r.wantState(vm, hv.StateRunning)
		if err := vm.Kill(r.ctx); err != nil {
			r.Errorf("Kill: %v", err)
		}
		return
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		r.Errorf("Launch cancelled after %v: %v, want DeadlineExceeded", after, err)
	}
	r.wantNothing(spec, "Launch cancelled after "+after.String())
}
