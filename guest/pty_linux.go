package guest

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api/stdio"
)

// defaultSize is a terminal's size when nobody says: that of the VT100.
func defaultSize() stdio.Size { return stdio.Size{Rows: 24, Cols: 80} }

// Terminal makes a pseudo-terminal, pty(7). Reads of the near end fail with EIO
// when no process has the far end open any more. The far end belongs to the
// user uid, who may then open it by its name too, as /dev/stdout leads there.
func (processes) Terminal(uid uint32) (near, far *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	near = os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, hence in the Go poller
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		near.Close()
		return nil, nil, os.NewSyscallError("TIOCSPTLCK", err)
	}
	// Not by its name: /dev/pts need not be that of this instance.
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		near.Close()
		return nil, nil, os.NewSyscallError("TIOCGPTPEER", errno)
	}
	far = os.NewFile(slave, "tty")
	if uid != 0 {
		if err := far.Chown(int(uid), -1); err != nil {
			near.Close()
			far.Close()
			return nil, nil, err
		}
	}
	return near, far, nil
}

// resizeTerminal sets the size of a terminal by its near end. Its foreground
// process group gets SIGWINCH when that is news.
func resizeTerminal(near *os.File, size stdio.Size) error {
	return control(near, func(fd int) error {
		return os.NewSyscallError("TIOCSWINSZ", unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols}))
	})
}

// endOfInput returns the character that ends the input on a terminal, and false
// while its program reads characters and not lines: then there is none.
func endOfInput(near *os.File) (char byte, ok bool) {
	_ = control(near, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 {
			char, ok = t.Cc[unix.VEOF], true
		}
		return err
	})
	return char, ok
}

// unread returns how many bytes can be read of a pipe or terminal at once.
func unread(f *os.File) int {
	var n int32
	_ = control(f, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n)))
		runtime.KeepAlive(&n)
		if errno != 0 {
			n = 0
			return errno
		}
		return nil
	})
	return int(n)
}

// control calls f with the descriptor of a file, which stays in the poller.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := conn.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
