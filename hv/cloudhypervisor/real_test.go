package cloudhypervisor

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// realBinary stands, in daemonEnv, for the Cloud Hypervisor of this host.
const realBinary = "real"

func realDriver() *Driver { return New(Config{AnyKVM: true}) }

// TestReal runs the suite over the Cloud Hypervisor of this host, with real
// guests. make test-ch wants it to run; elsewhere it is skipped where there is
// none.
func TestReal(t *testing.T) {
	h := realHarness(t)
	kernel := os.Getenv("VOLANT_TEST_KERNEL")
	if kernel == "" {
		realNeed(t, "VOLANT_TEST_KERNEL does not name a kernel (make kernels builds one)")
	}
	image, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	h.Inert = !bytes.Contains(image, []byte("virtio_mem")) // its driver's name
	initramfs := hvtest.Initramfs(t)
	h.Spec = func(t testing.TB) hv.Spec {
		spec := realSpec(t)
		spec.Kernel, spec.Initramfs = kernel, initramfs
		return spec
	}
	h.Broken = broken
	hvtest.Run(t, h)
}

// TestRealTiny runs the part of the suite that needs no kernel.
func TestRealTiny(t *testing.T) {
	h := realHarness(t)
	h.Tiny = func(t testing.TB, g hvtest.Tiny) hv.Spec {
		spec := realSpec(t)
		spec.Kernel, spec.MemoryMiB = g.Kernel(t), minMemoryMiB
		return spec
	}
	hvtest.RunTiny(t, h)
}

// realNeed skips a test for what is missing, or fails it where it is to run.
func realNeed(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == Name {
		t.Fatalf(format, args...)
	}
	need.Elsewhere(t, format, args...)
}

// realSpec returns a machine whose VMM must not panic: a thread of it that does
// need not end it.
func realSpec(t testing.TB) hv.Spec {
	spec := scriptedSpec(t)
	t.Cleanup(func() {
		if said := string(vmm.Tail(filepath.Join(spec.Dir, logFile), 1<<20)); strings.Contains(said, "panicked") {
			t.Errorf("Cloud Hypervisor said:\n%s", said)
		}
	})
	return spec
}

// realHarness returns what both suites need, of the Cloud Hypervisor of this host.
func realHarness(t *testing.T) hvtest.Harness {
	t.Helper()
	d := realDriver()
	caps, err := d.Probe(t.Context())
	if err != nil {
		realNeed(t, "%v", err)
	}
	t.Logf("Cloud Hypervisor %s at %s; snapshots: %t, on demand: %t; notice: %q", caps.Version, caps.Binary, caps.Snapshot, caps.OnDemand, caps.Notice)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return hvtest.Harness{
		Driver: func(testing.TB) hv.Driver { return d },
		Orphan: func(t testing.TB, spec hv.Spec) hv.Record {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), daemonEnv+"="+realBinary)
			cmd.Stderr = os.Stderr
			return hvtest.Orphan(t, cmd, spec)
		},
		Crash: crash, Alive: alive, Timeout: 3 * time.Minute, Parallel: runtime.NumCPU(), Tap: realTap(t),
	}
}

// netnsEnv says that this process has a network namespace of its own.
const netnsEnv = "VOLANT_TEST_OWN_NETNS"

// realTap returns what makes a TAP; nil in the host's network, which tests leave
// alone.
func realTap(t *testing.T) func(testing.TB) string {
	if os.Getenv(netnsEnv) == "" {
		t.Logf("NICs are not plugged: %s is not set, as make test-ch has it", netnsEnv)
		return nil
	}
	return func(t testing.TB) string {
		t.Helper()
		const name = "chtap0" // one test wants one
		for _, args := range [][]string{{"tuntap", "add", name, "mode", "tap", "vnet_hdr"}, {"link", "set", name, "up"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %q: %v\n%s", args, err, out)
			}
		}
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "link", "del", name).CombinedOutput(); err != nil {
				t.Errorf("ip link del %s: %v\n%s", name, err, out)
			}
		})
		return name
	}
}
