package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// haunt launches a machine below the world's runtime directory that no row knows,
// for a volantd with that data directory.
func (w *world) haunt(id, data string) hv.Record {
	w.t.Helper()
	dir := filepath.Join(w.root, "run", "vms", id, "7")
	kernel := filepath.Join(w.root, "kernel")
	console := filepath.Join(data, "vms", id, consoleLog)
	for _, dir := range []string{dir, filepath.Dir(console)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(kernel, kernelImage("x"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	vm, err := w.hv.Launch(context.Background(), hv.Spec{ID: id, Dir: dir, VCPUs: 1, MemoryMiB: 64, Kernel: kernel, ConsoleLog: console})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := vm.Detach(); err != nil {
		w.t.Fatal(err)
	}
	return vm.Record()
}

// until waits until what is to come true does.
func (w *world) until(what string, true func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !true(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("still not so: %s", what)
		}
	}
}

func (in *instance) told(ev api.EventType) int {
	in.w.t.Helper()
	page, err := in.db.Events(context.Background(), api.EventFilter{Types: []api.EventType{ev}}, 100)
	if err != nil {
		in.w.t.Fatal(err)
	}
	return len(page.Events)
}

// A machine that no row knows, and of which nothing is left but its process, is
// found and ended: when a daemon starts, and on a tick.
func TestMachineWithoutAnything(t *testing.T) {
	w := newWorld(t)
	data := filepath.Join(w.root, "data")
	vanish := func(id string) {
		t.Helper()
		for _, dir := range []string{filepath.Join(w.root, "run", "vms", id), filepath.Join(data, "vms", id)} {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.haunt("ghostghost22", data)
	vanish("ghostghost22")
	d := w.start(options{timing: func(t *timing) { t.tick = 10 * time.Millisecond }})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	w.checkWorld(d.settle())

	w.haunt("ghostghost33", data)
	vanish("ghostghost33")
	w.until("the ghost has gone", func() bool { return w.hv.Machine("ghostghost33") == nil })
	w.checkWorld(d.settle())
}

// What runs below the same runtime directory for another data directory is not
// touched, whether its own directory is there or not; nor is its tap.
func TestMachineOfAnotherVolantd(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	theirs := filepath.Join(w.root, "other-data")
	with := w.haunt("foreignone22", theirs)
	w.haunt("foreigntwo22", theirs)
	if err := os.RemoveAll(filepath.Join(w.root, "run", "vms", "foreigntwo22")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.net.AddTap(ctx, "foreignone22"); err != nil {
		t.Fatal(err)
	}
	// The same directory by another name is the same.
	alias := filepath.Join(w.root, "alias")
	if err := os.MkdirAll(filepath.Join(w.root, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data", alias); err != nil {
		t.Fatal(err)
	}
	w.haunt("ghostghost22", alias)

	d := w.start(options{timing: func(t *timing) { t.tick = 10 * time.Millisecond }})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	w.until("our own ghost has gone", func() bool { return w.hv.Machine("ghostghost22") == nil })
	time.Sleep(50 * time.Millisecond) // some ticks
	for _, id := range []string{"foreignone22", "foreigntwo22"} {
		if w.hv.Machine(id) == nil {
			t.Errorf("machine %s of another volantd was ended", id)
		}
	}
	if _, err := os.Stat(with.Dir); err != nil {
		t.Errorf("directory of another volantd's machine: %v", err)
	}
	if taps, _ := w.net.Taps(ctx); taps["foreignone22"] == "" {
		t.Error("tap of another volantd's machine was removed")
	}
	for _, m := range w.hv.Running() {
		if strings.HasPrefix(m.Record().ID, "foreign") {
			m.Crash()
		}
	}
	if err := w.net.RemoveTap(ctx, "foreignone22"); err != nil {
		t.Fatal(err)
	}
	w.until("what they left is swept", func() bool { return gone(filepath.Dir(with.Dir)) })
	w.checkWorld(d.settle())
}

// A VM that runs loses its runtime directory, or its tap, to somebody else.
func TestTakenFromUnderARunningVM(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name   string
		take   func(w *world, vm row.VM) error
		event  api.EventType
		reason string
	}{
		{"tap", func(w *world, vm row.VM) error { return w.net.RemoveTap(ctx, vm.ID) }, api.EventVMDisconnected, "its network device was removed"},
		{"directory", func(w *world, vm row.VM) error { return os.RemoveAll(filepath.Join(w.root, "run", "vms", vm.ID)) }, api.EventVMImpaired, "its runtime directory was removed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{timing: func(t *timing) { t.tick = 10 * time.Millisecond }})
			d.equip()
			d.create("web", "serve")
			d.create("other", "serve")
			if _, err := d.CreateVM(ctx, api.VMCreate{Name: "forever", Plugin: "serve", Restart: &api.Restart{Policy: api.RestartAlways}}); err != nil {
				t.Fatal(err)
			}
			d.settle()

			// Without a restart policy the row says so, and what helps; once.
			if err := tc.take(w, mustVM(t, d, "web")); err != nil {
				t.Fatal(err)
			}
			w.until("it was told", func() bool { return d.told(tc.event) == 1 })
			time.Sleep(50 * time.Millisecond) // some ticks more
			vm := mustVM(t, d, "web")
			if vm.Status != api.VMRunning || vm.Incarnation != 1 || !strings.HasPrefix(vm.Reason, tc.reason) || !strings.HasSuffix(vm.Reason, "volar vms restart web") || d.told(tc.event) != 1 {
				t.Errorf("VM web is %s because %q, incarnation %d, told %d times", vm.Status, vm.Reason, vm.Incarnation, d.told(tc.event))
			}
			if _, err := d.RestartVM(ctx, "web", api.VMStop{}); err != nil {
				t.Fatal(err)
			}
			w.checkWorld(d.settle())
			if vm := mustVM(t, d, "web"); vm.Reason != "" || vm.Incarnation != 2 {
				t.Errorf("VM web after its restart: %+v", vm)
			}

			// With one it is restarted, and its workload asked to end.
			guest := w.guest(mustVM(t, d, "forever").ID)
			if err := tc.take(w, mustVM(t, d, "forever")); err != nil {
				t.Fatal(err)
			}
			w.until("it was restarted", func() bool { return mustVM(t, d, "forever").Incarnation == 2 })
			w.checkWorld(d.settle())
			guest.mu.Lock()
			asked := len(guest.asked)
			guest.mu.Unlock()
			if vm := mustVM(t, d, "forever"); vm.RestartCount != 1 || asked != 1 || d.told(tc.event) != 2 {
				t.Errorf("restarted %d times, asked to end %d times, told %d times", vm.RestartCount, asked, d.told(tc.event))
			}
		})
	}
}

// A VM whose runtime directory goes while no daemon runs cannot be taken up: its
// machine is ended, and its restart policy says what follows.
func TestRuntimeDirectoryRemovedUnwatched(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "forever", Plugin: "serve", Restart: &api.Restart{Policy: api.RestartUnlessStopped}}); err != nil {
		t.Fatal(err)
	}
	d.settle()
	d.stop()
	if err := os.RemoveAll(filepath.Join(w.root, "run")); err != nil {
		t.Fatal(err)
	}
	d = w.start(options{})
	w.checkWorld(d.settle())
	if vm := mustVM(t, d, "web"); vm.Status != api.VMCrashed || !strings.Contains(vm.Reason, "runtime directory was removed") {
		t.Errorf("VM web is %s because %q", vm.Status, vm.Reason)
	}
	if vm := mustVM(t, d, "forever"); vm.Status != api.VMRunning || vm.Incarnation != 2 || vm.RestartCount != 1 {
		t.Errorf("VM forever: %+v", vm)
	}
}
