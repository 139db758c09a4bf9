package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// openFiles counts the files that this process has open.
func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// wantFiles waits until no more files are open than before.
func wantFiles(t testing.TB, before int) {
	t.Helper()
	var n int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if n = openFiles(t); n <= before {
			return
		}
	}
	t.Errorf("%d files are open, %d were before", n, before)
}

// nicSpec returns a machine with a NIC.
func nicSpec(t testing.TB) hv.Spec {
	spec := scriptedSpec(t)
	spec.NICs = []hv.NIC{{Tap: testTap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	return spec
}

// taken returns a snapshot of a machine of nicSpec.
func taken(t testing.TB, d *Driver) hv.Snapshot {
	t.Helper()
	vm, err := d.Launch(t.Context(), nicSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := vm.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRestoreFaults lets each call of a restore go wrong in each way. It is not
// parallel, for it counts files.
func TestRestoreFaults(t *testing.T) {
	d, binary := probed(t, script{})
	s := taken(t, d)
	d.budget = brief
	type fault struct {
		name   string
		script script
		want   string // in the error
	}
	faults := []fault{
		{"broken", script{Broken: "no such device"}, "no such device"},
		{"another process answers", script{PID: 1}, "is served by process 1"},
		{"no userfaultfd", script{NoFault: true}, "userfaultfd"},
	}
	for _, op := range []string{opPing, opRestore} {
		faults = append(faults,
			fault{op + " refused", script{Refuse: map[string]refusal{op: {500, `["Error from API","Cannot restore VM"]`}}}, "Cannot restore VM"},
			fault{op + " refused without JSON", script{Refuse: map[string]refusal{op: {503, "{\n too many\n"}}}, op + `: status 503: "{\n too many`},
			fault{op + " kills", script{Die: []string{op}}, "panicked"},
			fault{op + " is silent", script{Silent: []string{op}}, op + ": no answer in 300ms"},
		)
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			setScript(t, binary, f.script)
			spec, before := nicSpec(t), openFiles(t)
			vm, err := d.Restore(t.Context(), spec, s, hv.RestoreOptions{OnDemand: true})
			if err == nil {
				vm.Kill(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("Restore: %v, want %s in it", err, f.want)
			}
			wantNothing(t, spec, true)
			wantFiles(t, before)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		setScript(t, binary, script{Silent: []string{opRestore}})
		spec, before := nicSpec(t), openFiles(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := d.Restore(ctx, spec, s, hv.RestoreOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Restore: %v, want DeadlineExceeded", err)
		}
		wantNothing(t, spec, true)
		wantFiles(t, before)
	})
	t.Run("no tap", func(t *testing.T) {
		setScript(t, binary, script{})
		d.openTap = func(string) (*os.File, error) { return nil, unix.EBUSY }
		defer func() { d.openTap = openTestTap }()
		spec, before := nicSpec(t), openFiles(t)
		if _, err := d.Restore(t.Context(), spec, s, hv.RestoreOptions{}); !errors.Is(err, unix.EBUSY) {
			t.Errorf("Restore: %v, want EBUSY", err)
		}
		if _, err := d.Launch(t.Context(), spec); !errors.Is(err, unix.EBUSY) {
			t.Errorf("Launch: %v, want EBUSY", err)
		}
		wantNothing(t, spec, true)
		wantFiles(t, before)
	})
	// After all that it is whole still.
	setScript(t, binary, script{})
	before := openFiles(t)
	vm, err := d.Restore(t.Context(), nicSpec(t), s, hv.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := vmm.Environ(vm.Record().PID); len(got) != 1 {
		t.Errorf("environment = %q, want one variable", got)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	wantFiles(t, before)
}

// TestSnapshotFaults lets a snapshot fail, and wants the machine to be as it was
// and nothing that could be taken for a snapshot.
func TestSnapshotFaults(t *testing.T) {
	faults := map[string]script{
		"refused":    {Refuse: map[string]refusal{opSnapshot: {500, "no"}}},
		"no state":   {NoState: true},
		"no answer":  {Silent: []string{opSnapshot}},
		"dies":       {Die: []string{opSnapshot}},
		"no config":  {Torn: configFile},
		"no machine": {Torn: stateFile},
		"no memory":  {Torn: memoryFile},
	}
	for name, script := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, _ := probed(t, script)
			if name == "no answer" {
				d.budget = brief
			}
			spec := scriptedSpec(t)
			vm, err := d.Launch(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Kill(t.Context())
			if err := vm.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if s, err := vm.(hv.Snapshotter).Snapshot(t.Context(), dir); err == nil || s != (hv.Snapshot{}) {
				t.Errorf("Snapshot() = %+v, %v, want an error", s, err)
			}
			if err := vmm.CheckEmpty(dir); err != nil {
				t.Error(err)
			}
			if name == "no answer" || name == "dies" {
				return
			}
			if state, err := vm.State(t.Context()); state != hv.StatePaused || err != nil {
				t.Errorf("State() = %s, %v, want paused", state, err)
			}
			if err := vm.Resume(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSnapshotReach: Landlock stands in the way of what was not named at the
// launch, and the driver says so.
func TestSnapshotReach(t *testing.T) {
	d, _ := probed(t, script{})
	spec, base := scriptedSpec(t), t.TempDir()
	inside, disk := filepath.Join(base, "in", "snapshot"), filepath.Join(base, "disk")
	if err := errors.Join(os.MkdirAll(inside, 0o700), os.WriteFile(disk, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	spec.Reach = []string{filepath.Dir(inside), filepath.Join(base, "missing")}
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	if err := vm.(hv.Plugger).AddDisk(t.Context(), hv.Disk{Serial: "a", Path: disk}); !errors.Is(err, hv.ErrUnsupported) {
		t.Errorf("AddDisk out of reach: %v, want ErrUnsupported", err)
	}
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir()); !errors.Is(err, hv.ErrUnsupported) {
		t.Errorf("Snapshot out of reach: %v, want ErrUnsupported", err)
	}
	if _, err := vm.(hv.Snapshotter).Snapshot(t.Context(), inside); err != nil {
		t.Errorf("Snapshot within reach: %v", err)
	}
}

// TestUnfinishedRestore: the daemon was killed between two steps of a restore.
// Before vm.restore there is no machine, and after it a paused one, which is like
// any other.
func TestUnfinishedRestore(t *testing.T) {
	for name, restored := range map[string]bool{"before vm.restore": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			d, _ := probed(t, script{})
			s := taken(t, d)
			f, err := d.probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			spec := nicSpec(t)
			if err := os.Mkdir(filepath.Join(spec.Dir, ioDir), 0o700); err != nil {
				t.Fatal(err)
			}
			nics, err := stage(&spec, f, s)
			if err != nil {
				t.Fatal(err)
			}
			rec := hv.Record{Driver: Name, Version: f.caps.Version, Accel: f.caps.Accel, Channel: hv.ChannelVsock}
			proc, err := vmm.Spawn(&spec, &rec, argv(&spec, f))
			if err != nil {
				t.Fatal(err)
			}
			defer proc.Kill()
			api, err := d.reach(t.Context(), rec, proc)
			if err != nil {
				t.Fatal(err)
			}
			if restored {
				err = d.load(t.Context(), api, &spec, restoreConfig{Source: "file://" + filepath.Join(spec.Dir, stageDir), Mode: "Copy", NetFDs: nics})
				if err != nil {
					t.Fatal(err)
				}
			}
			api.close()
			found, err := d.Find(t.Context(), spec.Dir)
			if err != nil || found != rec {
				t.Fatalf("Find() = %+v, %v, want %+v", found, err, rec)
			}
			vm, err := d.Attach(t.Context(), found)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if restored {
				if state, err := vm.State(ctx); state != hv.StatePaused || err != nil {
					t.Errorf("State() = %s, %v, want paused", state, err)
				}
				if err := errors.Join(vm.Resume(ctx), vm.Kill(ctx)); err != nil {
					t.Error(err)
				}
			} else if exit, err := vm.Wait(ctx); err != nil || exit.Reason != hv.ExitCrashed || !strings.Contains(exit.Detail, "never finished") {
				t.Errorf("Wait() = %+v, %v, want crashed, for its launch was never finished", exit, err)
			}
			wantNothing(t, spec, false)
		})
	}
}

// TestProbeSnapshots wants a probe to find out what of a snapshot is possible.
func TestProbeSnapshots(t *testing.T) {
	for name, c := range map[string]struct {
		script             script
		snapshot, onDemand bool
		notice             string
	}{
		"version 53":      {script{}, true, true, ""},
		"version 52":      {script{Version: "v52.0"}, true, false, ""},
		"no userfaultfd":  {script{NoFault: true}, true, false, ""},
		"no nested state": {script{NoState: true}, false, false, "KVM_GET_NESTED_STATE"},
		"no restore":      {script{Refuse: map[string]refusal{opRestore: {500, "no"}}}, false, false, "takes no snapshots here"},
	} {
		caps, err := scriptedDriver(installScript(t, c.script)).Probe(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if caps.Snapshot != c.snapshot || caps.Template != c.snapshot || caps.OnDemand != c.onDemand || !strings.Contains(caps.Notice, c.notice) {
			t.Errorf("%s: snapshot %t, template %t, on demand %t, notice %q, want %t, %[6]t, %t, %q", name, caps.Snapshot, caps.Template, caps.OnDemand, caps.Notice, c.snapshot, c.onDemand, c.notice)
		}
	}
}

// TestUser wants a machine that runs as another user to be snapshotted and
// restored, and what the VMM made to be ours in the end.
func TestUser(t *testing.T) {
	need.Root(t, "to run a VMM as another user")
	d, binary := probed(t, script{})
	open := func(path string, mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for dir := filepath.Dir(binary); dir != os.TempDir(); dir = filepath.Dir(dir) {
		open(dir, 0o755)
	}
	open(filepath.Join(filepath.Dir(binary), "script.json"), 0o644)
	if err := os.WriteFile(filepath.Join(filepath.Dir(binary), "requests.log"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	open(filepath.Join(filepath.Dir(binary), "requests.log"), 0o666)
	// The test's own binary is where nobody else can run it.
	self, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.Remove(binary), os.WriteFile(binary, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	spec := func(memory string) hv.Spec {
		s := nicSpec(t)
		s.User, s.MemoryFile = &hv.User{UID: 65534, GID: 65534}, memory
		open(filepath.Dir(s.Dir), 0o755)
		for dir := filepath.Dir(s.Kernel); dir != os.TempDir(); dir = filepath.Dir(dir) {
			open(dir, 0o755)
		}
		open(s.Kernel, 0o644)
		return s
	}
	kept, err := os.MkdirTemp("", "vch-kept-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(kept)
	open(kept, 0o755)
	for _, memory := range []string{"", filepath.Join(kept, "memory")} {
		dir, err := os.MkdirTemp(kept, "snapshot-")
		if err != nil {
			t.Fatal(err)
		}
		vm, err := d.Launch(t.Context(), spec(memory))
		if err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.Record().PID))
		if err != nil || !strings.Contains(string(status), "Uid:\t65534\t65534\t65534\t65534") || !strings.Contains(string(status), "CapEff:\t0000000000000000") {
			t.Errorf("its process is of another user, or has capabilities: %v\n%s", err, status)
		}
		if err := vm.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := vm.(hv.Snapshotter).Snapshot(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"", configFile, stateFile, hv.SnapshotFile} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || int(st.Uid) != os.Geteuid() {
				t.Errorf("%s/%s is of user %d, %v, want ours", dir, name, st.Uid, err)
			}
		}
		// Its user may have no userfaultfd, though root's trial machine had.
		again, err := d.Restore(t.Context(), spec(""), s, hv.RestoreOptions{OnDemand: true})
		if err != nil {
			t.Fatal(err)
		}
		mode := `"memory_restore_mode":"Copy"`
		if memory == "" && vmm.CanFault(&hv.User{UID: 65534, GID: 65534}) {
			mode = `"memory_restore_mode":"OnDemand"`
		}
		if asked := requests(t, binary); !strings.Contains(asked[strings.LastIndex(asked, opRestore):], mode) {
			t.Errorf("it was not restored with %s:\n%s", mode, asked)
		}
		if err := errors.Join(again.Resume(t.Context()), again.Kill(t.Context())); err != nil {
			t.Error(err)
		}
	}
}

// TestReadiness: the guest takes a while until its agent listens, and says so, also
// to a daemon that came meanwhile.
func TestReadiness(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		d, _ := probed(t, script{Boot: time.Second})
		spec := scriptedSpec(t)
		vm, err := d.Launch(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if restarted {
			if err := vm.Detach(); err != nil {
				t.Fatal(err)
			}
			if vm, err = d.Attach(t.Context(), vm.Record()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(filepath.Join(spec.Dir, agentSocket+"_1025")); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, err := vm.Agent().Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(conn.Close(), vm.Kill(ctx)); err != nil {
			t.Error(err)
		}
		names, err := filepath.Glob(filepath.Join(spec.Dir, ioDir, "*"))
		if err != nil || len(names) > 0 {
			t.Errorf("sockets left behind: %q, %v", names, err)
		}
	}
}
