package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/ipam"
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

// newID returns a VM's id: 60 random bits in lower-case base32. It is part of
// socket paths, tap aliases and the kernel command line, so it is short.
func newID() string { return strings.ToLower(rand.Text()[:12]) }

// CreateVM stores a new VM with an address and, unless req.Stopped, the wish
// that it runs. It returns once that is durable; the VM is started in the
// background. Codes: invalid, not_found (plugin, kernel), exists (name,
// address), exhausted (addresses, disk), conflict (plugin disabled, no kernel),
// unavailable (no network).
func (d *Daemon) CreateVM(ctx context.Context, req api.VMCreate) (api.VM, error) {
	vm, err := d.newVM(ctx, req)
	if err != nil {
		return api.VM{}, d.publicError("create VM", err)
	}
	vm.Lease, err = d.lease(&vm.VM, req.IPAddress)
	if err != nil {
		return api.VM{}, d.publicError("create VM", err)
	}
	// Ids, MACs and CIDs are hashes of random bits; should one be taken, the
	// next id has others.
	for try := 0; ; try++ {
		vm.VM.ID = newID()
		if vm.VM.VsockCID, err = ipam.CID(vm.VM.ID, nil); err != nil {
			return api.VM{}, d.publicError("create VM", err)
		}
		if !vm.VM.Vsock {
			vm.VM.MACAddress = ipam.MAC(vm.VM.ID).String()
		}
		created, _, err := d.store.CreateVM(ctx, vm, api.Event{Type: api.EventVMCreated})
		var exists *row.ExistsError
		if errors.As(err, &exists) && try < 3 && slices.Contains([]string{"vms.id", "vms.mac", "vms.cid"}, exists.Column) {
			continue
		}
		switch {
		case errors.As(err, &exists) && exists.Column == "vms.name":
			return api.VM{}, api.Errorf(api.CodeExists, "a VM named %s exists", req.Name).WithHint("choose another name, or delete it: volar vms delete %s", req.Name)
		case errors.Is(err, row.ErrInUse): // the plugin was removed just now
			return api.VM{}, api.Errorf(api.CodeNotFound, "there is no plugin %q", req.Plugin)
		case err != nil:
			return api.VM{}, d.publicError("create VM", err)
		}
		d.bus.notify(created.ID, true)
		if !created.Settled() {
			d.kick(created.ID)
		}
		return created.VM, nil
	}
}

// newVM checks req and makes the row of it, without identity and address.
func (d *Daemon) newVM(ctx context.Context, req api.VMCreate) (row.NewVM, error) {
	if err := api.ValidateName("VM", req.Name); err != nil {
		return row.NewVM{}, err
	}
	if err := api.ValidateEnv("env", req.Env); err != nil {
		return row.NewVM{}, err
	}
	if err := api.ValidateLabels("labels", req.Labels); err != nil {
		return row.NewVM{}, err
	}
	if _, err := kernelParameters(req.KernelCmdline); err != nil {
		return row.NewVM{}, err
	}
	if req.Plugin == "" {
		return row.NewVM{}, api.Errorf(api.CodeInvalid, "plugin: is missing").WithHint("volar plugins list shows what is installed")
	}
	p, err := d.plugin(ctx, req.Plugin)
	if err != nil {
		return row.NewVM{}, err
	}
	if !p.Enabled {
		return row.NewVM{}, api.Errorf(api.CodeConflict, "plugin %s is disabled", p.Name).WithHint("volar plugins enable %s", p.Name)
	}
	if req.Runtime != "" && req.Runtime != p.Runtime {
		return row.NewVM{}, api.Errorf(api.CodeInvalid, "runtime: is %.80q, but plugin %s has %s", req.Runtime, p.Name, p.Runtime)
	}
	res := p.Manifest.Resources
	if req.CPUCores != 0 {
		res.CPUCores = req.CPUCores
	}
	if req.MemoryMB != 0 {
		res.MemoryMB = req.MemoryMB
	}
	if err := api.ValidateResources("VM", res); err != nil {
		return row.NewVM{}, err
	}
	kernel := req.Kernel
	if kernel == "" {
		kernel = p.Manifest.Kernel
	}
	if kernel != "" || !req.Stopped {
		if _, err := d.kernel(ctx, kernel); err != nil {
			return row.NewVM{}, err
		}
	}

	now := d.cfg.Now().UTC()
	vm := row.VM{
		VM: api.VM{
			Name: req.Name, Plugin: p.Name, Runtime: p.Runtime, Status: api.VMPending, Desired: api.DesiredRunning,
			CPUCores: res.CPUCores, MemoryMB: res.MemoryMB, KernelCmdline: req.KernelCmdline, Kernel: kernel,
			Labels: mergeLabels(p.Manifest.Labels, req.Labels),
		},
		PluginVersion: p.Version, WantKernel: kernel, Env: req.Env, AcceptedAt: now,
		Vsock: p.Manifest.Network != nil && p.Manifest.Network.Mode == api.NetworkVsock,
	}
	if req.Stopped {
		vm.Status, vm.Desired = api.VMStopped, api.DesiredStopped
	}
	return row.NewVM{VM: vm, Manifest: p.Manifest, Blobs: manifestBlobs(&p.Manifest)}, nil
}

func mergeLabels(under, over map[string]string) map[string]string {
	if len(under)+len(over) == 0 {
		return nil
	}
	out := make(map[string]string, len(under)+len(over))
	maps.Copy(out, under)
	maps.Copy(out, over)
	return out
}

// lease returns what chooses the VM's address from those taken: the pinned one
// or the lowest that is free; nil for a VM without a NIC.
func (d *Daemon) lease(vm *row.VM, pinned string) (func([]netip.Addr) (netip.Addr, error), error) {
	if vm.Vsock {
		if pinned != "" {
			return nil, api.Errorf(api.CodeInvalid, "ip_address: plugin %s has network mode vsock; its VMs have no address", vm.Plugin)
		}
		return nil, nil
	}
	if d.cfg.Network == nil {
		return nil, api.Errorf(api.CodeUnavailable, "this volantd has no network").WithHint("start it with a bridge, or use a plugin with network mode vsock")
	}
	if pinned == "" {
		return d.cfg.Pool.Lowest, nil
	}
	addr, err := netip.ParseAddr(pinned)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "ip_address: %.80q is not an IP address", pinned)
	}
	return func(taken []netip.Addr) (netip.Addr, error) { return addr, d.cfg.Pool.Check(addr, taken) }, nil
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
	if !vm.Settled() {
		d.kick(vm.ID)
	}
	return vm.VM, nil
}

// update is Store.ChangeVM, and tells who waits.
func (d *Daemon) update(ctx context.Context, id string, change func(vm *row.VM) ([]api.Event, error)) (row.VM, error) {
	vm, evs, err := d.store.ChangeVM(ctx, id, change)
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
	return d.change(ctx, vm.ID, "start VM", func(vm *row.VM) error {
		if vm.Desired == api.DesiredAbsent {
			return beingDeleted(vm)
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
	if _, _, err := d.driver(ctx); err != nil {
		return err
	}
	_, err := d.kernel(ctx, vm.WantKernel)
	return err
}

// wishRunning sets the wish, and what goes with it unless the VM runs already.
func (d *Daemon) wishRunning(vm *row.VM) {
	up := !vm.Ended() && vm.Status != api.VMStopping && !vm.Replaced()
	if vm.Desired == api.DesiredRunning && up {
		return
	}
	vm.Desired, vm.Restarts, vm.Stop = api.DesiredRunning, 0, api.VMStop{}
	if !up {
		vm.AcceptedAt = d.cfg.Now().UTC()
	}
}

// StopVM wishes the VM to be stopped. Asking again with another how changes how
// a stop that is under way is done. Codes: not_found, conflict (being deleted),
// invalid.
func (d *Daemon) StopVM(ctx context.Context, name string, how api.VMStop) (api.VM, error) {
	if err := checkStop(how); err != nil {
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
	if err := checkStop(how); err != nil {
		return api.VM{}, err
	}
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	if err := d.canStart(ctx, &row.VM{WantKernel: vm.WantKernel}); err != nil {
		return api.VM{}, d.publicError("restart VM", err)
	}
	return d.change(ctx, vm.ID, "restart VM", func(vm *row.VM) error {
		switch {
		case vm.Desired == api.DesiredAbsent:
			return beingDeleted(vm)
		case vm.Ended(), vm.Status == api.VMPending:
			d.wishRunning(vm)
		case vm.Status == api.VMStarting && vm.Incarnation == vm.Replace+1 && vm.Replace > 0:
			// The incarnation that an earlier restart asked for is on its way.
			vm.Desired = api.DesiredRunning
		default:
			vm.Desired, vm.Restarts, vm.Stop, vm.Replace = api.DesiredRunning, 0, how, vm.Incarnation
			vm.AcceptedAt = d.cfg.Now().UTC()
		}
		return nil
	})
}

// DeleteVM wishes the VM gone: stopped, its files removed, and at last its name
// and address free. Deleting again changes only how. Codes: not_found, invalid.
func (d *Daemon) DeleteVM(ctx context.Context, name string, how api.VMStop) error {
	if err := checkStop(how); err != nil {
		return err
	}
	_, err := d.change(ctx, name, "delete VM", func(vm *row.VM) error {
		vm.Desired, vm.Stop = api.DesiredAbsent, how
		return nil
	})
	return err
}

func checkStop(how api.VMStop) error {
	const maxGrace = 24 * 60 * 60
	if how.GraceSeconds < 0 || how.GraceSeconds > maxGrace {
		return api.Errorf(api.CodeInvalid, "grace_seconds: is %d; give 0 to %d", how.GraceSeconds, maxGrace)
	}
	return nil
}

// WaitVM returns when the VM has become what, and fails with conflict and the
// reason when it can no longer become so by itself, with timeout when ctx ends
// first. A VM without a health check is healthy when it runs. Waiting for the
// deletion of a VM that is not there succeeds at once.
func (d *Daemon) WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error) {
	switch what {
	case api.WaitNone, api.WaitRunning, api.WaitHealthy, api.WaitStopped, api.WaitDeleted:
	default:
		return api.VM{}, api.Errorf(api.CodeInvalid, "wait: %.40q is not known; give one of running, healthy, stopped, deleted", string(what))
	}
	vm, err := d.find(ctx, name)
	if what == api.WaitDeleted && api.CodeOf(err) == api.CodeNotFound {
		return api.VM{}, nil
	}
	if err != nil {
		return api.VM{}, err
	}
	probed := true
	if what == api.WaitHealthy {
		m, err := d.store.Manifest(ctx, vm.Manifest)
		if err != nil {
			return api.VM{}, d.publicError("wait for VM", err)
		}
		probed = agentKind(&m) != api.AgentNone && healthConfig(&m) != nil
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
			return vm.VM, api.Errorf(api.CodeConflict, "VM %s was deleted meanwhile", vm.Name)
		case err != nil && ctx.Err() == nil:
			return vm.VM, d.publicError("wait for VM", err)
		case err == nil:
			vm = now
			if done, err := reached(&vm, what, probed); done || err != nil {
				return vm.VM, err
			}
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
			e := api.Errorf(api.CodeTimeout, "VM %s is %s, not yet %s", vm.Name, vm.Status, what)
			if vm.Reason != "" {
				e = e.WithHint("%s", vm.Reason)
			}
			return vm.VM, e
		case <-d.stopping:
			return vm.VM, api.Errorf(api.CodeUnavailable, "volantd is stopping; VM %s is %s", vm.Name, vm.Status)
		}
	}
}

// reached says whether vm has become what, or why it will not.
func reached(vm *row.VM, what api.VMWait, probed bool) (bool, error) {
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
		if vm.Desired != api.DesiredRunning {
			return false, never()
		}
		up := vm.Status == api.VMRunning && !vm.Replaced()
		return up && (what == api.WaitRunning || !probed || vm.Healthy), nil
	case api.WaitStopped:
		return vm.Ended() && vm.Desired != api.DesiredRunning, nil
	}
	if vm.Desired != api.DesiredAbsent {
		return false, api.Errorf(api.CodeConflict, "VM %s is not being deleted", vm.Name)
	}
	return false, nil
}
