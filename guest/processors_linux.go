package guest

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processorsDir is where the kernel shows its processors.
const processorsDir = "/sys/devices/system/cpu"

const (
	// onlineTries and onlinePause bound how long the kernel may take for a processor
	// that it has just told of.
	onlineTries = 20
	onlinePause = 50 * time.Millisecond
)

// Processors listens to what the kernel tells of its devices (uevents), by
// netlink. The processors that the machine begins with are online already.
func (kernel) Processors() error {
	possible, err := os.ReadFile(processorsDir + "/possible")
	if err != nil {
		return err
	}
	if online, err := os.ReadFile(processorsDir + "/online"); err == nil && bytes.Equal(online, possible) {
		return nil // there is no room for more
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "uevent")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return errors.Join(os.NewSyscallError("bind", err), f.Close())
	}
	go func() {
		defer f.Close()
		b := make([]byte, 8192)
		for {
			n, err := f.Read(b)
			if err != nil && !errors.Is(err, syscall.ENOBUFS) {
				return
			}
			if name := pluggedProcessor(b[:max(n, 0)]); name != "" {
				online(processorsDir + "/" + name + "/online")
			}
		}
	}()
	return nil
}

// online switches a processor on. One that will not be is left alone.
func online(path string) {
	for range onlineTries {
		if os.WriteFile(path, []byte("1"), 0) == nil {
			return
		}
		time.Sleep(onlinePause)
	}
}
