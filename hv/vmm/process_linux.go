package vmm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// Process is one VMM process, held by a pidfd (pidfd_open(2)): it can be
// waited for whether or not it is our child, and a signal to it never reaches
// another process that got its number. It is safe for concurrent use.
type Process struct {
	pid   int
	start uint64
	fd    *os.File
	done  chan struct{} // closed by watch when the process has ended
	gone  chan struct{} // closed by watch when it returns

	status string // set before done is closed
	close  sync.Once
}

// Setting is what a process is started with.
type Setting struct {
	Env []string // all of its environment
	Log *os.File // its output
	// Files are what it inherits beside that, from descriptor FirstFile on. They
	// stay the caller's, to be closed once Start has returned.
	Files []*os.File
	// User is who it runs as, without supplementary groups; nil for whoever this
	// process runs as.
	User *hv.User
	// Cgroups are where it is from before its first instruction on, as in hv.Spec.
	Cgroups []string
}

// FirstFile is the descriptor of the first of Setting.Files in the process.
const FirstFile = 3

// Start runs argv in a session of its own, with /dev/null as its input and
// nothing but what s says, so that it outlives this process. The file argv[0] is
// executed as it is; PATH is not searched.
func Start(argv []string, s Setting) (*Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := closeOnExec(); err != nil {
		return nil, err
	}
	groups, err := openCgroups(s.Cgroups)
	if err != nil {
		return nil, err
	}
	defer groups.close()
	fd := -1
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   s.Env,
		Files: append([]*os.File{null, s.Log, s.Log}, s.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &fd},
	}
	if s.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID}
	}
	p, err := groups.start(argv, attr)
	if err != nil {
		return nil, err
	}
	pid := p.Pid
	if fd < 0 {
		// Nobody has waited for it: the number is still the child's.
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	var start uint64
	if err == nil {
		start, _, err = stat(pid)
	}
	if err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		err = errors.Join(err, p.Kill())
		_, werr := p.Wait()
		return nil, fmt.Errorf("process %d: %w", pid, errors.Join(err, werr))
	}
	if err := p.Release(); err != nil {
		return nil, err
	}
	return watch(pid, start, fd), nil
}

// closeOnExec marks what this process inherited without the mark: a pipe to
// whoever started the daemon must not be held open by a VMM that outlives it.
// What this process opened itself has the mark already, and files that another
// goroutine passes on purpose lose it in the child, after the fork.
func closeOnExec() error {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			unix.CloseOnExec(fd) // of no effect on one that was closed meanwhile
		}
	}
	return nil
}

// Open takes hold of the running process with this number and start time. It
// returns an error wrapping hv.ErrGone when there is none.
func Open(pid int, start uint64) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("process %d: %w", pid, hv.ErrGone)
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: beyond what a pid can be, or a thread
			return nil, fmt.Errorf("process %d: %w", pid, hv.ErrGone)
		}
		return nil, fmt.Errorf("process %d: pidfd_open: %w", pid, err)
	}
	// The order matters. A process that has this number and this start time
	// now had the number when the pidfd was opened.
	got, zombie, err := stat(pid)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH):
		err = fmt.Errorf("process %d: %w", pid, hv.ErrGone)
	case err == nil && got != start:
		err = fmt.Errorf("process %d started at tick %d, not at %d: %w", pid, got, start, hv.ErrGone)
	case err == nil && zombie:
		reap(fd) // it may be a child of ours that nobody watched
		err = fmt.Errorf("process %d has ended: %w", pid, hv.ErrGone)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return watch(pid, start, fd), nil
}

func watch(pid int, start uint64, fd int) *Process {
	p := &Process{
		pid: pid, start: start, fd: os.NewFile(uintptr(fd), "pidfd"),
		done: make(chan struct{}), gone: make(chan struct{}),
	}
	go p.watch()
	return p
}

// watch waits in the runtime's poller until the pidfd is readable.
func (p *Process) watch() {
	defer close(p.gone)
	rc, err := p.fd.SyscallConn()
	if err != nil {
		return // closed already
	}
	err = rc.Read(func(fd uintptr) bool {
		for {
			// An error (EINTR, ENOMEM) says nothing about the process, and the
			// poller, which is edge-triggered, would not come back for it.
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if err == nil && n == 0 {
				return false
			}
			if err == nil {
				p.status = reap(int(fd))
				return true
			}
		}
	})
	if err == nil {
		close(p.done)
	}
}

// PID returns the process's number.
func (p *Process) PID() int { return p.pid }

// StartTime returns when it started, in clock ticks since the host's boot.
func (p *Process) StartTime() uint64 { return p.start }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status says how the process ended ("exit status 1", "signal: killed"), once
// Done is closed. It is empty when the process was not a child of this one.
func (p *Process) Status() string {
	<-p.done
	return p.status
}

// Kill sends SIGKILL. It is no error if the process has ended.
func (p *Process) Kill() error {
	rc, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := rc.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, kerr)
	}
	return nil
}

// Close lets go of the process, which lives on. A Done that is not closed yet
// never will be.
func (p *Process) Close() {
	p.close.Do(func() {
		p.fd.Close() // a pidfd has nothing to flush
		<-p.gone
	})
}

// reap collects the exit status of the process behind fd if it is our child.
func reap(fd int) string {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG, nil); err != nil {
		return "" // ECHILD: not ours
	}
	// waitid(2) fills si_pid, si_uid and si_status, which follow the four
	// leading ints of siginfo_t on 64-bit machines.
	fields := (*[7]int32)(unsafe.Pointer(&info))
	pid, status := fields[4], fields[6]
	switch {
	case pid == 0:
		return "" // not ended
	case info.Code == cldExited:
		return fmt.Sprintf("exit status %d", status)
	default:
		return "signal: " + syscall.Signal(status).String()
	}
}

// cldExited is CLD_EXITED of sigaction(2).
const cldExited = 1

// stat reads the start time of a process and whether it has ended but was not
// waited for: proc_pid_stat(5), fields 22 and 3.
func stat(pid int) (start uint64, zombie bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	return parseStat(b)
}

// StartTime returns when the process with this number started, in clock ticks
// since the host's boot.
func StartTime(pid int) (uint64, error) {
	start, _, err := stat(pid)
	return start, err
}

func parseStat(b []byte) (start uint64, zombie bool, err error) {
	// The second field, the command in parentheses, may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, false, fmt.Errorf("proc_pid_stat: %q", b)
	}
	fields := strings.Fields(string(b[i+1:]))
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("proc_pid_stat: %q", b)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] == "Z" || fields[0] == "X", err
}

// BootID identifies this boot of the host: proc_sys_kernel(5), random/boot_id.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// HashArgv returns the SHA-256 of an argument vector, as a Record holds it.
func HashArgv(argv []string) string {
	sum := sha256.Sum256([]byte(strings.Join(argv, "\x00") + "\x00"))
	return hex.EncodeToString(sum[:])
}

// Argv returns the argument vector of a process, or nil if it cannot be read.
func Argv(pid int) []string { return procStrings(pid, "cmdline") }

// Environ returns the environment of a process, or nil if it cannot be read.
func Environ(pid int) []string { return procStrings(pid, "environ") }

// maxProcStrings bounds what is read of a process's arguments, in bytes.
const maxProcStrings = 1 << 20

func procStrings(pid int, name string) []string {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcStrings))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// Verify takes hold of the process of a record. It returns an error wrapping
// hv.ErrGone, having signalled nobody, unless boot id, number, start time and
// arguments are all those of the record.
func Verify(rec hv.Record) (*Process, error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	if rec.BootID != boot {
		return nil, fmt.Errorf("process %d belongs to another boot of the host: %w", rec.PID, hv.ErrGone)
	}
	p, err := Open(rec.PID, rec.StartTime)
	if err != nil {
		return nil, err
	}
	if got := HashArgv(Argv(rec.PID)); got != rec.ArgvSHA256 {
		p.Close()
		return nil, fmt.Errorf("process %d has other arguments: %w", rec.PID, hv.ErrGone)
	}
	return p, nil
}

// Processes returns the numbers of all processes that can be seen.
func Processes() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
