package roles_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// checkedImage is the test image base with a HEALTHCHECK, as the name of a
// layout that volar run takes.
func checkedImage(t *testing.T, check map[string]any) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	if out, err := exec.Command("skopeo", "copy", "--quiet", "oci:"+imageLayout(t)+":base", "oci:"+dir+":checked").CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	blob := func(digest string) string {
		return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	// edit changes a JSON file and returns the descriptor's new digest and size.
	edit := func(path string, change func(doc map[string]any)) (string, int) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		change(doc)
		if b, err = json.Marshal(doc); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		digest := "sha256:" + hex.EncodeToString(sum[:])
		if filepath.Base(path) != "index.json" {
			path = blob(digest)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return digest, len(b)
	}
	edit(filepath.Join(dir, "index.json"), func(index map[string]any) {
		top := index["manifests"].([]any)[0].(map[string]any)
		top["digest"], top["size"] = edit(blob(top["digest"].(string)), func(manifest map[string]any) {
			config := manifest["config"].(map[string]any)
			config["digest"], config["size"] = edit(blob(config["digest"].(string)), func(doc map[string]any) {
				doc["config"].(map[string]any)["Healthcheck"] = check
			})
		})
	})
	return "oci:" + dir + ":checked"
}

// TestHealthAndRestarts is the life of a workload that falls ill, exits, and takes
// its kernel with it.
func TestHealthAndRestarts(t *testing.T) {
	h := newImageHost(t, "")
	image := checkedImage(t, map[string]any{
		"Test": []string{"CMD-SHELL", "test -e /tmp/up || { echo no database; exit 1; }"}, "Interval": 500 * time.Millisecond, "Retries": 2, "StartPeriod": time.Minute,
	})
	const script = "busybox touch /tmp/up; echo up; while ! [ -e /tmp/die ]; do busybox sleep 0.1; done; busybox rm /tmp/die; exit 3"
	h.volar("run", "-d", "--name", "web", "--restart", "on-failure:3", "--wait=healthy", image, "sh", "-c", script)
	first := h.vm("web")
	if first.Health.Status != api.HealthHealthy || first.Restart == nil || first.Restart.String() != "on-failure:3" {
		t.Errorf("VM = %+v, want healthy, on-failure:3", first)
	}
	is := func(what string, ok func(vm api.VM) bool) api.VM {
		t.Helper()
		var vm api.VM
		h.eventually(90*time.Second, what, func() error {
			if vm = h.vm("web"); !ok(vm) {
				return fmt.Errorf("VM is %s, %+v, incarnation %d, %d restarts: %s", vm.Status, vm.Health, vm.Incarnation, vm.RestartCount, vm.Reason)
			}
			return nil
		})
		return vm
	}
	healthy := func(vm api.VM) bool { return vm.Status == api.VMRunning && vm.Health.Status == api.HealthHealthy }

	t.Run("it falls ill, and recovers", func(t *testing.T) {
		h.volar("exec", "web", "--", "busybox", "rm", "/tmp/up")
		vm := is("unhealthy", func(vm api.VM) bool { return vm.Health.Status == api.HealthUnhealthy })
		if vm.Health.FailingStreak < 2 || !strings.Contains(vm.Health.Output, "no database") {
			t.Errorf("health = %+v, want what the check says", vm.Health)
		}
		if ps := h.volar("ps"); !strings.Contains(ps, "unhealthy") {
			t.Errorf("volar ps does not say that it is unhealthy:\n%s", ps)
		}
		begin := time.Now()
		if r := h.try("vms", "start", "web", "--wait=healthy"); r.code != 4 || !strings.Contains(r.stderr, "no database") || time.Since(begin) > 30*time.Second {
			t.Errorf("start --wait=healthy of a sick VM = %d after %v, %q; want 4 at once, and why", r.code, time.Since(begin), r.stderr)
		}
		h.volar("exec", "web", "--", "busybox", "touch", "/tmp/up")
		is("healthy again", healthy)
	})

	t.Run("its workload exits", func(t *testing.T) {
		h.volar("exec", "web", "--", "busybox", "touch", "/tmp/die")
		vm := is("started again by its guest", func(vm api.VM) bool { return vm.RestartCount == 1 && healthy(vm) })
		if vm.Incarnation != 1 || vm.PID != first.PID || vm.Exit == nil || vm.Exit.Code != 3 {
			t.Errorf("VM = %+v, exit %+v; want the first incarnation still, and status 3", vm, vm.Exit)
		}
	})

	t.Run("its kernel panics", func(t *testing.T) {
		h.try("exec", "web", "--", "sh", "-c", "echo c > /proc/sysrq-trigger") // who asks hears no more
		vm := is("in its second incarnation", func(vm api.VM) bool { return vm.Incarnation == 2 && healthy(vm) })
		if vm.RestartCount != 2 || vm.IPAddress != first.IPAddress {
			t.Errorf("VM = %+v, want 2 restarts, and its address", vm)
		}
	})

	t.Run("its VMM is killed, and then it is given up", func(t *testing.T) {
		if err := syscall.Kill(h.vm("web").PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		is("in its third incarnation", func(vm api.VM) bool { return vm.Incarnation == 3 && healthy(vm) && vm.RestartCount == 3 })
		h.volar("exec", "web", "--", "busybox", "touch", "/tmp/die")
		vm := is("given up", func(vm api.VM) bool { return vm.Status == api.VMCrashed && vm.Desired == api.DesiredStopped })
		if vm.RestartCount != 3 || !strings.Contains(vm.Reason, "status 3; it was started again 3 times") {
			t.Errorf("given up: %d restarts, %q", vm.RestartCount, vm.Reason)
		}
	})

	var types []string
	for dec := json.NewDecoder(strings.NewReader(h.volar("events", "--vm", "web", "-o", "json"))); dec.More(); {
		var e api.Event
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		types = append(types, strings.TrimPrefix(string(e.Type), "VM_"))
	}
	want := []string{"CREATED", "STARTING", "RUNNING", "HEALTHY", "UNHEALTHY", "HEALTHY", "RESTARTED", "HEALTHY", "CRASHED", "STARTING", "RUNNING", "HEALTHY"}
	types = slices.DeleteFunc(types, func(s string) bool { return s == "CRASH_LOOP" || s == "STEADY" }) // as slow as the host is
	if len(types) < len(want) || !slices.Equal(types[:len(want)], want) {
		t.Errorf("events = %v, want them to begin with %v", types, want)
	}
	h.volar("rm", "web")
	h.noLeaks()
}
