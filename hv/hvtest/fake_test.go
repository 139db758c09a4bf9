package hvtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/hvtest/guest"
)

// fakeSpec returns a machine that the Fake accepts.
func fakeSpec(t testing.TB) hv.Spec {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	return hv.Spec{
		ID: "vm1", Dir: dir, VCPUs: 1, MemoryMiB: 64, Kernel: kernel, ConsoleLog: filepath.Join(dir, "console.log"),
		NICs: []hv.NIC{{Tap: "tap1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}},
	}
}

// get asks the machine's agent for path.
func get(ctx context.Context, vm hv.VM, path string) (string, error) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Agent().Dial(ctx) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestFakeConforms runs the suite that every driver must pass.
func TestFakeConforms(t *testing.T) {
	f := hvtest.NewFake()
	caps, err := f.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	caps.MaxNICs = 4
	f.SetCapabilities(caps)
	f.SetGuest(func(m *hvtest.Machine) hvtest.Guest {
		memory := guest.NewMemory()
		if kept := m.Memory(); kept != nil {
			var err error
			if memory, err = guest.LoadMemory(kept); err != nil {
				t.Error(err)
			}
		}
		return hvtest.Guest{Agent: guest.Handler(m, memory), Save: memory.Save}
	})
	f.SetCheck(func(spec *hv.Spec) error {
		for _, n := range spec.NICs {
			if n.Tap != "tap1" && n.Tap != "tap2" {
				return fmt.Errorf("%w: no tap %s", hv.ErrInvalidSpec, n.Tap)
			}
		}
		return nil
	})
	// Slow enough that testCancel meets a launch under way.
	f.Delay(hvtest.OpLaunched, 5*time.Millisecond)
	machine := func(t testing.TB, rec hv.Record) *hvtest.Machine {
		t.Helper()
		for _, m := range f.Running() {
			if m.Record() == rec {
				return m
			}
		}
		t.Fatalf("no machine with record %+v", rec)
		return nil
	}
	hvtest.Run(t, hvtest.Harness{
		Driver: func(testing.TB) hv.Driver { return f },
		Spec:   func(t testing.TB) hv.Spec { return fakeSpec(t) },
		Orphan: func(t testing.TB, spec hv.Spec) hv.Record {
			vm, err := f.Launch(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			f.DetachAll()
			return vm.Record()
		},
		Crash: func(t testing.TB, rec hv.Record) { machine(t, rec).Crash() },
		Alive: func(_ testing.TB, dir string) []string {
			var alive []string
			for _, m := range f.Running() {
				if m.Spec().Dir == dir {
					alive = append(alive, fmt.Sprint(m.Record().PID))
				}
			}
			return alive
		},
		Tap:     func(testing.TB) string { return "tap2" },
		Timeout: time.Minute,
	})
}

func TestFakeSurvivesDaemon(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := hvtest.NewFake()
	f.SetGuest(func(m *hvtest.Machine) hvtest.Guest {
		return hvtest.Guest{Boot: time.Millisecond, Agent: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, m.Spec().ID)
		})}
	})
	spec := fakeSpec(t)
	first, err := f.Launch(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := get(ctx, first, "/"); got != "vm1" || err != nil {
		t.Fatalf("GET / = %q, %v", got, err)
	}
	f.DetachAll()
	if _, err := first.State(ctx); err == nil {
		t.Error("State after DetachAll succeeded")
	}
	if _, err := get(ctx, first, "/"); err == nil {
		t.Error("Dial after DetachAll succeeded")
	}

	rec, err := f.Find(ctx, spec.Dir)
	if err != nil || rec != first.Record() {
		t.Fatalf("Find(%s) = %+v, %v, want %+v", spec.Dir, rec, err, first.Record())
	}
	f.Machine("vm1").PowerOff() // nobody is there: the VMM stays
	if n := len(f.Running()); n != 1 {
		t.Fatalf("%d machines run after an unattended power-off, want 1", n)
	}
	second, err := f.Attach(ctx, rec)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := second.Wait(ctx); exit.Reason != hv.ExitShutdown || err != nil {
		t.Errorf("Wait() = %+v, %v, want shutdown", exit, err)
	}
	var gone *hv.GoneError
	if _, err := f.Attach(ctx, rec); !errors.Is(err, hv.ErrGone) || !errors.As(err, &gone) || gone.Exit.Reason != hv.ExitShutdown {
		t.Errorf("Attach to the ended machine: %v, want a GoneError with shutdown", err)
	}
	if got := f.Running(); len(got) != 0 {
		t.Errorf("%d machines run at the end", len(got))
	}
}

func TestFakeFaults(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	broken := errors.New("broken")

	t.Run("launched", func(t *testing.T) {
		f := hvtest.NewFake()
		f.FailNext(hvtest.OpLaunched, 1, broken)
		spec := fakeSpec(t)
		if _, err := f.Launch(ctx, spec); !errors.Is(err, broken) {
			t.Errorf("Launch: %v, want %v", err, broken)
		}
		if n := len(f.Running()); n != 0 {
			t.Errorf("%d machines run after a failed Launch", n)
		}
		vm, err := f.Launch(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Kill(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("hang", func(t *testing.T) {
		f := hvtest.NewFake()
		entered, release := f.Hang(hvtest.OpLaunch)
		done := make(chan error, 1)
		spec := fakeSpec(t)
		go func() {
			vm, err := f.Launch(ctx, spec)
			if err == nil {
				err = vm.Kill(ctx)
			}
			done <- err
		}()
		if id := <-entered; id != "vm1" {
			t.Errorf("hanging launch of %q, want vm1", id)
		}
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("snapshot and restore", func(t *testing.T) {
		f := hvtest.NewFake()
		vm, err := f.Launch(ctx, fakeSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		f.FailNext(hvtest.OpSnapshotted, 1, broken)
		f.FailNext(hvtest.OpRestored, 1, broken)
		dir := t.TempDir()
		if _, err := vm.(hv.Snapshotter).Snapshot(ctx, dir); !errors.Is(err, broken) {
			t.Errorf("Snapshot: %v, want %v", err, broken)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("a failed Snapshot left %q, %v", left, err)
		}
		s, err := vm.(hv.Snapshotter).Snapshot(ctx, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Kill(ctx); err != nil {
			t.Error(err)
		}
		spec := fakeSpec(t)
		if _, err := f.Restore(ctx, spec, s, hv.RestoreOptions{}); !errors.Is(err, broken) {
			t.Errorf("Restore: %v, want %v", err, broken)
		}
		if left, err := os.ReadDir(spec.Dir); err != nil || len(left) > 0 || len(f.Running()) > 0 {
			t.Errorf("a failed Restore left %q, %v, and %d machines", left, err, len(f.Running()))
		}
		again, err := f.Restore(ctx, spec, s, hv.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Kill(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		f := hvtest.NewFake()
		vm, err := f.Launch(ctx, fakeSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		f.Reboot()
		if exit, err := vm.Wait(ctx); exit.Reason != hv.ExitCrashed || err != nil {
			t.Errorf("Wait() = %+v, %v, want crashed", exit, err)
		}
		if _, err := f.Attach(ctx, vm.Record()); !errors.Is(err, hv.ErrGone) {
			t.Errorf("Attach after a reboot: %v, want ErrGone", err)
		}
	})
}
