package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// WaitVM returns when the VM has become what, and fails with conflict and the
// reason when it can no longer become so by itself, with timeout when ctx ends
// first. Health is not waited for any longer when a VM becomes unhealthy, and for
// one without a health check not at all (invalid). Waiting for the
// deletion of a VM that is not there succeeds at once; waiting for the end of
// one that was removed because it had ended returns how it ended, for a while.
func (d *Daemon) WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error) {
	switch what {
	case api.WaitNone, api.WaitRunning, api.WaitHealthy, api.WaitPaused, api.WaitStopped, api.WaitDeleted:
	default:
		return api.VM{}, api.Errorf(api.CodeInvalid, "wait: %.40q is not known; give one of running, healthy, paused, stopped, deleted", string(what))
	}
	vm, err := d.find(ctx, name)
	if what == api.WaitDeleted && api.CodeOf(err) == api.CodeNotFound {
		return api.VM{}, nil
	}
	if end, ok := d.ends.get(name); ok && what == api.WaitStopped && api.CodeOf(err) == api.CodeNotFound {
		return end, nil
	}
	if err != nil {
		return api.VM{}, err
	}
	sub := d.bus.subscribe(vm.ID)
	defer d.bus.unsubscribe(sub)
	for {
		now, err := d.store.VMByID(ctx, vm.ID)
		switch {
		case errors.Is(err, row.ErrNotFound):
			if what == api.WaitDeleted {
				return vm.VM, nil
			}
			if end, ok := d.ends.get(vm.ID); ok && what == api.WaitStopped {
				return end, nil
			}
			return vm.VM, d.goneError(&vm)
		case err != nil && ctx.Err() == nil:
			return vm.VM, d.publicError("wait for VM", err)
		case err == nil:
			vm = now
			if done, err := reached(&vm, what); done || err != nil {
				return vm.VM, err
			}
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
			e := api.Errorf(api.CodeTimeout, "VM %s is %s, not yet %s", vm.Name, vm.Status, what)
			switch {
			case vm.WaitingFor != "":
				e = e.WithHint("it waits for %s", vm.WaitingFor)
			case vm.Reason != "":
				e = e.WithHint("%s", vm.Reason)
			}
			return vm.VM, e
		case <-d.stopping:
			return vm.VM, api.Errorf(api.CodeUnavailable, "volantd is stopping; VM %s is %s", vm.Name, vm.Status)
		}
	}
}

// CheckWait refuses to wait for a VM that is about to be started, restarted or
// scaled and could not become what then. Codes: not_found, invalid.
func (d *Daemon) CheckWait(ctx context.Context, name string, what api.VMWait) error {
	if what != api.WaitHealthy {
		return nil
	}
	vm, err := d.find(ctx, name)
	if err != nil {
		return err
	}
	probed := vm.HealthCheck
	if vm.Next != nil {
		probed = vm.Next.Probed
	}
	if !probed {
		return unprobed("VM " + vm.Name)
	}
	return nil
}

// unprobed is the error of waiting for the health of a VM that has no check.
func unprobed(which string) error {
	return api.Errorf(api.CodeInvalid, "%s has no health check: nothing says when it is healthy", which).
		WithHint("wait for it to be running, or give it a check (--health-cmd, or health_check in its configuration)")
}

// reached says whether vm has become what, or why it will not.
func reached(vm *row.VM, what api.VMWait) (bool, error) {
	never := func() error {
		if vm.Reason != "" {
			e := api.Errorf(api.CodeConflict, "VM %s has %s: %s", vm.Name, vm.Status, vm.Reason)
			if vm.Status == api.VMFailed { // it may never have run, and have said nothing
				return e.WithHint("once that is mended: volar vms start %s", vm.Name)
			}
			return e.WithHint("volar vms logs %s shows what it said", vm.Name)
		}
		return api.Errorf(api.CodeConflict, "VM %s is %s and will not be %s", vm.Name, vm.Status, what)
	}
	switch what {
	case api.WaitNone:
		return true, nil
	case api.WaitRunning, api.WaitHealthy:
		up := vm.Status == api.VMRunning && !vm.Replaced()
		switch {
		case what == api.WaitHealthy && !vm.HealthCheck && !(vm.Replaced() && vm.Next != nil && vm.Next.Probed):
			return false, unprobed("VM " + vm.Name)
		case vm.Desired != api.DesiredRunning:
			return false, never()
		case isPaused(vm):
			return false, api.Errorf(api.CodeConflict, "VM %s is paused and will not be %s", vm.Name, what).WithHint("volar vms resume %s lets it go on", vm.Name)
		case up && what == api.WaitHealthy && vm.Health.Status == api.HealthUnhealthy:
			return false, unhealthy(vm)
		case vm.CrashLoop && (!up || what == api.WaitHealthy && !vm.Healthy):
			return false, looping(vm)
		}
		return up && (what == api.WaitRunning || vm.Healthy), nil
	case api.WaitPaused:
		if vm.Desired != api.DesiredRunning || !vm.WantPaused {
			return false, never()
		}
		return vm.Status == api.VMPaused, nil
	case api.WaitStopped:
		return vm.Ended() && vm.Desired != api.DesiredRunning, nil
	}
	if vm.Desired != api.DesiredAbsent && !vm.AutoRemove && vm.ExpiresAt == nil {
		return false, api.Errorf(api.CodeConflict, "VM %s is not being deleted", vm.Name)
	}
	return false, nil
}

// unhealthy is the error of a VM that is not healthy, and why.
func unhealthy(vm *row.VM) error {
	e := api.Errorf(api.CodeConflict, "VM %s is unhealthy", vm.Name)
	if vm.Health.Output != "" {
		e.Message += ": " + vm.Health.Output
	}
	return e.WithHint("volar vms logs %s shows what it said", vm.Name)
}

// looping is the error of a VM that ends again and again.
func looping(vm *row.VM) error {
	why := vm.Reason
	if why == "" && vm.Exit != nil {
		why = exitSentence(vm.Exit)
	}
	e := api.Errorf(api.CodeConflict, "VM %s ends again and again, and is in a crash loop", vm.Name)
	if why != "" {
		e.Message += ": " + why
	}
	return e.WithHint("volar vms logs %s shows what it said; volar vms stop %s ends it", vm.Name, vm.Name)
}

// keptEnds is how many VMs that removed themselves are remembered: enough for
// those who wait for them at the time.
const keptEnds = 256

// ends remembers how VMs have ended that were removed for it. Safe for
// concurrent use; the zero value is empty.
type ends struct {
	mu   sync.Mutex
	last []api.VM // guarded by mu; the oldest first
}

func (e *ends) put(vm api.VM) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.last) == keptEnds {
		e.last = slices.Delete(e.last, 0, 1)
	}
	e.last = append(e.last, vm)
}

// get returns the VM of that name or id that was removed last.
func (e *ends) get(nameOrID string) (api.VM, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, vm := range slices.Backward(e.last) {
		if vm.ID == nameOrID || vm.Name == nameOrID {
			return vm, true
		}
	}
	return api.VM{}, false
}

// goneError is the error for a VM that is no more, with how it ended if it was
// removed for that.
func (d *Daemon) goneError(vm *row.VM) error {
	end, ok := d.ends.get(vm.ID)
	if ok && end.Reason != "" {
		return api.Errorf(api.CodeConflict, "VM %s has %s, and was deleted for that: %s", vm.Name, end.Status, end.Reason)
	}
	return api.Errorf(api.CodeConflict, "VM %s was deleted meanwhile", vm.Name)
}
