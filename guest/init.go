package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitStep is the word by which kestrel starts itself as the first process of a
// workload's namespaces, for a workload that does not want to be that.
const InitStep = "init-for-the-workload"

// What such a process is given beside its streams.
const (
	initSpec   = 3 // file in memory, called initSpecName: the Process to run, in JSON
	initReport = 4 // pipe: why it could not be run; the end of file, once it is
)

const initSpecName = "volant-workload"

// maxInitSpec bounds the JSON of a Process, in bytes: it is part of a boot
// configuration, with the bytes that JSON escapes.
const maxInitSpec = 8 << 20

// Init is what kestrel does as such a process: it runs the workload as its child,
// passes signals on to it, and buries what others leave behind. It returns false
// where this process is no such one, and did nothing; otherwise the exit status.
func Init(sys Sys) (status int, is bool) {
	if guardInit(sys) != nil {
		return 0, false
	}
	syscall.CloseOnExec(initSpec)
	syscall.CloseOnExec(initReport)
	spec, report := os.NewFile(initSpec, "spec"), os.NewFile(initReport, "report")
	p, err := readSpec(spec)
	if err == nil {
		status, err = reapFor(sys, p, func() { report.Close() })
	}
	if err != nil {
		reportTo(report, err)
		return exitCannotRun, true
	}
	return status, true
}

// guardInit refuses, with an error that wraps ErrRefused, unless this is process 1
// of a process namespace within a Volant guest, and was given a workload. On a
// host, in a container of one, and as process 1 of the guest itself this does not
// hold.
func guardInit(sys Sys) error {
	if pid := sys.Getpid(); pid != 1 {
		return fmt.Errorf("%w: this is process %d", ErrRefused, pid)
	}
	line, err := sys.ReadFile(procCmdline)
	if err == nil {
		err = checkParams(string(line))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	what, err := sys.Readlink(fmt.Sprintf("/proc/self/fd/%d", initSpec))
	if err == nil && what != "/memfd:"+initSpecName+" (deleted)" {
		err = fmt.Errorf("file %d is %s", initSpec, what)
	}
	if err != nil {
		return fmt.Errorf("%w: this is process 1 of no workload: %w", ErrRefused, err)
	}
	return nil
}

func readSpec(r io.Reader) (p Process, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxInitSpec+1))
	if err == nil && len(b) > maxInitSpec {
		err = errors.New("it is too large")
	}
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("read the workload: %w", err)
	}
	return p, nil
}

// reportTo says why a process cannot be run, as forkReport reads it.
func reportTo(w io.Writer, err error) {
	errno := syscall.EIO // with words that are for the console
	if !errors.As(err, &errno) {
		fmt.Fprintf(os.Stderr, "kestrel: %v\n", err)
	}
	_, _ = w.Write(forkMessage(forkExec, errno)) // there is nobody else to tell
}

// reapFor is process 1 of a namespace on behalf of a workload that does not want
// to be that: it runs p as its child, passes signals on to it, and buries what
// others leave behind. It returns p's exit status as shells have it, since no
// process 1 can end itself by a signal. started is called when p runs.
func reapFor(sys Processes, p Process, started func()) (int, error) {
	p.Files, p.Child = []uintptr{0, 1, 2}, true
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs) // before there is anybody to pass them on to
	pid, err := sys.Spawn(p)
	if err != nil {
		return 0, err
	}
	started()
	for {
		for {
			child, status, err := sys.Wait()
			if err != nil {
				return 0, err
			}
			if child <= 0 {
				break
			}
			switch {
			case child != pid:
			case status.Exited():
				return status.ExitStatus(), nil
			case status.Signaled():
				return 128 + int(status.Signal()), nil
			}
		}
		if sig, ok := (<-sigs).(syscall.Signal); ok && passedOn(sig) {
			if err := sys.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
				return 0, err
			}
		}
	}
}

// passedOn says whether a signal is for the workload: not one that tells of its
// own end, or of an error in this program, or that Go uses itself.
func passedOn(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU:
		return false
	}
	return true
}
