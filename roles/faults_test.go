package roles_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// becomes waits until the VM is as ok wants it.
func (h *host) becomes(name, what string, ok func(vm api.VM) bool) api.VM {
	h.t.Helper()
	var vm api.VM
	h.eventually(2*time.Minute, "VM "+name+" "+what, func() error {
		if vm = h.vm(name); !ok(vm) {
			return fmt.Errorf("it is %+v", vm)
		}
		return nil
	})
	return vm
}

// damage overwrites every other page of the database, but not the first.
func (h *host) damage() {
	h.t.Helper()
	path := filepath.Join(h.dir, "data", "state.db")
	data, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	for at := 4096; at < len(data); at += 2 * 4096 {
		copy(data[at:min(at+4096, len(data))], bytes.Repeat([]byte("garbage "), 512))
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// TestRecover damages the database under a VM, and wants volantd to refuse it, to
// recover it when it is told to, and the VM to run on through all of that.
func TestRecover(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()
	h.volar("vms", "create", "web", "--plugin", "hello", "--label", "tier=front", "--wait=healthy")
	h.volar("vms", "create", "off", "--plugin", "hello", "--wait=healthy")
	h.volar("vms", "stop", "off", "--wait")
	before, off := h.vm("web"), h.vm("off")

	recovers := func(want string) {
		t.Helper()
		h.flags = []string{"--recover"}
		r := h.runVolantd()
		h.flags = nil
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Fatalf("volantd --recover ends with %d and %q, want %q", r.code, r.stdout, want)
		}
		t.Log(r.stdout)
		h.answers(before.IPAddress)
		h.start()
		vm := h.becomes("web", "is taken up", func(vm api.VM) bool { return vm.Status == api.VMRunning && vm.Healthy })
		if vm.ID != before.ID || vm.PID != before.PID || vm.Incarnation != 1 || vm.IPAddress != before.IPAddress || vm.Labels["tier"] != "front" {
			t.Errorf("VM web is %+v, want it as before: %+v", vm, before)
		}
		if vm := h.vm("off"); vm.ID != off.ID || vm.Status != api.VMStopped || vm.IPAddress != off.IPAddress {
			t.Errorf("VM off is %+v, want it as before: %+v", vm, off)
		}
		h.answers(before.IPAddress)
		h.stop()
	}

	h.stop()
	h.damage()
	if r := h.runVolantd(); r.code != 1 || !strings.Contains(r.stdout, "corrupt") || !strings.Contains(r.stdout, "volantd --recover") {
		t.Errorf("volantd with a damaged database ends with %d and %q, want 1 and advice", r.code, r.stdout)
	}
	h.answers(before.IPAddress)
	recovers("the damaged database is kept as")
	recovers("the database is sound")
	for _, path := range []string{"state.db", "state.db-wal", "state.db-shm"} {
		if err := os.Remove(filepath.Join(h.dir, "data", path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	recovers("VM found running: web")

	h.start()
	h.volar("vms", "start", "off", "--wait=healthy")
	h.volar("vms", "restart", "web", "--wait=healthy")
}

// TestReadOnlyData wants a data folder that cannot be written to be refused with
// what to do.
func TestReadOnlyData(t *testing.T) {
	h := newHost(t)
	data := filepath.Join(h.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(data, syscall.MNT_DETACH) })
	h.start()
	h.volar("vms", "list")
	h.stop()
	if err := syscall.Mount("", data, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{nil, {"--recover"}} {
		h.flags = flags
		if r := h.runVolantd(); r.code != 1 || !strings.Contains(r.stdout, "read-only") || !strings.Contains(r.stdout, "--data-dir") {
			t.Errorf("volantd %v on a read-only data folder ends with %d and %q", flags, r.code, r.stdout)
		}
	}
	h.flags = nil
	if err := syscall.Mount("", data, "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.volar("vms", "list")
}
