package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// isPaused reports whether the VM stands still, or is to, and will until
// somebody asks for it to go on.
func isPaused(vm *row.VM) bool {
	return vm.WantPaused && vm.Desired == api.DesiredRunning && !vm.Replaced() && (vm.Status == api.VMRunning || vm.Status == api.VMPaused)
}

// PauseVM wishes a running VM to stand still: its processors stop, its memory
// stays. It is idempotent. What is connected with the VM, commands and attached
// clients, is cut off. Codes: not_found, conflict (not running, being deleted),
// unsupported.
func (d *Daemon) PauseVM(ctx context.Context, name string) (api.VM, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	if err := d.canPause(ctx, &vm); err != nil {
		return api.VM{}, d.publicError("pause VM", err)
	}
	return d.change(ctx, vm.ID, "pause VM", func(vm *row.VM) error {
		if err := standing(vm, "a VM is paused when it is running"); err != nil {
			return err
		}
		vm.WantPaused = true
		return nil
	})
}

// ResumeVM wishes a paused VM to go on; one that runs already stays as it is.
// Codes: not_found, conflict (neither paused nor running, being deleted).
func (d *Daemon) ResumeVM(ctx context.Context, name string) (api.VM, error) {
	return d.change(ctx, name, "resume VM", func(vm *row.VM) error {
		if err := standing(vm, "a VM is resumed when it is paused"); err != nil {
			return err
		}
		vm.WantPaused = false
		return nil
	})
}

// standing refuses a VM that is neither running nor paused, or is not to stay so.
func standing(vm *row.VM, allowed string) error {
	switch {
	case vm.Desired == api.DesiredAbsent:
		return beingDeleted(vm)
	case vm.Status != api.VMRunning && vm.Status != api.VMPaused:
		return wrongState(vm, allowed)
	case vm.Desired != api.DesiredRunning || vm.Replaced():
		return api.Errorf(api.CodeConflict, "VM %s is about to be stopped; %s", vm.Name, allowed)
	}
	return nil
}

// canPause refuses a VM whose hypervisor cannot pause it.
func (d *Daemon) canPause(ctx context.Context, vm *row.VM) error {
	_, caps, err := d.driver(ctx, vm.Hypervisor)
	if err != nil || caps.Pause {
		return err
	}
	return api.Errorf(api.CodeUnsupported, "VM %s runs on %s, which cannot pause it", vm.Name, vm.Hypervisor).WithHint("stop it instead: volar vms stop %s", vm.Name)
}

// pause stops the processors of a VM that is to stand still.
func (w *worker) pause(ctx context.Context, vm *row.VM) error {
	// Before the act: what the guest leaves unanswered from now on says nothing
	// about it.
	w.live.sleep()
	if err := w.command(ctx, w.live.vm.Pause); err != nil {
		return w.ifHeld(ctx, vm, fmt.Errorf("pause: %w", err))
	}
	w.live.vm.Agent().Reset()
	_, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		ev, err := enter(vm, api.VMPaused, "")
		vm.AgentUp = false
		return []api.Event{ev}, err
	})
	if err == nil {
		w.log.Info("VM paused", keyName, vm.Name)
	}
	return err
}

// resume lets a VM go on whose machine stands still: it is not to be paused any
// more, or a daemon was killed before it had let the guest run, or somebody else
// has paused it. The guest is told what time it is.
func (w *worker) resume(ctx context.Context, vm *row.VM) error {
	patience := w.d.t.silence
	if vm.Status == api.VMStarting {
		patience = 0 // nobody is there to be told
	}
	if err := w.awake(ctx, patience); err != nil {
		return w.ifHeld(ctx, vm, err)
	}
	_, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		vm.AgentUp = w.live.get().up
		if vm.Status != api.VMPaused {
			return nil, nil
		}
		ev, err := enter(vm, api.VMRunning, "")
		return []api.Event{ev}, err
	})
	if err == nil {
		w.log.Info("VM resumed", keyName, vm.Name)
	}
	return err
}

// errHeld says that a VMM stopped its guest again as soon as it was let go on.
var errHeld = errors.New("the hypervisor still holds the guest")

// stalled notes that the VMM has stopped the guest without being told to: QEMU
// does when it cannot write to a disk of the host, and then writes again when the
// guest goes on, so that the guest notices nothing but the time. The VM counts as
// paused, without anybody wanting that, and the steps that follow try to let it go
// on, again and again.
func (w *worker) stalled(ctx context.Context, vm *row.VM) error {
	state, err := w.live.state(ctx)
	if err != nil {
		return w.ifHeld(ctx, vm, fmt.Errorf("state of a machine that has stopped: %w", err))
	}
	if state != hv.StatePaused {
		return nil // it went on, or ends
	}
	w.live.sleep()
	news := false // else it was paused because somebody wants that
	_, err = w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		news = vm.Status == api.VMRunning
		if !news {
			return nil, nil
		}
		ev, err := enter(vm, api.VMPaused, reasonStalled)
		vm.AgentUp = false
		return []api.Event{ev}, err
	})
	if err == nil {
		if news {
			w.log.Warn("VM stopped by its hypervisor", keyName, vm.Name)
		}
		w.sleep(ctx, w.d.t.stalled)
	}
	return err
}

// reasonStalled is the Reason of a VM that its hypervisor holds.
const reasonStalled = "its hypervisor has stopped it, most likely because a disk of the host is full; it goes on by itself once there is room"

// awake makes the machine run that the worker holds, and waits at most d for its
// guest to know that it stood still. It does nothing to one that does not stand
// still.
func (w *worker) awake(ctx context.Context, d time.Duration) error {
	if !w.live.asleep() {
		return nil
	}
	if err := w.command(ctx, w.live.vm.Resume); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	w.live.vm.Agent().Reset()
	woken := w.live.rise()
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-woken:
		case <-w.live.stalls: // now, or by what it is being woken from
			state, err := w.live.state(ctx)
			if err != nil || state != hv.StatePaused {
				continue
			}
			w.live.sleep()
			return errHeld
		case <-w.live.exited:
		case <-w.live.lost:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			w.log.Warn("the guest runs again, but has not set its clock yet")
		}
		return nil
	}
}

// still reports whether a machine that is taken up stands still. Of one that
// does not say the row is believed, which is also right for a guest that was let
// go on, but not told.
func still(ctx context.Context, vm *row.VM, mach hv.VM) bool {
	if vm.Status == api.VMPaused {
		return true
	}
	state, err := mach.State(ctx)
	return err == nil && state == hv.StatePaused
}

// command bounds one command to the machine.
func (w *worker) command(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, w.d.t.kill)
	defer cancel()
	return do(ctx)
}

// state asks the VMM how the machine stands.
func (m *machine) state(ctx context.Context) (hv.State, error) {
	ctx, cancel := context.WithTimeout(ctx, m.t.kill)
	defer cancel()
	return m.vm.State(ctx)
}

// ifHeld is what follows a command that failed: the machine's end, if that is
// why, or another try.
func (w *worker) ifHeld(ctx context.Context, vm *row.VM, err error) error {
	if errors.Is(err, hv.ErrGone) {
		w.live.waitExit(ctx, w.d.t.kill, nil) // its end is on the way
	}
	select {
	case <-w.live.exited:
		return w.over(ctx, vm, w.live.exit)
	case <-w.live.lost:
		w.release()
		return nil
	default:
		return err
	}
}

// nap is a time in which a machine's guest is left alone.
type nap struct {
	over  chan struct{} // closed when it has ended
	woken chan struct{} // closed when the guest has been told what time it is since
}

// sleep has the goroutines that ask the guest leave it alone.
func (m *machine) sleep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nap == nil {
		m.nap = &nap{over: make(chan struct{}), woken: make(chan struct{})}
		m.hush() // what is under way now would hang until the machine goes on
	}
	m.latest.up = false
}

// asleep reports whether the machine stands still, as far as this daemon knows.
func (m *machine) asleep() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nap != nil
}

// rise ends sleep. What it returns is closed when the guest has been told.
func (m *machine) rise() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nap
	m.nap = nil
	m.calls, m.hush = context.WithCancel(m.ctx)
	if m.agent == nil {
		close(n.woken) // there is nobody to tell
	} else {
		m.untold = n
	}
	close(n.over)
	return n.woken
}

// calling returns the context of requests to the guest: it ends when the machine
// is to stand still.
func (m *machine) calling() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// rests waits while the machine stands still. False says that there is nobody to
// ask any more.
func (m *machine) rests(ctx context.Context) bool {
	m.mu.Lock()
	n := m.nap
	m.mu.Unlock()
	if n == nil {
		return true
	}
	select {
	case <-n.over:
		return true
	case <-m.exited:
	case <-m.lost:
	case <-ctx.Done():
	}
	return false
}

// tell tells a guest that has stood still what time it is.
func (m *machine) tell(ctx context.Context) error {
	m.mu.Lock()
	n, r := m.untold, m.latest
	m.mu.Unlock()
	if n == nil {
		return nil
	}
	// The guest's own epoch: only its clock is to change.
	w := wire.Wake{Epoch: r.status.Epoch, Time: time.Now()}
	if r.hello != nil {
		w.Epoch = max(w.Epoch, r.hello.Epoch)
	}
	within, cancel := context.WithTimeout(ctx, m.t.call)
	defer cancel()
	if err := m.agent.wake(within, w); err != nil {
		if ctx.Err() == nil && within.Err() != nil {
			// The way to a guest that stood still may be what is silent.
			m.agent.link.Reset()
		}
		return err
	}
	m.set(func(r *report) {
		r.up = m.nap == nil
		if m.untold == n {
			m.untold = nil
		}
	})
	close(n.woken)
	return nil
}
