package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// Sys is what kestrel asks of the kernel, so that its steps can be tested on a
// machine that must not be touched. NewSys returns the real one. All paths are
// absolute.
type Sys interface {
	Getpid() int
	// FSMagic returns f_type of statfs(2).
	FSMagic(path string) (int64, error)
	// Uptime is CLOCK_BOOTTIME.
	Uptime() time.Duration
	// Release is uname -r.
	Release() string

	Mount(m Mount) error
	Unmount(target string) error
	// Detach unmounts at once what still may be used.
	Detach(target string) error
	// SwitchRoot makes the file system mounted at path the root, for good as
	// far as others can tell, and frees the memory of the initramfs by removing
	// what it holds. Its Files are then those of the new root. Leave goes back
	// and moves the file system to the directory at, where it can be unmounted.
	SwitchRoot(path string) (leave func(at string) error, err error)
	// RaiseLimits gives what is started from now on the resource limits of a
	// container.
	RaiseLimits() error
	LoadModule(path string) error
	SetClock(t time.Time) error
	SetHostname(name string) error
	// AddEntropy credits the seed to the kernel's random pool, and has every
	// generator that draws on it begin anew at once.
	AddEntropy(seed []byte) error
	// Loopback brings lo up. Network configures the NIC with cfg's MAC, and
	// waits a bounded time for it to appear.
	Loopback() error
	Network(cfg wire.NetworkConfig) error
	// Rewire takes the NIC with the MAC address from, if there is one, down and
	// everything from it that it has: addresses, routes, neighbours. Where to is
	// not nil the NIC is then given to's MAC address, and configured as by
	// Network. A NIC that has it already is taken instead of from's.
	Rewire(from string, to *wire.NetworkConfig) error

	Files
	Processes
	// Namespaces opens those that a process started with Process.Own is in.
	Namespaces(pid int) (*Namespaces, error)

	// OpenPort opens a virtio-serial port for wire.NewAcceptor.
	OpenPort(path string) (io.ReadWriteCloser, error)
	// Vsock listens on AF_VSOCK for connections from the host. The error is
	// fs.ErrNotExist where the machine has no vsock.
	Vsock(port uint32) (net.Listener, error)
	// Nudge connects to a port of the host on AF_VSOCK and hangs up, which takes at
	// most some seconds. It is no matter whether anybody listens there.
	Nudge(port uint32)
	// PowerButton calls pressed for every press of the ACPI power button, from
	// a goroutine of its own. The error is fs.ErrNotExist where there is none.
	PowerButton(pressed func()) error
	// Processors brings those online that are plugged in from now on, where the
	// machine has room for some.
	Processors() error

	// KillAll sends SIGKILL to every process but this one.
	KillAll()
	Sync()
	// PowerOff does not return when it succeeds.
	PowerOff() error
}

// Mount is one mount(2).
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

// Files is the part of Sys that deals in files.
type Files interface {
	// ReadFile fails on files of more than 1 MiB, and on what is not a file: a
	// pipe or a device could block for ever.
	ReadFile(path string) ([]byte, error)
	// WriteFile replaces the file whole, also where path is a symbolic link,
	// and makes its directory.
	WriteFile(path string, data []byte, perm fs.FileMode) error
	MkdirAll(path string, perm fs.FileMode) error
	Remove(path string) error
	Symlink(target, path string) error
	Glob(pattern string) ([]string, error)
	Open(path string, flag int) (*os.File, error)
	Stat(path string) (fs.FileInfo, error)
	Lstat(path string) (fs.FileInfo, error)
	Readlink(path string) (string, error)
	Rename(from, to string) error
	// OpenRoot opens a directory to work in it, and nowhere else.
	OpenRoot(path string) (*os.Root, error)
}

// Processes is the part of Sys that deals in processes.
type Processes interface {
	// Spawn starts a process and returns its pid, as this process sees it.
	Spawn(p Process) (int, error)
	// Wait reaps one child that ended, without blocking. A pid of zero means
	// that none has, a negative one that there are no children.
	Wait() (pid int, status syscall.WaitStatus, err error)
	// Kill is kill(2) for one process, or one process group when pid is
	// negative. It refuses 0, 1 and -1.
	Kill(pid int, sig syscall.Signal) error
	// Nice gives every thread of a process a nice value; those that are made
	// meanwhile may be left out.
	Nice(pid, value int) error
	// Terminal makes a pseudo-terminal for a process of the user uid, whose
	// streams are its far end. Its near end can be closed while it is read.
	Terminal(uid uint32) (near, far *os.File, err error)
}

// Process describes a process to start, in a session of its own. What another
// process is told of it (see Init) is in JSON.
type Process struct {
	Path   string // of the program, relative to Dir if it is not absolute
	Args   []string
	Env    []string
	Dir    string
	Files  []uintptr `json:"-"` // file descriptors 0, 1, 2
	TTY    bool      // they are a terminal, which is to be its controlling one
	User   syscall.Credential
	Cgroup *os.File `json:"-"` // directory of a cgroup v2 to start in; nil for none

	// Own makes it process 1 of a process namespace, with a mount namespace and a
	// /proc to match; with Init it is the child of one that reaps for it.
	Own  bool `json:"-"`
	Init bool `json:"-"`
	// Join starts it in the namespaces of another; nil for those of this process.
	Join *Namespaces `json:"-"`
	// Child leaves it in this process's session, in a process group of its own, which
	// is the one in front of the terminal, if there is one.
	Child bool `json:"-"`
}

// maxFile is the most that ReadFile reads, in bytes.
const maxFile = 1 << 20

// rooted implements Files below a directory, which is "/" in a guest.
type rooted string

func (r rooted) at(path string) string { return filepath.Join(string(r), path) }

func (r rooted) ReadFile(path string) ([]byte, error) {
	f, err := os.OpenFile(r.at(path), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("not a regular file (mode %v)", info.Mode())}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("file is larger than 1 MiB")}
	}
	return b, err
}

func (r rooted) WriteFile(path string, data []byte, perm fs.FileMode) error {
	dir := filepath.Dir(r.at(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".volant-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(perm), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), r.at(path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (r rooted) MkdirAll(path string, perm fs.FileMode) error { return os.MkdirAll(r.at(path), perm) }
func (r rooted) Remove(path string) error                     { return os.Remove(r.at(path)) }
func (r rooted) Symlink(target, path string) error            { return os.Symlink(target, r.at(path)) }
func (r rooted) Stat(path string) (fs.FileInfo, error)        { return os.Stat(r.at(path)) }
func (r rooted) Lstat(path string) (fs.FileInfo, error)       { return os.Lstat(r.at(path)) }
func (r rooted) Readlink(path string) (string, error)         { return os.Readlink(r.at(path)) }
func (r rooted) Rename(from, to string) error                 { return os.Rename(r.at(from), r.at(to)) }
func (r rooted) OpenRoot(path string) (*os.Root, error)       { return os.OpenRoot(r.at(path)) }
func (r rooted) Open(path string, flag int) (*os.File, error) {
	return os.OpenFile(r.at(path), flag, 0)
}

func (r rooted) Glob(pattern string) ([]string, error) {
	paths, err := filepath.Glob(r.at(pattern))
	for i, p := range paths {
		paths[i] = "/" + strings.TrimLeft(strings.TrimPrefix(p, string(r)), "/")
	}
	return paths, err
}

// processes implements Processes.
type processes struct{}

func (processes) Spawn(p Process) (int, error) {
	// Not os.StartProcess: it watches the process by a pidfd, and probes for
	// pidfds with a child of its own.
	pid, _, err := syscall.StartProcess(p.Path, p.Args, &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Files: p.Files, Sys: sysProcAttr(p)})
	return pid, err
}

func sysProcAttr(p Process) *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Credential: &p.User, Ctty: 0}
	if p.Child {
		sys.Setpgid, sys.Foreground = true, p.TTY
	} else {
		sys.Setsid, sys.Setctty = true, p.TTY
	}
	if p.Cgroup != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(p.Cgroup.Fd())
	}
	return sys
}

func (processes) Wait() (int, syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch err {
		case nil:
			return pid, status, nil
		case syscall.EINTR:
		case syscall.ECHILD:
			return -1, 0, nil
		default:
			return 0, 0, os.NewSyscallError("wait4", err)
		}
	}
}

func (processes) Kill(pid int, sig syscall.Signal) error {
	if pid == 0 || pid == 1 || pid == -1 {
		return os.NewSyscallError("kill", syscall.EPERM)
	}
	return os.NewSyscallError("kill", syscall.Kill(pid, sig))
}

func (processes) Nice(pid, value int) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	threads, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = syscall.Setpriority(syscall.PRIO_PROCESS, tid, value)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) { // it has just ended
			return fmt.Errorf("nice %d of thread %s: %w", value, t.Name(), err)
		}
	}
	return nil
}
