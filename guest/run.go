package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httputil"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

const (
	// lingerUnread is how long the final status waits for a host to ask, and
	// lingerRead how long the guest stays after one was told, for the last logs.
	// A host that asked for the end is there: lingerAsked is what it is given that
	// has no request under way just then.
	lingerUnread = 5 * time.Second
	lingerRead   = time.Second
	lingerAsked  = 500 * time.Millisecond
	// closeTimeout is how long open requests may take to end, and offTimeout
	// how long sync and unmount may.
	closeTimeout = 2 * time.Second
	offTimeout   = 10 * time.Second
	// buryTimeout is how long processes that were killed may take to end.
	buryTimeout = 3 * time.Second
	// farewell is how long those who are attached may take to read to the end.
	farewell = 5 * time.Second
	// headStart is how long the agent leaves the processor to a workload that
	// comes up: on one emulated processor the two take turns, and the workload
	// answers 0.2 s later for it. A host waits at most so much longer for an
	// agent whose workload is slow.
	headStart = 500 * time.Millisecond
)

// Config is what Run needs.
type Config struct {
	Sys     Sys
	Version string    // of this binary
	Console io.Writer // for the first line and the last words
	Shim    string    // what wire.EnvShim says; "" where the kernel started this program
}

// Run is the life of a guest: it boots, supervises the workload, and powers the
// machine off when that is over, when the host asks for it, or when ctx ends.
// It returns only when it refused to act (ErrRefused) or when the machine could
// not be powered off.
func Run(ctx context.Context, cfg Config) error {
	if err := Guard(cfg.Sys); err != nil {
		return err
	}
	k := newKestrel(cfg)
	k.fatal(k.guarded(func() error { return k.life(ctx) }))
	return k.powerOff()
}

// kestrel is one guest's life.
type kestrel struct {
	sys     Sys
	version string
	console io.Writer

	sink     *logSink
	log      *slog.Logger
	ring     *logRing
	timeline *timeline
	status   *status
	reaper   *reaper
	hub      *hub
	planned  *planned                  // nil where the shim has not started the workload
	exited   <-chan syscall.WaitStatus // of planned
	workload atomic.Pointer[workload]  // nil before it was prepared
	boot     wire.BootConfig           // final before the agent starts; zero where it could not be read
	proxy    *httputil.ReverseProxy    // to the workload; as boot, and nil where that has no BaseURL
	disks    *disks
	root     *root     // nil where the initramfs is the root
	who      *identity // as boot says, until a Wake says otherwise
	conns    *conns    // of the agent
	waker    *waker
	era      atomic.Pointer[era]  // since the last restore
	probed   atomic.Uint64        // the epoch in which the workload is probed
	serve    func() (stop func()) // startAgent, of which only the first call counts

	answered  chan struct{} // closed when the workload first did what its probe asks for, or was over before
	begun     chan struct{} // closed by markBegun
	markBegun func()        // the workload is ready, or over for the first time, or will never be
	quit      chan struct{} // ends requests to the agent
	failed    chan error    // a panic in a goroutine
	stop      chan struct{} // somebody asked for a shutdown
	stopOnce  sync.Once
	grace     atomic.Int64 // time.Duration
	wg        sync.WaitGroup
}

func newKestrel(cfg Config) *kestrel {
	k := &kestrel{
		sys: cfg.Sys, version: cfg.Version, console: cfg.Console,
		ring:     newLogRing(logRingBytes),
		timeline: &timeline{now: cfg.Sys.Uptime},
		answered: make(chan struct{}), begun: make(chan struct{}), quit: make(chan struct{}), failed: make(chan error, 1), stop: make(chan struct{}),
	}
	k.markBegun = sync.OnceFunc(func() { close(k.begun) })
	k.planned = k.timeline.begin(cfg.Shim)
	k.sink = &logSink{ring: k.ring}
	k.log = newLogger(k.sink, slog.LevelInfo)
	k.status = newStatus(k.timeline)
	k.reaper = newReaper(cfg.Sys, k.log)
	if k.planned != nil {
		k.exited = k.reaper.adopt(k.planned.pid)
	}
	k.disks = newDisks(cfg.Sys)
	k.who, k.conns = new(identity), new(conns)
	k.waker = &waker{
		sys: cfg.Sys, now: cfg.Sys.Uptime, conns: k.conns, who: k.who,
		rename: k.rename, begun: k.beginEra, turn: make(chan struct{}, 1),
	}
	k.era.Store(&era{over: make(chan struct{})})
	k.hub = newHub(k.log, k.reaper.signal)
	k.grace.Store(int64(wire.DefaultStopTimeout))
	return k
}

// settle waits for the goroutines, but not for one that is stuck: the machine
// is to be powered off.
func (k *kestrel) settle() {
	done := make(chan struct{})
	go func() {
		k.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// guarded calls f and turns a panic into an error.
func (k *kestrel) guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// background runs f in a goroutine of its own; a panic in it ends the guest.
func (k *kestrel) background(f func()) { k.wg.Go(func() { k.shielded(f) }) }

// shielded calls f in a goroutine that may not take process 1 with it.
func (k *kestrel) shielded(f func()) {
	if err := k.guarded(func() error { f(); return nil }); err != nil {
		select {
		case k.failed <- err:
		default: // the first one ends the guest
		}
	}
}

// step runs one step of the boot. It returns the error of a fatal one.
func (k *kestrel) step(name string, f func() error) error {
	start := k.timeline.now()
	err := k.guarded(f)
	k.timeline.add(name, start, err)
	k.status.update(func(*wire.Status) {}) // the timeline grew
	if errors.Is(err, errSurvived) {
		k.log.Warn("boot", keyStep, name, keyErr, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// life goes from the first mount to the last status. Its error is for the
// console; the host was told.
func (k *kestrel) life(ctx context.Context) error {
	if err := k.step("mounts", k.mount); err != nil {
		return err // nobody else can be told
	}
	side, cancel := context.WithCancel(context.Background())
	defer k.settle()
	defer cancel()
	k.background(func() { k.reaper.run(side) })

	if err := k.step("modules", func() error { return loadModules(k.sys) }); err != nil {
		return err
	}
	k.serve = sync.OnceValue(func() func() { return k.startAgent(side) })
	w, err := k.bringUp(ctx)
	if err != nil {
		k.markBegun() // no workload to leave the processor to
		if k.planned != nil {
			k.reaper.yield(false)
		}
	}
	closeAgent := k.serve()
	defer closeAgent()
	if err == nil && !k.awaited() {
		k.background(func() { k.yield(side) })
	}
	if err == nil {
		err = k.watch(ctx, w)
	}
	k.endHub(err)
	if err != nil {
		k.log.Error("fatal", keyErr, err)
		k.status.finish(func(s *wire.Status) {
			s.Workload, s.PID, s.Healthy, s.Failure, s.Error = wire.WorkloadFailed, 0, nil, nil, err.Error()
			var start *startError
			if errors.As(err, &start) {
				s.Exit = &wire.WorkloadExit{Code: start.code, Time: time.Now()}
			}
		})
	}
	k.linger(ctx)
	k.hub.idle(farewell)
	return err
}

// mount mounts everything, and opens the kernel's log.
func (k *kestrel) mount() error {
	var err error
	if k.planned == nil {
		err = mountAll(k.sys)
	}
	if line, e := k.sys.ReadFile(procCmdline); e == nil {
		level := slog.LevelInfo
		if v := kernelParam(string(line), wire.ParamLog); v != "" && level.UnmarshalText([]byte(v)) == nil {
			k.log = newLogger(k.sink, level)
			k.reaper.log = k.log
		}
		fmt.Fprintf(k.console, "kestrel %s: vm %s\n", k.version, kernelParam(string(line), wire.ParamVM))
	}
	if kmsg, e := k.sys.Open("/dev/kmsg", os.O_WRONLY); e == nil {
		k.sink.open(kmsg)
	}
	return err
}

// endHub tells those who are attached how the workload ended: by err, or as its
// last status says.
func (k *kestrel) endHub(err error) {
	switch st := k.status.get(); {
	case err != nil:
		k.hub.end(failure(err))
	case st.Error != "":
		k.hub.end(stdio.ExitStatus{Code: stdio.CodeFailed, Error: st.Error})
	case st.Exit != nil:
		k.hub.end(exitStatus(*st.Exit))
	}
}

// startAgent begins to listen to the host, once the workload has begun or had its
// head start, which one that was made for a client is not given. The function it
// returns ends all requests and then the connections.
func (k *kestrel) startAgent(ctx context.Context) (stop func()) {
	a := &agent{
		hub: k.hub, commands: newCommands(k.sys, k.log, k.reaper, k.resolveExec, k.quit), sessions: new(sessions),
		archives: newArchives(k.files, func() bool { return k.workload.Load() != nil }),
		log:      k.log, hello: k.hello, wake: k.waker.wake, files: k.sys, status: k.status, ring: k.ring,
		workload: k.proxy, quit: k.quit,
		shutdown: func(s wire.Shutdown) {
			if s.Grace > 0 {
				k.grace.Store(int64(s.Grace))
			}
			k.askToStop()
		},
	}
	server := a.server()
	k.background(func() {
		ahead := headStart
		if k.awaited() {
			ahead = 0
		}
		t := time.NewTimer(ahead)
		defer t.Stop()
		select {
		case <-k.begun:
		case <-t.C:
		}
		start := k.timeline.now()
		c := &channel{sys: k.sys, log: k.log, server: server, conns: k.conns, up: func() {
			k.timeline.add("agent", start, nil)
			k.status.update(func(*wire.Status) {})
		}}
		if err := k.sys.PowerButton(k.askToStop); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.log.Warn("power button", keyErr, err)
		}
		if err := k.sys.Processors(); err != nil {
			k.log.Warn("processors that are plugged in stay off", keyErr, err)
		}
		c.run(ctx)
	})
	return func() {
		close(k.quit)
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = server.Shutdown(ctx)
		a.sessions.wait(ctx) // the server does not know those
		server.Close()
	}
}

// awaited reports whether somebody waits for the agent to get to the workload.
func (k *kestrel) awaited() bool { return k.boot.Workload.TTY || k.boot.Workload.Stdin }

// yield leaves the processor to a workload that comes up: what the agent has to do
// until then, its probes and its own start, is done in the gaps. It ends when the
// workload has answered, or had its head start.
func (k *kestrel) yield(ctx context.Context) {
	k.reaper.yield(true)
	defer k.reaper.yield(false)
	t := time.NewTimer(headStart)
	defer t.Stop()
	select {
	case <-k.answered:
	case <-t.C:
	case <-ctx.Done():
	}
}

// resolveExec finds what a command is to be, from what the workload is.
func (k *kestrel) resolveExec(e wire.Exec) (Process, error) {
	w := k.workload.Load()
	if w == nil {
		return Process{}, errors.New("there is no workload")
	}
	return w.resolveExec(e)
}

// files are the guest's, with what the workload has mounted in its own mount
// namespace, if it runs in one.
func (k *kestrel) files() Files {
	if w := k.workload.Load(); w != nil {
		if files := w.namespaces.Load().files(); files != nil {
			return files
		}
	}
	return k.sys
}

func (k *kestrel) hello() wire.Hello {
	id := k.who.get()
	return wire.Hello{
		Protocol: wire.Protocol, Version: k.version, VM: id.VM, Incarnation: id.Incarnation,
		Kernel: k.sys.Release(), Epoch: k.status.get().Epoch, Timeline: k.timeline.snapshot(),
	}
}

// bringUp takes the steps from the configuration to the workload's start.
func (k *kestrel) bringUp(ctx context.Context) (*started, error) {
	s := &started{}
	always := func() bool { return true }
	unplanned := func() bool { return k.planned == nil }
	rooted := func() bool { return k.boot.Root != nil }
	last := func() string { // of the steps that a Wake repeats
		switch {
		case rooted():
			return "root"
		case unplanned():
			return "network"
		}
		return "config"
	}
	steps := []struct {
		name string
		when func() bool
		run  func() error
	}{
		{"config", always, func() error { return k.configure(ctx) }},
		{"identity", unplanned, func() error { return setIdentity(k.sys, k.boot) }},
		{"entropy", unplanned, func() error { return addEntropy(k.sys, k.boot.Seed) }},
		{"network", unplanned, func() error { return setNetwork(k.sys, k.boot.Network) }},
		{"root", rooted, func() error {
			k.root = &root{sys: k.sys, disks: k.disks}
			return k.root.enter(ctx, k.boot, k.planned != nil)
		}},
		{"volumes", func() bool { return len(k.boot.Mounts) > 0 }, func() error { return k.mountVolumes(ctx) }},
		{"files", rooted, func() error { return k.root.finish(k.boot) }},
		{"workload", always, func() (err error) {
			s.w, s.r, err = k.startWorkload()
			return err
		}},
	}
	for _, step := range steps {
		if !step.when() {
			continue
		}
		if err := k.step(step.name, step.run); err != nil {
			return nil, err
		}
		if step.name == last() {
			k.waker.enable() // before the agent serves
		}
	}
	return s, nil
}

// mountVolumes mounts the volumes. To fill a new one may take long: the agent
// begins to serve meanwhile, and a shutdown need not wait.
func (k *kestrel) mountVolumes(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := volumes{sys: k.sys, disks: k.disks, copying: sync.OnceFunc(func() {
		k.serve()
		k.background(func() {
			select {
			case <-k.stop:
				cancel()
			case <-ctx.Done():
			}
		})
	})}
	err := v.mount(ctx, k.boot.Mounts)
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("stopped before the workload was started: %w", err)
	}
	return err
}

// configure reads the boot configuration.
func (k *kestrel) configure(ctx context.Context) error {
	cfg, err := readConfig(ctx, k.disks, diskTimeout)
	if err != nil {
		return err
	}
	k.boot = cfg
	k.who.set(cfg.Identity())
	if d := cfg.Workload.StopTimeout; d > 0 {
		k.grace.CompareAndSwap(int64(wire.DefaultStopTimeout), int64(d))
	}
	if base := cfg.Workload.BaseURL; base != "" {
		if k.proxy, err = newProxy(base, k.log); err != nil {
			return err
		}
	}
	return nil
}

// started is a workload and its first process.
type started struct {
	w *workload
	r *running
}

func (k *kestrel) startWorkload() (*workload, *running, error) {
	if k.boot.Workload.TTY || k.boot.Workload.Stdin {
		k.hub.interactive()
	} else if k.boot.Workload.Attach {
		k.hub.expect()
	}
	group, err := newCgroup(k.sys, k.boot.Root != nil)
	if err != nil {
		k.log.Warn("control group of the workload", keyErr, err)
	}
	w := &workload{
		sys: k.sys, log: k.log, ring: k.ring, reaper: k.reaper, status: k.status, cgroup: group,
		cfg: k.boot.Workload, hub: k.hub, hostname: k.who.hostname, own: k.boot.Root != nil,
		begun: k.planned, exited: k.exited,
		grace: func() time.Duration { return time.Duration(k.grace.Load()) },
	}
	if err := w.prepare(); err != nil {
		return nil, nil, err
	}
	k.workload.Store(w)
	ready, err := k.readiness(w)
	if err != nil {
		return nil, nil, err
	}
	w.started = func(ctx context.Context) { k.shielded(func() { ready(ctx) }) }
	r, err := w.start(false)
	return w, r, err
}

// watch supervises the workload until it is over, and stops it when the host,
// the power button or ctx says so.
func (k *kestrel) watch(ctx context.Context, s *started) error {
	super, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan func(*wire.Status), 1)
	k.background(func() { over <- s.w.supervise(super, s.r) })
	select {
	case last := <-over:
		k.status.finish(last)
		return nil
	case err := <-k.failed:
		return err
	case <-k.stop:
	case <-ctx.Done():
	}
	k.status.update(func(s *wire.Status) { s.Stopping = true })
	cancel()
	select {
	case last := <-over:
		k.status.finish(last)
		return nil
	case err := <-k.failed:
		return err
	}
}

// askToStop begins the orderly end.
func (k *kestrel) askToStop() { k.stopOnce.Do(func() { close(k.stop) }) }

// linger gives the host time to learn how it ended, and to read the last logs
// unless it asked for the end itself.
func (k *kestrel) linger(ctx context.Context) {
	unread := time.NewTimer(lingerUnread)
	defer unread.Stop()
	for asked := k.stop; ; {
		select {
		case <-asked:
			asked = nil
			unread.Reset(lingerAsked)
			continue
		case <-ctx.Done():
		case <-unread.C:
		case <-k.status.delivered:
			read := time.NewTimer(lingerRead)
			defer read.Stop()
			select {
			case <-k.stop:
			case <-ctx.Done():
			case <-read.C:
			}
		}
		return
	}
}

// fatal writes the last words on the console.
func (k *kestrel) fatal(err error) {
	if err != nil {
		fmt.Fprintf(k.console, "kestrel: %v\n", err)
	}
}
