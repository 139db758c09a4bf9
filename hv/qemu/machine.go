package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/transport"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// quitTimeout is how long QEMU may take to answer quit, and then to end,
	// before it gets SIGKILL. It needs milliseconds; a stopped process or one
	// that waits for a dead disk takes for ever.
	quitTimeout = 3 * time.Second
	// drainTimeout bounds the reading of the last console output once the
	// process has ended; it is in the socket already.
	drainTimeout = 2 * time.Second
	// cutInterval is how often the logs' sizes are looked at. QEMU warns of some
	// things that a guest does, such as control messages for a port that is not
	// there, every time, at the guest's pace; and the logs may be in memory.
	cutInterval = 5 * time.Second
	// eventBacklog is how many events wait for a reader; more are dropped.
	eventBacklog = 16
)

var errDetached = errors.New("detached")

// machine is one running QEMU. It implements hv.VM.
type machine struct {
	rec     hv.Record
	proc    *vmm.Process
	monitor *monitor
	console *vmm.Console
	screen  net.Conn // the console's stream
	agent   hv.Transport
	drained chan struct{} // closed when screen has ended
	nudge   chan struct{} // has room for one: look at the machine's state
	moved   chan struct{} // has room for one: look at the migration
	stop    chan struct{} // closed by Detach
	over    chan struct{} // closed by supervise when it returns

	detach sync.Once
	saving sync.RWMutex // held through Snapshot, and for reading through Resume

	mu     sync.Mutex
	begun  bool          // guarded by mu; the first cont has been answered
	killed bool          // guarded by mu; Kill was called
	end    *hv.Exit      // guarded by mu; how the guest ended, nil while it runs
	exit   *hv.Exit      // guarded by mu; how the machine ended, nil while the process runs
	events chan hv.Event // guarded by mu for sending; nil once closed
	feed   <-chan hv.Event
}

var _ hv.VM = (*machine)(nil)

// take connects to a running process. On error the process is left alone, and
// proc is the caller's again.
func take(ctx context.Context, rec hv.Record, proc *vmm.Process) (*machine, error) {
	m := &machine{
		rec: rec, proc: proc,
		drained: make(chan struct{}), nudge: make(chan struct{}, 1), moved: make(chan struct{}, 1), stop: make(chan struct{}), over: make(chan struct{}),
		events: make(chan hv.Event, eventBacklog),
	}
	m.feed = m.events
	if err := m.connect(ctx); err != nil {
		return nil, err
	}
	switch rec.Channel {
	case hv.ChannelVsock:
		m.agent = transport.NewVsock(rec.CID)
	default:
		m.agent = transport.NewSerial(m.path(agentSocket))
	}
	go m.drain()
	go m.supervise()
	return m, nil
}

func (m *machine) path(name string) string { return filepath.Join(m.rec.Dir, name) }

// connect opens the monitor, sets the journal going and opens the console.
func (m *machine) connect(ctx context.Context) (err error) {
	m.monitor, err = retry(ctx, m.proc, func() (*monitor, error) {
		return openMonitor(ctx, m.path(qmpSocket), m.proc.PID(), m.onEvent)
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.monitor.close()
		}
	}()
	// A monitor reports events once its client has negotiated, and goes on
	// when the client is gone: from here on they are in the journal. When a
	// person holds the debugging monitor, the journal is going already.
	if debug, err := openMonitor(ctx, m.path(debugSocket), m.proc.PID(), nil); err == nil {
		debug.close()
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	m.console, err = vmm.OpenConsole(m.rec.ConsoleLog, m.rec.ConsoleLimit)
	if err != nil {
		return err
	}
	var d net.Dialer
	m.screen, err = d.DialContext(ctx, "unix", m.path(consoleSocket))
	if err == nil {
		if err = checkPeer(m.screen, m.proc.PID()); err != nil {
			m.screen.Close()
		}
	}
	if err != nil {
		return errors.Join(err, m.console.Close())
	}
	return nil
}

// retry calls open until the socket is there, the process has ended or ctx is
// over.
func retry[T any](ctx context.Context, proc *vmm.Process, open func() (T, error)) (T, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		v, err := open()
		if err == nil || !vmm.NotListening(err) {
			return v, err
		}
		select {
		case <-proc.Done():
			return v, fmt.Errorf("it ended at once: %s", proc.Status())
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// drain keeps the guest's console output until the process or Detach closes
// the stream. Output that cannot be kept (a full disk) is dropped: a guest must
// not stand still for it.
func (m *machine) drain() {
	defer close(m.drained)
	b := make([]byte, 32<<10)
	for {
		n, err := m.screen.Read(b)
		if n > 0 {
			m.console.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}

// onEvent is called by the monitor's reader.
func (m *machine) onEvent(event string, data json.RawMessage) {
	if exit, ended := exitOf(event, data); ended {
		m.guestEnded(exit)
	}
	switch event {
	case "STOP":
		m.mu.Lock()
		running := m.end == nil
		m.mu.Unlock()
		if running {
			m.emit(hv.EventPaused)
		}
		m.look()
	case "MIGRATION":
		m.onMigration()
	case "RESUME":
		m.mu.Lock()
		begun := m.begun
		m.mu.Unlock()
		if begun {
			m.emit(hv.EventResumed)
		}
	}
}

// guestEnded remembers how the guest ended; the first report counts.
func (m *machine) guestEnded(exit hv.Exit) {
	m.mu.Lock()
	first := m.end == nil
	if first {
		m.end = &exit
	}
	m.mu.Unlock()
	if !first {
		return
	}
	switch exit.Reason {
	case hv.ExitShutdown:
		m.emit(hv.EventGuestShutdown)
	case hv.ExitReset:
		m.emit(hv.EventGuestReset)
	case hv.ExitPanic:
		m.emit(hv.EventGuestPanic)
	}
	m.look()
}

// look has supervise ask QEMU how things stand.
func (m *machine) look() {
	select {
	case m.nudge <- struct{}{}:
	default:
	}
}

// supervise sees the machine to its end, or to Detach.
func (m *machine) supervise() {
	defer close(m.over)
	tick := time.NewTicker(cutInterval)
	defer tick.Stop()
	for {
		select {
		case <-m.proc.Done():
			m.finish()
			return
		case <-m.stop:
			m.release()
			return
		case <-m.nudge:
			m.settle()
		case <-tick.C:
			cutLogs(m.rec.Dir)
		}
	}
}

// settle ends the process when the guest has ended.
func (m *machine) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	status, err := m.status(ctx)
	if err != nil {
		return // the process is about to end, or State will tell
	}
	switch status {
	case "shutdown", "guest-panicked":
		if exit, ok := readJournal(m.rec.Dir); ok {
			m.guestEnded(exit)
		}
		exit := hv.Exit{Reason: hv.ExitShutdown, Detail: "the guest ended while nobody was attached"}
		if status == "guest-panicked" {
			exit = hv.Exit{Reason: hv.ExitPanic, Detail: "the guest's kernel panicked"}
		}
		m.guestEnded(exit)
	case "internal-error":
		m.guestEnded(hv.Exit{Reason: hv.ExitCrashed, Detail: "QEMU stopped the guest after an internal error"})
	default:
		return
	}
	m.quit(ctx)
}

// quit ends the process, by its monitor if it listens, else by SIGKILL.
func (m *machine) quit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	if err := m.monitor.run(ctx, "quit", nil, nil); err == nil || ctx.Err() == nil {
		select {
		case <-m.proc.Done():
			return
		case <-ctx.Done():
		}
	}
	m.proc.Kill() // fails only when the process has ended
}

// finish records the end of the process and tells everybody.
func (m *machine) finish() {
	select {
	case <-m.drained:
	case <-time.After(drainTimeout):
	}
	m.mu.Lock()
	exit := m.verdict()
	m.exit = &exit
	m.mu.Unlock()
	// For a daemon that comes later; the directory may be gone already.
	_ = vmm.WriteExit(m.rec.Dir, exit)
	for _, name := range []string{qmpSocket, debugSocket, consoleSocket, agentSocket} {
		os.Remove(m.path(name)) // QEMU has, unless it was killed
	}
	m.emit(hv.EventExited)
	m.release()
}

// verdict says why the machine ended; m.mu is held.
func (m *machine) verdict() hv.Exit {
	status := m.proc.Status()
	if m.end != nil && m.end.Reason != hv.ExitKilled && m.end.Reason != hv.ExitCrashed {
		return *m.end
	}
	if m.killed {
		return hv.Exit{Reason: hv.ExitKilled, Detail: "killed on request"}
	}
	if m.end != nil {
		return *m.end
	}
	if exit, ok := readJournal(m.rec.Dir); ok {
		return exit
	}
	detail := "QEMU ended: " + status
	if status == "" {
		detail = "QEMU ended; its exit status is unknown, for it was no child of this process"
	}
	if last := vmm.LastLine(vmm.Tail(m.path(logFile), 1024)); last != "" {
		detail += fmt.Sprintf(": %.200q", last)
	}
	return hv.Exit{Reason: hv.ExitCrashed, Detail: detail}
}

// release lets go of sockets, files and the pidfd, and closes the events.
func (m *machine) release() {
	m.monitor.close()
	m.screen.Close() // only read from
	<-m.drained
	m.console.Close() // nothing is buffered
	m.agent.Close()   // returns nil always
	m.proc.Close()
	m.mu.Lock()
	close(m.events)
	m.events = nil
	m.mu.Unlock()
}

// emit drops the event when nobody reads.
func (m *machine) emit(t hv.EventType) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case m.events <- hv.Event{Type: t, Time: time.Now()}: // never, once it is nil
	default:
	}
}

// status asks QEMU for its run state. The answer has other fields, which
// differ between versions.
func (m *machine) status(ctx context.Context) (string, error) {
	var out struct {
		Status string `json:"status"`
	}
	err := m.monitor.run(ctx, "query-status", nil, &out)
	return out.Status, err
}

// exited says whether the process has ended. The monitor closes a moment before
// it has, so a closed monitor is worth waiting for.
func (m *machine) exited(ctx context.Context) bool {
	select {
	case <-m.proc.Done():
		return true
	case <-m.monitor.done:
	default:
		return false
	}
	select {
	case <-m.proc.Done():
		return true
	case <-m.stop:
	case <-ctx.Done():
	case <-time.After(quitTimeout):
	}
	return false
}

// wrap names the machine in an error, and says what a dead monitor means.
func (m *machine) wrap(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if m.exited(ctx) {
		err = hv.ErrGone
	} else {
		select {
		case <-m.stop:
			err = errDetached
		default:
		}
	}
	return fmt.Errorf("qemu: %s %s: %w", op, m.rec.ID, err)
}

// Record implements hv.VM.
func (m *machine) Record() hv.Record { return m.rec }

// State implements hv.VM.
func (m *machine) State(ctx context.Context) (hv.State, error) {
	status, err := m.status(ctx)
	if err != nil {
		if m.exited(ctx) {
			return hv.StateExited, nil
		}
		return "", m.wrap(ctx, "state of", err)
	}
	return stateOf(status), nil
}

// stateOf says what a run state of QEMU means.
func stateOf(status string) hv.State {
	switch status {
	case "running":
		return hv.StateRunning
	case "shutdown":
		return hv.StateShutdown
	case "guest-panicked", "internal-error":
		return hv.StatePanicked
	}
	return hv.StatePaused // paused, prelaunch, postmigrate, io-error and the like: nothing runs, cont would go on
}

// Pause implements hv.VM.
func (m *machine) Pause(ctx context.Context) error {
	return m.move(ctx, "pause", "stop", hv.StateRunning, hv.StatePaused)
}

// Resume implements hv.VM.
func (m *machine) Resume(ctx context.Context) error {
	if !m.saving.TryRLock() {
		return m.wrap(ctx, "resume", errors.New("a snapshot is being taken"))
	}
	defer m.saving.RUnlock()
	err := m.move(ctx, "resume", "cont", hv.StatePaused, hv.StateRunning)
	if err != nil && strings.Contains(err.Error(), "Failed to get ") {
		err = fmt.Errorf("%w: another machine has it: %w", hv.ErrDiskInUse, err)
	}
	if err == nil {
		m.ran()
	}
	return err
}

func (m *machine) move(ctx context.Context, op, command string, from, to hv.State) error {
	state, err := m.State(ctx)
	if err != nil {
		return err
	}
	switch state {
	case to:
		return nil
	case from:
		return m.wrap(ctx, op, m.monitor.run(ctx, command, nil, nil))
	case hv.StateExited:
		return m.wrap(ctx, op, hv.ErrGone)
	}
	return m.wrap(ctx, op, fmt.Errorf("machine is in state %s", state))
}

// PowerButton implements hv.VM.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.wrap(ctx, "power button of", m.monitor.run(ctx, "system_powerdown", nil, nil))
}

// Kill implements hv.VM.
func (m *machine) Kill(ctx context.Context) error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	select {
	case <-m.proc.Done(): // of an ended machine, detached or not, nothing is left to do
	default:
		select {
		case <-m.stop:
			return m.wrap(ctx, "kill", errDetached)
		default:
			m.quit(ctx)
		}
	}
	select {
	case <-m.over:
		return nil
	case <-ctx.Done():
		return m.wrap(ctx, "kill", ctx.Err())
	}
}

// Agent implements hv.VM.
func (m *machine) Agent() hv.Transport { return m.agent }

// Events implements hv.VM.
func (m *machine) Events() <-chan hv.Event { return m.feed }

// Wait implements hv.VM.
func (m *machine) Wait(ctx context.Context) (hv.Exit, error) {
	select {
	case <-m.over:
	case <-ctx.Done():
		return hv.Exit{}, fmt.Errorf("qemu: wait for %s: %w", m.rec.ID, ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit == nil {
		return hv.Exit{}, fmt.Errorf("qemu: wait for %s: %w", m.rec.ID, errDetached)
	}
	return *m.exit, nil
}

// Detach implements hv.VM.
func (m *machine) Detach() error {
	m.detach.Do(func() { close(m.stop) })
	<-m.over
	return nil
}
