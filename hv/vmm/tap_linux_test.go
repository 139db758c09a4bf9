package vmm_test

import (
	"errors"
	"net"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

func TestOpenTap(t *testing.T) {
	need.Root(t, "for a network namespace")
	runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		need.Missing(t, "a network namespace: %v", err)
	}
	if _, err := vmm.OpenTap("tap0"); !errors.Is(err, hv.ErrInvalidSpec) {
		t.Errorf("OpenTap of none: %v, want ErrInvalidSpec", err)
	}
	if l, err := net.InterfaceByName("tap0"); err == nil {
		t.Errorf("OpenTap has made %v", l)
	}
	if out, err := exec.Command("ip", "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr").CombinedOutput(); err != nil {
		need.Missing(t, "ip tuntap: %v: %s", err, out)
	}
	f, err := vmm.OpenTap("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vmm.OpenTap("tap0"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("OpenTap of one that is taken: %v, want EBUSY", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// It outlives its user, and can be had again.
	if f, err = vmm.OpenTap("tap0"); err != nil {
		t.Fatal(err)
	}
	f.Close()
}
