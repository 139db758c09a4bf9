package qemu_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/qemu"
)

// nobody is an account that owns nothing.
var nobody = hv.User{UID: 65534, GID: 65534}

// within makes a machine whose files an unprivileged VMM can reach.
func within(t *testing.T, g hvtest.Tiny) hv.Spec {
	t.Helper()
	spec := tiny(t, g)
	for _, dir := range []string{filepath.Dir(spec.Kernel), filepath.Dir(filepath.Dir(spec.Kernel)), filepath.Dir(spec.Dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(spec.Kernel, 0o644); err != nil {
		t.Fatal(err)
	}
	spec.User = &nobody
	return spec
}

// wantTicks waits until the guest has counted n more.
func wantTicks(t *testing.T, vm hv.VM, n int) {
	t.Helper()
	path := vm.Record().ConsoleLog
	lines := func() int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	for end, deadline := lines()+n, time.Now().Add(bootTimeout); lines() < end; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest did not count %d more in %v", n, bootTimeout)
		}
	}
}

// TestUnprivileged runs, snapshots, forks and restores machines whose VMM is
// nobody, on a TAP that only root can open.
func TestUnprivileged(t *testing.T) {
	enterNetwork(t)
	harness(t) // looks for QEMU
	addTap(t, "tap0")
	d := qemu.New(qemu.Config{Accel: qemu.TCG})
	spec := within(t, hvtest.Tiny{Ticks: hvtest.TickForever})
	spec.NICs = []hv.NIC{{Tap: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	memory := t.TempDir()
	for _, dir := range []string{memory, filepath.Dir(memory)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec.MemoryFile = filepath.Join(memory, "memory")
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	wantTicks(t, vm, 3)
	wantUser(t, vm)
	// What the daemon goes by is not the VMM's to change.
	for _, name := range []string{"record.json", "machine.json", "events.log"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(spec.Dir, name), &st); err != nil || st.Uid != 0 {
			t.Errorf("%s belongs to user %d, %v, want root", name, st.Uid, err)
		}
	}
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := vm.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	fork := within(t, hvtest.Tiny{})
	fork.NICs = spec.NICs
	vm, err = d.Restore(t.Context(), fork, s, hv.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	wantUser(t, vm)
	if err := vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantTicks(t, vm, 3)
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}

	denied := within(t, hvtest.Tiny{})
	if err := os.Chmod(denied.Kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	if vm, err := d.Launch(t.Context(), denied); err == nil {
		vm.Kill(t.Context())
		t.Error("Launch of a kernel that the user cannot read succeeded")
	} else if !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("Launch of a kernel that the user cannot read: %v, want who is to be allowed", err)
	}
}

// wantUser wants the VMM to be nobody in every way.
func wantUser(t *testing.T, vm hv.VM) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(vm.Record().PID), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the VMM's status lacks %q:\n%s", want, b)
		}
	}
}
