package vmm_test

import (
	"bufio"
	"errors"
	"fmt"
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

// hierarchies returns the mount points of the cgroup hierarchies of a kind,
// "cgroup" or "cgroup2".
func hierarchies(t *testing.T, kind string) (points []string) {
	t.Helper()
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); fields[2] == kind {
			points = append(points, fields[1])
		}
	}
	return points
}

// makeGroup makes a cgroup of the test's own, or returns "".
func makeGroup(t *testing.T, point string) string {
	t.Helper()
	dir := filepath.Join(point, fmt.Sprintf("volant-vmm-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Logf("no cgroup: %v", err)
		return ""
	}
	t.Cleanup(func() {
		// The thread that forked leaves the cgroup a moment after the fork.
		var err error
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if err = unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
				break
			}
		}
		if err != nil {
			t.Errorf("remove cgroup %s: %v", dir, err)
		}
	})
	return dir
}

// TestStartInCgroups wants a process to be where it belongs when it executes its
// first instruction, in every hierarchy that this host has, and this process to
// be where it was.
func TestStartInCgroups(t *testing.T) {
	need.Root(t, "to make cgroups")
	var groups []string
	for _, kind := range []string{"cgroup", "cgroup2"} {
		for _, point := range hierarchies(t, kind) {
			if filepath.Base(point) == "cpuset" {
				continue // takes nobody before it was given processors and memory
			}
			if dir := makeGroup(t, point); dir != "" {
				groups = append(groups, dir)
			}
		}
	}
	if len(groups) == 0 {
		need.Missing(t, "cgroups, of which none can be made here")
	}
	t.Logf("in %v", groups)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := vmm.Start([]string{"/bin/cat", "/proc/self/cgroup"}, vmm.Setting{Log: f, Cgroups: groups})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wait(t, p)
	said := string(vmm.Tail(log, 4096))
	if got, want := strings.Count(said, "/"+filepath.Base(groups[0])+"\n"), len(groups); got != want {
		t.Errorf("it is in %d of %d cgroups:\n%s", got, want, said)
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(own) {
		t.Errorf("this process was moved:\n%s%v\nfrom\n%s", after, err, own)
	}
}

// TestStartIsCharged has no room for one process more in its cgroup: if the fork
// were charged to another, it would succeed.
func TestStartIsCharged(t *testing.T) {
	need.Root(t, "to make cgroups")
	var dir string
	for _, point := range append(hierarchies(t, "cgroup"), hierarchies(t, "cgroup2")...) {
		if d := makeGroup(t, point); d != "" {
			if err := os.WriteFile(filepath.Join(d, "pids.max"), []byte("0"), 0); err == nil {
				dir = d
				break
			}
		}
	}
	if dir == "" {
		need.Missing(t, "a cgroup with a limit of processes, which cannot be made here")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := vmm.Start([]string{"/bin/true"}, vmm.Setting{Log: f, Cgroups: []string{dir}})
	if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "limit of processes") {
		t.Errorf("Start into a full cgroup = %v, %v, want EAGAIN", p, err)
	}
}

func TestStartNoCgroup(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tests := [][]string{{t.TempDir()}, {"/nonexistent/cgroup"}}
	if v2 := hierarchies(t, "cgroup2"); len(v2) > 0 {
		tests = append(tests, []string{v2[0], v2[0]})
	}
	for _, dirs := range tests {
		if p, err := vmm.Start([]string{"/bin/true"}, vmm.Setting{Log: f, Cgroups: dirs}); !errors.Is(err, hv.ErrInvalidSpec) {
			t.Errorf("Start in %v = %v, %v, want ErrInvalidSpec", dirs, p, err)
		}
	}
}
