package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/vsock"
	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
)

// NewSys returns the kernel that this process runs on. Its methods that change
// the machine refuse unless this is process 1, whatever Guard said.
func NewSys() Sys { return kernel{rooted: "/"} }

type kernel struct {
	rooted
	processes
}

// mine refuses what only the first process of a machine may do.
func mine(what string) error {
	if pid := os.Getpid(); pid != 1 {
		return fmt.Errorf("%s: %w: this is process %d", what, ErrRefused, pid)
	}
	return nil
}

func (kernel) Getpid() int { return os.Getpid() }

func (kernel) FSMagic(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Type), nil
}

func (kernel) Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // cannot happen with a valid clock
	}
	return time.Duration(ts.Nano())
}

func (kernel) Release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (kernel) Mount(m Mount) error {
	if err := mine("mount"); err != nil {
		return err
	}
	_, err := mount.Mount(m.Source, m.Target, m.Type, m.Data, m.Flags)
	return err
}

func (kernel) Unmount(target string) error {
	if err := mine("unmount"); err != nil {
		return err
	}
	return mount.Unmount(target, false, false)
}

func (kernel) Detach(target string) error {
	if err := mine("detach"); err != nil {
		return err
	}
	return mount.Unmount(target, false, true)
}

// SwitchRoot moves the mount at root onto "/" and enters it. Merely to chroot
// would do for the workload's eyes, but the kernel refuses user namespaces to
// who is in a chroot. The initramfs stays below, where a file descriptor leads.
func (kernel) SwitchRoot(root string) (func(string) error, error) {
	if err := mine("switch root"); err != nil {
		return nil, err
	}
	old, err := os.Open("/")
	if err != nil {
		return nil, err
	}
	if err := switchRoot(old, root); err != nil {
		return nil, errors.Join(err, old.Close())
	}
	// What cannot be removed costs its memory and nothing else.
	_ = removeContents(old, nil)
	return func(at string) error { return leaveRoot(old, at) }, nil
}

func switchRoot(old *os.File, root string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(old.Fd()), &st); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("switch root: %w: / is not an initramfs (file system type %#x)", ErrRefused, st.Type)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return &fs.PathError{Op: "move mount", Path: root, Err: err}
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return os.Chdir("/")
}

// leaveRoot goes back to the initramfs, whose root is old, and moves the root
// file system away from above it.
func leaveRoot(old *os.File, at string) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	defer unix.Close(root)
	if err := old.Chdir(); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move mount", Path: at, Err: err}
	}
	return nil
}

// RaiseLimits is about open files alone: everything else the kernel derives
// from the machine's memory, which is the workload's own.
func (kernel) RaiseLimits() error {
	if err := mine("raise limits"); err != nil {
		return err
	}
	// Not unix.Setrlimit: this one tells the Go runtime that children are to
	// have the limit too.
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: plan.MaxOpenFiles, Max: plan.MaxOpenFiles}))
}

func (kernel) LoadModule(path string) error {
	if err := mine("load module"); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return &fs.PathError{Op: "finit_module", Path: path, Err: err}
	}
	return nil
}

func (kernel) SetClock(t time.Time) error {
	if err := mine("set clock"); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
}

func (kernel) SetHostname(name string) error {
	if err := mine("set host name"); err != nil {
		return err
	}
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(name)))
}

// AddEntropy credits the seed by RNDADDENTROPY, random(4). That alone would be
// heeded by a pool that is not ready yet, and by one that is within a minute:
// RNDRESEEDCRNG makes it so now.
func (kernel) AddEntropy(seed []byte) error {
	if err := mine("add entropy"); err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: entropy in bits, size in bytes, the bytes.
	var info struct {
		bits, size int32
		buf        [64]byte
	}
	n := copy(info.buf[:], seed)
	info.bits, info.size = int32(8*n), int32(n)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info)))
	runtime.KeepAlive(&info)
	if errno != 0 {
		return os.NewSyscallError("RNDADDENTROPY", errno)
	}
	return os.NewSyscallError("RNDRESEEDCRNG", unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0))
}

// vsockAnyCID listens on whatever context id the machine has, or is given when
// it is restored.
const vsockAnyCID = 0xffffffff

func (kernel) Vsock(port uint32) (net.Listener, error) {
	if _, err := os.Stat("/dev/vsock"); err != nil {
		return nil, err
	}
	l, err := vsock.ListenContextID(vsockAnyCID, port, nil)
	if err != nil {
		return nil, err
	}
	return hostOnly{l, func(a net.Addr) bool {
		v, ok := a.(*vsock.Addr)
		return ok && v.ContextID == vsock.Host
	}}, nil
}

// Nudge is bounded by the kernel's SO_VM_SOCKETS_CONNECT_TIMEOUT, 2 s.
func (kernel) Nudge(port uint32) {
	if conn, err := vsock.Dial(vsock.Host, port, nil); err == nil {
		conn.Close() // nothing was said
	}
}

// hostOnly accepts connections from the host alone, which is context id 2: a
// nested guest is not to talk to the agent.
type hostOnly struct {
	net.Listener
	fromHost func(net.Addr) bool
}

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.fromHost(conn.RemoteAddr()) {
			return conn, nil
		}
		conn.Close()
	}
}

func (kernel) KillAll() {
	if mine("kill everything") == nil {
		_ = syscall.Kill(-1, syscall.SIGKILL)
	}
}

func (kernel) Sync() { unix.Sync() }

func (kernel) PowerOff() error {
	if err := mine("power off"); err != nil {
		return err
	}
	return os.NewSyscallError("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// OpenPort opens a virtio-serial port.
func (kernel) OpenPort(path string) (io.ReadWriteCloser, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path) // non-blocking, hence in the Go poller
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &serialPort{f, conn}, nil
}

// serialPort is a virtio-serial port. Read returns io.EOF while no host is
// connected and nothing is unread.
type serialPort struct {
	*os.File
	conn syscall.RawConn
}

// Wait blocks until a host is connected and has written something. The driver
// wakes pollers whenever a host comes, goes or writes, and Go's poller is
// edge-triggered: a port without a host, which to poll(2) can always be read and
// has always hung up, costs nothing. What a host wrote that is gone waits there
// until the next one comes.
func (p *serialPort) Wait() error {
	var pollErr error
	err := p.conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, pollErr = unix.Poll(fds, 0)
		if pollErr == unix.EINTR {
			pollErr = nil
		}
		got := fds[0].Revents
		return pollErr != nil || got&(unix.POLLNVAL|unix.POLLERR) != 0 || got&(unix.POLLIN|unix.POLLHUP) == unix.POLLIN
	})
	if err == nil && pollErr != nil {
		err = os.NewSyscallError("poll", pollErr)
	}
	return err
}
