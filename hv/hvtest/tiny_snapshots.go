package hvtest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
)

// counting launches a guest that has counted to a few, with more memory than it
// needs, so that its snapshot takes a while.
func (r *run) counting(g Tiny) hv.VM {
	r.Helper()
	spec := r.watch(r.Tiny(r, g))
	spec.MemoryMiB *= 4
	vm := r.launch(spec)
	r.tickAfter(vm, 2)
	return vm
}

// again returns what a machine of counting is restored as.
func (r *run) again() hv.Spec {
	r.Helper()
	spec := r.watch(r.Tiny(r, Tiny{}))
	spec.MemoryMiB *= 4
	return spec
}

// testTinySnapshot restores a guest that then goes on counting to its end.
func testTinySnapshot(r *run) {
	const ticks = 50
	restores := 2
	for _, test := range r.tinyEnds() {
		vm := r.counting(Tiny{Ticks: ticks, End: test.end})
		s := r.snapshot(vm)
		n := r.stands(vm)
		for range restores {
			again, err := r.driver.Restore(r.ctx, r.again(), s, hv.RestoreOptions{})
			if err != nil {
				r.Fatalf("Restore: %v", err)
			}
			r.killAtEnd(again)
			r.wantState(again, hv.StatePaused)
			if got := lastTick(r, again.Record().ConsoleLog); got >= 0 {
				r.Errorf("the restored guest has counted to %d before it was resumed", got)
			}
			// A daemon that comes later finds it paused as well.
			if err := again.Detach(); err != nil {
				r.Fatalf("Detach: %v", err)
			}
			again = r.attach(again.Record())
			r.wantState(again, hv.StatePaused)
			r.resume(again)
			if got := r.tickAfter(again, -1); got <= n-2 {
				r.Errorf("the restored guest counts on from %d, want %d", got, n)
			}
			r.wantExit(again, test.want)
			r.wantEvents(again, hv.EventResumed, test.event, hv.EventExited)
			console, err := os.ReadFile(again.Record().ConsoleLog)
			if err != nil {
				r.Fatal(err)
			}
			if bytes.Contains(console, []byte("up")) || lastTick(r, again.Record().ConsoleLog) != ticks {
				r.Errorf("the restored guest has booted, or did not count to %d: %q", ticks, console)
			}
		}
		r.resume(vm)
		r.wantExit(vm, test.want)
		restores = 1 // that it can be more has been seen
	}
}

// moments are when something is broken off that takes some tens of milliseconds.
func moments(limit time.Duration) []time.Duration {
	list := []time.Duration{0}
	for d := 100 * time.Microsecond; d < limit; d += d/3 + 100*time.Microsecond {
		list = append(list, d)
	}
	return list
}

// testTinySnapshotCancelled breaks snapshots off, and has VMMs die in them.
func testTinySnapshotCancelled(r *run) {
	vm := r.counting(Tiny{Ticks: TickForever})
	done := 0
	for _, after := range moments(200 * time.Millisecond) {
		if err := vm.Pause(r.ctx); err != nil {
			r.Fatalf("Pause: %v", err)
		}
		n := lastTick(r, vm.Record().ConsoleLog)
		dir := r.TempDir()
		ctx, cancel := context.WithTimeout(r.ctx, after)
		_, err := vm.(hv.Snapshotter).Snapshot(ctx, dir)
		cancel()
		r.wantState(vm, hv.StatePaused)
		if left := names(r, dir); err != nil && len(left) > 0 {
			r.Errorf("a snapshot cancelled after %v (%v) left the files %q", after, err, left)
		}
		if err == nil {
			done++
		}
		r.resume(vm)
		r.tickAfter(vm, n)
		if done == 3 {
			break // it will not take longer
		}
	}
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		vm := r.counting(Tiny{Ticks: TickForever})
		if err := vm.Pause(r.ctx); err != nil {
			r.Fatalf("Pause: %v", err)
		}
		dir := r.TempDir()
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(after)
			r.Crash(r, vm.Record())
		})
		_, err := vm.(hv.Snapshotter).Snapshot(r.ctx, dir)
		wg.Wait()
		if left := names(r, dir); err != nil && len(left) > 0 {
			r.Errorf("a snapshot whose VMM died after %v (%v) left the files %q", after, err, left)
		}
		r.wantExit(vm, hv.ExitCrashed)
		if _, err := vm.(hv.Snapshotter).Snapshot(r.ctx, r.TempDir()); !errors.Is(err, hv.ErrGone) {
			r.Errorf("Snapshot after the end: %v, want ErrGone", err)
		}
	}
}

// testTinyRestoreCancelled breaks restores off.
func testTinyRestoreCancelled(r *run) {
	vm := r.counting(Tiny{Ticks: TickForever})
	s := r.snapshot(vm)
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	done := 0
	for after := time.Duration(0); after <= 400*time.Millisecond && done < 3; after += 10 * time.Millisecond {
		spec := r.again()
		ctx, cancel := context.WithTimeout(r.ctx, after)
		vm, err := r.driver.Restore(ctx, spec, s, hv.RestoreOptions{})
		cancel()
		if err == nil {
			done++
			r.wantState(vm, hv.StatePaused)
			if err := vm.Kill(r.ctx); err != nil {
				r.Errorf("Kill: %v", err)
			}
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			r.Errorf("Restore cancelled after %v: %v, want DeadlineExceeded", after, err)
		}
		r.wantNothing(spec, "Restore cancelled after "+after.String())
	}
}

// testTinyTemplate forks a template that several forks then write beside.
func testTinyTemplate(r *run) {
	spec := r.watch(r.Tiny(r, Tiny{Ticks: TickForever}))
	spec.MemoryFile = filepath.Join(r.TempDir(), "memory")
	vm := r.launch(spec)
	r.tickAfter(vm, 2)
	s := r.snapshot(vm)
	n := r.stands(vm)
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	before := r.digests(s.MemoryFile)
	var wg sync.WaitGroup
	for range 4 {
		spec := r.watch(r.Tiny(r, Tiny{}))
		wg.Go(func() {
			fork, err := r.driver.Restore(r.ctx, spec, s, hv.RestoreOptions{})
			if err != nil {
				r.Errorf("Restore: %v", err)
				return
			}
			r.killAtEnd(fork)
			if err := fork.Resume(r.ctx); err != nil {
				r.Errorf("Resume: %v", err)
				return
			}
			for deadline := time.Now().Add(r.Timeout); lastTick(r, spec.ConsoleLog) <= n+3; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					r.Errorf("a fork does not count beyond %d", n+3)
					return
				}
			}
		})
	}
	wg.Wait()
	if after := r.digests(s.MemoryFile); !maps.Equal(before, after) {
		r.Error("the template's memory has changed by being forked")
	}
	// A memory file is the driver's to make: one that is there is not written over.
	taken := r.watch(r.Tiny(r, Tiny{}))
	taken.MemoryFile = s.MemoryFile
	if vm, err := r.driver.Launch(r.ctx, taken); !errors.Is(err, hv.ErrInvalidSpec) {
		if err == nil {
			vm.Kill(r.ctx)
		}
		r.Errorf("Launch with a memory file that is there: %v, want ErrInvalidSpec", err)
	}
	if after := r.digests(s.MemoryFile); !maps.Equal(before, after) {
		r.Error("a refused Launch has changed the memory file that was there")
	}
}
