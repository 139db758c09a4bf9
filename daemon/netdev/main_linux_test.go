package netdev_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/volantvm/volant/testdata/need"
)

// Tests of this package change network devices, addresses and rules. TestMain therefore runs the test binary a second time in
// a network namespace of its own, made for it and gone with it, and a test that needs one refuses to run anywhere else.
const (
	parentNetnsEnv = "VOLANT_TEST_PARENT_NETNS" // the namespace that must not be ours
	helperEnv      = "VOLANT_TEST_HELPER"       // which helper process to be, see wan_linux_test.go and peer_linux_test.go
)

// noNetns says why tests cannot have a namespace; "" means that they have it.
var noNetns = "not set up by TestMain"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	switch os.Getenv(helperEnv) {
	case "wan":
		return wanMain()
	case "peer":
		return peerMain()
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch parent := os.Getenv(parentNetnsEnv); {
	case parent == own:
		fmt.Fprintln(os.Stderr, "refusing to run: this is the network namespace of the host")
		return 1
	case parent != "":
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		noNetns = ""
		return m.Run()
	case os.Geteuid() != 0:
		noNetns = "only root can make one"
		return m.Run()
	}

	runtime.LockOSThread() // Pdeathsig is tied to the thread that started the child
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), parentNetnsEnv+"="+own)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		noNetns = err.Error()
		return m.Run()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// needNetns skips a test that cannot have a namespace of its own, or fails it where everything is expected to run.
func needNetns(t testing.TB) {
	t.Helper()
	if noNetns != "" {
		need.Missing(t, "a network namespace: %s", noNetns)
	}
}
