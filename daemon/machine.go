package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// machine is the worker's hold on one incarnation: the driver's VM, and the
// goroutines that wait for its end, follow its guest's status and keep its
// logs. They report facts; the worker decides.
type machine struct {
	vm          hv.VM
	id          string
	incarnation int
	agent       *agent   // nil for a guest without one
	logs        *logFile // nil likewise
	log         *slog.Logger
	t           timing
	held        time.Time // when hold was taken, on the monotonic clock; set by newMachine

	exited  chan struct{} // closed when the machine has ended
	exit    hv.Exit       // set before exited is closed
	lost    chan struct{} // closed when the driver has lost hold of the machine
	drained chan struct{} // closed when no more log lines can come
	news    chan struct{} // one place; receives when report was changed
	stalls  chan struct{} // one place; receives when the guest has been stopped, so that its state is worth a look

	mu     sync.Mutex
	latest report             // guarded by mu
	nap    *nap               // guarded by mu; nil while the machine runs
	calls  context.Context    // guarded by mu; ends with the next nap, or the hold
	hush   context.CancelFunc // guarded by mu; ends calls
	untold *nap               // guarded by mu; the last nap, until the guest was told of its end

	ctx    context.Context // of the goroutines, as long as the machine is held; set once by newMachine
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// report is what is known of the guest. The newest replaces those before.
type report struct {
	hello  *wire.Hello // nil before the agent has answered
	status wire.Status // Seq is 0 before the first
	up     bool        // the agent answers
	alien  error       // the guest is not the one expected, or not understood
}

// newMachine takes hold of mach; asleep says that it stands still. On error mach
// is still the caller's.
func (d *Daemon) newMachine(vm *row.VM, mach hv.VM, withAgent, asleep bool, log *slog.Logger) (*machine, error) {
	m := &machine{
		vm: mach, id: vm.ID, incarnation: vm.Incarnation, log: log, t: d.t, held: time.Now(),
		exited: make(chan struct{}), lost: make(chan struct{}), drained: make(chan struct{}), news: make(chan struct{}, 1),
		stalls: make(chan struct{}, 1),
	}
	if withAgent {
		m.logs = d.newLog(vm.ID, vm.Incarnation)
		m.agent = newAgent(mach.Agent())
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.ctx = ctx
	m.calls, m.hush = context.WithCancel(ctx)
	if asleep {
		m.sleep()
	}
	m.wg.Go(func() { m.await(ctx) })
	m.wg.Go(m.watch)
	if withAgent {
		m.wg.Go(func() { m.follow(ctx) })
	} else {
		close(m.drained)
	}
	return m, nil
}

// close lets go of the machine, which lives on, and waits for the goroutines.
func (m *machine) close() {
	m.cancel()
	if m.agent != nil {
		m.agent.close()
	}
	if err := m.vm.Detach(); err != nil {
		m.log.Warn("detach", keyErr, err)
	}
	m.wg.Wait()
	if m.logs != nil {
		m.logs.close()
	}
}

// await waits for the machine's end.
func (m *machine) await(ctx context.Context) {
	exit, err := m.vm.Wait(ctx)
	switch {
	case err == nil:
		m.exit = exit
		close(m.exited)
	case ctx.Err() == nil:
		m.log.Warn("hold on the machine lost", keyErr, err)
		close(m.lost)
	}
}

// watch tells of a guest that has been stopped, whoever did it: the VMM can stop
// one again before the command that let it go on has been answered, so whether a
// stop was wanted is seen by who looks at the machine's state. It ends when the
// machine is let go of.
func (m *machine) watch() {
	for e := range m.vm.Events() {
		if e.Type != hv.EventPaused {
			continue
		}
		select {
		case m.stalls <- struct{}{}:
		default:
		}
	}
}

// get returns the newest report.
func (m *machine) get() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.latest
}

func (m *machine) set(change func(r *report)) {
	m.mu.Lock()
	change(&m.latest)
	m.mu.Unlock()
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// helloPause is how long to wait before asking a guest again that does not know
// yet who it is; guests come up within a second or two.
const helloPause = 5 * time.Millisecond

// follow asks the guest who it is, and then for its status again and again.
func (m *machine) follow(ctx context.Context) {
	defer close(m.drained)
	if !m.rests(ctx) || !m.greet(ctx) {
		return
	}
	var logs sync.WaitGroup
	logs.Go(func() { m.drain(ctx) })
	defer logs.Wait()

	heard := time.Now()
	pause := helloPause
	var seq uint64
	for ctx.Err() == nil {
		if m.asleep() {
			if !m.rests(ctx) {
				return
			}
			heard, pause = time.Now(), helloPause
		}
		var s wire.Status
		calls := m.calling()
		err := m.tell(calls)
		if err == nil {
			s, err = m.agent.status(calls, seq)
		}
		if err == nil {
			seq, heard, pause = s.Seq, time.Now(), helloPause
			m.set(func(r *report) { r.status, r.up = s, m.nap == nil })
			continue
		}
		if !m.stays(ctx, pause) {
			return
		}
		pause = min(2*pause, time.Second)
		if m.get().up && time.Since(heard) > m.t.silence {
			m.log.Warn("agent does not answer", keyErr, err)
			m.set(func(r *report) { r.up = false })
		}
	}
}

// greet repeats hello until the right guest has answered; false says that it
// will not.
func (m *machine) greet(ctx context.Context) bool {
	for {
		if !m.rests(ctx) {
			return false
		}
		hello, err := m.hello(m.calling())
		switch {
		case err == nil && hello.VM != "":
			err = checkHello(hello, m.id, m.incarnation)
			m.set(func(r *report) { r.hello, r.up, r.alien = &hello, err == nil && m.nap == nil, err })
			return err == nil
		case err == nil:
			// It answers, but never learnt who it is: its status says why.
			if s, err := m.agent.status(m.calling(), 0); err == nil && s.Workload == wire.WorkloadFailed {
				m.set(func(r *report) { r.status = s })
				return false
			}
		}
		if !m.stays(ctx, helloPause) {
			return false
		}
	}
}

func (m *machine) hello(ctx context.Context) (wire.Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, m.t.silence)
	defer cancel()
	return m.agent.hello(ctx)
}

// checkHello refuses a guest that is another than the one launched.
func checkHello(h wire.Hello, id string, incarnation int) error {
	if err := wire.CheckProtocol(h.Protocol, clip(h.Version, maxStepText)); err != nil {
		return err
	}
	if h.VM != id || h.Incarnation != incarnation {
		return fmt.Errorf("the guest says that it is VM %.40q, incarnation %d", h.VM, h.Incarnation)
	}
	return nil
}

// drain keeps the guest's log lines. What cannot be written stays in the guest,
// which does not wait: the log tells of what is lost.
func (m *machine) drain(ctx context.Context) {
	pause := helloPause
	full, odd := false, false // it was said
	pace := pacer{rate: logRate, burst: logBurst}
	keep := func(entries []wire.LogEntry) error {
		size := 0
		for i := range entries {
			size += len(entries[i].Data) + logLineCost
		}
		if d := pace.spend(time.Now(), size); d > 0 {
			m.stays(ctx, d) // the last lines of one that has ended need not wait
		}
		return m.logs.keep(entries)
	}
	for {
		if !m.rests(ctx) {
			return
		}
		before, err := m.logs.position()
		if err == nil {
			if err = m.agent.logs(m.calling(), before, keep); err == nil {
				err = m.logs.end(true)
			}
		}
		var unwritten *logError
		var broken *streamError
		switch {
		case errors.As(err, &unwritten):
			if !full {
				m.log.Warn("log cannot be written; the guest holds its lines for as long as it can", keyErr, err)
			}
			full = true
		case errors.As(err, &broken) && !odd:
			m.log.Warn("the guest's log stream is not understood", keyErr, err)
			odd = true
		}
		if after, err := m.logs.position(); err == nil && after != before {
			pause = helloPause
			if full && unwritten == nil {
				m.log.Info("log is written again")
				full = false
			}
		}
		if !m.stays(ctx, pause) {
			return
		}
		pause = min(2*pause, time.Second)
	}
}

// encodeRecord and decodeRecord translate a driver's record for the store.
func encodeRecord(rec hv.Record) (json.RawMessage, error) { return json.Marshal(rec) }

func decodeRecord(b json.RawMessage) (hv.Record, error) {
	var rec hv.Record
	if err := json.Unmarshal(b, &rec); err != nil {
		return hv.Record{}, fmt.Errorf("stored record: %w", err)
	}
	return rec, nil
}

// stays waits for d and reports whether there is still somebody to ask then. It
// returns false at once when the machine has ended or was lost, or ctx is over.
func (m *machine) stays(ctx context.Context, d time.Duration) bool {
	select {
	case <-m.exited:
	case <-m.lost:
	case <-ctx.Done():
	case <-time.After(d):
		return true
	}
	return false
}
