package guest

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// reaper is the only caller of wait4 in the guest. It hands the status of a
// process to whoever started it, and buries orphans in silence.
type reaper struct {
	sys Processes
	log *slog.Logger

	// mu is held from before a process is started until its waiter is known,
	// so that no process can end unnoticed in between.
	mu      sync.Mutex
	waiters map[int]chan<- syscall.WaitStatus
	yields  bool // guarded by mu: this process is nicer than those that it starts
}

func newReaper(sys Processes, log *slog.Logger) *reaper {
	return &reaper{sys: sys, log: log, waiters: make(map[int]chan<- syscall.WaitStatus)}
}

// start starts a process. Its status is sent on the channel once, when it has
// ended.
func (r *reaper) start(p Process) (pid int, exited <-chan syscall.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err = r.sys.Spawn(p)
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan syscall.WaitStatus, 1)
	r.waiters[pid] = ch
	if r.yields { // which is inherited
		r.nice(pid, 0)
	}
	return pid, ch, nil
}

// adopt makes a child known that was started before this program, which yields to
// it. It may have ended.
func (r *reaper) adopt(pid int) <-chan syscall.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan syscall.WaitStatus, 1)
	r.waiters[pid] = ch
	r.yields = true
	return ch
}

// yield has this process step back behind all those that it starts, or no longer.
func (r *reaper) yield(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.yields = on; on {
		r.nice(os.Getpid(), nicest)
		return
	}
	for range 2 { // the second time for threads that were made meanwhile by those that yielded
		r.nice(os.Getpid(), 0)
	}
}

// nicest is the nice value that leaves most to others: a 68th of the time of one
// with 0 that is busy too, sched(7).
const nicest = 19

func (r *reaper) nice(pid, value int) {
	if err := r.sys.Nice(pid, value); err != nil {
		r.log.Warn("nice", keyPID, pid, keyErr, err)
	}
}

// signal sends sig to the process group of a process that start returned,
// unless its leader has been reaped: its number may be another's by now.
func (r *reaper) signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, alive := r.waiters[pid]; !alive {
		return os.ErrProcessDone
	}
	return r.sys.Kill(-pid, sig)
}

// run reaps until ctx is over.
func (r *reaper) run(ctx context.Context) {
	sigs := make(chan os.Signal, 1) // signals merge, so one place is enough
	signal.Notify(sigs, syscall.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.reap() // before the first signal too: process 1 may be born with children
		select {
		case <-sigs:
		case <-ctx.Done():
			return
		}
	}
}

// reap collects every child that has ended.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		pid, status, err := r.sys.Wait()
		if err != nil {
			r.log.Error("reap", keyErr, err)
			return
		}
		if pid <= 0 {
			return
		}
		if ch, ok := r.waiters[pid]; ok && (status.Exited() || status.Signaled()) {
			delete(r.waiters, pid)
			ch <- status
		}
	}
}
