package hvtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// Machine is one machine on the host of a Fake, seen from inside: its methods
// are what the guest, or misfortune, does. They are safe for concurrent use
// and have no effect once the machine is gone.
type Machine struct {
	host    *Fake
	memory  []byte // what a snapshot kept; nil on a boot
	rec     hv.Record
	started time.Time
	over    chan struct{} // closed when the VMM is gone
	up      chan struct{} // closed when the agent answers

	mu     sync.Mutex
	spec   hv.Spec      // guarded by mu; as it is now
	state  hv.State     // guarded by mu
	guest  Guest        // guarded by mu
	server *http.Server // guarded by mu; the agent's, nil without one
	conns  *connQueue   // guarded by mu; what server accepts from
	exit   hv.Exit      // guarded by mu; set with StateShutdown, StatePanicked and StateExited
	vm     *fakeVM      // guarded by mu; who is attached
	button int          // guarded by mu; how often it was pressed

	booting *time.Timer   // guarded by mu; closes up, nil without a boot time
	resumed chan struct{} // guarded by mu; not nil while paused, closed by Resume
}

// Spec returns what the machine was launched with, and has been changed to
// since.
func (m *Machine) Spec() hv.Spec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spec
}

// Memory returns what Guest.Save returned of the guest that this one goes on
// as, or nil for one that was booted.
func (m *Machine) Memory() []byte { return m.memory }

// Size is what the guest finds: all that the machine has.
func (m *Machine) Size() (vcpus, memoryMiB int) {
	spec := m.Spec()
	return spec.VCPUs, spec.MemoryMiB
}

// NICs lists the MAC addresses of the machine's NICs.
func (m *Machine) NICs() []string {
	var list []string
	for _, n := range m.Spec().NICs {
		list = append(list, n.MAC.String())
	}
	return list
}

// Record returns the machine's record.
func (m *Machine) Record() hv.Record { return m.rec }

// State returns the machine's state.
func (m *Machine) State() hv.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Buttons returns how often the power button was pressed.
func (m *Machine) Buttons() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.button
}

// PowerOff is the guest powering itself off. As with a VMM that keeps its
// process until it is asked to quit, an unattended machine stays until the
// next Attach.
func (m *Machine) PowerOff() {
	m.guestEnds(hv.StateShutdown, hv.EventGuestShutdown, hv.Exit{Reason: hv.ExitShutdown, Detail: "guest powered off"})
}

// Reset is the guest resetting itself.
func (m *Machine) Reset() {
	m.guestEnds(hv.StateShutdown, hv.EventGuestReset, hv.Exit{Reason: hv.ExitReset, Detail: "guest reset"})
}

// Panic is the guest's kernel panicking.
func (m *Machine) Panic() {
	m.guestEnds(hv.StatePanicked, hv.EventGuestPanic, hv.Exit{Reason: hv.ExitPanic, Detail: "guest panicked"})
}

// Crash is the VMM's process dying, as by SIGKILL from outside.
func (m *Machine) Crash() {
	m.end(hv.Exit{Reason: hv.ExitCrashed, Detail: "signal: killed"})
}

// Stall is the VMM stopping the guest without being told to, as QEMU does when a
// disk of the host is full. Resume lets it go on.
func (m *Machine) Stall() {
	m.mu.Lock()
	stalled := m.state == hv.StateRunning
	if stalled {
		m.state, m.resumed = hv.StatePaused, make(chan struct{})
	}
	vm := m.vm
	m.mu.Unlock()
	if stalled && vm != nil {
		vm.emit(hv.EventPaused)
	}
}

// Print writes to the guest's console. Without a daemon attached the text is
// lost.
func (m *Machine) Print(text string) {
	if vm := m.client(); vm != nil {
		vm.console.Write([]byte(text)) // a full disk loses console output, nothing else
	}
}

// Say is the VMM saying something itself.
func (m *Machine) Say(text string) error {
	f, err := os.OpenFile(filepath.Join(m.rec.Dir, vmm.LogFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// OpenDisk opens the file of the disk with that serial, for reading and
// writing unless the disk is read-only. The caller closes it.
func (m *Machine) OpenDisk(serial string) (*os.File, error) {
	for _, d := range m.Spec().Disks {
		switch {
		case d.Serial != serial:
		case d.ReadOnly:
			return os.Open(d.Path)
		default:
			return os.OpenFile(d.Path, os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no disk %q", serial)
}

// OpenShare finds none: the virtiofsd of a scripted machine serves nobody.
func (m *Machine) OpenShare(tag string) (*os.Root, error) { return nil, fmt.Errorf("no share %q", tag) }

func (m *Machine) gone() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

func (m *Machine) ended() hv.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *Machine) client() *fakeVM {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vm
}

// boot starts the guest.
func (m *Machine) boot(g Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guest = g
	if g.Agent == nil || m.state == hv.StateExited {
		return
	}
	m.conns = &connQueue{queue: make(chan net.Conn), over: m.over}
	m.server = &http.Server{Handler: g.Agent, ReadHeaderTimeout: time.Minute}
	go m.server.Serve(m.conns) // returns when end closes the server
	if g.Boot == 0 {
		close(m.up)
		return
	}
	m.booting = time.AfterFunc(g.Boot, func() { close(m.up) })
}

// guestEnds stops the guest. The VMM follows at once when somebody is
// attached, else at the next Attach.
func (m *Machine) guestEnds(state hv.State, event hv.EventType, exit hv.Exit) {
	m.mu.Lock()
	if m.state != hv.StateRunning {
		m.mu.Unlock()
		return
	}
	m.state, m.exit = state, exit
	vm := m.vm
	m.mu.Unlock()
	if vm != nil {
		vm.emit(event)
		m.end(exit)
	}
}

// end removes the VMM. Only the first call counts; the guest's own end, if it
// came before, stays the reason unless the machine was killed for it.
func (m *Machine) end(exit hv.Exit) {
	m.mu.Lock()
	if m.state == hv.StateExited {
		m.mu.Unlock()
		return
	}
	if m.state == hv.StateRunning || m.state == hv.StatePaused {
		m.exit = exit
	}
	m.state = hv.StateExited
	if m.booting != nil {
		m.booting.Stop()
	}
	exit, vm, server := m.exit, m.vm, m.server
	m.mu.Unlock()
	if _, err := os.Stat(m.rec.Dir); err == nil && vm != nil {
		vmm.WriteExit(m.rec.Dir, exit) // a hint for later; the table knows it too
	}
	close(m.over)
	if server != nil {
		server.Close()
	}
	if vm != nil {
		vm.finish(true)
	}
}

// attach makes the client's side of m and lets it see what m has come to. It
// returns nil when there is a client already.
func attach(m *Machine, console *vmm.Console) *fakeVM {
	vm := &fakeVM{m: m, console: console, events: make(chan hv.Event, 16), done: make(chan struct{}), conns: make(map[*stream]bool)}
	m.mu.Lock()
	if m.vm != nil {
		m.mu.Unlock()
		return nil
	}
	m.vm = vm
	state, exit := m.state, m.exit
	m.mu.Unlock()
	if state == hv.StateShutdown || state == hv.StatePanicked {
		m.end(exit)
	}
	return vm
}

// errDetached is what a VM value says after Detach.
var errDetached = errors.New("detached")

// fakeVM is one daemon's hold on a Machine.
type fakeVM struct {
	m       *Machine
	console *vmm.Console
	done    chan struct{} // closed by finish

	changing sync.Mutex // held while the machine's Spec is changed; taken before all others

	mu       sync.Mutex
	events   chan hv.Event    // guarded by mu for sending; closed by finish
	finished bool             // guarded by mu
	conns    map[*stream]bool // guarded by mu; open streams
}

// Record implements hv.VM.
func (v *fakeVM) Record() hv.Record { return v.m.rec }

// enter is the beginning of every call.
func (v *fakeVM) enter(ctx context.Context, op Op) error {
	if err := v.m.host.enter(ctx, op, v.m.rec.ID); err != nil {
		return fmt.Errorf("fake: %s %s: %w", op, v.m.rec.ID, err)
	}
	select {
	case <-v.done:
		if !v.m.gone() {
			return fmt.Errorf("fake: %s %s: %w", op, v.m.rec.ID, errDetached)
		}
	default:
	}
	return nil
}

// State implements hv.VM.
func (v *fakeVM) State(ctx context.Context) (hv.State, error) {
	if err := v.enter(ctx, OpState); err != nil {
		return "", err
	}
	return v.m.State(), nil
}

// Pause implements hv.VM.
func (v *fakeVM) Pause(ctx context.Context) error {
	return v.move(ctx, OpPause, hv.StateRunning, hv.StatePaused, hv.EventPaused)
}

// Resume implements hv.VM.
func (v *fakeVM) Resume(ctx context.Context) error {
	if err := v.move(ctx, OpResume, hv.StatePaused, hv.StateRunning, hv.EventResumed); err != nil {
		return err
	}
	return v.enter(ctx, OpResumed)
}

func (v *fakeVM) move(ctx context.Context, op Op, from, to hv.State, event hv.EventType) error {
	if err := v.enter(ctx, op); err != nil {
		return err
	}
	v.m.mu.Lock()
	state := v.m.state
	if state == from {
		v.m.state = to
		if to == hv.StatePaused {
			v.m.resumed = make(chan struct{})
		} else {
			close(v.m.resumed)
			v.m.resumed = nil
		}
	}
	v.m.mu.Unlock()
	switch state {
	case from:
		v.emit(event)
		return nil
	case to:
		return nil
	case hv.StateExited:
		return fmt.Errorf("fake: %s %s: %w", op, v.m.rec.ID, hv.ErrGone)
	}
	return fmt.Errorf("fake: %s %s: machine is in state %s", op, v.m.rec.ID, state)
}

// PowerButton implements hv.VM.
func (v *fakeVM) PowerButton(ctx context.Context) error {
	if err := v.enter(ctx, OpPowerButton); err != nil {
		return err
	}
	v.m.mu.Lock()
	v.m.button++
	state, press := v.m.state, v.m.guest.PowerButton
	v.m.mu.Unlock()
	if state == hv.StateExited {
		return fmt.Errorf("fake: %s %s: %w", OpPowerButton, v.m.rec.ID, hv.ErrGone)
	}
	if press == nil {
		press = v.m.PowerOff
	}
	go press()
	return nil
}

// Kill implements hv.VM.
func (v *fakeVM) Kill(ctx context.Context) error {
	if err := v.enter(ctx, OpKill); err != nil {
		return err
	}
	v.m.end(hv.Exit{Reason: hv.ExitKilled, Detail: "killed"})
	<-v.done
	return nil
}

// Agent implements hv.VM.
func (v *fakeVM) Agent() hv.Transport { return fakeTransport{v} }

// Events implements hv.VM.
func (v *fakeVM) Events() <-chan hv.Event { return v.events }

// Wait implements hv.VM.
func (v *fakeVM) Wait(ctx context.Context) (hv.Exit, error) {
	select {
	case <-v.done:
		if v.m.gone() {
			return v.m.ended(), nil
		}
		return hv.Exit{}, fmt.Errorf("fake: wait %s: %w", v.m.rec.ID, errDetached)
	case <-ctx.Done():
		return hv.Exit{}, fmt.Errorf("fake: wait %s: %w", v.m.rec.ID, ctx.Err())
	}
}

// Detach implements hv.VM.
func (v *fakeVM) Detach() error {
	v.finish(false)
	return nil
}

func (v *fakeVM) emit(t hv.EventType) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.send(t)
}

// send drops the event when nobody reads; v.mu is held.
func (v *fakeVM) send(t hv.EventType) {
	if v.finished {
		return
	}
	select {
	case v.events <- hv.Event{Type: t, Time: time.Now()}:
	default:
	}
}

// finish lets go of the machine, because it ended or because of Detach.
func (v *fakeVM) finish(exited bool) {
	v.m.mu.Lock()
	if v.m.vm == v {
		v.m.vm = nil
	}
	v.m.mu.Unlock()
	v.mu.Lock()
	if v.finished {
		v.mu.Unlock()
		return
	}
	if exited {
		v.send(hv.EventExited)
	}
	v.finished = true
	close(v.events)
	v.mu.Unlock()
	v.closeStreams()
	v.console.Close() // nothing is buffered
	close(v.done)
}

func (v *fakeVM) closeStreams() {
	v.mu.Lock()
	conns := slices.Collect(maps.Keys(v.conns))
	v.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// stream is the near end of a pipe to the agent.
type stream struct {
	net.Conn
	v *fakeVM
}

func (s *stream) Close() error {
	s.v.mu.Lock()
	delete(s.v.conns, s)
	s.v.mu.Unlock()
	return s.Conn.Close()
}

// fakeTransport reaches the agent by pipes in this process.
type fakeTransport struct{ v *fakeVM }

// Dial implements hv.Transport.
func (t fakeTransport) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := t.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("fake: dial %s: %w", t.v.m.rec.ID, err)
	}
	return conn, nil
}

func (t fakeTransport) dial(ctx context.Context) (net.Conn, error) {
	m := t.v.m
	if err := m.host.enter(ctx, OpDial, m.rec.ID); err != nil {
		return nil, err
	}
	if err := t.await(ctx, m.up); err != nil {
		return nil, err
	}
	m.mu.Lock()
	resumed := m.resumed
	m.mu.Unlock()
	if resumed != nil {
		// A paused guest is a silent peer.
		if err := t.await(ctx, resumed); err != nil {
			return nil, err
		}
	}
	near, far := net.Pipe()
	select {
	case m.conns.queue <- far:
	case <-t.v.done:
		return nil, t.cut()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	if t.v.finished {
		near.Close()
		return nil, t.cut()
	}
	s := &stream{Conn: near, v: t.v}
	t.v.conns[s] = true
	return s, nil
}

func (t fakeTransport) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-t.v.done:
		return t.cut()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t fakeTransport) cut() error {
	if t.v.m.gone() {
		return hv.ErrGone
	}
	return errDetached
}

// Reset implements hv.Transport.
func (t fakeTransport) Reset() { t.v.closeStreams() }

// Close implements hv.Transport.
func (t fakeTransport) Close() error {
	t.Reset()
	return nil
}

// connQueue is a net.Listener for streams made in this process.
type connQueue struct {
	queue chan net.Conn
	over  <-chan struct{}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.queue:
		return c, nil
	case <-q.over:
		return nil, net.ErrClosed
	}
}

func (q *connQueue) Close() error   { return nil }
func (q *connQueue) Addr() net.Addr { return &net.UnixAddr{Name: "fake", Net: "unix"} }
