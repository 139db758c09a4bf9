package cloudhypervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/transport"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// quitTimeout is how long the process may take to end once it has said that
	// it will, before it gets SIGKILL: 2 ms measured.
	quitTimeout = 3 * time.Second
	// drainTimeout bounds the reading of the last console output once the
	// process has ended; it is in the socket already.
	drainTimeout = 2 * time.Second
	// eventInterval is how often the events are looked at, beside when the
	// console breaks. It is below the 450 ms that a reset guest takes to run
	// again.
	eventInterval = 250 * time.Millisecond
	// stateInterval is how often the machine's state is asked for, which makes
	// up for lost events, and the files' sizes are looked at: those grow at the
	// guest's pace.
	stateInterval = 15 * time.Second
	// askTimeout bounds a question after the state. A VMM that is busy is asked
	// again later.
	askTimeout = time.Second
	// consoleTimeout bounds the connection to the console.
	consoleTimeout = 5 * time.Second
	// reconnectInterval lies between two tries to get the console back.
	reconnectInterval = time.Second
	// maxLog is the size at which vmm.log is cut off.
	maxLog = 1 << 20
	// eventBacklog is how many events wait for a reader; more are dropped.
	eventBacklog = 16
)

var errDetached = errors.New("detached")

// machine is one running Cloud Hypervisor.
type machine struct {
	rec     hv.Record
	proc    *vmm.Process
	api     *client
	console *vmm.Console
	agent   hv.Transport
	openTap func(name string) (*os.File, error) // set before anybody has the machine
	drained chan struct{}                       // closed when drain returns
	nudge   chan struct{}                       // has room for one: look how things stand
	stop    chan struct{}                       // closed by Detach
	over    chan struct{}                       // closed by supervise when it returns

	detach sync.Once

	plugging chan struct{} // has room for who changes the machine, or takes a snapshot of it, one at a time; taken before all others

	reading sync.Mutex // held while the journal is read, so that events stay in order; taken before mu
	journal journal    // guarded by reading

	mu        sync.Mutex
	launching bool          // guarded by mu; vm.boot has not been answered
	screen    net.Conn      // guarded by mu; the console's stream, nil without one
	released  bool          // guarded by mu; there is to be no further stream
	killed    bool          // guarded by mu; Kill was called
	end       *hv.Exit      // guarded by mu; how the guest ended, nil while it runs
	since     time.Time     // guarded by mu; of end
	exit      *hv.Exit      // guarded by mu; how the machine ended, nil while the process runs
	events    chan hv.Event // guarded by mu for sending; nil once closed
	feed      <-chan hv.Event
}

var (
	_ hv.VM          = (*machine)(nil)
	_ hv.Meter       = (*machine)(nil)
	_ hv.Snapshotter = (*machine)(nil)
	_ hv.Resizer     = (*machine)(nil)
	_ hv.Plugger     = (*machine)(nil)
)

// take begins to look after a process whose API answers. screen is the console's
// stream, nil if it is to be looked for. On error the process is left alone, and
// proc, api and screen are the caller's again.
func take(rec hv.Record, proc *vmm.Process, api *client, screen net.Conn, launching bool) (*machine, error) {
	console, err := vmm.OpenConsole(rec.ConsoleLog, rec.ConsoleLimit)
	if err != nil {
		return nil, err
	}
	agent := transport.NewHybridVsock(filepath.Join(rec.Dir, agentSocket))
	if rec.CID != 0 {
		_ = agent.Listen() // else it is tried until the guest answers
	}
	m := &machine{
		rec: rec, proc: proc, api: api, console: console,
		agent:    agent,
		plugging: make(chan struct{}, 1),
		drained:  make(chan struct{}), nudge: make(chan struct{}, 1), stop: make(chan struct{}), over: make(chan struct{}),
		journal:   journal{path: eventsPath(rec.Dir)},
		launching: launching, screen: screen,
		events: make(chan hv.Event, eventBacklog),
	}
	m.feed = m.events
	go m.drain(screen)
	go m.supervise()
	return m, nil
}

func (m *machine) path(name string) string { return filepath.Join(m.rec.Dir, name) }

// dialConsole connects to the console of the machine in dir.
func dialConsole(dir string) (net.Conn, error) {
	return net.DialTimeout("unix", filepath.Join(dir, consoleSocket), consoleTimeout)
}

// say sends text to the guest's serial port.
func (m *machine) say(text string) error {
	m.mu.Lock()
	screen := m.screen
	m.mu.Unlock()
	if screen == nil {
		return errors.New("no console")
	}
	_, err := io.WriteString(screen, text)
	return err
}

// drain keeps the guest's console output until the process ends or Detach. The
// VMM breaks the stream when the guest resets, and when somebody else connects.
func (m *machine) drain(screen net.Conn) {
	defer close(m.drained)
	b := make([]byte, 32<<10)
	for {
		for screen != nil {
			n, err := screen.Read(b)
			if n > 0 {
				// What cannot be kept (a full disk) is dropped: a guest must not
				// stand still for it.
				m.console.Write(b[:n])
			}
			if err != nil {
				screen.Close() // only read from
				screen = nil
				m.look()
			}
		}
		select {
		case <-m.stop:
			return
		case <-m.proc.Done():
			return
		case <-time.After(reconnectInterval):
		}
		screen = m.reconnect()
	}
}

// reconnect returns the console's stream, or nil.
func (m *machine) reconnect() net.Conn {
	screen, err := dialConsole(m.rec.Dir)
	if err != nil {
		return nil // tried again
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		screen.Close()
		return nil
	}
	m.screen = screen
	return screen
}

// look has supervise see how things stand.
func (m *machine) look() {
	select {
	case m.nudge <- struct{}{}:
	default:
	}
}

// supervise sees the machine to its end, or to Detach.
func (m *machine) supervise() {
	defer close(m.over)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.stop:
			cancel() // what is being asked is of no interest any more
		case <-ctx.Done():
		}
	}()
	events, states := time.NewTicker(eventInterval), time.NewTicker(stateInterval)
	defer events.Stop()
	defer states.Stop()
	for {
		select {
		case <-m.proc.Done():
			m.finish()
			return
		case <-m.stop:
			m.release()
			return
		case <-events.C:
			m.catchUp()
			m.endWith(ctx, false)
		case <-m.nudge:
			m.catchUp()
			m.endWith(ctx, true)
		case <-states.C:
			m.endWith(ctx, true)
			m.cutFiles()
		}
	}
}

// endWith ends the process when the guest has ended. With ask, the API is asked
// whether it has, if the events do not say so.
func (m *machine) endWith(ctx context.Context, ask bool) {
	m.mu.Lock()
	end, since, launching := m.end, m.since, m.launching
	m.mu.Unlock()
	switch {
	case end == nil && ask && !launching && m.hollow(ctx):
		m.catchUp()
		m.guestEnded(hv.Exit{Reason: hv.ExitCrashed, Detail: "Cloud Hypervisor runs no machine: " + errUnfinished.Error() + ", or it ended without a word"})
	case end == nil, end.Reason == hv.ExitShutdown && time.Since(since) < quitTimeout:
		return // after a power-off the process ends by itself, in milliseconds
	}
	m.proc.Kill() // fails only when the process has ended
}

// hollow says that the process certainly has no machine that has booted.
func (m *machine) hollow(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var i info
	err := m.api.get(ctx, opInfo, &i)
	if err == nil {
		return i.State == stateCreated || i.State == stateShutdown
	}
	var refused *apiError
	if !errors.As(err, &refused) || refused.status != http.StatusNotFound && refused.status != http.StatusInternalServerError {
		return false // busy, or ending
	}
	// No machine is no fault of the API: it still answers.
	var p ping
	return m.api.get(ctx, opPing, &p) == nil && p.PID == m.rec.PID
}

// catchUp reads what events were written.
func (m *machine) catchUp() {
	m.reading.Lock()
	defer m.reading.Unlock()
	_ = m.journal.read(m.onEvent) // hints: what cannot be read is made up for by endWith
}

// cutFiles bounds what the VMM writes to.
func (m *machine) cutFiles() {
	m.reading.Lock()
	m.journal.giveBack()
	m.reading.Unlock()
	vmm.CutLog(m.path(logFile), maxLog)
}

// onEvent is called with m.reading held.
func (m *machine) onEvent(e event) {
	if exit, ended := exitOf(e); ended {
		m.mu.Lock()
		ours := m.killed && exit.Reason == hv.ExitShutdown
		m.mu.Unlock()
		if !ours {
			m.guestEnded(believe(m.rec.Dir, exit))
		}
	}
	switch {
	case e.Source != "vm":
	case e.Event == "paused":
		m.emit(hv.EventPaused)
	case e.Event == "resumed":
		m.emit(hv.EventResumed)
	}
}

// believe looks into the VMM's log whether a machine that seems to have powered
// off rather broke down: both leave the same events.
func believe(dir string, exit hv.Exit) hv.Exit {
	if exit.Reason != hv.ExitShutdown {
		return exit
	}
	if line := complaint(dir); line != "" {
		return hv.Exit{Reason: hv.ExitCrashed, Detail: fmt.Sprintf("Cloud Hypervisor said: %.300q", line)}
	}
	return exit
}

// orderly tells of a machine that ended without events to say how, whether its
// process cleaned up: it removes its API's socket when it ends in order, as it
// does when the guest has powered off, and complains before that otherwise.
func orderly(dir string) (hv.Exit, bool) {
	if _, err := os.Lstat(filepath.Join(dir, apiSocket)); !errors.Is(err, fs.ErrNotExist) {
		return hv.Exit{}, false
	}
	if fi, err := os.Stat(eventsPath(dir)); err != nil || fi.Size() == 0 { // not even the process's beginning
		return hv.Exit{}, false
	}
	if complaint(dir) != "" {
		return hv.Exit{}, false
	}
	return hv.Exit{Reason: hv.ExitShutdown, Detail: "Cloud Hypervisor ended in order; its events, which would say why, were lost"}, true
}

// complaint finds in the log why Cloud Hypervisor ends itself: the error of a
// virtual CPU, or a panic of one of its threads.
func complaint(dir string) string {
	for line := range bytes.Lines(vmm.Tail(filepath.Join(dir, logFile), 64<<10)) {
		if bytes.Contains(line, []byte("VCPU generated error")) || bytes.Contains(line, []byte("panicked")) {
			return string(bytes.TrimSpace(line))
		}
	}
	return ""
}

// guestEnded remembers how the guest ended; the first report counts.
func (m *machine) guestEnded(exit hv.Exit) {
	m.mu.Lock()
	first := m.end == nil
	if first {
		m.end, m.since = &exit, time.Now()
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
}

// finish records the end of the process and tells everybody.
func (m *machine) finish() {
	select {
	case <-m.drained:
	case <-time.After(drainTimeout):
	}
	m.catchUp()
	m.mu.Lock()
	exit := m.verdict()
	m.exit = &exit
	m.mu.Unlock()
	// For a daemon that comes later; the directory may be gone already.
	_ = vmm.WriteExit(m.rec.Dir, exit)
	for _, name := range sockets() {
		os.Remove(m.path(name)) // the VMM has, unless it was killed
	}
	m.emit(hv.EventExited)
	m.release()
}

// verdict says why the machine ended; m.mu is held.
func (m *machine) verdict() hv.Exit {
	if m.end != nil && m.end.Reason != hv.ExitCrashed {
		return *m.end
	}
	if m.killed {
		return hv.Exit{Reason: hv.ExitKilled, Detail: "killed on request"}
	}
	if m.end != nil {
		return *m.end
	}
	status := m.proc.Status()
	if status == "exit status 0" || status == "" {
		if exit, ok := orderly(m.rec.Dir); ok {
			return exit
		}
	}
	line := complaint(m.rec.Dir)
	if line == "" {
		line = vmm.LastLine(vmm.Tail(m.path(logFile), 1024))
	}
	detail := "Cloud Hypervisor ended: " + status
	switch status {
	case "":
		detail = "Cloud Hypervisor ended; its exit status is unknown, for it was no child of this process"
	case "signal: bad system call":
		detail += " (its seccomp filter forbids one that this host's kernel or library makes: try another version)"
	}
	if line != "" {
		detail += fmt.Sprintf(": %.300q", line)
	}
	return hv.Exit{Reason: hv.ExitCrashed, Detail: detail}
}

// release lets go of sockets, files and the pidfd, and closes the events.
func (m *machine) release() {
	m.api.close()
	m.mu.Lock()
	m.released = true
	screen := m.screen
	m.mu.Unlock()
	if screen != nil {
		screen.Close() // only read from
	}
	<-m.drained
	m.console.Close() // nothing is buffered
	m.agent.Close()   // returns nil always
	m.reading.Lock()
	m.journal.close()
	m.reading.Unlock()
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

// call makes a call to the API, and says in its error which machine it was for
// and whether that is gone.
func (m *machine) call(ctx context.Context, what string, f func() error) error {
	var err error
	select {
	case <-m.proc.Done():
		err = hv.ErrGone
	case <-m.stop:
		err = errDetached
	default:
		if err = f(); err == nil {
			return nil
		}
		if ended(m.proc, err) {
			err = hv.ErrGone
		}
	}
	return fmt.Errorf("cloud-hypervisor: %s %s: %w", what, m.rec.ID, err)
}

// Record implements hv.VM.
func (m *machine) Record() hv.Record { return m.rec }

// State implements hv.VM.
func (m *machine) State(ctx context.Context) (hv.State, error) {
	var i info
	err := m.call(ctx, "state of", func() error { return m.api.get(ctx, opInfo, &i) })
	if errors.Is(err, hv.ErrGone) {
		return hv.StateExited, nil
	}
	if err != nil {
		return "", err
	}
	m.catchUp()
	m.mu.Lock()
	end := m.end
	m.mu.Unlock()
	switch {
	case end != nil && end.Reason == hv.ExitPanic:
		return hv.StatePanicked, nil
	case end != nil:
		return hv.StateShutdown, nil
	}
	switch i.State {
	case stateRunning:
		return hv.StateRunning, nil
	case stateCreated, stateShutdown:
		return hv.StateShutdown, nil
	}
	return hv.StatePaused, nil // and what a debugger stopped
}

// Pause implements hv.VM.
func (m *machine) Pause(ctx context.Context) error {
	return m.move(ctx, "pause", opPause, hv.StateRunning, hv.StatePaused)
}

// Resume implements hv.VM.
func (m *machine) Resume(ctx context.Context) error {
	return m.move(ctx, "resume", opResume, hv.StatePaused, hv.StateRunning)
}

func (m *machine) move(ctx context.Context, what, op string, from, to hv.State) error {
	state, err := m.State(ctx)
	if err != nil {
		return err
	}
	return m.call(ctx, what, func() error {
		switch state {
		case to:
			return nil
		case from:
			err := m.api.put(ctx, op, nil)
			m.catchUp()
			return err
		}
		return fmt.Errorf("machine is in state %s", state)
	})
}

// PowerButton implements hv.VM.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.call(ctx, "power button of", func() error { return m.api.put(ctx, opButton, nil) })
}

// Counters implements hv.Meter.
func (m *machine) Counters(ctx context.Context) (map[string]map[string]uint64, error) {
	var c map[string]map[string]uint64
	err := m.call(ctx, "counters of", func() error { return m.api.get(ctx, opCounters, &c) })
	return c, err
}

// Kill implements hv.VM. The VMM is asked to end, and gets SIGKILL if it does
// not, or if its machine is paused. SIGTERM would be no step between: the thread
// that serves it is the one that serves the API.
func (m *machine) Kill(ctx context.Context) error {
	m.catchUp() // a guest that has ended by itself was not killed
	select {
	case <-m.proc.Done(): // nor was a VMM, detached or not
	default:
		select {
		case <-m.stop:
			return fmt.Errorf("cloud-hypervisor: kill %s: %w", m.rec.ID, errDetached)
		default:
		}
		m.mu.Lock()
		m.killed = true
		m.mu.Unlock()
		m.quit(ctx)
	}
	select {
	case <-m.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cloud-hypervisor: kill %s: %w", m.rec.ID, ctx.Err())
	}
}

// quit ends the process, by its API if it answers, else by SIGKILL.
func (m *machine) quit(ctx context.Context) {
	if !m.still(ctx) && m.api.put(ctx, opQuit, nil) == nil {
		select {
		case <-m.proc.Done():
			return
		case <-ctx.Done():
		case <-time.After(quitTimeout):
		}
	}
	m.proc.Kill() // fails only when the process has ended
}

// still says that the machine is paused, or that nobody can tell. To end it in
// order, Cloud Hypervisor lets its devices run again (Vm::shutdown resumes them,
// as of versions 52 to 54): what they write then, such as a frame that has come
// for the guest, would be in a template's memory, and on disks that were copied.
func (m *machine) still(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	i, err := m.ask(ctx)
	var refused *apiError
	if errors.As(err, &refused) { // as where there is no machine
		return false
	}
	return err != nil || i.State == statePaused
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
		return hv.Exit{}, fmt.Errorf("cloud-hypervisor: wait for %s: %w", m.rec.ID, ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit == nil {
		return hv.Exit{}, fmt.Errorf("cloud-hypervisor: wait for %s: %w", m.rec.ID, errDetached)
	}
	return *m.exit, nil
}

// Detach implements hv.VM.
func (m *machine) Detach() error {
	m.detach.Do(func() { close(m.stop) })
	<-m.over
	return nil
}
