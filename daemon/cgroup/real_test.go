package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/testdata/need"
)

// real opens the host's own cgroups for an instance of the test's.
func real(t *testing.T) *Host {
	t.Helper()
	need.Root(t, "to make cgroups")
	h := open(t, Config{Parent: "volant-test", Instance: "pid" + strconv.Itoa(os.Getpid())})
	t.Logf("%s; %s", h.Words(), h.Problem())
	if h.Problem() != "" {
		need.Missing(t, "cgroups: %s", h.Problem())
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		for _, r := range h.roots {
			if _, err := os.Stat(r.dir); err == nil {
				t.Errorf("%s is left", r.dir)
			}
		}
	})
	return h
}

// join runs a shell script as the first process of a VM's groups.
func join(t *testing.T, h *Host, id, script string) *exec.Cmd {
	t.Helper()
	enter := ""
	for _, r := range h.roots {
		enter += "echo $$ >" + filepath.Join(r.dir, id, "cgroup.procs") + "\n"
	}
	cmd := exec.Command("/bin/sh", "-c", enter+script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestRealLimits(t *testing.T) {
	h := real(t)
	const limit = 32 << 20
	if _, err := h.Make("vm1", Limits{MemoryBytes: limit, Pids: 9, CPUWeight: 200, CPUPercent: 150}); err != nil {
		t.Fatal(err)
	}
	// It wants twice what it may have, and is stopped.
	cmd := join(t, h, "vm1", "dd if=/dev/zero of=/dev/null bs=64M count=8 2>/dev/null || exit 42")
	err := cmd.Wait()
	var exit *exec.ExitError
	if ee, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Wait returns it bare
		exit = ee
	}
	if exit == nil || exit.ExitCode() != 42 && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("a process of 64 MiB in a group of 32 MiB: %v, want it killed", err)
	}
	// More room, and it can.
	if err := h.Limit("vm1", Limits{MemoryBytes: 4 * limit, Pids: 9}); err != nil {
		t.Fatal(err)
	}
	cmd = join(t, h, "vm1", "dd if=/dev/zero of=/dev/null bs=64M count=8 2>/dev/null || exit 42")
	if err := cmd.Wait(); err != nil {
		t.Errorf("a process of 64 MiB in a group of 128 MiB: %v", err)
	}
	// So many processes, and no more.
	cmd = join(t, h, "vm1", "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		u, err := h.Usage("vm1")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("Usage = %+v, %v, want 9 processes", u, err)
		}
		if u.Pids == 9 {
			if u.CPU <= 0 || u.Memory <= 0 || u.Memory > 4*limit {
				t.Errorf("Usage = %+v", u)
			}
			break
		}
	}
	if err := join(t, h, "vm1", "sleep 0 & wait").Wait(); err == nil || strings.Contains(err.Error(), "killed") {
		t.Errorf("an eleventh process: %v, want it refused", err)
	}
	if err := h.Remove(t.Context(), "vm1"); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process in a group that was removed: %v, want it killed", err)
	}
}

// TestRealRemove removes groups with groups below them, and nobody else's.
func TestRealRemove(t *testing.T) {
	h := real(t)
	for _, id := range []string{"vm1", "vm2"} {
		if _, err := h.Make(id, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range h.roots {
		if err := os.MkdirAll(filepath.Join(r.dir, "vm1", "inner", "most"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inner := join(t, h, filepath.Join("vm1", "inner", "most"), "sleep 1000")
	other := join(t, h, "vm2", "sleep 1000")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		a, _ := members(filepath.Join(h.roots[0].dir, "vm1", "inner", "most"))
		b, _ := members(filepath.Join(h.roots[len(h.roots)-1].dir, "vm2"))
		if len(a) > 0 && len(b) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("they do not get there")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 { // it is no error if there are none
		if err := h.Remove(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := inner.Wait(); err == nil {
		t.Error("the process below lives")
	}
	if err := unix.Kill(other.Process.Pid, 0); err != nil {
		t.Errorf("the other VM's process: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close with a VM in it: %v", err)
	}
	if ids, err := h.IDs(); len(ids) != 1 || ids[0] != "vm2" || err != nil {
		t.Errorf("IDs = %v, %v, want vm2", ids, err)
	}
	if err := h.Remove(ctx, "vm2"); err != nil {
		t.Error(err)
	}
}

func TestProcess(t *testing.T) {
	pid := os.Getpid()
	s, _ := read("/proc/self", "stat")
	_, start, err := parseStat(s)
	if err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < 50*time.Millisecond; { // some CPU time
	}
	u, err := Process(pid, start)
	if err != nil || u.CPU <= 0 || u.Memory < 1<<20 || u.Pids < 1 || u.ReadBytes < 0 {
		t.Errorf("Process = %+v, %v", u, err)
	}
	if u, err := Process(pid, start+1); err == nil {
		t.Errorf("Process of another = %+v, want an error", u)
	}
	if u, err := Process(1<<22+1, 1); err == nil {
		t.Errorf("Process of none = %+v, want an error", u)
	}
}
