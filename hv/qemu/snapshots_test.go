package qemu_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/qemu"
)

// snapshotEnv makes the test binary a daemon that takes one snapshot, to the
// directory that it names.
const snapshotEnv = "VOLANT_TEST_SNAPSHOT"

// beSnapshotter reads a record, pauses its machine, says so, and takes a
// snapshot.
func beSnapshotter(in io.Reader, out io.Writer, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	var rec hv.Record
	if err := json.NewDecoder(in).Decode(&rec); err != nil {
		return err
	}
	vm, err := qemu.New(qemu.Config{}).Attach(ctx, rec)
	if err != nil {
		return err
	}
	if err := vm.Pause(ctx); err != nil {
		return err
	}
	if _, err := out.Write([]byte("paused\n")); err != nil {
		return err
	}
	_, err = vm.(hv.Snapshotter).Snapshot(ctx, dir)
	return err
}

// TestKilledInSnapshot kills daemons at many moments of a snapshot. What they
// leave is whole or says that it is not, and the machine is as it was.
func TestKilledInSnapshot(t *testing.T) {
	harness(t) // looks for QEMU
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := qemu.New(qemu.Config{Accel: qemu.TCG})
	spec := tiny(t, hvtest.Tiny{Ticks: hvtest.TickForever})
	spec.MemoryMiB = 64
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Kill(context.Background()) })
	whole, torn := 0, 0
	for after := 500 * time.Microsecond; after < 200*time.Millisecond && whole < 3; after += after / 3 {
		wantTicks(t, vm, 1)
		if err := vm.Detach(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		killInSnapshot(t, exec.CommandContext(t.Context(), self), vm.Record(), dir, after)
		again, err := d.Attach(t.Context(), vm.Record())
		if err != nil {
			t.Fatal(err)
		}
		vm = again
		if state, err := vm.State(t.Context()); state != hv.StatePaused || err != nil {
			t.Fatalf("State() after the daemon was killed = %s, %v, want paused", state, err)
		}
		switch b, err := os.ReadFile(filepath.Join(dir, hv.SnapshotFile)); {
		case err == nil:
			whole++
			var s hv.Snapshot
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			second := tiny(t, hvtest.Tiny{})
			second.MemoryMiB = spec.MemoryMiB
			restored, err := d.Restore(t.Context(), second, s, hv.RestoreOptions{})
			if err != nil {
				t.Fatalf("Restore of what a daemon has completed that was killed after %v: %v", after, err)
			}
			if err := errors.Join(restored.Resume(t.Context()), restored.Kill(t.Context())); err != nil {
				t.Error(err)
			}
		case errors.Is(err, os.ErrNotExist):
			torn++
		default:
			t.Fatal(err)
		}
		if err := vm.Resume(t.Context()); err != nil {
			t.Fatalf("Resume after the daemon was killed: %v", err)
		}
	}
	if torn == 0 {
		t.Error("no daemon was killed before its snapshot was whole: the test tests nothing")
	}
	t.Logf("%d snapshots whole, %d torn", whole, torn)
}

// killInSnapshot runs a daemon that takes a snapshot, and kills it a while after
// it has begun.
func killInSnapshot(t *testing.T, cmd *exec.Cmd, rec hv.Record, dir string, after time.Duration) {
	t.Helper()
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), snapshotEnv+"="+dir)
	cmd.Stdin = strings.NewReader(string(b))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("paused\n"))); err != nil {
		t.Errorf("the daemon has not paused the machine: %v", err)
	}
	time.Sleep(after)
	cmd.Process.Kill() // it may be over
	cmd.Wait()         // reports the signal that was just sent
}

// TestSnapshotOncePerPause shows what QEMU does not allow, and what it lets go of.
func TestSnapshotOncePerPause(t *testing.T) {
	harness(t) // looks for QEMU
	d := qemu.New(qemu.Config{Accel: qemu.TCG})
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(g hvtest.Tiny) hv.Spec {
		spec := tiny(t, g)
		spec.Disks = []hv.Disk{{Serial: "a", Path: disk}}
		return spec
	}
	first, err := d.Launch(t.Context(), with(hvtest.Tiny{Ticks: hvtest.TickForever}))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Kill(t.Context())
	take := func() (hv.Snapshot, error) {
		if err := first.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		return first.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir())
	}
	s, err := take()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(); err == nil || !strings.Contains(err.Error(), "resume the machine") {
		t.Errorf("second Snapshot in a pause: %v, want what to do", err)
	}
	// The disk is free until one of two is resumed.
	second, err := d.Restore(t.Context(), with(hvtest.Tiny{}), s, hv.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Kill(t.Context())
	if _, err := second.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "resume it first") {
		t.Errorf("Snapshot of a restored machine that has not run: %v, want what to do", err)
	}
	third, err := d.Restore(t.Context(), with(hvtest.Tiny{}), s, hv.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer third.Kill(t.Context())
	if err := second.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, vm := range map[string]hv.VM{"the first machine": first, "another restored machine": third} {
		if err := vm.Resume(t.Context()); !errors.Is(err, hv.ErrDiskInUse) {
			t.Errorf("Resume of %s while a restored one has the disk: %v, want ErrDiskInUse", name, err)
		}
		if state, err := vm.State(t.Context()); state != hv.StatePaused || err != nil {
			t.Errorf("State() of %s without its disk = %s, %v, want paused", name, state, err)
		}
	}
	spec := with(hvtest.Tiny{})
	if vm, err := d.Restore(t.Context(), spec, s, hv.RestoreOptions{}); !errors.Is(err, hv.ErrDiskInUse) || !strings.Contains(err.Error(), disk) {
		if err == nil {
			vm.Kill(t.Context())
		}
		t.Errorf("Restore while a machine runs with the disk: %v, want ErrDiskInUse and its path", err)
	}
	if entries, err := os.ReadDir(spec.Dir); err != nil || len(entries) > 0 {
		t.Errorf("the failed Restore left %v, %v", entries, err)
	}
	// What has run can be snapshotted, and paused for that.
	if err := second.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := second.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir()); err != nil {
		t.Errorf("Snapshot of a restored machine that has run: %v", err)
	}
	if err := second.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Resume(t.Context()); err != nil {
		t.Errorf("Resume with the disk free again: %v", err)
	}
	if _, err := take(); err != nil {
		t.Errorf("Snapshot in the next pause: %v", err)
	}
}
