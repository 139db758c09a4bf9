package netdev_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
)

func TestClaim(t *testing.T) {
	needNetns(t)
	first, err := netdev.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := netdev.Claim(t.Context())
		if want := fmt.Sprintf("process %d", os.Getpid()); !errors.Is(err, netdev.ErrClaimed) || !strings.Contains(err.Error(), want) {
			t.Fatalf("second Claim = %v, want ErrClaimed with %q", err, want)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := netdev.Claim(t.Context())
	if err != nil {
		t.Fatalf("Claim after Close = %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestClaimSquatted checks that a user who takes the name keeps nobody from
// starting.
func TestClaimSquatted(t *testing.T) {
	needNetns(t)
	ln := listenAsNobody(t, "@volant/netdev")
	defer ln.Close()
	c, err := netdev.Claim(t.Context())
	if err != nil {
		t.Fatalf("Claim = %v, want nil", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// listenAsNobody listens with the credentials of the user nobody. Only one
// thread has them, for as long as it takes.
func listenAsNobody(t *testing.T, name string) net.Listener {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody, keep = 65534, ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, nobody, keep); errno != 0 {
		t.Fatal(errno)
	}
	ln, err := net.Listen("unix", name)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		panic(errno) // the thread must not go on as nobody
	}
	if err != nil {
		t.Fatal(err)
	}
	return ln
}
