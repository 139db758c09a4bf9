package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forkTimeout is how long a child may take until it runs its program, which may
// have to be read from a slow disk.
const forkTimeout = 30 * time.Second

// fork is what a child that is the first of its namespaces does before it runs its
// program, made ready by its parent: the child is a copy of a Go program of which
// one thread is left, and can do nothing but system calls.
//
// It is here because nobody but a process in it can mount the /proc of a process
// namespace, and package syscall has no way to mount in a child. To run this
// binary again for that costs an emulated guest 110 to 190 ms; this, 2 ms.
type fork struct {
	clone  cloneArgs
	fds    [maxForkFDs]uintptr // to become 0, 1, ...; all beyond the last of those
	nfds   uintptr
	tty    bool
	groups []uint32
	gid    uintptr
	uid    uintptr

	proc, kind *byte // "/proc", "proc"
	dir, path  *byte
	argv, envv []*byte

	report  uintptr // file descriptor: what failed, and why
	message [2]uint64
	set     uint64    // every signal
	action  [4]uint64 // struct sigaction of the kernel: the default
}

// cloneArgs is struct clone_args of clone(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// maxForkFDs is how many files a child may have: its streams, and those of an init.
const maxForkFDs = 5

// Steps of fork in its report.
const (
	forkMount = iota + 1
	forkSession
	forkUser
	forkFiles
	forkTerminal
	forkExec
)

// forkStep names a step for people.
func forkStep(n uint64) string {
	switch n {
	case forkMount:
		return "mount /proc"
	case forkSession:
		return "begin a session"
	case forkUser:
		return "become the user"
	case forkFiles:
		return "pass on the streams"
	case forkTerminal:
		return "take the terminal"
	}
	return fmt.Sprintf("step %d", n)
}

// spawnOwn starts p as the first process of a process and a mount namespace, and
// returns when its program runs. The error of one that cannot be run is that of
// execve(2), as of any process.
func spawnOwn(p Process, fds []uintptr) (pid int, err error) {
	told, report, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer told.Close()
	f, err := newFork(p)
	if err == nil {
		err = f.take(fds, report)
	}
	var errno syscall.Errno
	if err == nil {
		syscall.ForkLock.Lock()
		pid, errno = f.start()
		syscall.ForkLock.Unlock()
	}
	report.Close()
	if f != nil {
		f.drop() // of which the child has its copies
	}
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, os.NewSyscallError("clone3", errno)
	}
	if err := forkReport(told); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // it is about to end, if it has not; the reaper buries it
		return 0, err
	}
	return pid, nil
}

// forkMessage is a child's word on what went wrong.
func forkMessage(step uint64, errno syscall.Errno) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, step), uint64(errno))
}

// forkReport waits for a child's word: none, once it runs its program.
func forkReport(told *os.File) error {
	_ = told.SetReadDeadline(time.Now().Add(forkTimeout))
	var b [16]byte
	_, err := io.ReadFull(told, b[:])
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("the process did not begin within %s: %w", forkTimeout, err)
	}
	errno := syscall.Errno(binary.NativeEndian.Uint64(b[8:]))
	if step := binary.NativeEndian.Uint64(b[:]); step != forkExec {
		return fmt.Errorf("%s: %w", forkStep(step), errno)
	}
	return errno
}

// newFork makes everything ready but the files.
func newFork(p Process) (*fork, error) {
	f := &fork{tty: p.TTY, groups: p.User.Groups, gid: uintptr(p.User.Gid), uid: uintptr(p.User.Uid), set: ^uint64(0)}
	f.clone = cloneArgs{flags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, exitSignal: uint64(unix.SIGCHLD)}
	if p.Cgroup != nil {
		f.clone.flags |= unix.CLONE_INTO_CGROUP
		f.clone.cgroup = uint64(p.Cgroup.Fd())
	}
	for _, s := range []struct {
		to   **byte
		text string
	}{{&f.proc, "/proc"}, {&f.kind, "proc"}, {&f.dir, p.Dir}, {&f.path, p.Path}} {
		var err error
		if *s.to, err = syscall.BytePtrFromString(s.text); err != nil {
			return nil, err
		}
	}
	var err error
	if f.argv, err = syscall.SlicePtrFromStrings(p.Args); err != nil {
		return nil, err
	}
	f.envv, err = syscall.SlicePtrFromStrings(p.Env)
	return f, err
}

// take makes copies of the child's files, and of the pipe for its report, whose
// numbers are above those that the child is to have: none overwrites another.
func (f *fork) take(fds []uintptr, report *os.File) error {
	if len(fds) > maxForkFDs {
		return fmt.Errorf("a process is given %d files; %d are possible", len(fds), maxForkFDs)
	}
	high := func(fd uintptr) (uintptr, error) {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, maxForkFDs)
		if err != nil {
			return 0, os.NewSyscallError("dup", err)
		}
		return uintptr(n), nil
	}
	var err error
	for _, fd := range fds {
		if f.fds[f.nfds], err = high(fd); err != nil {
			return err
		}
		f.nfds++
	}
	f.report, err = high(report.Fd())
	return err
}

// drop closes the copies.
func (f *fork) drop() {
	for _, fd := range f.fds[:f.nfds] {
		unix.Close(int(fd))
	}
	if f.report != 0 {
		unix.Close(int(f.report))
	}
}

// start makes the child. No signal may reach it before it has given up this
// program's handlers.
func (f *fork) start() (pid int, errno syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before uint64
	if errno := sigmask(&f.set, &before); errno != 0 {
		return 0, errno
	}
	pid, errno = f.run(&before)
	_ = sigmask(&before, nil) // it was good a moment ago
	return pid, errno
}

//go:nosplit
func sigmask(set, old *uint64) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	return errno
}

// run returns in the parent alone. The child must neither grow its stack nor
// allocate, store no pointer, and call nothing that could.
//
//go:nosplit
//go:norace
//go:noinline
func (f *fork) run(before *uint64) (int, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&f.clone)), unsafe.Sizeof(f.clone), 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	step := f.child(before)
	f.message[0], f.message[1] = uint64(step>>32), uint64(uint32(step))
	syscall.RawSyscall(unix.SYS_WRITE, f.report, uintptr(unsafe.Pointer(&f.message)), 16)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

// child does everything, and returns only what went wrong: the step, above 32 bits
// of the error.
//
//go:nosplit
//go:norace
func (f *fork) child(before *uint64) uint64 {
	// What is mounted there shows the guest's processes; this, those of here.
	_, _, errno := syscall.RawSyscall(unix.SYS_UMOUNT2, uintptr(unsafe.Pointer(f.proc)), unix.MNT_DETACH, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(f.kind)), uintptr(unsafe.Pointer(f.proc)),
			uintptr(unsafe.Pointer(f.kind)), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0, 0)
	}
	if errno != 0 {
		return forkMount<<32 | uint64(errno)
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return forkSession<<32 | uint64(errno)
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(f.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(f.groups))), 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETGID, f.gid, 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETUID, f.uid, 0, 0)
	}
	if errno != 0 {
		return forkUser<<32 | uint64(errno)
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.dir)), 0, 0); errno != 0 {
		return forkExec<<32 | uint64(errno)
	}
	for i := uintptr(0); i < f.nfds; i++ {
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, f.fds[i], i, 0); errno != 0 {
			return forkFiles<<32 | uint64(errno)
		}
	}
	if f.tty {
		if _, _, errno = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1); errno != 0 {
			return forkTerminal<<32 | uint64(errno)
		}
	}
	for sig := uintptr(1); sig <= 64; sig++ { // two of which cannot be changed
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&f.action)), 0, 8, 0, 0)
	}
	sigmask(before, nil)
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f.path)),
		uintptr(unsafe.Pointer(unsafe.SliceData(f.argv))), uintptr(unsafe.Pointer(unsafe.SliceData(f.envv))))
	return forkExec<<32 | uint64(errno)
}
