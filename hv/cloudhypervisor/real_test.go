package cloudhypervisor

import (
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
)

// realBinary stands, in daemonEnv, for the Cloud Hypervisor of this host.
const realBinary = "real"

func realDriver() *Driver { return New(Config{AnyKVM: true}) }

// TestReal runs the suite over the Cloud Hypervisor of this host, with real
// guests. make test-ch wants it to run; elsewhere it is skipped where there is
// none.
func TestReal(t *testing.T) {
	need := t.Skipf
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == Name {
		need = t.Fatalf
	}
	d := realDriver()
	caps, err := d.Probe(t.Context())
	if err != nil {
		need("%v", err)
	}
	kernel := os.Getenv("VOLANT_TEST_KERNEL")
	if kernel == "" {
		need("VOLANT_TEST_KERNEL does not name a kernel (make kernels builds one)")
	}
	t.Logf("Cloud Hypervisor %s at %s; notice: %q", caps.Version, caps.Binary, caps.Notice)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	initramfs := hvtest.Initramfs(t)
	hvtest.Run(t, hvtest.Harness{
		Driver: func(testing.TB) hv.Driver { return d },
		Spec: func(t testing.TB) hv.Spec {
			spec := scriptedSpec(t)
			spec.Kernel, spec.Initramfs = kernel, initramfs
			// A thread of the VMM that panics need not end it.
			t.Cleanup(func() {
				if said := string(vmm.Tail(filepath.Join(spec.Dir, logFile), 1<<20)); strings.Contains(said, "panicked") {
					t.Errorf("Cloud Hypervisor said:\n%s", said)
				}
			})
			return spec
		},
		Orphan: func(t testing.TB, spec hv.Spec) hv.Record {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), daemonEnv+"="+realBinary)
			cmd.Stderr = os.Stderr
			return hvtest.Orphan(t, cmd, spec)
		},
		Crash: crash, Alive: alive, Broken: broken, Timeout: 3 * time.Minute, Parallel: runtime.NumCPU(),
	})
}
