package daemon

import (
	"context"
	"errors"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// maxHints bounds how many names are looked through for "did you mean".
const maxHints = 5000

// find returns the VM of that name or id, or an *api.Error.
func (d *Daemon) find(ctx context.Context, name string) (row.VM, error) {
	vm, err := d.store.VM(ctx, name)
	if errors.Is(err, row.ErrNotFound) {
		names, _ := d.store.VMNames(ctx, maxHints) // the hint is a courtesy
		return row.VM{}, notFound("VM", name, names)
	}
	if err != nil {
		return row.VM{}, d.publicError("get VM", err)
	}
	return vm, nil
}

// VM returns one VM. Codes: not_found.
func (d *Daemon) VM(ctx context.Context, name string) (api.VM, error) {
	vm, err := d.find(ctx, name)
	return vm.VM, err
}

// VMs returns the VMs that f selects, and how many there are without its limit
// and offset. Codes: invalid.
func (d *Daemon) VMs(ctx context.Context, f api.VMFilter) (vms []api.VM, total int, err error) {
	rows, total, err := d.store.VMs(ctx, f)
	if err != nil {
		return nil, 0, d.publicError("list VMs", err)
	}
	vms = make([]api.VM, len(rows))
	for i := range rows {
		vms[i] = rows[i].VM
	}
	return vms, total, nil
}

// change alters the wish for a VM in one transaction, tells who waits, and
// wakes its worker.
func (d *Daemon) change(ctx context.Context, name, op string, alter func(vm *row.VM) error) (api.VM, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	vm, err = d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) { return nil, alter(vm) })
	if errors.Is(err, row.ErrNotFound) {
		return api.VM{}, notFound("VM", name, nil)
	}
	if err != nil {
		return api.VM{}, d.publicError(op, err)
	}
	if !vm.Settled() || d.worker(vm.ID) != nil { // which may wait for its next start
		d.kick(vm.ID)
	}
	return vm.VM, nil
}

// update is Store.ChangeVM, wishes VMs gone that are to go once they have ended,
// and tells who waits.
func (d *Daemon) update(ctx context.Context, id string, change func(vm *row.VM) ([]api.Event, error)) (row.VM, error) {
	vm, evs, err := d.store.ChangeVM(ctx, id, func(vm *row.VM) ([]api.Event, error) {
		settled := vm.Settled()
		evs, err := change(vm)
		if vm.Settled() && !settled {
			vm.NextStartAt, vm.WaitingFor, vm.CrashLoop, vm.Tries.Streak = nil, "", false, 0
		}
		if vm.AutoRemove && vm.Settled() && !settled {
			vm.Desired = api.DesiredAbsent // in the transaction of its end: whoever dies now, it is not forgotten
		}
		return evs, err
	})
	if err == nil {
		d.bus.notify(id, len(evs) > 0)
	}
	return vm, err
}

func beingDeleted(vm *row.VM) error {
	return api.Errorf(api.CodeConflict, "VM %s is being deleted", vm.Name)
}

// StartVM wishes the VM to run. It returns once the wish is durable; wishing
// what is so already changes nothing. Codes: not_found, conflict (being
// deleted, no kernel), unavailable (no hypervisor).
func (d *Daemon) StartVM(ctx context.Context, name string) (api.VM, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	if err := d.canStart(ctx, &vm); err != nil {
		return api.VM{}, d.publicError("start VM", err)
	}
	refusal, release, err := d.admit(ctx, vm.ID, vm.MemoryMB)
	if err != nil {
		return api.VM{}, d.publicError("start VM", err)
	}
	defer release()
	return d.change(ctx, vm.ID, "start VM", func(vm *row.VM) error {
		if vm.Desired == api.DesiredAbsent {
			return beingDeleted(vm)
		}
		if isPaused(vm) {
			return api.Errorf(api.CodeConflict, "VM %s is paused, not stopped", vm.Name).WithHint("volar vms resume %s lets it go on", vm.Name)
		}
		if vm.Settled() && refusal != nil {
			return refusal
		}
		d.wishRunning(vm)
		return nil
	})
}

// canStart refuses at once what would only fail in the background.
func (d *Daemon) canStart(ctx context.Context, vm *row.VM) error {
	if vm.Status == api.VMRunning || vm.Status == api.VMPaused {
		return nil
	}
	next := *vm
	next.TakeNext()
	vm = &next
	m, err := d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return err
	}
	if _, _, err := d.driver(ctx, m.Hypervisor); err != nil {
		return err
	}
	if _, err := d.bootKernel(ctx, vm.WantKernel, &m); err != nil {
		return err
	}
	for _, mount := range m.Volumes {
		if mount.Name == "" {
			continue
		}
		v, err := d.store.Volume(ctx, mount.Name)
		if errors.Is(err, row.ErrNotFound) || err == nil && (v.Running == "" || v.Running == vm.Name || mount.ReadOnly) {
			continue // who only reads is judged by the claim, which knows how the others do
		}
		if err != nil {
			return err
		}
		return &row.VolumeBusyError{Volume: v.Name, VM: v.Running}
	}
	return nil
}

// wishRunning sets the wish, and what goes with it unless the VM runs already.
func (d *Daemon) wishRunning(vm *row.VM) {
	up := !vm.Ended() && vm.Status != api.VMStopping && !vm.Replaced()
	if vm.Desired == api.DesiredRunning && up {
		return
	}
	vm.Desired, vm.Stop = api.DesiredRunning, api.VMStop{}
	beginAnew(vm)
	if !up {
		vm.AcceptedAt = d.cfg.Now().UTC()
	}
}

// StopVM wishes the VM to be stopped. Asking again with another how changes how
// a stop that is under way is done. Codes: not_found, conflict (being deleted),
// invalid.
func (d *Daemon) StopVM(ctx context.Context, name string, how api.VMStop) (api.VM, error) {
	if err := how.Validate(); err != nil {
		return api.VM{}, err
	}
	return d.change(ctx, name, "stop VM", func(vm *row.VM) error {
		if vm.Desired == api.DesiredAbsent {
			return beingDeleted(vm)
		}
		if vm.Settled() {
			return nil
		}
		vm.Desired, vm.Stop = api.DesiredStopped, how
		return nil
	})
}

// RestartVM wishes that the present incarnation ends and another runs; a VM
// that has ended is started. Codes as StartVM and StopVM.
func (d *Daemon) RestartVM(ctx context.Context, name string, how api.VMStop) (api.VM, error) {
	if err := how.Validate(); err != nil {
		return api.VM{}, err
	}
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	stopped := vm
	stopped.Status = api.VMStopped
	if err := d.canStart(ctx, &stopped); err != nil {
		return api.VM{}, d.publicError("restart VM", err)
	}
	refusal, release, err := d.admit(ctx, vm.ID, vm.MemoryMB)
	if err != nil {
		return api.VM{}, d.publicError("restart VM", err)
	}
	defer release()
	return d.change(ctx, vm.ID, "restart VM", func(vm *row.VM) error {
		if vm.Settled() && refusal != nil {
			return refusal
		}
		if vm.Desired == api.DesiredAbsent {
			return beingDeleted(vm)
		}
		d.wishRestart(vm, how)
		return nil
	})
}

// wishRestart sets the wish that the present incarnation ends and another runs.
func (d *Daemon) wishRestart(vm *row.VM, how api.VMStop) {
	switch {
	case vm.Ended(), vm.Status == api.VMPending:
		d.wishRunning(vm)
	case vm.Status == api.VMStarting && vm.Incarnation == vm.Replace+1 && vm.Replace > 0:
		// The incarnation that an earlier restart asked for is on its way.
		vm.Desired = api.DesiredRunning
	default:
		vm.Desired, vm.Stop, vm.Replace = api.DesiredRunning, how, vm.Incarnation
		beginAnew(vm)
		vm.AcceptedAt = d.cfg.Now().UTC()
	}
}

// DeleteVM wishes the VM gone: stopped, its files removed, and at last its name
// and address free. Deleting again changes only how. Codes: not_found, invalid.
func (d *Daemon) DeleteVM(ctx context.Context, name string, how api.VMStop) error {
	if err := how.Validate(); err != nil {
		return err
	}
	_, err := d.change(ctx, name, "delete VM", func(vm *row.VM) error {
		vm.Desired, vm.Stop = api.DesiredAbsent, how
		return nil
	})
	return err
}
