package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// worker works for one VM until there is nothing to do. See the package
// comment, "Wish and truth".
type worker struct {
	d   *Daemon
	id  string
	log *slog.Logger
	// wake has one place: a worker that is already told need not be told
	// again. It is sent to with Daemon.mu held, so that a worker that finds it
	// empty under that lock can leave.
	wake chan struct{}

	// live is the machine that the worker holds, nil without one. Only the
	// worker's goroutine uses it; others get at its agent by agent.
	live     *machine
	agent    atomic.Pointer[agent]
	shown    atomic.Pointer[machine] // live, for those who ask for its driver's counters, or whether it is there
	timeline atomic.Pointer[timeline]
	reports  pacer // of what the guest has to tell; only the worker's goroutine uses it

	// waitsFor is the VM's next start as it was first seen, and due when that is
	// on this process's own clock. Only the worker's goroutine uses them.
	waitsFor, due time.Time
}

// A guest may report what it likes, as often as it likes, but each report may
// cost a transaction and an event: in the long run so many a second are looked
// at, the newest each time. A boot has some ten.
const (
	reportRate  = 5
	reportBurst = 50
)

// errIdle is returned by a step that found nothing to do.
var errIdle = errors.New("nothing to do")

// errParked is returned by a step that nothing but a change from outside can
// help: the tick looks again.
var errParked = errors.New("parked")

// kick wakes the worker of a VM, or starts one. Without a Run under way it does
// nothing: Run looks at everything when it begins.
func (d *Daemon) kick(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w, ok := d.workers[id]; ok {
		select {
		case w.wake <- struct{}{}:
		default:
		}
		return
	}
	if d.base == nil {
		return
	}
	w := &worker{d: d, id: id, log: d.log.With(keyVM, id), wake: make(chan struct{}, 1), reports: pacer{rate: reportRate, burst: reportBurst}}
	d.workers[id] = w
	ctx := d.base
	d.wg.Go(func() { w.run(ctx) })
}

// worker returns the worker of a VM, nil when it has none.
func (d *Daemon) worker(id string) *worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.workers[id]
}

// run takes steps until the VM is settled or ctx ends; then it lets go of the
// machine.
func (w *worker) run(ctx context.Context) {
	defer w.release()
	// The API may wake a worker before Run has opened the network. A step with an
	// ended ctx is the last one.
	select {
	case <-w.d.network:
	case <-ctx.Done():
	}
	pause := w.d.t.retryMin
	for {
		err := w.step(ctx)
		switch {
		case ctx.Err() != nil:
			w.leave(true)
			return
		case err == nil:
			pause = w.d.t.retryMin
			continue
		case errors.Is(err, errIdle), errors.Is(err, errParked):
			if w.leave(false) {
				return
			}
		default:
			w.log.Warn("step failed, will try again", keyErr, err, keyDur, pause)
			w.sleep(ctx, pause)
			pause = min(2*pause, w.d.t.retryMax)
		}
	}
}

// leave takes the worker off the table. Unless forced it stays when it was
// woken meanwhile.
func (w *worker) leave(forced bool) bool {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if !forced {
		select {
		case <-w.wake:
			return false
		default:
		}
	}
	delete(w.d.workers, w.id)
	return true
}

// sleep waits for d to pass or for somebody to wake the worker.
func (w *worker) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.wake:
	case <-ctx.Done():
	}
}

// hold makes m the worker's machine.
func (w *worker) hold(m *machine) {
	w.live = m
	w.agent.Store(m.agent)
	w.shown.Store(m)
}

// release lets go of the machine, if there is one; it lives on.
func (w *worker) release() {
	if w.live == nil {
		return
	}
	w.agent.Store(nil)
	w.shown.Store(nil)
	w.live.close()
	w.live = nil
}

// step reads the row and takes one step towards its wish.
func (w *worker) step(ctx context.Context) error {
	vm, err := w.d.store.VMByID(ctx, w.id)
	if errors.Is(err, row.ErrNotFound) {
		if err := w.endStrays(ctx, ""); err != nil {
			return err
		}
		if err := w.sweep(ctx); err != nil {
			return err
		}
		return errIdle
	}
	if err != nil {
		return err
	}
	keep := ""
	if !vm.Ended() && vm.Status != api.VMPending {
		keep = w.d.runDir(vm.ID, vm.Incarnation)
	}
	if err := w.endStrays(ctx, keep); err != nil {
		return err
	}
	unwanted := vm.Desired != api.DesiredRunning || vm.Replaced()
	switch {
	case vm.Status == api.VMPending && unwanted:
		return w.settle(ctx, &vm, api.VMStopped, "")
	case vm.Status == api.VMPending:
		return w.startInTurn(ctx, &vm)
	case vm.Ended():
		return w.ended(ctx, &vm)
	case w.live == nil:
		return w.adopt(ctx, &vm)
	case unwanted:
		return w.stop(ctx, &vm)
	case !vm.WantPaused && w.live.asleep():
		return w.resume(ctx, &vm)
	case vm.Status == api.VMStarting:
		return w.awaitGuest(ctx, &vm)
	case vm.Status == api.VMStopping:
		// Was unwanted, and is wanted again: what was begun is finished first.
		return w.stop(ctx, &vm)
	case oversized(&vm):
		return w.resize(ctx, &vm)
	case vm.Status == api.VMRunning && vm.WantPaused:
		return w.pause(ctx, &vm)
	}
	return w.supervise(ctx, &vm)
}

// ended is the step for a VM that has no machine: clean up what is left of the
// last one, then delete it, start it again, or be done.
func (w *worker) ended(ctx context.Context, vm *row.VM) error {
	w.release()
	if err := w.cleanup(ctx, false); err != nil {
		return err
	}
	switch vm.Desired {
	case api.DesiredAbsent:
		return w.remove(ctx, vm)
	case api.DesiredRunning:
		if pause := w.pauseBefore(vm); pause > 0 {
			w.sleep(ctx, pause)
			return nil // the wish may have changed: look again
		}
		return w.startInTurn(ctx, vm)
	}
	return errIdle
}

// settle moves the VM to a state in which it has no machine.
func (w *worker) settle(ctx context.Context, vm *row.VM, to api.VMState, reason string) error {
	_, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		ev, err := enter(vm, to, reason)
		return []api.Event{ev}, err
	})
	return err
}

// remove is the last step of a deletion. The row goes last: with it the name
// and the address become free.
func (w *worker) remove(ctx context.Context, vm *row.VM) error {
	if err := w.cleanup(ctx, true); err != nil {
		return err
	}
	if vm.AutoRemove || vm.ExpiresAt != nil {
		w.d.ends.put(vm.VM) // before the row goes: those who wait look here when they find none
	}
	if _, err := w.d.store.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil && !errors.Is(err, row.ErrNotFound) {
		return err
	}
	w.d.bus.notify(vm.ID, true)
	w.timeline.Store(nil)
	w.log.Info("VM deleted", keyName, vm.Name)
	return nil // the next step sweeps what a killed predecessor may have left
}

// adopt takes up the machine of an incarnation that the row says is there, or
// finds out how it ended.
func (w *worker) adopt(ctx context.Context, vm *row.VM) error {
	rec, err := w.record(ctx, vm)
	if errors.Is(err, hv.ErrGone) {
		return w.interrupted(ctx, vm)
	}
	if err != nil {
		return err
	}
	drv := w.d.driverFor(rec.Driver)
	if drv == nil {
		w.log.Warn("VM left alone: its driver is not here", keyDriver, rec.Driver)
		return errParked
	}
	if err := w.d.markConsole(vm.ID, consoleLost); err != nil {
		w.log.Warn("console not marked", keyErr, err)
	}
	if gone(rec.Dir) {
		return w.unreachable(ctx, vm, rec)
	}
	attachCtx, cancel := context.WithTimeout(ctx, w.d.t.launch)
	defer cancel()
	mach, err := drv.Attach(attachCtx, rec)
	if errors.Is(err, hv.ErrGone) {
		return w.over(ctx, vm, w.exitOfGone(vm, err))
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}

	manifest, err := w.d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return errors.Join(err, mach.Detach())
	}
	tl, err := loadTimeline(w.d.dataDir(vm.ID))
	if err != nil {
		w.log.Warn("timeline lost", keyErr, err)
		tl = newTimeline(vm.Incarnation, vm.AcceptedAt)
	}
	tl.incarnation = vm.Incarnation
	w.timeline.Store(tl)
	m, err := w.d.newMachine(vm, mach, agentKind(&manifest) != api.AgentNone, still(ctx, vm, mach), w.log)
	if err != nil {
		return errors.Join(err, mach.Detach())
	}
	w.hold(m)
	if err := w.recordLaunch(ctx, vm, true); err != nil {
		w.release()
		return err
	}
	w.log.Info("VM adopted", keyIncarnation, vm.Incarnation, keyPID, rec.PID, keyStatus, vm.Status)
	return nil
}

// unreachable ends a machine that cannot be taken up, since its sockets went with
// its directory while nobody held it: neither its guest nor its VMM can be spoken
// to, ever. The VM has crashed then, and its restart policy says what follows.
func (w *worker) unreachable(ctx context.Context, vm *row.VM, rec hv.Record) error {
	if vm.BootID == w.d.cfg.BootID {
		w.log.Warn("VM ended, for its directory was removed and nobody can reach it", keyName, vm.Name, keyPath, rec.Dir, keyPID, rec.PID)
	}
	if err := w.endMachine(ctx, rec); err != nil {
		return err
	}
	exit := w.exitOfGone(vm, hv.ErrGone)
	if exit.Reason == hv.ExitCrashed {
		exit.Detail = "its runtime directory was removed while volantd was not running, and nothing could reach it any more"
	}
	return w.over(ctx, vm, exit)
}

// record finds the record of the row's incarnation: in the row or, for a daemon
// that was killed before it could write it there, by its directory.
func (w *worker) record(ctx context.Context, vm *row.VM) (hv.Record, error) {
	if vm.Record != nil {
		return decodeRecord(vm.Record)
	}
	return w.d.findMachine(ctx, w.d.runDir(vm.ID, vm.Incarnation))
}

// findMachine asks the drivers for the machine that was launched with a
// directory. Only when all of them say so it is gone.
func (d *Daemon) findMachine(ctx context.Context, dir string) (hv.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, d.t.launch)
	defer cancel()
	for _, drv := range d.drivers() {
		rec, err := drv.Find(ctx, dir)
		if errors.Is(err, hv.ErrGone) {
			continue
		}
		if err != nil {
			return hv.Record{}, fmt.Errorf("find machine in %s: %w", dir, err)
		}
		return rec, nil
	}
	return hv.Record{}, fmt.Errorf("%s: %w", dir, hv.ErrGone)
}

// interrupted deals with an incarnation that never got a machine, or lost it
// before its record was written: what was made for it is undone. If the VM is
// still wanted, the next incarnation is begun.
func (w *worker) interrupted(ctx context.Context, vm *row.VM) error {
	if err := w.cleanup(ctx, false); err != nil {
		return err
	}
	if vm.Desired == api.DesiredRunning && vm.Status == api.VMStarting {
		return w.start(ctx, vm)
	}
	return w.settle(ctx, vm, api.VMStopped, "")
}

// exitOfGone is what is known of a machine that ended while nobody held it.
func (w *worker) exitOfGone(vm *row.VM, err error) hv.Exit {
	var gone *hv.GoneError
	switch {
	case errors.As(err, &gone):
		return gone.Exit
	case vm.BootID != w.d.cfg.BootID:
		return hv.Exit{Reason: exitHostReboot, Detail: "the host was restarted"}
	}
	return hv.Exit{Reason: hv.ExitCrashed, Detail: "it ended while volantd was not running"}
}

// exitHostReboot is an end that is nobody's fault: what was wanted is started
// again whatever the restart policy says.
const exitHostReboot hv.ExitReason = "host-reboot"
