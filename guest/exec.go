package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

// execCgroup is beside the workload's: its end is not that of the commands.
const execCgroup = cgroupRoot + "/exec"

// hangupGrace is how long a command whose client has gone may take to end after
// SIGHUP, before SIGKILL.
const hangupGrace = 5 * time.Second

// commands runs commands beside the workload, each for one session. It is safe
// for concurrent use.
//
// A command is over when its process is, whatever that left behind: its output
// is passed on to the end of file, at most drainTimeout longer, and then what
// is there. A command that its client left gets SIGHUP, its grace and SIGKILL;
// one that the guest's end meets gets SIGKILL at once. Both mean its process
// group: what made itself a session of its own lives on as long as the guest.
type commands struct {
	sys    Sys
	log    *slog.Logger
	reaper *reaper
	// resolve finds the program of a command as that of the workload was found.
	resolve func(wire.Exec) (Process, error)
	quit    <-chan struct{} // closed when the guest ends
	grace   time.Duration   // hangupGrace

	slots  chan struct{}   // one for each that runs
	cgroup func() *os.File // of all commands; nil for none
}

func newCommands(sys Sys, log *slog.Logger, r *reaper, resolve func(wire.Exec) (Process, error), quit <-chan struct{}) *commands {
	return &commands{
		sys: sys, log: log, reaper: r, resolve: resolve, quit: quit, grace: hangupGrace,
		slots: make(chan struct{}, wire.MaxExecs),
		cgroup: sync.OnceValue(func() *os.File {
			var f *os.File
			err := sys.MkdirAll(execCgroup, 0o755)
			if err == nil {
				f, err = sys.Open(execCgroup, os.O_RDONLY)
			}
			if err != nil {
				log.Warn("control group of commands", keyErr, err)
			}
			return f
		}),
	}
}

// run runs a command for a session to its end.
func (c *commands) run(s *session, e wire.Exec) stdio.ExitStatus {
	p, err := c.resolve(e)
	if err != nil {
		return failure(err)
	}
	io, err := openStreams(c.sys, e.TTY, e.Stdin, p.User)
	if err != nil {
		return failure(err)
	}
	defer io.close()
	if e.Rows > 0 || e.Cols > 0 {
		io.resize(stdio.Size{Rows: e.Rows, Cols: e.Cols})
	}
	p.Files, p.TTY, p.Cgroup = io.fds(), e.TTY, c.cgroup()
	pid, exited, err := c.reaper.start(p)
	io.closeFar()
	if err != nil {
		return failure(explainStart(c.sys, p, err))
	}
	return c.serve(s, io, pid, exited)
}

// serve passes the streams on until the command is over.
func (c *commands) serve(s *session, io *streams, pid int, exited <-chan syscall.WaitStatus) stdio.ExitStatus {
	s.begin(func(f stdio.Frame) {
		if f.Type == stdio.Resize {
			io.resize(f.Size)
		} else if sig, err := parseSignal(f.Name); err == nil {
			_ = c.reaper.signal(pid, sig) // or it has just ended
		}
	})
	over := make(chan struct{})
	var input sync.WaitGroup
	input.Go(func() { s.pass(over, io) })
	var output sync.WaitGroup
	output.Go(func() { _ = copyOutput(io.out, s.send(stdio.Stdout)) })
	if io.err != nil {
		output.Go(func() { _ = copyOutput(io.err, s.send(stdio.Stderr)) })
	}
	ws := c.await(s, io, pid, exited)
	io.drain()
	output.Wait() // a client that has gone makes send fail
	close(over)
	io.close()
	input.Wait()
	return exitStatus(exitOf(ws, time.Now(), false))
}

// await waits for the end of a command, which it brings about when nobody wants
// it any more.
func (c *commands) await(s *session, io *streams, pid int, exited <-chan syscall.WaitStatus) syscall.WaitStatus {
	sigs := []syscall.Signal{syscall.SIGKILL}
	select {
	case ws := <-exited:
		return ws
	case <-c.quit:
	case <-s.gone:
		io.close()
		sigs = []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL}
	}
	for _, sig := range sigs {
		_ = c.reaper.signal(pid, sig) // or it has just ended
		grace := c.grace
		if sig == syscall.SIGKILL {
			grace = killTimeout
		}
		t := time.NewTimer(grace)
		select {
		case ws := <-exited:
			t.Stop()
			return ws
		case <-t.C:
		}
	}
	c.log.Error("a command cannot be killed", keyPID, pid)
	return syscall.WaitStatus(syscall.SIGKILL)
}

// pass passes the input on to the process.
func (s *session) pass(over <-chan struct{}, io *streams) {
	write := func([]byte) error { return nil } // a process without input wants none
	if io.in != nil {
		write = func(p []byte) error {
			_, err := io.in.Write(p)
			return err
		}
	}
	s.in.run(over, write, io.endInput, s.took)
}

// took tells the client that its input was taken.
func (s *session) took(n int) {
	_ = s.w.Write(stdio.Frame{Type: stdio.Taken, N: n}) // or it has gone
}

// send returns what sends a stream to the client.
func (s *session) send(t stdio.Type) func([]byte) error {
	return func(p []byte) error { return s.w.Write(stdio.Frame{Type: t, Data: p}) }
}

// exitStatus translates a process's end for those who are connected.
func exitStatus(e wire.WorkloadExit) stdio.ExitStatus {
	return stdio.ExitStatus{Code: e.Code & 0xff, Signal: e.Signal}
}

// failure is the exit status of what could not be started.
func failure(err error) stdio.ExitStatus {
	e := stdio.ExitStatus{Code: stdio.CodeFailed, Error: err.Error()}
	var start *startError
	if errors.As(err, &start) {
		e.Code = start.code
	}
	return e
}

// resolveExec finds what a command is to be, from what the workload is.
func (w *workload) resolveExec(e wire.Exec) (Process, error) {
	cfg := w.cfg
	cfg.Args, cfg.Env = e.Args, slices.Concat(w.cfg.Env, e.Env)
	if e.User != "" {
		cfg.User = e.User
	}
	if e.Workdir != "" {
		cfg.Workdir = e.Workdir
	}
	if cfg.TTY = e.TTY; e.TTY && e.Term != "" {
		cfg.Env = slices.Insert(cfg.Env, 0, "TERM="+e.Term) // the workload's own goes before it
	}
	p, err := w.resolve(cfg)
	if err != nil {
		return Process{}, err
	}
	p.Join = w.namespaces.Load()
	if info, err := w.sys.Stat(p.Dir); err != nil || !info.IsDir() {
		return Process{}, fmt.Errorf("there is no working directory %s", p.Dir)
	}
	return p, nil
}

// postExec runs a command.
func (a *agent) postExec(w http.ResponseWriter, r *http.Request) {
	var e wire.Exec
	err := wantsSession(r)
	if err == nil {
		err = readJSON(r, &e)
	}
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if st := a.status.get(); st.Workload != wire.WorkloadRunning || st.Stopping {
		state := string(st.Workload)
		if st.Stopping {
			state = "stopping"
		}
		writeError(w, http.StatusConflict, fmt.Errorf("the workload is %s; commands run beside one that is running", state))
		return
	}
	if !a.sessions.enter() {
		writeError(w, http.StatusConflict, errEnding)
		return
	}
	defer a.sessions.leave()
	select {
	case a.commands.slots <- struct{}{}:
	default:
		writeError(w, http.StatusTooManyRequests, fmt.Errorf("%d commands run; one has to end first", wire.MaxExecs))
		return
	}
	give := sync.OnceFunc(func() { <-a.commands.slots })
	defer give()
	s, err := newSession(w, r)
	if err != nil {
		a.log.Debug("switch protocols", keyErr, err)
		return
	}
	defer s.close()
	exit := a.commands.run(s, e)
	give() // before the client learns that it may start the next
	s.exit(exit)
}
