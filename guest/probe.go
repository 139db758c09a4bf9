package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// execTimeout is the timeout of a command that probes, where none is given.
	execTimeout = 30 * time.Second
	// probeTail is as much as is told of what such a command said last, in bytes.
	probeTail = 512
)

// newExecProbe makes the probe that runs a command as the workload runs: as its
// user, in its environment and directory, and in a control group beside its
// own. The workload must be prepared.
func (w *workload) newExecProbe(h wire.Health) probe {
	timeout := h.Timeout
	if timeout == 0 {
		timeout = execTimeout
	}
	var left *leftover
	return func(ctx context.Context) error {
		// One at a time, also where the kernel cannot end one.
		if err := left.gone(); err != nil {
			return err
		}
		left = nil
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		var said tail
		ws, err := w.runBeside(ctx, h.Exec, &said)
		switch {
		case errors.As(err, &left):
		case err != nil:
		case ws.Signaled() && ctx.Err() != nil:
			err = fmt.Errorf("%q took longer than %s", h.Exec[0], timeout)
		case ws.Signaled():
			err = fmt.Errorf("%q was killed by %s", h.Exec[0], signalName(ws.Signal()))
		case ws.ExitStatus() != 0:
			err = fmt.Errorf("%q exited with %d", h.Exec[0], ws.ExitStatus())
		}
		if text := said.text(); err != nil && text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return err
	}
}

// runBeside runs a command beside the workload and returns its status. When ctx
// is over, the command and its process group are killed.
func (w *workload) runBeside(ctx context.Context, args []string, output io.Writer) (syscall.WaitStatus, error) {
	program, err := lookupProgram(w.sys, args[0], w.process.Dir, envValue(w.process.Env, "PATH"))
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	from, to, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	p := Process{
		Path: program, Args: args, Env: w.env(), Dir: w.process.Dir, User: w.process.User,
		Files: []uintptr{null.Fd(), to.Fd(), to.Fd()}, Cgroup: w.cgroup.side(),
		Join: w.namespaces.Load(),
	}
	pid, exited, err := w.reaper.start(p)
	to.Close()
	if err != nil {
		return 0, explainStart(w.sys, p, err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(output, from) })
	// Somebody else may hold the pipe when the command is over.
	defer reading.Wait()
	defer func() { _ = from.SetReadDeadline(time.Now().Add(drainTimeout)) }()
	select {
	case ws := <-exited:
		return ws, nil
	case <-ctx.Done():
	}
	if err := w.reaper.signal(pid, syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case ws := <-exited:
		return ws, nil
	case <-t.C:
		return 0, &leftover{name: args[0], exited: exited}
	}
}

// leftover is the error of a command that was killed and is still there: it is
// stuck in the kernel.
type leftover struct {
	name   string
	exited <-chan syscall.WaitStatus
}

func (l *leftover) Error() string { return fmt.Sprintf("%q cannot be killed", l.name) }

// gone returns l until the command has ended, and nil then.
func (l *leftover) gone() error {
	if l == nil {
		return nil
	}
	select {
	case <-l.exited:
		return nil
	default:
		return l
	}
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-probeTail):]...)
	t.b = append(t.b[:0], t.b[max(0, len(t.b)-probeTail):]...)
	return len(p), nil
}

func (t *tail) text() string { return string(bytes.ToValidUTF8(bytes.TrimSpace(t.b), []byte("?"))) }
