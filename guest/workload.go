package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
)

const (
	// The delay before a workload is started again doubles from backoffMin to
	// backoffMax, and begins anew once the workload ran for backoffReset.
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 30 * time.Second
	backoffReset = 10 * time.Second

	// drainTimeout is how long the output of a process may be read after it
	// ended; what it left behind in a pipe is there at once.
	drainTimeout = 500 * time.Millisecond
)

// workload starts the process that the VM exists for, and starts it again as
// its restart policy says. One goroutine uses it.
type workload struct {
	sys    Sys
	log    *slog.Logger
	ring   *logRing
	reaper *reaper
	status *status
	cgroup *cgroup
	hub    *hub

	cfg        wire.WorkloadConfig
	process    Process // what prepare found
	stopSignal syscall.Signal
	// started is called in a goroutine for every start; its ctx ends with the
	// process.
	started func(ctx context.Context)
	// begun is the first process where the shim has started it, whose status comes
	// by exited; nil else, and once it was taken.
	begun  *planned
	exited <-chan syscall.WaitStatus
	// hostname is what the guest is called now.
	hostname func() string
	// own has every process of it be process 1 of namespaces of its own, and
	// namespaces is what those of the one that runs are.
	own        bool
	namespaces atomic.Pointer[Namespaces]
	// grace is how long a process may take to end after the stop signal.
	grace func() time.Duration
}

// prepare checks everything that can be known before the start.
func (w *workload) prepare() (err error) {
	w.stopSignal, err = parseSignal(w.cfg.StopSignal)
	if err != nil {
		return err
	}
	if err := w.sys.MkdirAll(path.Join("/", w.cfg.Workdir), 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	w.process, err = w.resolve(w.cfg)
	return err
}

// resolve finds what is to be started: user, environment, program.
func (w *workload) resolve(cfg wire.WorkloadConfig) (Process, error) {
	acct, err := lookupUser(w.sys, cfg.User)
	if err != nil {
		return Process{}, err
	}
	dir := path.Join("/", cfg.Workdir)
	env := plan.Env(cfg.Env, w.hostname(), acct.home, cfg.TTY)
	program, err := lookupProgram(w.sys, cfg.Args[0], dir, envValue(env, "PATH"))
	if err != nil {
		return Process{}, err
	}
	return Process{Path: program, Args: cfg.Args, Env: env, Dir: dir, User: acct.Credential, TTY: cfg.TTY}, nil
}

// env is the workload's environment, in a guest that may have another name by now
// than when the workload was prepared.
func (w *workload) env() []string {
	return plan.Env(w.cfg.Env, w.hostname(), envValue(w.process.Env, "HOME"), w.cfg.TTY)
}

// running is a process of the workload.
type running struct {
	pid    int
	exited <-chan syscall.WaitStatus
	since  time.Time
	ooms   int64       // kills by the OOM killer before it
	spaces *Namespaces // nil where they are the guest's
	io     *streams
	copies *sync.WaitGroup // of its output to the ring and the hub
	cancel context.CancelFunc
	side   *sync.WaitGroup // of started
}

// spawn starts the process of r.
func (w *workload) spawn(r *running) error {
	io, err := openStreams(w.sys, w.cfg.TTY, w.cfg.Stdin, w.process.User)
	if err != nil {
		return err
	}
	r.io, r.ooms = io, w.cgroup.oomKills()
	p := w.process
	p.Env, p.Files, p.Cgroup, p.Own, p.Init = w.env(), io.fds(), w.cgroup.dir(), w.own, w.cfg.Init
	w.hub.resize(io)
	r.since = time.Now()
	r.pid, r.exited, err = w.reaper.start(p)
	io.closeFar()
	if err != nil {
		io.close()
		return explainStart(w.sys, p, err)
	}
	return nil
}

// take makes r of a process that the shim has started.
func (w *workload) take(r *running, p *planned) (err error) {
	r.pid, r.exited, r.since = p.pid, w.exited, time.Now().Add(-p.since)
	_ = w.cgroup.dir() // it is in the first
	r.io, err = takeStreams(p)
	return err
}

// start starts the process, for the first time or again.
func (w *workload) start(again bool) (*running, error) {
	r := &running{copies: new(sync.WaitGroup), side: new(sync.WaitGroup)}
	first := w.begun
	w.begun = nil
	var err error
	if first != nil {
		err = w.take(r, first)
	} else {
		err = w.spawn(r)
	}
	if err != nil {
		return nil, err
	}
	io := r.io
	if w.own {
		if r.spaces, err = w.sys.Namespaces(r.pid); err != nil && (first == nil || !errors.Is(err, fs.ErrNotExist)) { // it may be over by now
			w.log.Warn("commands run beside the workload's namespaces", keyErr, err)
		}
		w.namespaces.Store(r.spaces)
	}
	w.hub.begin(io, r.pid)
	r.copies.Go(func() { capture(io.out, wire.Stdout, w.ring, io.tty, w.hub.sink(stdio.Stdout)) })
	if io.err != nil {
		r.copies.Go(func() { capture(io.err, wire.Stderr, w.ring, io.tty, w.hub.sink(stdio.Stderr)) })
	}
	w.status.update(func(s *wire.Status) {
		s.Workload, s.PID, s.Healthy, s.Failure, s.RetryAt = wire.WorkloadRunning, r.pid, nil, nil, nil
		if again {
			s.Restarts++
		}
	})
	w.log.Info("workload started", keyPID, r.pid)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.side.Go(func() { w.started(ctx) })
	if again {
		r.side.Go(func() {
			if sleep(ctx, backoffReset) {
				w.status.update(func(s *wire.Status) { s.Streak = 0 })
			}
		})
	}
	return r, nil
}

// again reports whether a process that ended so is to be started again, having
// been so restarts times.
func (w *workload) again(exit wire.WorkloadExit, restarts int) bool {
	if w.cfg.RestartMax > 0 && restarts >= w.cfg.RestartMax {
		return false
	}
	return w.cfg.Restart == wire.RestartAlways || w.cfg.Restart == wire.RestartOnFailure && exit.Code != 0
}

// supervise waits for the process and starts it again for as long as the
// policy says, or until ctx is over, which means to stop it. It returns the
// status that the guest ends with.
func (w *workload) supervise(ctx context.Context, r *running) func(*wire.Status) {
	backoff, streak := time.Duration(0), 0
	for {
		exit := w.wait(ctx, r)
		w.log.Info("workload exited", keyExit, exit.Code, keySignal, exit.Signal)
		over := func(s *wire.Status) {
			s.Workload, s.PID, s.Exit, s.Healthy, s.Failure, s.RetryAt = wire.WorkloadExited, 0, &exit, nil, nil, nil
		}
		if ctx.Err() != nil || !w.again(exit, w.status.get().Restarts) {
			return over
		}
		ran := time.Since(r.since)
		if backoff = nextBackoff(backoff, ran); ran >= backoffReset {
			streak = 0
		}
		streak++
		at := time.Now().Add(backoff)
		w.status.update(func(s *wire.Status) {
			over(s)
			s.Workload, s.Streak, s.RetryAt = wire.WorkloadBackoff, streak, &at
		})
		w.log.Info("workload will be started again", keyDelay, backoff)
		if !sleep(ctx, backoff) {
			return over
		}
		next, err := w.start(true)
		if err != nil {
			return func(s *wire.Status) {
				over(s)
				s.Workload, s.Error = wire.WorkloadFailed, err.Error()
			}
		}
		r = next
	}
}

// nextBackoff is the delay before the next start of a workload that ran for
// ran, after a delay of last.
func nextBackoff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= backoffReset {
		return backoffMin
	}
	return min(2*last, backoffMax)
}

// wait waits until the process has ended, stopping it when ctx is over, and
// cleans up after it.
func (w *workload) wait(ctx context.Context, r *running) wire.WorkloadExit {
	var ws syscall.WaitStatus
	select {
	case ws = <-r.exited:
	case <-ctx.Done():
		ws = w.stop(r)
	}
	at := time.Now()
	// Like a container, the workload is over when its first process is.
	w.cgroup.kill()
	r.spaces.close()
	r.cancel()
	r.side.Wait()
	w.hub.finish()
	drained := make(chan struct{})
	go func() {
		r.copies.Wait()
		close(drained)
	}()
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C: // somebody else holds the pipe
	}
	r.io.close()
	<-drained
	return exitOf(ws, at, w.cgroup.oomKills() > r.ooms)
}

// stop asks the process to end, and kills it when its grace is over.
func (w *workload) stop(r *running) syscall.WaitStatus {
	for _, attempt := range []struct {
		sig   syscall.Signal
		grace time.Duration
	}{{w.stopSignal, w.grace()}, {syscall.SIGKILL, killTimeout}} {
		w.log.Info("stopping the workload", keySignal, signalName(attempt.sig))
		if err := w.reaper.signal(r.pid, attempt.sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			w.log.Warn("signal the workload", keyErr, err)
		}
		t := time.NewTimer(attempt.grace)
		select {
		case ws := <-r.exited:
			t.Stop()
			return ws
		case <-t.C:
		}
	}
	w.log.Error("the workload cannot be killed", keyPID, r.pid)
	return syscall.WaitStatus(syscall.SIGKILL)
}

// killTimeout is how long the kernel may take to end a killed process, which
// may be stuck in a device.
const killTimeout = 5 * time.Second

// exitOf translates a wait status.
func exitOf(ws syscall.WaitStatus, at time.Time, oom bool) wire.WorkloadExit {
	exit := wire.WorkloadExit{Code: ws.ExitStatus(), Time: at}
	if ws.Signaled() {
		exit.Code = 128 + int(ws.Signal())
		exit.Signal = signalName(ws.Signal())
		exit.OOMKilled = oom && ws.Signal() == syscall.SIGKILL
	}
	return exit
}

func envValue(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}
