package qemu_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/qemu"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// daemonEnv makes the test binary a daemon for hvtest.Orphan.
const daemonEnv = "VOLANT_TEST_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		if err := hvtest.BeDaemon(qemu.New(qemu.Config{}), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(snapshotEnv); dir != "" {
		if err := beSnapshotter(os.Stdin, os.Stdout, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// bench holds what the machines of the tests are made of.
type bench struct {
	kernel, initramfs string
}

// newBench finds the kernel and builds the guest.
func newBench(t testing.TB) *bench {
	t.Helper()
	need.Tool(t, "qemu-system-x86_64")
	return &bench{kernel: need.Env(t, "VOLANT_TEST_KERNEL"), initramfs: hvtest.Initramfs(t)}
}

// spec returns a machine with a directory of its own.
func (b *bench) spec(t testing.TB) hv.Spec {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return hv.Spec{
		ID: "test", Dir: dir, VCPUs: 1, MemoryMiB: 64, Kernel: b.kernel, Initramfs: b.initramfs, CID: 4242,
		Cmdline: []string{"volant.vm=test"}, ConsoleLog: filepath.Join(dir, "console.log"),
	}
}

// alive lists the processes whose arguments name dir.
func alive(t testing.TB, dir string) []string {
	t.Helper()
	pids, err := vmm.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, pid := range pids {
		if args := strings.Join(vmm.Argv(pid), " "); strings.Contains(args, dir+"/") {
			list = append(list, fmt.Sprintf("%d %s", pid, args))
		}
	}
	return list
}

// bootTimeout bounds a test that boots a few machines under emulation on a busy
// host: twenty at a time took 40 s each.
const bootTimeout = 3 * time.Minute

func TestConformance(t *testing.T) {
	b := newBench(t)
	h := harness(t)
	h.Spec, h.Broken = b.spec, b.broken
	hvtest.Run(t, h)
}

// TestTiny is the part of the suite that needs nothing but QEMU.
func TestTiny(t *testing.T) {
	hvtest.RunTiny(t, harness(t))
}

// harness returns what both suites need.
func harness(t *testing.T) hvtest.Harness {
	t.Helper()
	need.Tool(t, "qemu-system-x86_64")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return hvtest.Harness{
		Driver: sameDriver(),
		Tiny:   tiny, TinyPanics: true,
		Orphan: func(t testing.TB, spec hv.Spec) hv.Record {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), daemonEnv+"=1")
			cmd.Stderr = os.Stderr
			return hvtest.Orphan(t, cmd, spec)
		},
		Crash: func(t testing.TB, rec hv.Record) {
			t.Helper()
			if err := unix.Kill(rec.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Alive:    alive,
		Timeout:  bootTimeout,
		Parallel: runtime.NumCPU(),
	}
}

// tiny returns a machine of the suite's smallest guest.
func tiny(t testing.TB, g hvtest.Tiny) hv.Spec {
	t.Helper()
	b := bench{kernel: g.Kernel(t)}
	spec := b.spec(t)
	spec.MemoryMiB = 16
	return spec
}

// sameDriver returns one driver for all, which probes once.
func sameDriver() func(testing.TB) hv.Driver {
	d := sync.OnceValue(func() hv.Driver { return qemu.New(qemu.Config{}) })
	return func(testing.TB) hv.Driver { return d() }
}

// broken returns machines that QEMU in particular cannot run.
func (b *bench) broken(t testing.TB) map[string]hv.Spec {
	t.Helper()
	file := func(name string, content []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bzImage := make([]byte, 1024)
	copy(bzImage[0x202:], "HdrS")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]func(*hv.Spec){
		"empty kernel":        func(s *hv.Spec) { s.Kernel = file("kernel", nil) },
		"bzImage":             func(s *hv.Spec) { s.Kernel = file("kernel", bzImage) },
		"kernel without PVH":  func(s *hv.Spec) { s.Kernel = file("kernel", self) },
		"kernel directory":    func(s *hv.Spec) { s.Kernel = s.Dir },
		"initramfs directory": func(s *hv.Spec) { s.Initramfs = s.Dir },
		"disk device":         func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: "/dev/null"}} },
		"long command line":   func(s *hv.Spec) { s.Cmdline = []string{"a=" + strings.Repeat("b", 2048)} },
		"many devices": func(s *hv.Spec) {
			for i := range 23 {
				s.Shares = append(s.Shares, hv.Share{Tag: fmt.Sprintf("s%d", i), Socket: "/run/s"})
			}
		},
		"little memory": func(s *hv.Spec) { s.MemoryMiB = 1 },
		"used directory": func(s *hv.Spec) {
			if err := os.WriteFile(filepath.Join(s.Dir, vmm.ExitFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
	specs := make(map[string]hv.Spec)
	for name, change := range changes {
		spec := b.spec(t)
		change(&spec)
		specs[name] = spec
	}
	return specs
}

// TestProcess looks at what a machine's process was given.
func TestProcess(t *testing.T) {
	b := newBench(t)
	d := qemu.New(qemu.Config{})
	vm, err := d.Launch(t.Context(), b.spec(t))
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	rec := vm.Record()
	if sid, err := unix.Getsid(rec.PID); sid != rec.PID || err != nil {
		t.Errorf("session of process %d = %d, %v, want its own", rec.PID, sid, err)
	}
	if env := vmm.Environ(rec.PID); len(env) != 1 || !strings.HasPrefix(env[0], "VOLANT_MACHINE=") {
		t.Errorf("environment = %q, want one variable", env)
	}
	null, log := fdTarget(t, rec.PID, "0"), fdTarget(t, rec.PID, "1")
	if null != "/dev/null" || log != filepath.Join(rec.Dir, "vmm.log") || fdTarget(t, rec.PID, "2") != log {
		t.Errorf("standard streams = %s, %s, %s", null, log, fdTarget(t, rec.PID, "2"))
	}
	// Nothing of this process has leaked into it.
	mine := openFiles(t, os.Getpid())
	for _, target := range openFiles(t, rec.PID) {
		if strings.HasPrefix(target, "pipe:") && slices.Contains(mine, target) {
			t.Errorf("inherited %s", target)
		}
	}
}

func fdTarget(t *testing.T, pid int, fd string) string {
	t.Helper()
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, e := range entries {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}
