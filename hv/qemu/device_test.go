package qemu_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/qemu"
	"github.com/volantvm/volant/testdata/need"
)

// enterNetwork moves the test's goroutine, for good, into a new network
// namespace, which ends with it and with the machines started from it.
func enterNetwork(t *testing.T) {
	t.Helper()
	need.Root(t, "for a network namespace")
	need.File(t, "/dev/net/tun")
	runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		need.Missing(t, "a network namespace: %v", err)
	}
}

// addTap makes a persistent TAP in this thread's namespace.
func addTap(t *testing.T, name string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, NonPersist: false,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyDevices boots a machine with every device that the driver promises,
// and refuses a second one a TAP that is taken.
func TestManyDevices(t *testing.T) {
	b := newBench(t)
	enterNetwork(t)
	d := qemu.New(qemu.Config{})
	caps, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := b.spec(t)
	for i := range caps.MaxDisks {
		path := filepath.Join(t.TempDir(), "disk, with a comma")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, hv.Disk{Serial: fmt.Sprintf("disk-%d", i), Path: path, ReadOnly: i%2 == 0})
	}
	for i := range caps.MaxNICs {
		tap := fmt.Sprintf("tap%d", i)
		addTap(t, tap)
		spec.NICs = append(spec.NICs, hv.NIC{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}})
	}
	spec.Balloon = caps.Balloon
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	if err := roundTrip(agentClient(vm, false), nil); err != nil {
		t.Errorf("the machine with %d disks and %d NICs does not answer: %v", len(spec.Disks), len(spec.NICs), err)
	}

	second := b.spec(t)
	second.NICs = spec.NICs[:1]
	if vm, err := d.Launch(t.Context(), second); err == nil {
		vm.Kill(t.Context())
		t.Error("Launch with a TAP that is taken succeeded")
	} else if !strings.Contains(err.Error(), "busy") || !strings.Contains(err.Error(), "tap0") {
		t.Errorf("Launch with a TAP that is taken: %v, want QEMU's words", err)
	}
	if left := alive(t, second.Dir); len(left) > 0 {
		t.Errorf("the failed Launch left %q", left)
	}
	if entries, err := os.ReadDir(second.Dir); err != nil || len(entries) > 0 {
		t.Errorf("the failed Launch left %v, %v", entries, err)
	}
}
