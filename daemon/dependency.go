package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// checkDependencies refuses what a new VM called name, "" for one that is yet to
// be named, could never get: a VM that is not there, health of one that nobody
// asks, and itself.
func (d *Daemon) checkDependencies(ctx context.Context, name string, deps []api.Dependency) error {
	for i, dep := range deps {
		if dep.VM == name {
			return api.Errorf(api.CodeInvalid, "depends_on[%d].vm: VM %s cannot wait for itself", i, name)
		}
		vm, err := d.find(ctx, dep.VM)
		if err != nil {
			return at(fmt.Sprintf("depends_on[%d].vm", i), err)
		}
		if dep.Condition == api.DependHealthy && !vm.HealthCheck {
			return api.Errorf(api.CodeInvalid, "depends_on[%d].condition: VM %s has no health check: nothing says when it is healthy", i, dep.VM).
				WithHint("depend on it being running")
		}
	}
	circle, err := d.circle(ctx, name, deps)
	if err != nil || circle == nil {
		return err
	}
	return api.Errorf(api.CodeInvalid, "depends_on: each would wait for the next: %s", strings.Join(circle, " → "))
}

// maxCircle bounds how many VMs are looked at for a circle.
const maxCircle = 10_000

// circle returns the way from a VM that depends on deps back to it, by name; nil
// when there is none.
func (d *Daemon) circle(ctx context.Context, name string, deps []api.Dependency) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	type stop struct {
		name string
		from int // index of the one that depends on it
	}
	stops := []stop{{name: name, from: -1}}
	seen := map[string]bool{name: true}
	for i := 0; i < len(stops) && i < maxCircle; i++ {
		next := deps
		if i > 0 {
			vm, err := d.store.VM(ctx, stops[i].name)
			if errors.Is(err, row.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			next = vm.DependsOn
		}
		for _, dep := range next {
			if dep.VM == name {
				way := []string{name}
				for j := i; j >= 0; j = stops[j].from {
					way = append(way, stops[j].name)
				}
				slices.Reverse(way)
				return way, nil
			}
			if !seen[dep.VM] {
				seen[dep.VM] = true
				stops = append(stops, stop{dep.VM, i})
			}
		}
	}
	return nil, nil
}

// unmet says what a VM still waits for before it can be started; "" for nothing.
func (d *Daemon) unmet(ctx context.Context, vm *row.VM) (string, error) {
	for _, dep := range vm.DependsOn {
		other, err := d.store.VM(ctx, dep.VM)
		if errors.Is(err, row.ErrNotFound) {
			return "VM " + dep.VM + " to be " + dep.Wants() + ": there is no such VM", nil
		}
		if err != nil {
			return "", err
		}
		if d.isUp(&other) && (dep.Wants() != api.DependHealthy || other.Healthy) {
			continue
		}
		why := "it is " + string(other.Status)
		switch circle, err := d.circle(ctx, vm.Name, vm.DependsOn); {
		case err != nil:
			return "", err
		case circle != nil:
			why = "each waits for the next: " + strings.Join(circle, " → ")
		case other.WaitingFor != "":
			why = "it waits for others itself"
		case other.Status == api.VMRunning && dep.Wants() == api.DependHealthy && !other.HealthCheck:
			why = "it has no health check"
		case other.Status == api.VMRunning && dep.Wants() == api.DependHealthy:
			why = "it is " + string(other.Health.Status)
		}
		return "VM " + dep.VM + " to be " + dep.Wants() + ": " + why, nil
	}
	return "", nil
}

// isUp reports whether a VM runs. That its row says so is not enough: the host may
// have been rebooted since.
func (d *Daemon) isUp(vm *row.VM) bool {
	w := d.worker(vm.ID)
	return vm.Status == api.VMRunning && !vm.Replaced() && w != nil && w.shown.Load() != nil
}

// startInTurn starts the VM once all that it depends on is up.
func (w *worker) startInTurn(ctx context.Context, vm *row.VM) error {
	for len(vm.DependsOn) > 0 {
		ready, err := w.awaitOthers(ctx, vm)
		if ready {
			break
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		now, err := w.d.store.VMByID(ctx, w.id)
		if err != nil {
			return err
		}
		if now.Desired != api.DesiredRunning || now.Replaced() {
			return nil // look at the wish
		}
		vm = &now
	}
	return w.start(ctx, vm)
}

// bearer returns the id of the VM that has a name now. For a name that nobody has
// it is "", which on the bus stands for whatever happens.
func (d *Daemon) bearer(ctx context.Context, name string) (string, error) {
	vm, err := d.store.VM(ctx, name)
	if errors.Is(err, row.ErrNotFound) {
		return "", nil
	}
	return vm.ID, err
}

// awaitOthers reports whether what the VM depends on is up. If it is not, the row
// says what is missing, and awaitOthers returns when that may have changed.
func (w *worker) awaitOthers(ctx context.Context, vm *row.VM) (ready bool, err error) {
	wake := make(chan struct{}, 1)
	for _, dep := range vm.DependsOn {
		id, err := w.d.bearer(ctx, dep.VM)
		if err != nil {
			return false, err
		}
		defer w.d.bus.unsubscribe(w.d.bus.join(id, wake))
		// From here on that VM's loss of the name wakes; before, it was not heard.
		if now, err := w.d.bearer(ctx, dep.VM); err != nil || now != id {
			return false, err // look again
		}
	}
	missing, err := w.d.unmet(ctx, vm)
	if err != nil || missing == "" {
		return err == nil, err
	}
	if missing != vm.WaitingFor {
		if _, err := w.d.update(ctx, w.id, func(vm *row.VM) ([]api.Event, error) {
			if vm.Desired != api.DesiredRunning {
				return nil, nil
			}
			vm.WaitingFor = missing
			return []api.Event{{Type: api.EventVMWaiting, Message: "waits for " + missing}}, nil
		}); err != nil {
			return false, err
		}
	}
	select {
	case <-wake:
	case <-w.wake:
	case <-ctx.Done():
	}
	return false, nil
}

// wishAfterReboot wishes those VMs running that their operator had stopped before
// the host was rebooted, and whose policy is always. It does so once a boot.
func (d *Daemon) wishAfterReboot(ctx context.Context) error {
	ids, err := d.store.StoppedBefore(ctx, d.cfg.BootID, api.RestartAlways)
	if err != nil {
		return err
	}
	for _, id := range ids {
		_, err := d.update(ctx, id, func(vm *row.VM) ([]api.Event, error) {
			if vm.Settled() && vm.BootID != d.cfg.BootID {
				vm.Desired, vm.Stop, vm.AcceptedAt = api.DesiredRunning, api.VMStop{}, d.cfg.Now().UTC()
				// From here on it counts as dealt with, also when it is stopped before its
				// next incarnation begins.
				vm.BootID, vm.Tries.Auto = d.cfg.BootID, true
			}
			return nil, nil
		})
		if err != nil && !errors.Is(err, row.ErrNotFound) {
			return err
		}
	}
	return nil
}
