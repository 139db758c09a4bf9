package guest

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSerialPortWait waits on a socket: one whose peer is gone is to poll(2) what
// a port without a host is, readable and hung up for ever.
func TestSerialPortWait(t *testing.T) {
	for _, tc := range []struct {
		name  string
		peer  func(*os.File) error
		ready bool
	}{
		{"host connected", func(*os.File) error { return nil }, false},
		{"host wrote", func(f *os.File) error { _, err := f.WriteString("hello"); return err }, true},
		{"no host", (*os.File).Close, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fds[0]), "port")
			defer f.Close()
			peer := os.NewFile(uintptr(fds[1]), "peer")
			defer peer.Close()
			conn, err := f.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.peer(peer); err != nil {
				t.Fatal(err)
			}
			p := &serialPort{f, conn}
			if err := p.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); tc.ready != (err == nil) || !tc.ready && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Wait returned %v", err)
			}
		})
	}
}
