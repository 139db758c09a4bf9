package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// supervise watches a running machine and writes what its guest reports into
// the row, until it ends or the wish changes.
func (w *worker) supervise(ctx context.Context, vm *row.VM) error {
	m := w.live
	for {
		r := m.get()
		wait, unsteady := w.steadyIn(vm, &r.status)
		if r.hello != nil || r.status.Seq > 0 || unsteady && wait <= 0 {
			now, err := w.noteStatus(ctx, vm, r)
			if err != nil {
				return err
			}
			vm = &now
			wait, unsteady = w.steadyIn(vm, &r.status)
		}
		var steady <-chan time.Time
		if unsteady {
			steady = time.After(wait)
		}
		if final(r) {
			return w.finish(ctx, vm)
		}
		news, later := m.news, (<-chan time.Time)(nil)
		if d := w.reports.spend(time.Now(), 1); d > 0 {
			news, later = nil, time.After(d)
		}
		select {
		case <-news:
		case <-later:
		case <-steady:
		case <-m.exited:
			return w.over(ctx, vm, m.exit)
		case <-m.lost:
			w.release()
			return nil
		case <-m.stalls:
			return w.stalled(ctx, vm)
		case <-w.wake:
			return nil // look at the wish
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// noteStatus writes a report into the row, if that changes anything there.
func (w *worker) noteStatus(ctx context.Context, vm *row.VM, r report) (row.VM, error) {
	if r.alien != nil {
		w.log.Warn("guest not understood", keyErr, r.alien)
	}
	now, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		return append(applyStatus(vm, r), w.settleDown(vm, &r.status)...), nil
	})
	if err != nil {
		return row.VM{}, err
	}
	if tl := w.timeline.Load(); r.status.Seq > 0 && tl.setGuest(r.status.Timeline) {
		w.saveTimeline()
	}
	return now, nil
}

// final reports whether the workload has ended for good.
func final(r report) bool {
	return r.status.Workload == wire.WorkloadExited || r.status.Workload == wire.WorkloadFailed
}

// finish ends the machine of a workload that has ended for good.
func (w *worker) finish(ctx context.Context, vm *row.VM) error {
	if err := w.dismiss(ctx); err != nil {
		return err
	}
	exit := w.live.exit
	exit.Reason = hv.ExitShutdown // the workload's end is the cause, however the machine went
	return w.over(ctx, vm, exit)
}

// dismiss lets a guest go whose workload has ended: it waits only until the host
// has heard of that, and so have those who are attached. On return the machine has ended, or is lost.
func (w *worker) dismiss(ctx context.Context) error {
	w.d.visits.wait(ctx, w.id, farewell)
	if err := w.askGuest(ctx, 0); err != nil {
		w.log.Debug("guest not asked to end", keyErr, err) // it ends by itself
	}
	if w.live.waitExit(ctx, w.d.t.powerOff, nil) {
		w.live.settleLogs(ctx)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return w.kill(ctx)
}

// waitExit waits for the machine's end, at most d, or until look says that
// waiting is over when wake receives.
func (m *machine) waitExit(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-m.exited:
		return true
	case <-m.lost:
	case <-wake:
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// settleLogs gives the last log lines of a machine time to arrive.
func (m *machine) settleLogs(ctx context.Context) {
	t := time.NewTimer(m.t.drain)
	defer t.Stop()
	select {
	case <-m.drained:
	case <-t.C:
	case <-ctx.Done():
	}
}

// askGuest asks the agent to end the workload and power off.
func (w *worker) askGuest(ctx context.Context, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, w.d.t.call)
	defer cancel()
	return w.live.agent.shutdown(ctx, grace)
}

// kill ends the machine that the worker holds.
func (w *worker) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.d.t.kill)
	defer cancel()
	if err := w.live.vm.Kill(ctx); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	select {
	case <-w.live.exited:
		return nil
	case <-w.live.lost:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill: %w", ctx.Err())
	}
}

// stop ends an incarnation that is no longer wanted: the agent is asked, then
// the power button pressed, and when the grace is over the VMM is killed. A
// guest that was not up yet has nothing to save and is killed at once.
func (w *worker) stop(ctx context.Context, vm *row.VM) error {
	wasUp := vm.Status != api.VMStarting
	if vm.Status != api.VMStopping {
		now, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
			ev, err := enter(vm, api.VMStopping, "")
			return []api.Event{ev}, err
		})
		if err != nil {
			return err
		}
		vm = &now
	}
	if wasUp && !vm.Stop.Force {
		if err := w.awake(ctx, w.d.t.silence); err != nil && ctx.Err() == nil {
			w.log.Warn("VM cannot be resumed to be stopped", keyErr, err)
		}
		m, err := w.d.store.Manifest(ctx, vm.Manifest)
		if err != nil {
			return err
		}
		if !w.askedToEnd(ctx, vm, &m) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.log.Warn("VM did not end in time and is killed", keyName, vm.Name)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-w.live.lost:
		w.release()
		return nil
	default:
	}
	if err := w.kill(ctx); err != nil {
		return err
	}
	return w.over(ctx, vm, w.live.exit)
}

// askedToEnd asks the guest to end and waits for it; false says that it is to
// be killed.
func (w *worker) askedToEnd(ctx context.Context, vm *row.VM, m *api.Manifest) bool {
	grace := stopTimeout(m)
	if vm.Stop.GraceSeconds > 0 {
		grace = time.Duration(vm.Stop.GraceSeconds) * time.Second
	}
	asked := false
	if w.live.agent != nil && w.live.get().alien == nil {
		err := w.askGuest(ctx, grace)
		asked = err == nil
		if err != nil {
			w.log.Debug("agent not asked to end", keyErr, err)
		}
	}
	if !asked {
		ctx, cancel := context.WithTimeout(ctx, w.d.t.call)
		err := w.live.vm.PowerButton(ctx)
		cancel()
		if err != nil {
			w.log.Debug("power button not pressed", keyErr, err)
			return w.live.waitExit(ctx, 0, nil)
		}
	}
	deadline := time.Now().Add(grace + w.d.t.powerOff)
	for {
		if w.live.waitExit(ctx, time.Until(deadline), w.wake) {
			return true
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
		select {
		case <-w.live.lost:
			return false
		default:
		}
		// Woken: has the operator lost patience?
		now, err := w.d.store.VMByID(ctx, w.id)
		if err == nil && now.Stop.Force {
			return false
		}
	}
}

// over deals with a machine that has ended, however it did. Rules and tap go
// before the row says that it has ended, the directory, which holds the
// evidence, after.
func (w *worker) over(ctx context.Context, vm *row.VM, exit hv.Exit) error {
	var last report
	if w.live != nil {
		w.live.settleLogs(ctx)
		last = w.live.get()
		if tl := w.timeline.Load(); last.status.Seq > 0 {
			tl.setGuest(last.status.Timeline)
		}
		w.saveTimeline()
	}
	m, err := w.d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return err
	}
	whileBooting := ""
	if vm.Status == api.VMStarting && vm.Desired == api.DesiredRunning && !vm.Replaced() && exit.Reason != exitHostReboot {
		whileBooting = bootReason(exit, last, w.d.lastWords(vm.ID))
		// What the guest itself says would be no other the next time.
		if again, _ := startsAgain(vm, &m, false); !again || last.status.Error != "" {
			return w.failed(ctx, vm, whileBooting)
		}
	}
	if agentKind(&m) != api.AgentNone {
		w.endLog(vm)
	}
	w.release()
	if err := w.disconnect(ctx); err != nil {
		return err
	}
	now, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		if last.status.Exit != nil {
			applyStatus(vm, last)
		}
		to, reason := outcome(vm, exit, last)
		unasked := vm.Status != api.VMStopping && vm.Desired == api.DesiredRunning && !vm.Replaced()
		if unasked && exit.Reason == hv.ExitShutdown && last.status.Seq == 0 && vm.Exit == nil && agentKind(&m) != api.AgentNone {
			reason = unheard
		}
		if unasked && whileBooting != "" {
			to, reason = api.VMCrashed, whileBooting
		}
		var more []api.Event
		switch {
		case unasked && exit.Reason == exitHostReboot:
			vm.AcceptedAt, vm.NextStartAt, vm.Tries.Auto = w.d.cfg.Now().UTC(), nil, true
		case unasked:
			reason, more = w.d.again(vm, &m, to == api.VMStopped, reason)
		}
		ev, err := enter(vm, to, reason)
		return append([]api.Event{ev}, more...), err
	})
	if err != nil {
		return err
	}
	w.log.Info("VM ended", keyName, now.Name, keyIncarnation, now.Incarnation, keyStatus, now.Status, keyReason, now.Reason)
	return nil
}

// unheard is the reason of a VM that has stopped while no volantd ran, for longer
// than its guest waits to tell what became of the workload.
const unheard = "it powered off without volantd having heard how its workload ended"

// endLog notes in the log of an incarnation that it has ended, and what may be
// missing when nobody read the log to its end.
func (w *worker) endLog(vm *row.VM) {
	l := w.d.newLog(vm.ID, vm.Incarnation)
	if w.live != nil && w.live.logs != nil {
		l = w.live.logs
	}
	if err := l.end(false); err != nil {
		w.log.Warn("end of log not noted", keyErr, err)
	}
	if w.live == nil || w.live.logs != l {
		l.close()
	}
}

// outcome says what an ended machine's VM has become, and why.
func outcome(vm *row.VM, exit hv.Exit, last report) (api.VMState, string) {
	if vm.Status == api.VMStopping || vm.Desired != api.DesiredRunning || vm.Replaced() || vm.Status == api.VMStarting {
		return api.VMStopped, ""
	}
	switch {
	case last.status.Workload == wire.WorkloadFailed:
		return api.VMCrashed, "the workload could not be started: " + clip(last.status.Error, 1000)
	case exit.Reason == hv.ExitShutdown && vm.Exit != nil && vm.Exit.Code != 0 && (last.status.Seq == 0 || final(last)):
		// Without a status this is what the row knew; a workload that runs
		// again after an earlier exit is not what ended this guest.
		return api.VMCrashed, exitSentence(vm.Exit)
	}
	switch exit.Reason {
	case hv.ExitShutdown:
		return api.VMStopped, ""
	case exitHostReboot:
		return api.VMStopped, ""
	case hv.ExitPanic:
		return api.VMCrashed, "the guest kernel panicked"
	case hv.ExitReset:
		return api.VMCrashed, "the guest reset itself"
	}
	return api.VMCrashed, withDetail("the VMM ended unexpectedly", exit.Detail)
}

func exitSentence(e *api.VMExit) string {
	s := "the workload exited with status " + strconv.Itoa(e.Code)
	if e.Signal != "" {
		s = "the workload was killed by " + e.Signal
	}
	if e.OOMKilled {
		s += ", out of memory"
	}
	return s
}

// bootReason is the sentence for a machine that ended before its guest was up.
func bootReason(exit hv.Exit, last report, words string) string {
	var s string
	switch {
	case last.status.Error != "":
		s = "the guest could not boot: " + clip(last.status.Error, 1000)
	case exit.Reason == hv.ExitPanic:
		s = "the guest kernel panicked before it was up"
	case exit.Reason == hv.ExitReset:
		s = "the guest reset itself before it was up"
	case exit.Reason == hv.ExitShutdown:
		s = "the guest powered off before it was up"
	default:
		s = withDetail("the VMM ended before the guest was up", exit.Detail)
	}
	if words != "" {
		s += "; its console ends with: " + words
	}
	return s
}

func withDetail(s, detail string) string {
	if detail == "" {
		return s
	}
	return s + ": " + clip(detail, 500)
}

// disconnect closes the VM's port and removes its tap.
func (w *worker) disconnect(ctx context.Context) error {
	if w.d.cfg.Network == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.t.network)
	defer cancel()
	if err := w.d.ports.drop(ctx, w.id); err != nil {
		return fmt.Errorf("close port: %w", err)
	}
	if err := w.d.cfg.Network.RemoveTap(ctx, w.id); err != nil {
		return fmt.Errorf("remove tap: %w", err)
	}
	return nil
}

// cleanup removes whatever is left of the VM's incarnations: machines that no
// row knows, rules, tap, directories; with all set the VM's data too.
func (w *worker) cleanup(ctx context.Context, all bool) error {
	dirs, err := incarnations(w.d.runDirs(w.id))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := w.killStray(ctx, dir); err != nil {
			return err
		}
	}
	if err := w.disconnect(ctx); err != nil {
		return err
	}
	if err := w.ungroup(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(w.d.runDirs(w.id)); err != nil {
		return err
	}
	if !all {
		return nil
	}
	return os.RemoveAll(w.d.dataDir(w.id))
}

// incarnations lists the directories of a VM's incarnations, oldest first.
func incarnations(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && e.IsDir() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	paths := make([]string, len(numbers))
	for i, n := range numbers {
		paths[i] = filepath.Join(dir, strconv.Itoa(n))
	}
	return paths, nil
}

// killStray ends the machine that was launched with dir, should there be one.
func (w *worker) killStray(ctx context.Context, dir string) error {
	rec, err := w.d.findMachine(ctx, dir)
	if errors.Is(err, hv.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := w.endMachine(ctx, rec); err != nil {
		return err
	}
	w.log.Warn("stray machine ended", keyPath, dir, keyPID, rec.PID)
	return nil
}

// sweep removes what is left of a VM that has no row.
func (w *worker) sweep(ctx context.Context) error {
	w.release()
	return w.cleanup(ctx, true)
}
