package roles_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv/cloudhypervisor"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// scriptedCloudHypervisor builds the scripted Cloud Hypervisor of its driver's
// tests, whose guests are real here: QEMU emulates them.
func scriptedCloudHypervisor(t *testing.T) string {
	t.Helper()
	if err := vmm.Opens("/dev/kvm"); err != nil {
		need.Elsewhere(t, "the driver looks for KVM first: %v", err)
	}
	need.Tool(t, "qemu-system-x86_64")
	dir := t.TempDir()
	binary := filepath.Join(dir, "cloud-hypervisor")
	cmd := exec.Command("go", "test", "-c", "-o", binary, "../hv/cloudhypervisor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	const script = `{"Version": "v53.0", "Emulate": true, "NoState": true}`
	if err := os.WriteFile(filepath.Join(dir, "script.json"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestCloudHypervisor is the life of a VM on Cloud Hypervisor, beside one on QEMU,
// with the same volantd.
func TestCloudHypervisor(t *testing.T) {
	binary := scriptedCloudHypervisor(t)
	h := newHost(t)
	h.env = []string{"VOLANT_HYPERVISOR=" + cloudhypervisor.Name, "VOLANT_CLOUD_HYPERVISOR=" + binary}
	h.start()
	h.installTools(t)
	// Its memory can grow, which takes a driver that generic has not.
	h.volar("kernels", "import", need.Env(t, "VOLANT_TEST_KERNEL_VOLANT"), "--name", "volant")
	h.volar("vms", "create", "web", "--plugin", "tools", "--kernel", "volant", "--memory", "256", "--wait=healthy")
	web := h.vm("web")
	if web.Hypervisor != cloudhypervisor.Name {
		t.Errorf("it runs on %s", web.Hypervisor)
	}
	h.answers(web.IPAddress)
	h.volar("vms", "scale", "web", "--memory", "512")
	h.eventually(30*time.Second, "the guest has 512 MiB", func() error {
		out := h.volar("exec", "web", "--", "busybox", "grep", "MemTotal", "/proc/meminfo")
		var kib int
		if _, err := fmt.Sscanf(out, "MemTotal: %d kB", &kib); err != nil || kib < 400<<10 {
			return fmt.Errorf("it says %q (%v)", out, err)
		}
		return nil
	})
	if got := h.vm("web"); got.PID != web.PID {
		t.Errorf("it was restarted: process %d, before %d", got.PID, web.PID)
	}
	doctor := h.volar("doctor")
	for _, want := range []string{"cloud-hypervisor:  works, chosen", "53.0 (kvm)", "takes no snapshots here"} {
		if !strings.Contains(doctor, want) {
			t.Errorf("doctor does not say %q:\n%s", want, doctor)
		}
	}

	// A manifest has its way.
	b, err := os.ReadFile(filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest map[string]any
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	manifest["name"], manifest["hypervisor"] = "other", "qemu"
	if b, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(os.Getenv(envHello), "other.manifest.json")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	h.volar("plugins", "install", "--manifest", file)
	h.volar("vms", "create", "two", "--plugin", "other", "--wait=healthy")
	if two := h.vm("two"); two.Hypervisor != "qemu" {
		t.Errorf("the VM whose manifest asks for QEMU runs on %s", two.Hypervisor)
	}

	// Paused, and taken up by another daemon, whose own VMs would be QEMU's.
	h.volar("vms", "pause", "web")
	h.kill()
	h.env[0] = "VOLANT_HYPERVISOR=qemu"
	h.start()
	if got := h.vm("web"); got.Status != api.VMPaused || got.PID != web.PID {
		t.Errorf("after the daemon was killed: %s, process %d, want paused and %d", got.Status, got.PID, web.PID)
	}
	h.volar("vms", "resume", "web")
	h.becomes("web", "has its agent again", func(vm api.VM) bool { return vm.AgentUp && vm.Healthy })
	h.answers(web.IPAddress)
	h.volar("vms", "stop", "web")
	if got := h.vm("web"); got.Status != api.VMStopped || got.Exit == nil {
		t.Errorf("stopped: %+v", got)
	}
}
