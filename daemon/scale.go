package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// ScaleVM changes how many vCPUs and how much memory a VM has: of one that has
// ended for its next start; of one that runs at once where its hypervisor can,
// and else, if in.Restart allows it, by a restart. It returns once the machine
// has that size, or the wish to restart is durable. Codes: not_found, invalid,
// conflict (on its way, paused, or only a restart helps), exhausted (memory of
// the host).
func (d *Daemon) ScaleVM(ctx context.Context, name string, in api.VMScale) (api.VM, error) {
	if in.CPUCores == 0 && in.MemoryMB == 0 {
		return api.VM{}, api.Errorf(api.CodeInvalid, "cpu_cores, memory_mb: give one of them, or both")
	}
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	size := api.Resources{CPUCores: in.CPUCores, MemoryMB: in.MemoryMB}
	if size.CPUCores == 0 {
		size.CPUCores = vm.CPUCores
	}
	if size.MemoryMB == 0 {
		size.MemoryMB = vm.MemoryMB
	}
	if err := api.ValidateResources("VM", size); err != nil {
		return api.VM{}, err
	}
	var caps hv.Capabilities
	if vm.Record != nil {
		if _, caps, err = d.driver(ctx, vm.Hypervisor); err != nil {
			return api.VM{}, d.publicError("scale VM", err)
		}
	}
	refusal, release, err := d.admit(ctx, vm.ID, size.MemoryMB)
	if err != nil {
		return api.VM{}, d.publicError("scale VM", err)
	}
	defer release()
	sub := d.bus.subscribe(vm.ID)
	defer d.bus.unsubscribe(sub)
	var now row.VM
	var live bool
	for try := 0; ; try++ {
		if now, live, err = d.tryScale(ctx, &vm, size, caps, in, refusal); !errors.Is(err, row.ErrStale) || try == configTries {
			break
		}
		if vm, err = d.store.VMByID(ctx, vm.ID); err != nil {
			break
		}
	}
	switch {
	case errors.Is(err, row.ErrNotFound):
		return api.VM{}, notFound("VM", name, nil)
	case errors.Is(err, row.ErrStale):
		return api.VM{}, api.Errorf(api.CodeConflict, "VM %s keeps changing", vm.Name)
	case err != nil:
		return api.VM{}, d.publicError("scale VM", err)
	}
	release()
	if !now.Settled() {
		d.kick(now.ID)
	}
	if !live {
		return now.VM, nil
	}
	return d.awaitSize(ctx, sub, now, size)
}

// tryScale is one try of ScaleVM, on the VM as it was read; row.ErrStale says that
// it has changed since. A size that nobody can refuse any more is a version of the
// configuration at once; of a machine that runs its worker makes it one, when the
// machine has it.
func (d *Daemon) tryScale(ctx context.Context, vm *row.VM, size api.Resources, caps hv.Capabilities, in api.VMScale, refusal error) (now row.VM, live bool, err error) {
	if live, err = d.scale(vm, size, caps, in.Restart); err != nil {
		return now, false, err
	}
	before := api.Resources{CPUCores: vm.CPUCores, MemoryMB: vm.MemoryMB}
	change := func(now *row.VM) ([]api.Event, error) {
		if now.Status != vm.Status || now.Desired != vm.Desired || now.Has != vm.Has || now.WantPaused != vm.WantPaused || now.Replace != vm.Replace || now.ConfigVersion < vm.ConfigVersion {
			return nil, row.ErrStale
		}
		if size == before {
			return nil, nil
		}
		if !vm.Settled() && size.MemoryMB > before.MemoryMB && refusal != nil {
			return nil, refusal
		}
		now.CPUCores, now.MemoryMB, now.SizeError, now.SizeBy = size.CPUCores, size.MemoryMB, "", in.By
		if !live && now.Status == api.VMRunning {
			d.wishRestart(now, api.VMStop{})
		}
		return []api.Event{{Type: api.EventVMScaled, Message: sizeWords(before) + " to " + sizeWords(size)}}, nil
	}
	later := live && (vm.Has.VCPUs != size.CPUCores || vm.Has.MemoryMiB != size.MemoryMB)
	version, differs, err := d.sizeVersion(ctx, vm, size, in.By)
	switch {
	case err != nil:
	case differs && !later:
		now, err = d.putConfig(ctx, vm, version, change)
	default:
		now, err = d.update(ctx, vm.ID, change)
	}
	return now, live && (size != before || vm.SizeError == ""), err
}

// scale decides how a VM gets a size: live, or with its next start.
func (d *Daemon) scale(vm *row.VM, size api.Resources, caps hv.Capabilities, restart bool) (live bool, err error) {
	switch {
	case vm.Desired == api.DesiredAbsent:
		return false, beingDeleted(vm)
	case vm.Ended(), vm.Status == api.VMPending:
		return false, nil
	case vm.Status != api.VMRunning || vm.Desired != api.DesiredRunning || vm.Replaced():
		return false, wrongState(vm, "a VM is scaled when it is running, or has ended")
	case vm.WantPaused:
		return false, api.Errorf(api.CodeConflict, "VM %s is about to be paused; a VM is scaled when it is running, or has ended", vm.Name)
	}
	why := ""
	switch {
	case vm.Has == row.Size{}:
		why = "it was started by a volantd that did not note its size"
	case size.CPUCores != vm.Has.VCPUs && !caps.ResizeCPU:
		why = fmt.Sprintf("it runs on %s, which cannot change vCPUs meanwhile", vm.Hypervisor)
	case size.MemoryMB != vm.Has.MemoryMiB && !caps.ResizeMemory:
		why = fmt.Sprintf("it runs on %s, which cannot change memory meanwhile", vm.Hypervisor)
	case size.CPUCores > vm.Has.MaxVCPUs:
		why = fmt.Sprintf("it was started with room for %d vCPUs", vm.Has.MaxVCPUs)
	case size.MemoryMB > vm.Has.MaxMemoryMiB:
		why = fmt.Sprintf("it was started with room for %d MiB of memory", vm.Has.MaxMemoryMiB)
	default:
		return true, nil
	}
	if size == (api.Resources{CPUCores: vm.CPUCores, MemoryMB: vm.MemoryMB}) || restart {
		return false, nil // nothing is to be done, or all is allowed
	}
	return false, needsRestart(vm.Name, why)
}

func needsRestart(name, why string) error {
	return api.Errorf(api.CodeConflict, "VM %s cannot be scaled while it runs: %s", name, why).WithHint("restart it with its new size: volar vms scale --restart, with the same flags")
}

// awaitSize waits until the worker has dealt with a new size.
func (d *Daemon) awaitSize(ctx context.Context, sub *subscription, vm row.VM, size api.Resources) (api.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.t.kill)
	defer cancel()
	for {
		switch {
		case vm.SizeError != "":
			return vm.VM, needsRestart(vm.Name, vm.SizeError)
		case vm.Status != api.VMRunning || vm.CPUCores != size.CPUCores || vm.MemoryMB != size.MemoryMB:
			return vm.VM, nil // others have changed what is wished meanwhile, and that is how it is
		case vm.Has.VCPUs == size.CPUCores && vm.Has.MemoryMiB == size.MemoryMB:
			return vm.VM, nil
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
			return vm.VM, api.Errorf(api.CodeTimeout, "VM %s is not scaled yet; it will be", vm.Name)
		case <-d.stopping:
			return vm.VM, api.Errorf(api.CodeUnavailable, "volantd is stopping; VM %s will be scaled by the next", vm.Name)
		}
		now, err := d.store.VMByID(ctx, vm.ID)
		switch {
		case errors.Is(err, row.ErrNotFound):
			return vm.VM, d.goneError(&vm)
		case err == nil:
			vm = now
		case ctx.Err() == nil:
			return vm.VM, d.publicError("scale VM", err)
		}
	}
}

func sizeWords(r api.Resources) string {
	return strconv.Itoa(r.CPUCores) + " vCPUs and " + strconv.Itoa(r.MemoryMB) + " MiB"
}

// oversized reports whether the machine is to become another size. One of which
// it is not known what it has stays as it is.
func oversized(vm *row.VM) bool {
	return vm.Status == api.VMRunning && vm.Has != (row.Size{}) && (vm.Has.VCPUs != vm.CPUCores || vm.Has.MemoryMiB != vm.MemoryMB)
}

// resize makes the machine the size that it is to have. If the hypervisor will
// not, the wish is taken back.
func (w *worker) resize(ctx context.Context, vm *row.VM) error {
	err := w.tryResize(ctx, vm)
	if err != nil && !errors.Is(err, hv.ErrInvalidSpec) && !errors.Is(err, hv.ErrUnsupported) {
		return w.ifHeld(ctx, vm, fmt.Errorf("resize: %w", err))
	}
	if err == nil {
		return w.resized(ctx, vm)
	}
	_, uerr := w.d.update(ctx, vm.ID, func(now *row.VM) ([]api.Event, error) {
		if now.CPUCores != vm.CPUCores || now.MemoryMB != vm.MemoryMB {
			return nil, nil // it is to have another size by now
		}
		now.CPUCores, now.MemoryMB, now.SizeError, now.SizeBy = now.Has.VCPUs, now.Has.MemoryMiB, clip(err.Error(), maxStepText), ""
		return []api.Event{{Type: api.EventVMScaled, Message: "back to " + sizeWords(api.Resources{CPUCores: now.CPUCores, MemoryMB: now.MemoryMB}) + ": " + now.SizeError}}, nil
	})
	w.log.Warn("VM not scaled", keyName, vm.Name, keyErr, err)
	return uerr
}

// resized notes that the machine has the size that vm says, which is a version of
// the VM's configuration from now on.
func (w *worker) resized(ctx context.Context, vm *row.VM) error {
	size := api.Resources{CPUCores: vm.CPUCores, MemoryMB: vm.MemoryMB}
	for {
		now, err := w.d.store.VMByID(ctx, vm.ID)
		if err != nil {
			return err
		}
		has := func(now *row.VM) ([]api.Event, error) {
			now.Has.VCPUs, now.Has.MemoryMiB, now.SizeBy = size.CPUCores, size.MemoryMB, ""
			return nil, nil
		}
		version, differs, err := w.d.sizeVersion(ctx, &now, size, now.SizeBy)
		if err != nil {
			return err
		}
		if !differs || now.CPUCores != size.CPUCores || now.MemoryMB != size.MemoryMB { // it is to have another size by now
			_, err := w.d.update(ctx, vm.ID, has)
			return err
		}
		version.AtOnce = true
		_, err = w.d.putConfig(ctx, vm, version, func(now *row.VM) ([]api.Event, error) {
			if now.CPUCores != size.CPUCores || now.MemoryMB != size.MemoryMB {
				return nil, row.ErrStale
			}
			return has(now)
		})
		if !errors.Is(err, row.ErrStale) {
			return err
		}
	}
}

func (w *worker) tryResize(ctx context.Context, vm *row.VM) error {
	m, ok := w.live.vm.(hv.Resizer)
	if !ok {
		return hv.ErrUnsupported
	}
	if w.d.cfg.Cgroups != nil {
		// Room before it is needed. A guest gives memory back slowly, or not at all:
		// its VMM keeps the limit that it had until its next start.
		if err := w.d.cfg.Cgroups.Limit(vm.ID, limitsOf(vm.CPUCores, max(vm.MemoryMB, vm.Has.MemoryMiB))); err != nil {
			return err
		}
	}
	return w.command(ctx, func(ctx context.Context) error {
		return m.Resize(ctx, changed(vm.CPUCores, vm.Has.VCPUs), changed(vm.MemoryMB, vm.Has.MemoryMiB))
	})
}

// changed is want, or 0 if that is what there is.
func changed(want, has int) int {
	if want == has {
		return 0
	}
	return want
}

const (
	// growth is how many times the memory that it starts with a machine may grow to.
	growth = 4
	// growthStep is of what the memory beyond is a multiple, in MiB: the blocks in
	// which guests take memory.
	growthStep = 128
)

// room returns what a machine may grow to while it runs, 0 for no more than it
// starts with.
func room(vm *row.VM, caps hv.Capabilities, hostMiB int) (vcpus, memoryMiB int) {
	if n := min(caps.MaxVCPUs, runtime.NumCPU()); caps.ResizeCPU && n > vm.CPUCores {
		vcpus = n
	}
	more := min(growth*vm.MemoryMB, hostMiB) - vm.MemoryMB
	if more -= more % growthStep; caps.ResizeMemory && more > 0 {
		memoryMiB = vm.MemoryMB + more
	}
	return vcpus, memoryMiB
}

// hostMemoryMiB reads how much memory this host has: MemTotal of
// proc_meminfo(5).
func hostMemoryMiB() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kib >> 10, err
		}
	}
	return 0, errors.New("/proc/meminfo: the kernel does not say MemTotal")
}
