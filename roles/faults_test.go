package roles_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv/cloudhypervisor"
	"github.com/volantvm/volant/testdata/need"
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

// TestMachineFaults does to VMs what can be done to a virtual machine monitor
// and to a guest, to five of them at once, beside one that must not notice.
func TestMachineFaults(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	names := []string{"bystander", "killed", "ended", "panics", "wedged"}
	atOnce := func(args func(name string) []string) {
		t.Helper()
		var wg sync.WaitGroup
		results := make([]result, len(names))
		for i, name := range names {
			wg.Go(func() { results[i] = h.try(args(name)...) })
		}
		wg.Wait()
		for i, r := range results {
			if r.code != 0 {
				t.Fatalf("volar %v: status %d\n%s", args(names[i]), r.code, r.stderr)
			}
		}
	}
	h.volar("kernels", "import", os.Getenv("VOLANT_TEST_KERNEL_VOLANT"), "--name", "volant") // generic has no sysrq
	atOnce(func(name string) []string {
		args := []string{"vms", "create", name, "--plugin", "tools", "--wait=healthy"}
		if name == "panics" {
			args = append(args, "--kernel", "volant")
		}
		return args
	})
	pids := make(map[string]int)
	for _, name := range names {
		pids[name] = h.vm(name).PID
	}

	// PID 1 of a guest takes no signal that it did not ask for.
	if r := h.try("exec", "bystander", "--", "sh", "-c", "kill -9 1; busybox sleep 1; echo lives"); r.code != 0 || r.stdout != "lives\n" {
		t.Errorf("kill -9 1 in the guest: %+v", r)
	}
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "ended": syscall.SIGTERM, "wedged": syscall.SIGSTOP} {
		if err := syscall.Kill(pids[name], sig); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { syscall.Kill(pids["wedged"], syscall.SIGCONT) })
	began := time.Now()
	if r := h.try("exec", "panics", "--", "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; busybox sleep 60"); r.code == 0 {
		t.Errorf("a command in a guest that panics ends with %+v", r)
	}

	crashed := func(vm api.VM) bool { return vm.Status == api.VMCrashed }
	if vm := h.becomes("killed", "has crashed", crashed); !strings.Contains(vm.Reason, "ended unexpectedly") || !strings.Contains(vm.Reason, "killed") {
		t.Errorf("a VMM that was killed: %q", vm.Reason)
	}
	// Nobody in the guest, and no operator of ours, asked for that.
	if vm := h.becomes("ended", "has crashed", crashed); !strings.Contains(vm.Reason, "ended unexpectedly") {
		t.Errorf("a VMM that was told to end: %q", vm.Reason)
	}
	if vm := h.becomes("panics", "has crashed", crashed); !strings.Contains(vm.Reason, "panic") {
		t.Errorf("a guest that panicked: %q", vm.Reason)
	}

	// The wedged one holds up nobody else.
	for range 3 {
		start := time.Now()
		if r := h.try("exec", "bystander", "--", "busybox", "echo", "fine"); r.stdout != "fine\n" || time.Since(start) > 20*time.Second {
			t.Errorf("exec beside a wedged VM: %+v after %v", r, time.Since(start))
		}
		h.volar("vms", "list")
	}
	start := time.Now()
	if r := h.try("exec", "wedged", "--", "busybox", "echo", "fine"); r.code == 0 || time.Since(start) > time.Minute {
		t.Errorf("exec in a wedged VM: %+v after %v", r, time.Since(start))
	}
	h.becomes("wedged", "is known to be silent", func(vm api.VM) bool { return vm.Status == api.VMRunning && !vm.AgentUp })
	t.Logf("a wedged VM was told after %v", time.Since(began).Round(time.Second))
	start = time.Now()
	h.volar("vms", "stop", "wedged", "--force")
	h.becomes("wedged", "is stopped", func(vm api.VM) bool { return vm.Status == api.VMStopped })
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("stopping a wedged VM by force took %v", took)
	}

	if vm := h.vm("bystander"); vm.Status != api.VMRunning || !vm.Healthy || vm.Incarnation != 1 || vm.PID != pids["bystander"] {
		t.Errorf("the bystander: %+v", vm)
	}
	atOnce(func(name string) []string { return []string{"vms", "delete", name} })
	h.noLeaks()
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

// TestDiskFills fills the data folder's disk under VMs that run: they live on,
// what needs room is refused and leaves nothing, and when there is room again
// all goes on.
func TestDiskFills(t *testing.T) {
	h := newHost(t)
	data := filepath.Join(h.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the host's own: what it deletes is on that disk
		for _, name := range strings.Fields(h.try("vms", "list", "-o", "name").stdout) {
			h.try("vms", "delete", name, "--force")
		}
		syscall.Unmount(data, syscall.MNT_DETACH)
	})
	h.start()
	h.install()
	h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy")
	before := h.vm("web")

	ballast := filepath.Join(data, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4 << 10} { // to the last page
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}

	// The database's log may have some room left: until that is used up, what is
	// accepted is durable.
	c := h.client()
	accepted := 0
	for ; ; accepted++ {
		_, err := c.CreateVM(t.Context(), api.VMCreate{Name: fmt.Sprintf("full-%d", accepted), Plugin: "hello", Stopped: true}, client.Wait{})
		if err == nil && accepted < 5000 {
			continue
		}
		if api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "disk") {
			t.Errorf("create on a full disk = %v, want exhausted, and why", err)
		}
		break
	}
	if names := strings.Fields(h.volar("vms", "list", "-o", "name")); len(names) != accepted+1 {
		t.Errorf("%d VMs are known, %d were accepted beside web", len(names), accepted)
	}
	h.answers(before.IPAddress)
	if vm := h.vm("web"); vm.Status != api.VMRunning || !vm.AgentUp {
		t.Errorf("VM web on a full disk: %+v", vm)
	}
	h.kill()
	h.answers(before.IPAddress)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.becomes("web", "is taken up", func(vm api.VM) bool { return vm.Status == api.VMRunning && vm.Healthy })
	if vm := h.vm("web"); vm.PID != before.PID || vm.Incarnation != 1 {
		t.Errorf("VM web after the full disk: %+v", vm)
	}
	h.volar("vms", "create", "after", "--plugin", "hello", "--wait=healthy")
	h.answers(h.vm("after").IPAddress)
}

// TestDiskFillsUnderGuest has a guest write more to its volume than the host's
// disk holds: the hypervisor stops it, that is told, and it goes on when there is
// room, without having noticed.
func TestDiskFillsUnderGuest(t *testing.T) {
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == cloudhypervisor.Name {
		need.Elsewhere(t, "Cloud Hypervisor stops no guest: it tells it of the error")
	}
	h := newHost(t)
	volumes := filepath.Join(h.dir, "data", "volumes")
	if err := os.MkdirAll(volumes, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", volumes, "tmpfs", 0, "size=48m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.try("vms", "delete", "writer", "--force")
		syscall.Unmount(volumes, syscall.MNT_DETACH)
	})
	h.start()
	h.installTools(t)
	h.volar("vms", "create", "writer", "--plugin", "tools", "-v", "scratch:/scratch", "--wait=healthy")
	before := h.vm("writer")

	done := make(chan result, 1)
	go func() {
		done <- h.try("exec", "writer", "--", "sh", "-c", "busybox dd if=/dev/urandom of=/scratch/x bs=1M count=64 && busybox sync && busybox md5sum /scratch/x")
	}()
	h.becomes("writer", "is paused, and says why", func(vm api.VM) bool { return vm.Status == api.VMPaused && strings.Contains(vm.Reason, "disk") })
	select {
	case r := <-done:
		t.Logf("the command was cut off: %+v", r) // as every session of a VM that is paused
	case <-time.After(30 * time.Second):
		t.Error("the session of a VM that stands still goes on")
	}
	if err := syscall.Mount("", volumes, "", syscall.MS_REMOUNT, "size=128m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	h.becomes("writer", "goes on", func(vm api.VM) bool { return vm.Status == api.VMRunning && vm.Healthy && vm.Reason == "" })
	if vm := h.vm("writer"); vm.PID != before.PID || vm.Incarnation != 1 {
		t.Errorf("VM writer after the full disk: %+v", vm)
	}
	h.volar("exec", "writer", "--", "sh", "-c", "busybox dd if=/dev/zero of=/scratch/y bs=1M count=8 conv=fsync && busybox touch /scratch/z && test -z \"$(busybox dmesg | busybox grep -i 'i/o error')\"")
}
