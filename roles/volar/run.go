package volar

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// Bounds of what a foreground run waits for.
const (
	// secondSignal is how soon after one request to end the next one means that
	// the user has no more patience.
	secondSignal = 5 * time.Second
	// settleTimeout is how long a VM may take to end after its workload: the guest
	// powers off by itself, and is killed when it does not.
	settleTimeout = time.Minute
	// lostTimeout is how long the daemon may take to learn of a machine's end.
	lostTimeout = 3 * time.Second
)

type runCmd struct {
	Image   string   `arg:"" passthrough:"partial" complete:"images" help:"Image to run: a reference such as nginx:alpine, an ID, an archive (.tar, .tar.gz, .tar.zst), an OCI layout folder, or one of oci:DIR, oci-archive:FILE, docker-archive:FILE, docker-daemon:IMAGE, podman:IMAGE."`
	Command []string `arg:"" optional:"" help:"What it runs, in place of the image's command, or the arguments of its entrypoint. All that follows the image is part of it."`
	Name    string   `help:"Name of the VM (default: the image's, with a number)." placeholder:"NAME"`
	Detach  bool     `short:"d" help:"Leave it running in the background, and print its name, address and ports."`
	RM      bool     `name:"rm" help:"Delete the VM once it has ended."`
	vmFlags
	imageFlags
	Wait    waitFlag      `help:"With --detach, return once it is running (--wait, the default), healthy (--wait=healthy), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"With --detach, how long to wait at most." default:"2m"`
}

// Help is the longer help of the command.
func (*runCmd) Help() string { return runHelp }

const runHelp = `Flags stand before the image; what follows it is the command's. In the foreground the workload's output is ours, and its exit status: 126 when its
program cannot be executed, 127 when there is none. Failures of Volant's own have
status 125. Signals are passed on; a second SIGINT or SIGTERM within five seconds
kills the VM. With -t, ctrl-p ctrl-q leaves the VM running.`

// Run runs an image as a VM.
func (cmd *runCmd) Run(c *cli) error {
	if cmd.Image == "--" && len(cmd.Command) > 0 { // the end of flags, which kong leaves here
		cmd.Image, cmd.Command = cmd.Command[0], cmd.Command[1:]
	}
	req, m, err := cmd.request(c, cmd.Name, cmd.Command)
	if err != nil {
		return err
	}
	req.AutoRemove = cmd.RM
	if cmd.RM && req.Restart != nil && req.Restart.Policy != "never" {
		return usagef("--rm and --restart=%s contradict each other: a VM that has ended is either deleted or started again", cmd.Restart)
	}
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy)
	if err != nil {
		return err
	}
	if !cmd.Detach && cmd.Wait != (waitFlag{}) {
		return usagef("--wait needs --detach: in the foreground the end is waited for")
	}
	if _, terminal := terminalWidth(c.stdin); !cmd.Detach && cmd.TTY && cmd.Interactive && !terminal {
		return &usageError{msg: "-t: standard input is not a terminal", hint: "leave out -t where input comes from a pipe or file"}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	if err := c.prepare(cl, &req, m, cmd.Image, cmd.imageFlags); err != nil {
		return err
	}
	if cmd.Detach {
		vm, err := c.createVM(cl, req, w)
		if err != nil {
			return err
		}
		return c.printNew(vm)
	}
	req.Attach = true
	return c.foreground(cl, req)
}

// foreground creates the VM and is its terminal until it ends.
func (c *cli) foreground(cl *client.Client, req api.VMCreate) error {
	// From here on a signal is for the workload and does not end us.
	signals := make(chan os.Signal, 16)
	stop := c.notify(signals)
	defer stop()
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx))
	defer cancel()
	if err := c.ctx.Err(); err != nil {
		return err // the signal came just before
	}
	vm, err := cl.CreateVM(ctx, req, noWait())
	if err != nil {
		return err
	}
	f := &foreground{c: c, cl: cl, vm: vm, ctx: ctx}
	var wg sync.WaitGroup
	wg.Go(func() { f.passOn(signals) })
	err = f.run()
	cancel()
	wg.Wait()
	return err
}

// foreground is a VM that runs as if it were a process of ours.
type foreground struct {
	c   *cli
	cl  *client.Client
	vm  api.VM
	ctx context.Context // ends when run has returned; signals do not end it

	mu      sync.Mutex
	session *client.Session // guarded by mu; nil until the workload is there
	killed  os.Signal       // guarded by mu: what ended the VM before that
}

// exitOf is our end when a workload had this one.
func exitOf(status int) error {
	if status == exitOK {
		return nil
	}
	return &statusError{status, nil}
}

// run returns our end: the workload's, or nil when the user left it running.
func (f *foreground) run() error {
	session, err := f.attach()
	if err != nil {
		return f.missed(err)
	}
	exit, detached, err := f.c.attachTerminal(f.ctx, session, f.vm.TTY, f.vm.Stdin)
	session.Close() // the guest stays for as long as somebody listens
	switch {
	case err != nil:
		return f.missed(err)
	case detached:
		f.c.notef("detached: %s goes on; volar attach %s goes back to it", f.vm.Name, f.vm.Name)
		return nil
	}
	f.settle()
	return exitOf(exit)
}

// attach waits for the workload, and tells of the VM's way when it is long.
func (f *foreground) attach() (*client.Session, error) {
	var session *client.Session
	err := f.c.withProgress(f.cl, f.vm.Name, func() (err error) {
		session, err = f.cl.Attach(f.ctx, f.vm.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session = session
	return session, nil
}

// passOn hands signals to the workload, until the context ends. Before there is
// one, a signal to end kills the VM, as the second one does within secondSignal.
func (f *foreground) passOn(signals <-chan os.Signal) {
	var first time.Time
	for {
		var sig os.Signal
		select {
		case <-f.ctx.Done():
			return
		case sig = <-signals:
		}
		ending := sig == os.Interrupt || sig == syscall.SIGTERM
		f.mu.Lock()
		session := f.session
		if session == nil && ending {
			f.killed = sig
		}
		f.mu.Unlock()
		switch now := time.Now(); {
		case ending && (session == nil || now.Sub(first) < secondSignal):
			if session != nil {
				f.c.notef("killing %s", f.vm.Name)
			}
			f.kill()
		case session != nil:
			if ending {
				first = now
			}
			// A session that is gone is found so by who reads from it.
			_ = session.Signal(signalName(sig))
		}
	}
}

// kill ends the VM at once.
func (f *foreground) kill() {
	if _, err := f.cl.StopVM(f.ctx, f.vm.ID, api.VMStop{Force: true}, noWait()); err != nil && api.CodeOf(err) != api.CodeNotFound && f.ctx.Err() == nil {
		f.c.notef("%v", err)
	}
}

// missed says how a VM ended whose workload we did not see to its end because
// of err. What the daemon kept of it is printed.
func (f *foreground) missed(err error) error {
	f.mu.Lock()
	killed := f.killed
	f.mu.Unlock()
	if killed != nil {
		f.settle()
		return exitOf(128 + int(killed.(syscall.Signal)))
	}
	if code := api.CodeOf(err); code != api.CodeConflict && code != api.CodeNotFound && code != api.CodeUnavailable {
		return err
	}
	// The daemon may learn of a machine's end a moment after we lost its workload.
	vm, vmErr := f.cl.VM(f.ctx, f.vm.ID, client.Wait{For: api.WaitStopped, Timeout: lostTimeout})
	switch {
	case api.CodeOf(vmErr) == api.CodeNotFound:
		return &hintError{fmt.Errorf("VM %s has ended and was deleted before its output could be read: %w", f.vm.Name, err), "run it without --rm to see what became of it"}
	case vmErr != nil:
		return err
	case vm.Exit == nil:
		return &hintError{fmt.Errorf("VM %s is %s", vm.Name, describe(vm)), "volar logs --console " + vm.Name + " shows what its kernel said"}
	}
	err = f.cl.VMLogs(f.ctx, f.vm.ID, api.LogQuery{}, func(e api.LogEntry) error {
		to := f.c.stdout
		if e.Stream == "stderr" {
			to = f.c.stderr
		}
		_, err := io.WriteString(to, e.Line+"\n")
		return err
	})
	if err != nil {
		return err
	}
	f.settle()
	return exitOf(vm.Exit.Code)
}

// settle waits until the VM whose workload has ended is gone, or can be started
// again, so that the user's next command finds it so. That the daemon takes
// longer is told and is no failure of the workload.
func (f *foreground) settle() {
	w := client.Wait{For: api.WaitStopped, Timeout: settleTimeout}
	if f.vm.AutoRemove {
		w.For = api.WaitDeleted
	}
	err := f.c.withProgress(f.cl, f.vm.Name, func() error {
		_, err := f.cl.VM(f.ctx, f.vm.ID, w)
		return err
	})
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		f.c.notef("%s: its workload has ended, but not the VM: %v", f.vm.Name, err)
	}
}

// signalName returns the name that the guest knows a signal by.
func signalName(sig os.Signal) string {
	if s, ok := sig.(syscall.Signal); ok {
		return unix.SignalName(s)
	}
	return ""
}

// notifyForeground relays the signals that a foreground run passes on.
func notifyForeground(to chan<- os.Signal) (stop func()) {
	signal.Notify(to, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	return func() { signal.Stop(to) }
}
