package cloudhypervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/vmm"
)

// daemonEnv makes the test binary a daemon for hvtest.Orphan; its value is the
// scripted binary's path.
const daemonEnv = "VOLANT_TEST_DAEMON"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "cloud-hypervisor" {
		scriptedMain()
		return
	}
	if binary := os.Getenv(daemonEnv); binary != "" {
		d := scriptedDriver(binary)
		if binary == realBinary {
			d = realDriver()
		}
		if err := hvtest.BeDaemon(d, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// scriptedDriver drives a scripted binary, on whatever host.
func scriptedDriver(binary string) *Driver {
	d := New(Config{Binary: binary})
	d.checkKVM = func() error { return nil }
	d.openTap = openTestTap
	return d
}

// openTestTap opens what stands for the TAPs of tests, of which there are some
// by name.
func openTestTap(name string) (*os.File, error) {
	if !strings.HasPrefix(name, testTap) {
		return nil, fmt.Errorf("%w: tap %s: no such network interface", hv.ErrInvalidSpec, name)
	}
	return os.OpenFile(os.DevNull, os.O_RDWR, 0)
}

// testTap is how the names of the TAPs of tests begin. lo is one, which is there:
// a launch looks.
const testTap = "lo"

// install makes a scripted binary in a folder of its own and returns its path.
func installScript(t testing.TB, s script) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if s.Version == "" {
		s.Version = "v53.0"
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "cloud-hypervisor")
	if err := os.Symlink(self, binary); err != nil {
		t.Fatal(err)
	}
	setScript(t, binary, s)
	return binary
}

// setScript changes how processes of the binary behave that start from now on.
func setScript(t testing.TB, binary string, s script) {
	t.Helper()
	if s.Version == "" {
		s.Version = "v53.0"
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(binary), "script.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// requests returns what was asked of the processes of a binary, a line each.
func requests(t testing.TB, binary string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(binary), "requests.log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// scriptedSpec returns a machine for a scripted VMM, in a short directory of its
// own.
func scriptedSpec(t testing.TB) hv.Spec {
	t.Helper()
	base, err := os.MkdirTemp("", "vch-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	dir, kernel := filepath.Join(base, "vm"), filepath.Join(t.TempDir(), "vmlinux")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernel, vmm.PVHKernel([]byte{0xf4}), 0o600); err != nil {
		t.Fatal(err)
	}
	return hv.Spec{
		ID: "test", Dir: dir, VCPUs: 1, MemoryMiB: 64, Kernel: kernel, CID: 4242,
		Cmdline: []string{"volant.vm=test"}, ConsoleLog: filepath.Join(dir, "console.log"), Reach: []string{os.TempDir()},
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

func crash(t testing.TB, rec hv.Record) {
	t.Helper()
	if err := unix.Kill(rec.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestConformance runs the suite over the scripted Cloud Hypervisor.
func TestConformance(t *testing.T) {
	for _, version := range []string{"v52.0", "v53.0"} {
		t.Run(version, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			binary := installScript(t, script{Version: version})
			d := scriptedDriver(binary)
			hvtest.Run(t, hvtest.Harness{
				Driver: func(testing.TB) hv.Driver { return d },
				Spec:   scriptedSpec,
				Orphan: func(t testing.TB, spec hv.Spec) hv.Record {
					t.Helper()
					cmd := exec.CommandContext(t.Context(), self)
					cmd.Env = append(os.Environ(), daemonEnv+"="+binary)
					cmd.Stderr = os.Stderr
					return hvtest.Orphan(t, cmd, spec)
				},
				Crash: crash, Alive: alive, Broken: broken, Timeout: time.Minute, Parallel: 2,
				Tap: func(testing.TB) string { return testTap },
			})
		})
	}
}

// broken returns machines that Cloud Hypervisor in particular cannot run.
func broken(t testing.TB) map[string]hv.Spec {
	t.Helper()
	changes := map[string]func(*hv.Spec){
		"empty kernel":        func(s *hv.Spec) { s.Kernel = os.DevNull },
		"initramfs directory": func(s *hv.Spec) { s.Initramfs = s.Dir },
		"disk device":         func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: "/dev/null"}} },
		"long command line":   func(s *hv.Spec) { s.Cmdline = []string{"a=" + strings.Repeat("b", 2048)} },
		"little memory":       func(s *hv.Spec) { s.MemoryMiB = 1 },
		"comma in the directory": func(s *hv.Spec) {
			s.Dir += ",x"
			if err := os.Mkdir(s.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"used directory": func(s *hv.Spec) {
			if err := os.WriteFile(filepath.Join(s.Dir, eventsFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
	specs := make(map[string]hv.Spec)
	for name, change := range changes {
		spec := scriptedSpec(t)
		change(&spec)
		specs[name] = spec
	}
	return specs
}
