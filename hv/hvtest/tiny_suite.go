package hvtest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// RunTiny runs the part of the conformance suite that needs no kernel: what can
// be seen of a Tiny on its console.
func RunTiny(t *testing.T, h Harness) {
	caps := h.probe(t)
	tests := []conformance{
		{"ends", testTinyEnds},
		{"pause", testTinyPause},
		{"attach", testTinyAttach},
		{"unattended", testTinyUnattended},
		{"cancelled", testTinyCancel},
	}
	if caps.Snapshot {
		tests = append(tests, conformance{"snapshot", testTinySnapshot},
			conformance{"snapshot cancelled", testTinySnapshotCancelled}, conformance{"restore cancelled", testTinyRestoreCancelled})
	}
	if caps.Template {
		tests = append(tests, conformance{"template", testTinyTemplate})
	}
	h.run(t, tests)
}

// tiny launches a machine of this guest, which is killed when the test is over.
func (r *run) tiny(g Tiny) hv.VM {
	r.Helper()
	return r.launch(r.watch(r.Tiny(r, g)))
}

// lastTick returns the newest number on a console, and -1 while there is none.
// Of a number that is only half there it knows nothing.
func lastTick(t testing.TB, path string) int64 {
	t.Helper()
	tail := vmm.Tail(path, 1<<10)
	lines := bytes.Split(tail[:bytes.LastIndexByte(tail, '\n')+1], []byte("\n"))
	if len(lines) < 2 {
		return -1
	}
	n, err := strconv.ParseUint(string(lines[len(lines)-2]), 16, 32)
	if err != nil {
		return -1
	}
	return int64(n)
}

// tickAfter waits until the guest has printed a greater number, and returns it.
func (r *run) tickAfter(vm hv.VM, n int64) int64 {
	r.Helper()
	for {
		if got := lastTick(r, vm.Record().ConsoleLog); got > n {
			return got
		}
		if r.ctx.Err() != nil {
			r.Fatalf("the guest did not count beyond %d; its console ends with %q", n, vmm.Tail(vm.Record().ConsoleLog, 256))
		}
		time.Sleep(time.Millisecond)
	}
}

// stands wants the guest to count no more, and returns what it has come to.
func (r *run) stands(vm hv.VM) int64 {
	r.Helper()
	// What it printed before may still be on its way.
	time.Sleep(30 * time.Millisecond)
	before := lastTick(r, vm.Record().ConsoleLog)
	time.Sleep(100 * time.Millisecond)
	after := lastTick(r, vm.Record().ConsoleLog)
	if after != before {
		r.Errorf("the paused guest counted from %d to %d", before, after)
	}
	return after
}

// tinyEnd is how a Tiny ends, and what its VMM is to make of it.
type tinyEnd struct {
	end   End
	want  hv.ExitReason
	event hv.EventType
}

func (h Harness) tinyEnds() []tinyEnd {
	ends := []tinyEnd{
		{PowerOff, hv.ExitShutdown, hv.EventGuestShutdown},
		{Reset, hv.ExitReset, hv.EventGuestReset},
	}
	if h.TinyPanics {
		ends = append(ends, tinyEnd{Panic, hv.ExitPanic, hv.EventGuestPanic})
	}
	return ends
}

func testTinyEnds(r *run) {
	for _, test := range r.tinyEnds() {
		spec := r.watch(r.Tiny(r, Tiny{Lines: 500, Ticks: 3, End: test.end}))
		spec.ConsoleLimit = 16 << 10
		vm := r.launch(spec)
		r.wantExit(vm, test.want)
		r.wantEvents(vm, test.event, hv.EventExited)
		// Nothing that the guest said before its end is missing at the end.
		if got := lastTick(r, spec.ConsoleLog); got != 3 {
			r.Errorf("the last number on the console is %d, want 3", got)
		}
		for _, path := range []string{spec.ConsoleLog, spec.ConsoleLog + ".1"} {
			if fi, err := os.Stat(path); err != nil || fi.Size() > spec.ConsoleLimit {
				r.Errorf("%s: %v, %v, want at most %d bytes", path, fi, err, spec.ConsoleLimit)
			}
		}
	}
}

func testTinyPause(r *run) {
	vm := r.tiny(Tiny{Ticks: TickForever})
	n := int64(0)
	for range 3 {
		r.tickAfter(vm, n+2)
		for range 2 {
			if err := vm.Pause(r.ctx); err != nil {
				r.Fatalf("Pause: %v", err)
			}
			r.wantState(vm, hv.StatePaused)
		}
		n = r.stands(vm)
		for range 2 {
			if err := vm.Resume(r.ctx); err != nil {
				r.Fatalf("Resume: %v", err)
			}
			r.wantState(vm, hv.StateRunning)
		}
	}
	r.tickAfter(vm, n)
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	r.wantExit(vm, hv.ExitKilled)
	r.wantEvents(vm, hv.EventPaused, hv.EventResumed, hv.EventExited)
}

func testTinyAttach(r *run) {
	vm := r.tiny(Tiny{Ticks: TickForever})
	n := r.tickAfter(vm, 2)
	if err := vm.Pause(r.ctx); err != nil {
		r.Fatalf("Pause: %v", err)
	}
	if err := vm.Detach(); err != nil {
		r.Fatalf("Detach: %v", err)
	}
	again := r.attach(vm.Record())
	r.wantState(again, hv.StatePaused)
	if err := again.Resume(r.ctx); err != nil {
		r.Fatalf("Resume: %v", err)
	}
	r.tickAfter(again, n+2)
	r.Crash(r, again.Record())
	r.wantExit(again, hv.ExitCrashed)
	r.wantEvents(again, hv.EventResumed, hv.EventExited)
}

func testTinyUnattended(r *run) {
	for _, test := range r.tinyEnds() {
		vm := r.tiny(Tiny{Ticks: 20, End: test.end})
		r.tickAfter(vm, 0)
		if err := vm.Detach(); err != nil {
			r.Fatalf("Detach: %v", err)
		}
		time.Sleep(500 * time.Millisecond)
		again, err := r.Driver(r).Attach(r.ctx, vm.Record())
		var gone *hv.GoneError
		switch {
		case err == nil:
			r.wantExit(again, test.want)
		case !errors.As(err, &gone) || gone.Exit.Reason != test.want: // a VMM may not wait to be asked
			r.Errorf("Attach after the end: %v, want %s", err, test.want)
		}
	}
}

// testTinyCancel ends launches at many moments; a tiny guest leaves none out.
func testTinyCancel(r *run) {
	for after := time.Duration(0); after <= 160*time.Millisecond; after += 8 * time.Millisecond {
		r.cancelLaunch(r.watch(r.Tiny(r, Tiny{Ticks: TickForever})), after)
	}
}

// wantNothing wants what failed to have left no process and no file.
func (r *run) wantNothing(spec hv.Spec, what string) {
	r.Helper()
	if alive := r.Alive(r, spec.Dir); len(alive) > 0 {
		r.Errorf("%s left %q", what, alive)
	}
	if left := names(r, spec.Dir); len(left) > 0 {
		r.Errorf("%s left the files %q", what, left)
	}
	if spec.ConsoleLog != "" {
		if _, err := os.Lstat(filepath.Clean(spec.ConsoleLog)); !errors.Is(err, os.ErrNotExist) {
			r.Errorf("%s left the console log: %v", what, err)
		}
	}
}
