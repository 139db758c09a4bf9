package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store"
	"github.com/volantvm/volant/store/row"
)

// patience bounds every wait of the tests. The machine may be busy.
const patience = 30 * time.Second

// world is a host: a hypervisor, a network, two directories, and one daemon
// after the other. What a killed daemon leaves in it, the next one meets.
type world struct {
	t    testing.TB
	hv   *hvtest.Fake
	net  *memNetwork
	imgs *fakeImages
	cgs  *memCgroups
	root string

	mu     sync.Mutex
	guests map[string][]*fakeGuest // guarded by mu; by VM id, oldest first
}

func newWorld(t testing.TB) *world {
	t.Helper()
	root, err := os.MkdirTemp("/tmp", "daemon-") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	w := &world{t: t, hv: hvtest.NewFake(), net: newMemNetwork(), imgs: newFakeImages(), cgs: newMemCgroups(), root: root, guests: make(map[string][]*fakeGuest)}
	w.hv.SetGuest(w.boot)
	if err := os.WriteFile(filepath.Join(root, "agent"), []byte("the agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

// instance is one daemon process: its own hold on the database, and a switch
// that freezes all it does to the world.
type instance struct {
	*Daemon
	w       *world
	db      *store.Store
	gate    *gate
	running bool // Run was called
	cancel  context.CancelFunc
	done    chan error // receives Run's result
	once    sync.Once
}

// gate is where a killed daemon's actions end.
type gate struct {
	mu     sync.Mutex
	closed bool           // guarded by mu
	free   chan struct{}  // closed when the test is over
	before func()         // guarded by mu; called before each action on the world
	inside sync.WaitGroup // actions under way; Add under mu while the gate is open
}

var errDead = errors.New("this daemon was killed")

// act precedes an action on the world that may be cut anywhere.
func (g *gate) act() error {
	g.meet()
	return g.pass()
}

func (g *gate) meet() {
	g.mu.Lock()
	before := g.before
	g.mu.Unlock()
	if before != nil {
		before()
	}
}

// do runs an action on the world that happens or does not: close waits for it.
// The action must not come to this gate again.
func (g *gate) do(action func() error) error {
	g.meet()
	g.mu.Lock()
	closed := g.closed
	if !closed {
		g.inside.Add(1)
	}
	g.mu.Unlock()
	if closed {
		<-g.free
		return errDead
	}
	defer g.inside.Done()
	return action()
}

// pass blocks a killed daemon until the test is over, and then refuses.
func (g *gate) pass() error {
	if !g.open() {
		<-g.free
		return errDead
	}
	return nil
}

func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.closed
}

// close lets nothing more through. On return nothing is under way either: what a
// process was doing when it died is done, or not, before another can begin.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

type options struct {
	config       func(*Config)
	timing       func(*timing)
	afterCommit  func(in *instance) // called after each durable write
	beforeAction func(in *instance) // called before each action on store, driver or network
	writeError   func() error       // refuses writes
	notRunning   bool
}

func (w *world) start(opt options) *instance {
	w.t.Helper()
	in := &instance{w: w, gate: &gate{free: make(chan struct{})}, done: make(chan error, 1)}
	if opt.beforeAction != nil {
		in.gate.before = func() { opt.beforeAction(in) }
	}
	db, err := store.Open(context.Background(), filepath.Join(w.root, "state.db"), store.Options{
		AroundWrite: func(transact func() error) error {
			return in.gate.do(func() error {
				if opt.writeError != nil {
					if err := opt.writeError(); err != nil {
						return err
					}
				}
				return transact()
			})
		},
		AfterCommit: func(int) {
			if opt.afterCommit != nil {
				opt.afterCommit(in)
			}
			in.gate.pass() // the call never returns in a daemon that was killed in it
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	in.db = db
	pool, err := ipam.NewPool(netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.9.0.1"))
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := Config{
		Store: &gatedStore{Store: db, gate: in.gate}, Driver: &gatedDriver{w.hv, in.gate}, Network: &gatedNetwork{w.net, in.gate}, Cgroups: &gatedCgroups{w.cgs, in.gate},
		Images: &gatedImages{w.imgs, in.gate}, Pool: pool, Bridge: "vbr0", DataDir: filepath.Join(w.root, "data"), RuntimeDir: filepath.Join(w.root, "run"),
		AgentBinary: filepath.Join(w.root, "agent"), AgentImage: fakeAgentImage, Version: "test", BootTimeout: patience,
		BootID: w.bootID(), Log: testLog(w.t),
	}
	if opt.config != nil {
		opt.config(&cfg)
	}
	in.Daemon, err = New(cfg)
	if err != nil {
		db.Close()
		w.t.Fatalf("New: %v", err)
	}
	in.t.retryMin, in.t.retryMax, in.t.stalled = 5*time.Millisecond, 50*time.Millisecond, 5*time.Millisecond
	in.t.restartMin, in.t.restartMax = 10*time.Millisecond, 50*time.Millisecond
	if opt.timing != nil {
		opt.timing(&in.t)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in.cancel = cancel
	w.t.Cleanup(in.stop)
	if opt.notRunning {
		in.done <- nil
		return in
	}
	in.running = true
	go func() { in.done <- in.Run(ctx) }()
	return in
}

// fakeAgentImage is a file system only in that it holds the program.
func fakeAgentImage(_ context.Context, w io.Writer, program io.ReaderAt, size int64) error {
	_, err := io.Copy(w, io.MultiReader(strings.NewReader("image of "), io.NewSectionReader(program, 0, size)))
	return err
}

// testLog shows the daemon's log with -v.
func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	level := slog.LevelDebug
	if os.Getenv("VOLANT_BENCH") != "" {
		level = slog.LevelWarn // lines are not what is measured
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// stop ends the daemon in an orderly way.
func (in *instance) stop() {
	in.once.Do(func() {
		close(in.gate.free)
		in.cancel()
		select {
		case err := <-in.done:
			if err != nil && !errors.Is(err, errDead) {
				in.w.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			in.w.t.Error("Run did not end")
		}
		if err := in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			in.w.t.Errorf("Close: %v", err)
		}
		if err := in.db.Close(); err != nil {
			in.w.t.Errorf("store: Close: %v", err)
		}
	})
}

// kill leaves the world as SIGKILL would: what the daemon was about to do never
// happens, its streams break, its lock is gone.
func (in *instance) kill() {
	in.gate.close()
	if in.running {
		<-in.prepared // it writes below the world's root, where the gate does not reach
	}
	in.w.hv.DetachAll()
	in.w.net.forget()
	in.lock.Close()
}

// bootID is that of the Fake's host.
func (w *world) bootID() string {
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", 1+w.net.rebooted())
}

func (w *world) reboot() {
	w.hv.Reboot()
	w.net.reboot()
	w.cgs.reboot()
	if err := os.RemoveAll(filepath.Join(w.root, "run")); err != nil {
		w.t.Fatal(err)
	}
}

// gatedStore, gatedDriver and gatedNetwork let nothing of a killed daemon pass.
// Machines need no gate: kill cuts them off; writes of the store pass it where
// the store has a place for that.
type gatedStore struct {
	Store
	gate *gate
}

func (s *gatedStore) VMByID(ctx context.Context, id string) (row.VM, error) {
	if err := s.gate.pass(); err != nil {
		return row.VM{}, err
	}
	return s.Store.VMByID(ctx, id)
}

type gatedDriver struct {
	*hvtest.Fake
	gate *gate
}

func (d *gatedDriver) Launch(ctx context.Context, spec hv.Spec) (vm hv.VM, err error) {
	err = d.gate.do(func() error {
		vm, err = d.Fake.Launch(ctx, spec)
		return err
	})
	if gerr := d.gate.pass(); gerr != nil {
		return nil, gerr
	}
	return vm, err
}

func (d *gatedDriver) Find(ctx context.Context, dir string) (hv.Record, error) {
	if err := d.gate.act(); err != nil {
		return hv.Record{}, err
	}
	return d.Fake.Find(ctx, dir)
}

func (d *gatedDriver) Machines(ctx context.Context, dir string) ([]hv.Record, error) {
	if err := d.gate.pass(); err != nil {
		return nil, err
	}
	return d.Fake.Machines(ctx, dir)
}

func (d *gatedDriver) End(ctx context.Context, rec hv.Record) error {
	return d.gate.do(func() error { return d.Fake.End(ctx, rec) })
}

func (d *gatedDriver) Attach(ctx context.Context, rec hv.Record) (vm hv.VM, err error) {
	err = d.gate.do(func() error {
		vm, err = d.Fake.Attach(ctx, rec)
		return err
	})
	return vm, err
}

type gatedNetwork struct {
	n    *memNetwork
	gate *gate
}

func (g *gatedNetwork) Ensure(ctx context.Context) error { return g.gate.pass() }

func (g *gatedNetwork) AddTap(ctx context.Context, vm string) (tap string, err error) {
	err = g.gate.do(func() error {
		tap, err = g.n.AddTap(ctx, vm)
		return err
	})
	return tap, err
}

func (g *gatedNetwork) RemoveTap(ctx context.Context, vm string) error {
	return g.gate.do(func() error { return g.n.RemoveTap(ctx, vm) })
}

func (g *gatedNetwork) Taps(ctx context.Context) (map[string]string, error) {
	if err := g.gate.pass(); err != nil {
		return nil, err
	}
	return g.n.Taps(ctx)
}

func (g *gatedNetwork) ApplyRules(ctx context.Context, ports []Port) error {
	return g.gate.do(func() error { return g.n.ApplyRules(ctx, ports) })
}

func (g *gatedNetwork) Reserve(ctx context.Context, vm string, publish []Publish) error {
	return g.gate.do(func() error { return g.n.Reserve(ctx, vm, publish) })
}

func (g *gatedNetwork) Traffic(ctx context.Context, vm string) (int64, int64, error) {
	if err := g.gate.pass(); err != nil {
		return 0, 0, err
	}
	return g.n.Traffic(ctx, vm)
}

func (g *gatedNetwork) CheckPort(p Publish) error {
	if err := g.gate.pass(); err != nil {
		return err
	}
	return g.n.CheckPort(p)
}

// memNetwork is a network in memory.
type memNetwork struct {
	mu      sync.Mutex
	taps    map[string]string    // guarded by mu; by VM id
	rules   []Port               // guarded by mu
	kept    map[string][]Publish // guarded by mu; by VM id
	busy    map[uint16]bool      // guarded by mu; host ports of other programs
	boots   int                  // guarded by mu
	failing error                // guarded by mu; of AddTap
}

func newMemNetwork() *memNetwork {
	return &memNetwork{taps: make(map[string]string), kept: make(map[string][]Publish), busy: make(map[uint16]bool)}
}

func (n *memNetwork) Ensure(context.Context) error { return nil }

func (n *memNetwork) AddTap(_ context.Context, vm string) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failing != nil {
		return "", n.failing
	}
	n.taps[vm] = "vlt" + vm
	return "vlt" + vm, nil
}

func (n *memNetwork) RemoveTap(_ context.Context, vm string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.taps, vm)
	return nil
}

func (n *memNetwork) Taps(context.Context) (map[string]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]string, len(n.taps))
	for id, tap := range n.taps {
		out[id] = tap
	}
	return out, nil
}

func (n *memNetwork) ApplyRules(_ context.Context, ports []Port) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules = slices.Clone(ports)
	return nil
}

func (n *memNetwork) Reserve(_ context.Context, vm string, publish []Publish) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range publish {
		if err := n.taken(p, vm); err != nil {
			return err
		}
	}
	if publish == nil {
		delete(n.kept, vm)
		return nil
	}
	n.kept[vm] = slices.Clone(publish)
	return nil
}

func (n *memNetwork) Traffic(_ context.Context, vm string) (int64, int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taps[vm] == "" {
		return 0, 0, errors.New("no such tap")
	}
	return 1000, 2000, nil
}

func (n *memNetwork) CheckPort(p Publish) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.taken(p, "")
}

// taken says who but that VM has the port; the caller holds mu.
func (n *memNetwork) taken(p Publish, but string) error {
	if n.busy[p.HostPort] {
		return fmt.Errorf("publish %d: %w", p.HostPort, ErrPortInUse)
	}
	for vm, kept := range n.kept {
		for _, q := range kept {
			if vm != but && q.HostPort == p.HostPort && q.Protocol == p.Protocol {
				return fmt.Errorf("publish %d: %w, by VM %s", p.HostPort, ErrPortInUse, vm)
			}
		}
	}
	return nil
}

// forget gives up what was reserved by a process that died.
func (n *memNetwork) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.kept)
}

// reserved lists the host ports that are kept: "port=vm".
func (n *memNetwork) reserved() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for vm, kept := range n.kept {
		for _, p := range kept {
			out = append(out, fmt.Sprintf("%d=%s", p.HostPort, vm))
		}
	}
	return out
}

func (n *memNetwork) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing = err
}

func (n *memNetwork) reboot() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.boots++
	clear(n.taps)
	clear(n.kept)
	n.rules = nil
}

func (n *memNetwork) rebooted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boots
}

// state lists taps and rules: "tap", "tap=address".
func (n *memNetwork) state() (taps, rules []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, tap := range n.taps {
		taps = append(taps, tap)
	}
	for _, p := range n.rules {
		rules = append(rules, p.Tap+"="+p.IP.String())
		for _, pub := range p.Publish {
			rules = append(rules, fmt.Sprintf("%s:%d", p.Tap, pub.HostPort))
		}
	}
	slices.Sort(taps)
	slices.Sort(rules)
	return taps, rules
}

// fakeGuest speaks the agent's protocol. What it does is scripted by the
// arguments of the workload:
//
//	/serve             runs until it is told to stop, and is healthy
//	/stubborn          runs, and ignores what it is told
//	/exit CODE         runs, prints a line, and exits
//	/nostart           cannot be started
//	/silent            the agent never answers
//	/panic             the kernel panics before the agent answers
//	/stranger          the agent says that it is another VM's
//	/sick              runs, and is unhealthy
//	/crash             runs, and then the kernel panics
//	/lost              could not read its boot configuration
type fakeGuest struct {
	m    *hvtest.Machine
	cfg  wire.BootConfig
	over chan struct{} // closed when the guest is on its way out

	streams atomic.Int64 // of the log that are open

	mu      sync.Mutex
	status  wire.Status            // guarded by mu
	logs    []wire.LogEntry        // guarded by mu
	seq     uint64                 // guarded by mu; of the last log line
	changed chan struct{}          // guarded by mu; closed by the next change
	asked   []wire.Shutdown        // guarded by mu
	wakes   []wire.Wake            // guarded by mu
	ended   bool                   // guarded by mu
	stuck   func(path string) bool // guarded by mu; the agent takes such calls and answers none; nil for all answered
}

// hang makes the agent take calls and answer none of those that which selects.
func (g *fakeGuest) hang(which func(path string) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stuck = which
}

// boot is what every machine of the world runs.
func (w *world) boot(m *hvtest.Machine) hvtest.Guest {
	spec := m.Spec()
	i := slices.IndexFunc(spec.Disks, func(d hv.Disk) bool { return d.Serial == wire.ConfigSerial })
	if i < 0 {
		return hvtest.Guest{} // an application without an agent
	}
	f, err := os.Open(spec.Disks[i].Path)
	if err != nil {
		w.t.Errorf("boot disk: %v", err)
		return hvtest.Guest{}
	}
	defer f.Close()
	cfg, err := wire.DecodeBoot(f)
	if err != nil {
		w.t.Errorf("boot disk: %v", err)
		return hvtest.Guest{}
	}
	g := &fakeGuest{m: m, cfg: cfg, changed: make(chan struct{}), over: make(chan struct{}), status: wire.Status{
		Seq: 1, Workload: wire.WorkloadStarting, Timeline: g0(),
	}}
	w.mu.Lock()
	w.guests[spec.ID] = append(w.guests[spec.ID], g)
	w.mu.Unlock()

	args := cfg.Workload.Args
	switch args[0] {
	case "/silent":
		go m.Print("early words\r\nlast words\x1b[31m\r\n")
		return hvtest.Guest{PowerButton: func() {}}
	case "/panic":
		go func() {
			m.Print("Kernel panic - not syncing\n")
			m.Panic()
		}()
		return hvtest.Guest{}
	}
	go g.run(args)
	return hvtest.Guest{Agent: g.handler(), PowerButton: func() { g.shutdown(wire.Shutdown{}) }}
}

func g0() []wire.Step {
	return []wire.Step{{Name: "kernel", Took: 100 * time.Millisecond}, {Name: "mounts", Start: 100 * time.Millisecond, Took: time.Millisecond}}
}

func (g *fakeGuest) run(args []string) {
	yes, no := true, false
	switch args[0] {
	case "/nostart":
		g.set(func(s *wire.Status) {
			s.Workload, s.Error = wire.WorkloadFailed, "exec /nostart: no such file or directory"
		})
		g.end()
		return
	case "/lost":
		g.set(func(s *wire.Status) { s.Workload, s.Error = wire.WorkloadFailed, "config: no such disk" })
		g.end()
		return
	case "/sick":
		g.set(func(s *wire.Status) {
			s.Workload, s.PID, s.Healthy = wire.WorkloadRunning, 7, &no
			s.Failure = &wire.ProbeFailure{Streak: 3, Output: "status 503"}
		})
		return
	}
	g.set(func(s *wire.Status) { s.Workload, s.PID = wire.WorkloadRunning, 7 })
	if args[0] == "/crash" {
		time.Sleep(5 * time.Millisecond)
		g.m.Panic()
		return
	}
	g.print(wire.Stdout, "hello from "+g.cfg.Hostname)
	if args[0] == "/exit" {
		code, _ := strconv.Atoi(args[1])
		g.print(wire.Stderr, "bye")
		g.set(func(s *wire.Status) {
			s.Workload, s.PID = wire.WorkloadExited, 0
			s.Exit = &wire.WorkloadExit{Code: code, Time: time.Now()}
		})
		g.end()
		return
	}
	g.set(func(s *wire.Status) {
		s.Healthy = &yes
		s.Timeline = append(g0(), wire.Step{Name: "ready", Start: 102 * time.Millisecond, Took: time.Millisecond})
	})
}

// end powers off when the host has asked for the end, or had time to ask for the
// last status.
func (g *fakeGuest) end() {
	select {
	case <-g.over:
	case <-time.After(time.Second):
		g.m.PowerOff()
	}
}

// drained returns when the log streams have ended, or a guest waits no longer for
// those who do not read.
func (g *fakeGuest) drained() {
	for deadline := time.Now().Add(2 * time.Second); g.streams.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
}

func (g *fakeGuest) set(change func(*wire.Status)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.status)
	g.status.Seq++
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *fakeGuest) print(stream wire.LogStream, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	g.logs = append(g.logs, wire.LogEntry{Seq: g.seq, Time: time.Now(), Stream: stream, Data: text})
	close(g.changed)
	g.changed = make(chan struct{})
}

// drop loses the n oldest lines, as a buffer that runs over.
func (g *fakeGuest) drop(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.logs = g.logs[n:]
}

func (g *fakeGuest) get() (wire.Status, []wire.LogEntry, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.status, g.logs, g.changed
}

// shutdown is what the agent does when it is told to.
func (g *fakeGuest) shutdown(how wire.Shutdown) {
	g.mu.Lock()
	g.asked = append(g.asked, how)
	first := !g.ended
	g.ended = true
	workload := g.status.Workload
	g.mu.Unlock()
	if g.cfg.Workload.Args[0] == "/stubborn" || !first {
		return
	}
	if workload == wire.WorkloadRunning {
		g.print(wire.Stdout, "stopping")
		g.set(func(s *wire.Status) {
			s.Workload, s.PID, s.Stopping, s.Healthy = wire.WorkloadExited, 0, true, nil
			s.Exit = &wire.WorkloadExit{Code: 143, Signal: "SIGTERM", Time: time.Now()}
		})
	}
	close(g.over)
	go func() {
		g.drained()
		g.m.PowerOff()
	}()
}

func (g *fakeGuest) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathHello, func(w http.ResponseWriter, r *http.Request) {
		s, _, _ := g.get()
		h := wire.Hello{Epoch: s.Epoch, Protocol: wire.Protocol, Version: "test", VM: g.cfg.VM, Incarnation: g.cfg.Incarnation, Timeline: s.Timeline}
		switch g.cfg.Workload.Args[0] {
		case "/stranger":
			h.VM = "another"
		case "/lost":
			h.VM, h.Incarnation = "", 0
		}
		json.NewEncoder(w).Encode(h)
	})
	mux.HandleFunc("GET "+wire.PathStatus, func(w http.ResponseWriter, r *http.Request) {
		after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64)
		wait, err := time.ParseDuration(r.FormValue("wait"))
		if err != nil {
			http.Error(w, `{"message":"wait: malformed"}`, http.StatusBadRequest)
			return
		}
		deadline := time.After(wait)
		for {
			s, _, changed := g.get()
			if s.Seq > after {
				json.NewEncoder(w).Encode(s)
				return
			}
			select {
			case <-changed:
			case <-deadline:
				json.NewEncoder(w).Encode(s)
				return
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("GET "+wire.PathLogs, func(w http.ResponseWriter, r *http.Request) {
		g.streams.Add(1)
		defer g.streams.Add(-1)
		after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64)
		enc := json.NewEncoder(w)
		for {
			over := false
			select {
			case <-g.over: // the lines that came before are the last
				over = true
			default:
			}
			_, logs, changed := g.get()
			for _, e := range logs {
				if e.Seq > after {
					enc.Encode(e)
					after = e.Seq
				}
			}
			w.(http.Flusher).Flush()
			if over {
				return
			}
			select {
			case <-changed:
			case <-g.over:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST "+wire.PathWake, func(w http.ResponseWriter, r *http.Request) {
		var wake wire.Wake
		if err := json.NewDecoder(r.Body).Decode(&wake); err != nil {
			http.Error(w, `{"message":"malformed"}`, http.StatusBadRequest)
			return
		}
		g.mu.Lock()
		g.wakes = append(g.wakes, wake)
		g.mu.Unlock()
		json.NewEncoder(w).Encode(wire.Woken{Epoch: wake.Epoch, Time: wake.Time})
	})
	mux.HandleFunc("GET "+wire.PathMemory, func(w http.ResponseWriter, r *http.Request) {
		if g.cfg.Workload.Args[0] == "/sick" { // it does not answer
			<-r.Context().Done()
			return
		}
		json.NewEncoder(w).Encode(wire.Memory{Total: 60 << 20, Available: 40 << 20, Agent: 9 << 20, Kernel: 5 << 20, Workload: 4 << 20})
	})
	mux.HandleFunc("POST "+wire.PathShutdown, func(w http.ResponseWriter, r *http.Request) {
		var how wire.Shutdown
		if err := json.NewDecoder(r.Body).Decode(&how); err != nil {
			http.Error(w, `{"message":"malformed"}`, http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		g.shutdown(how)
	})
	g.handleSessions(mux)
	handleFiles(mux)
	mux.HandleFunc(wire.PathWorkload+"/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, strings.TrimPrefix(r.URL.Path, wire.PathWorkload))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		stuck := g.stuck
		g.mu.Unlock()
		if stuck != nil && stuck(r.URL.Path) {
			select {
			case <-r.Context().Done():
			case <-g.over:
			}
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// guest returns the guest of the VM's newest incarnation.
func (w *world) guest(id string) *fakeGuest {
	w.mu.Lock()
	defer w.mu.Unlock()
	gs := w.guests[id]
	if len(gs) == 0 {
		return nil
	}
	return gs[len(gs)-1]
}

// put uploads content and returns its digest.
func (in *instance) put(content []byte) string {
	in.w.t.Helper()
	sum := sha256.Sum256(content)
	digest := digestOf(sum[:])
	if _, err := in.PutBlob(context.Background(), digest, bytes.NewReader(content)); err != nil {
		in.w.t.Fatalf("PutBlob: %v", err)
	}
	return digest
}

func archive(t testing.TB, name string) []byte {
	t.Helper()
	var a initramfs.Archive
	if err := a.Add(initramfs.Entry{Name: name, Mode: 0o755, Data: []byte("content of " + name)}); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := a.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func kernelImage(text string) []byte {
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	head[18] = 62
	return append(head, text...)
}

// equip imports a kernel and installs the plugins that tests use, each named
// after what its workload does.
func (in *instance) equip(extra ...api.Manifest) {
	in.w.t.Helper()
	ctx := context.Background()
	if _, err := in.ImportKernel(ctx, api.KernelImport{
		Name: "generic", Version: "6.12", Digest: in.put(kernelImage("generic\x00virtio_mem\x00CPU%d has been hot-added")),
	}); err != nil {
		in.w.t.Fatalf("ImportKernel: %v", err)
	}
	for _, m := range append(extra, in.manifest("serve")) {
		if _, err := in.InstallPlugin(ctx, m); err != nil {
			in.w.t.Fatalf("InstallPlugin %s: %v", m.Name, err)
		}
	}
}

// manifest returns one whose workload is /NAME ARGS.
func (in *instance) manifest(name string, args ...string) api.Manifest {
	in.w.t.Helper()
	return api.Manifest{
		SchemaVersion: "1", Name: name, Version: "1",
		Initramfs: &api.Initramfs{URL: "file:///" + name + ".cpio", Checksum: in.put(archive(in.w.t, name))},
		Resources: api.Resources{CPUCores: 1, MemoryMB: 64},
		Workload: &api.Workload{
			Type: api.WorkloadHTTP, Entrypoint: append([]string{"/" + name}, args...), BaseURL: "http://127.0.0.1:8080",
			Env: map[string]string{"A": "manifest", "B": "manifest"}, StopTimeout: 200,
		},
	}
}

func (in *instance) create(name, plugin string) api.VM {
	in.w.t.Helper()
	vm, err := in.CreateVM(context.Background(), api.VMCreate{Name: name, Plugin: plugin})
	if err != nil {
		in.w.t.Fatalf("CreateVM %s: %v", name, err)
	}
	return vm
}

// wait waits for the VM; an error is returned, but a timeout ends the test.
func (in *instance) wait(name string, what api.VMWait) (api.VM, error) {
	in.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	vm, err := in.WaitVM(ctx, name, what)
	if api.CodeOf(err) == api.CodeTimeout {
		in.w.t.Fatalf("WaitVM(%s, %s): %v", name, what, err)
	}
	return vm, err
}

func (in *instance) must(name string, what api.VMWait) api.VM {
	in.w.t.Helper()
	vm, err := in.wait(name, what)
	if err != nil {
		in.w.t.Fatalf("WaitVM(%s, %s): %v", name, what, err)
	}
	return vm
}

// settle waits until the world is quiet and returns the VMs.
func (in *instance) settle() []row.VM {
	in.w.t.Helper()
	return in.settleWithin(patience)
}

func (in *instance) settleWithin(limit time.Duration) []row.VM {
	in.w.t.Helper()
	select {
	case <-in.Ready():
	case <-time.After(limit):
		in.w.t.Fatal("the daemon does not become ready")
	}
	deadline := time.Now().Add(limit)
	for {
		vms, quiet := in.quiet()
		if quiet {
			in.checkJournal(vms)
			return vms
		}
		if time.Now().After(deadline) {
			in.w.t.Fatalf("not settled: %+v", vms[:min(len(vms), 5)])
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// checkJournal compares the state of each VM with the one that its last event
// tells of: no state changes without an event.
func (in *instance) checkJournal(vms []row.VM) {
	in.w.t.Helper()
	told := make(map[string]api.Event)
	whole := false // nothing of the journal was dropped yet
	err := in.Daemon.Events(context.Background(), api.EventFilter{}, false, func(ev api.Event) error {
		whole = whole || ev.Seq == 1
		if ev.VMID != "" {
			told[ev.VMID] = ev
		}
		return nil
	})
	if err != nil {
		in.w.t.Fatal(err)
	}
	for _, vm := range vms {
		if ev, ok := told[vm.ID]; (ok || whole) && ev.Status != vm.Status {
			in.w.t.Errorf("VM %s is %s, but its last event is %+v", vm.Name, vm.Status, ev)
		}
	}
}

// quiet reports whether no VM is on its way to anything: every one runs as
// wished or has ended as wished, and no worker has leftovers to remove.
func (in *instance) quiet() ([]row.VM, bool) {
	vms, _, err := in.db.VMs(context.Background(), api.VMFilter{})
	if err != nil {
		in.w.t.Fatal(err)
	}
	for _, vm := range vms {
		up := vm.Desired == api.DesiredRunning && vm.Status == api.VMRunning && !vm.Replaced() && !vm.WantPaused && !oversized(&vm) && vm.AgentUp && (vm.Healthy || !vm.HealthCheck)
		still := vm.Status == api.VMPaused && isPaused(&vm)
		if !vm.Settled() && !up && !still {
			return vms, false
		}
		if w := in.worker(vm.ID); (up || still) && (in.w.hv.Machine(vm.ID) == nil || w == nil || w.agent.Load() == nil) {
			return vms, false // the row does not know it yet
		}
	}
	select {
	case <-in.prepared:
	default:
		return vms, !in.running && in.workersAre(vms)
	}
	return vms, in.workersAre(vms)
}

// workersAre reports whether just the running VMs have a worker.
func (in *instance) workersAre(vms []row.VM) bool {
	running := 0
	for _, vm := range vms {
		if !vm.Settled() {
			running++
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.workers) == running
}

// checkWorld compares everything that is in the world with what vms say should
// be, and reports what leaked or is missing.
func (w *world) checkWorld(vms []row.VM) {
	w.t.Helper()
	var taps, rules, ports, machines, runs, data []string
	for _, vm := range vms {
		data = append(data, vm.ID)
		if vm.Status != api.VMRunning && vm.Status != api.VMPaused {
			continue
		}
		if !vm.Vsock {
			taps = append(taps, "vlt"+vm.ID)
			rules = append(rules, "vlt"+vm.ID+"="+vm.IPAddress)
			for _, p := range vm.Ports {
				if p.HostPort != 0 {
					rules = append(rules, fmt.Sprintf("vlt%s:%d", vm.ID, p.HostPort))
					ports = append(ports, fmt.Sprintf("%d=%s", p.HostPort, vm.ID))
				}
			}
		}
		machines = append(machines, fmt.Sprintf("%s/%d", vm.ID, vm.Incarnation))
		runs = append(runs, fmt.Sprintf("%s/%d", vm.ID, vm.Incarnation))
	}
	gotTaps, gotRules := w.net.state()
	var gotMachines []string
	for _, m := range w.hv.Running() {
		gotMachines = append(gotMachines, m.Spec().ID+"/"+filepath.Base(m.Spec().Dir))
	}
	w.same("taps", gotTaps, taps)
	w.same("rules", gotRules, rules)
	w.same("reserved ports", w.net.reserved(), ports)
	w.same("machines", gotMachines, machines)
	var groups []string
	for _, vm := range vms {
		if vm.Status == api.VMRunning || vm.Status == api.VMPaused {
			groups = append(groups, fmt.Sprintf("%s %+v", vm.ID, limitsOf(vm.CPUCores, vm.MemoryMB)))
		}
	}
	w.same("cgroups", w.cgs.state(), groups)
	w.same("run directories", subdirs(w.t, filepath.Join(w.root, "run", "vms"), 2), runs)
	for _, id := range subdirs(w.t, filepath.Join(w.root, "data", "vms"), 1) {
		if !slices.Contains(data, id) {
			w.t.Errorf("data directory of VM %s, which is no more", id)
		}
	}
	for _, dir := range []string{"data/blobs/tmp", "data/cache", "data/volumes"} {
		if temps, _ := filepath.Glob(filepath.Join(w.root, dir, tempPrefix+"*")); len(temps) > 0 {
			w.t.Errorf("temporary files left: %v", temps)
		}
	}
}

func (w *world) same(what string, got, want []string) {
	w.t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("%s are %v, want %v", what, got, want)
	}
}

// subdirs lists the directories depth levels below root, relative to it; those
// that end earlier are listed too, since they should not be there.
func subdirs(t testing.TB, root string, depth int) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." || !e.IsDir() {
			return err
		}
		if entries, err := os.ReadDir(path); strings.Count(rel, "/") == depth-1 || err == nil && len(entries) == 0 {
			out = append(out, rel)
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}
