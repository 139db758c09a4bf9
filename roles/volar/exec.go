package volar

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// secondInterrupt is how soon a second interrupt must follow the first to give
// the process up that does not mind it.
const secondInterrupt = 2 * time.Second

type execCmd struct {
	Interactive bool     `short:"i" help:"Pass standard input on to the command."`
	TTY         bool     `short:"t" help:"Run the command on a terminal."`
	Env         []string `short:"e" sep:"none" placeholder:"NAME=VALUE" help:"A variable of the command; NAME alone has its value here. May be repeated."`
	Workdir     string   `short:"w" placeholder:"DIR" help:"Where it runs (default: where the workload does)."`
	User        string   `short:"u" placeholder:"USER" help:"Who runs it: a name or uid, with :GROUP if need be (default: the workload's user)."`

	VM      string   `arg:"" name:"vm" help:"Name or id of the VM." complete:"vms"`
	Command []string `arg:"" passthrough:"" help:"The command and its arguments, after -- if need be."`
}

// Run runs a command in a VM. Its status becomes ours.
func (cmd *execCmd) Run(c *cli) error {
	req := api.Exec{Args: cmd.Command, Workdir: cmd.Workdir, User: cmd.User, TTY: cmd.TTY, Stdin: cmd.Interactive}
	if len(req.Args) > 0 && req.Args[0] == "--" {
		req.Args = req.Args[1:]
	}
	if err := checkNames([]string{cmd.VM}); err != nil {
		return err
	}
	for _, kv := range cmd.Env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		if req.Env == nil {
			req.Env = make(map[string]string)
		}
		req.Env[name] = value
	}
	if cmd.TTY {
		if _, _, ok := sizeOf(c.stdin); cmd.Interactive && !ok {
			return &usageError{msg: "-t: standard input is not a terminal", hint: "leave out -t where input comes from a pipe or file"}
		}
		req.Term = os.Getenv("TERM")
		req.Rows, req.Cols, _ = c.terminalSize()
	}
	if err := req.Validate(); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return &statusError{stdio.CodeFailed, err}
	}
	s, ctx, stop, err := c.open(func(ctx context.Context) (*client.Session, error) { return cl.Exec(ctx, cmd.VM, req) })
	if err != nil {
		return &statusError{stdio.CodeFailed, err}
	}
	defer stop()
	return c.follow(s, func() (int, bool, error) { return c.terminal(ctx, s, cmd.TTY, cmd.Interactive, false) }, "")
}

// open opens a session. Until then a signal ends us, and thereafter it is for
// the process: ctx does not end by it. The caller calls stop, which ends ctx and
// with it the session.
func (c *cli) open(ask func(context.Context) (*client.Session, error)) (s *client.Session, ctx context.Context, stop context.CancelFunc, err error) {
	ctx, stop = context.WithCancel(context.WithoutCancel(c.ctx))
	unwatch := context.AfterFunc(c.ctx, stop)
	s, err = ask(ctx)
	if !unwatch() {
		err = c.ctx.Err()
	}
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return s, ctx, stop, nil
}

type attachCmd struct {
	NoStdin bool   `help:"Pass no input on."`
	VM      string `arg:"" name:"vm" help:"Name or id of the VM." complete:"vms"`
}

// Run connects with the workload of a VM until that has ended, whose status
// becomes ours, or the user leaves by ctrl-p ctrl-q: of a workload that takes
// input from no terminal these are input too. It begins with the latest that the
// workload wrote.
func (cmd *attachCmd) Run(c *cli) error {
	if err := checkNames([]string{cmd.VM}); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return &statusError{stdio.CodeFailed, err}
	}
	vm, err := cl.VM(c.ctx, cmd.VM, noWait())
	if err != nil {
		return &statusError{stdio.CodeFailed, err}
	}
	s, ctx, stop, err := c.open(func(ctx context.Context) (s *client.Session, err error) {
		err = c.withProgress(cl, vm.Name, func() (err error) {
			s, err = cl.Attach(ctx, vm.ID)
			return err
		})
		return s, err
	})
	if err != nil {
		return &statusError{stdio.CodeFailed, err}
	}
	defer stop()
	return c.follow(s, func() (int, bool, error) {
		if vm.Stdin && !cmd.NoStdin {
			return c.attachTerminal(ctx, s, vm.TTY, true)
		}
		left, stop := c.leaveByKeys(func() { s.Close() })
		defer stop()
		status, _, err := c.attachTerminal(ctx, s, vm.TTY, false)
		if left() {
			return 0, true, nil
		}
		return status, false, err
	}, vm.Name)
}

// follow passes signals on to a session while terminal runs, and makes what that
// returns our end. name is the VM's.
func (c *cli) follow(s *client.Session, terminal func() (int, bool, error), name string) error {
	relay := passSignals(s)
	defer relay.stop()
	status, detached, err := terminal()
	switch {
	case relay.gaveUp():
		return &statusError{exitInterrupted, nil}
	case err != nil:
		return &statusError{stdio.CodeFailed, err}
	case detached:
		c.notef("detached: %s goes on; volar attach %s goes back to it", name, name)
	case status != 0:
		return &statusError{status, nil}
	}
	return nil
}

// statusError ends us with a status that the table of exit statuses does not
// give: that of a command, with err nil, or one that is told from it.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return "the command has failed"
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// relay hands the signals that we get to a session's process. A second
// interrupt soon after the first closes the session.
type relay struct {
	signals chan os.Signal
	done    chan struct{}
	wg      sync.WaitGroup
	over    atomic.Bool // a second interrupt came
}

// passSignals begins that; the caller calls stop.
func passSignals(s *client.Session) *relay {
	r := &relay{signals: make(chan os.Signal, 16), done: make(chan struct{})}
	signal.Notify(r.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	r.wg.Go(func() {
		var first time.Time
		for {
			select {
			case sig := <-r.signals:
				ending, now := sig == unix.SIGINT || sig == unix.SIGTERM, time.Now()
				if ending && now.Sub(first) < secondInterrupt {
					r.over.Store(true)
					s.Close()
					return
				}
				if ending {
					first = now
				}
				if n, ok := sig.(syscall.Signal); ok {
					_ = s.Signal(unix.SignalName(n)) // whoever reads from the session finds it gone
				}
			case <-r.done:
				return
			}
		}
	})
	return r
}

func (r *relay) gaveUp() bool { return r.over.Load() }

// stop gives the signals back.
func (r *relay) stop() {
	signal.Stop(r.signals)
	close(r.done)
	r.wg.Wait()
}
