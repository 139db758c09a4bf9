package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
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
// background. Codes: invalid, not_found (plugin, image, kernel, blob), exists
// (name, address, host port), exhausted (addresses, ports, disk), conflict
// (plugin disabled, no kernel, host port), unavailable (no network),
// unsupported (what this version or hypervisor cannot do).
func (d *Daemon) CreateVM(ctx context.Context, req api.VMCreate) (api.VM, error) {
	vm, err := d.newVM(ctx, req)
	if err != nil {
		return api.VM{}, d.publicError("create VM", err)
	}
	if !req.Stopped {
		refusal, release, err := d.admit(ctx, "", vm.VM.MemoryMB)
		if err != nil {
			return api.VM{}, d.publicError("create VM", err)
		}
		defer release()
		if refusal != nil {
			return api.VM{}, refusal
		}
	}
	// A blob that is there now is to be there until the row names it.
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	if err := d.checkBlobs(ctx, &vm.Manifest); err != nil {
		return api.VM{}, err
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
		case errors.Is(err, row.ErrInUse) && req.Image != "": // the image was removed just now
			return api.VM{}, noImage(req.Image)
		case errors.Is(err, row.ErrInUse): // the plugin was removed just now
			return api.VM{}, api.Errorf(api.CodeNotFound, "there is no plugin %q", req.Plugin)
		case err != nil:
			return api.VM{}, d.publicError("create VM", err)
		}
		d.bus.notify(created.ID, true)
		if created.ExpiresAt != nil {
			d.expiries.look()
		}
		if !created.Settled() {
			d.kick(created.ID)
		}
		return created.VM, nil
	}
}

// origin is what a VM is made from: a plugin or an image.
type origin struct {
	manifest api.Manifest
	image    *api.ImageConfig // of an image
	vm       api.VM           // what the VM shows of it
	version  string           // of a plugin
	prefix   string           // of the names of VMs that have none
}

// newVM checks req and makes the row of it, without identity and address.
func (d *Daemon) newVM(ctx context.Context, req api.VMCreate) (row.NewVM, error) {
	if err := req.Validate(); err != nil {
		return row.NewVM{}, err
	}
	if _, err := kernelParameters(req.KernelCmdline); err != nil {
		return row.NewVM{}, err
	}
	var from origin
	var err error
	switch {
	case req.Image != "":
		from, err = d.fromImage(ctx, req)
	case req.Plugin != "":
		from, err = d.fromPlugin(ctx, req)
	default:
		err = api.Errorf(api.CodeInvalid, "plugin: is missing").WithHint("volar plugins list shows what is installed; a VM can also be made from an image")
	}
	if err != nil {
		return row.NewVM{}, err
	}
	if req.Runtime != "" && req.Runtime != from.vm.Runtime {
		return row.NewVM{}, api.Errorf(api.CodeInvalid, "runtime: is %.80q, but %s has %s", req.Runtime, from.prefix, from.vm.Runtime)
	}
	m, err := api.Compose(from.manifest, from.image, req)
	if err != nil {
		return row.NewVM{}, err
	}
	if err := d.canRun(ctx, &m, req); err != nil {
		return row.NewVM{}, err
	}
	if err := d.checkDependencies(ctx, req.Name, m.DependsOn); err != nil {
		return row.NewVM{}, err
	}
	res := m.Resources
	if req.CPUCores != 0 {
		res.CPUCores = req.CPUCores
	}
	if req.MemoryMB != 0 {
		res.MemoryMB = req.MemoryMB
	}
	if err := api.ValidateResources("VM", res); err != nil {
		return row.NewVM{}, err
	}

	vm := row.VM{
		VM: from.vm, PluginVersion: from.version, WantKernel: m.Kernel, Env: req.Env, AcceptedAt: d.cfg.Now().UTC(),
		Vsock: m.Network != nil && m.Network.Mode == api.NetworkVsock,
	}
	vm.Name, vm.Status, vm.Desired = req.Name, api.VMPending, api.DesiredRunning
	vm.CPUCores, vm.MemoryMB, vm.KernelCmdline, vm.Kernel = res.CPUCores, res.MemoryMB, req.KernelCmdline, m.Kernel
	vm.Labels, vm.AutoRemove = api.MergeLabels(m.Labels, req.Labels), req.AutoRemove
	vm.TTLSeconds = req.TTLSeconds
	vm.Attach, vm.HealthCheck, vm.Restart = req.Attach, probed(&m), m.Restart
	vm.DependsOn = m.DependsOn
	if m.Workload != nil {
		vm.TTY, vm.Stdin = m.Workload.TTY, m.Workload.Stdin
	}
	if req.Stopped {
		vm.Status, vm.Desired = api.VMStopped, api.DesiredStopped
	}
	resetHealth(&vm)
	out := row.NewVM{VM: vm, NamePrefix: from.prefix, Manifest: m, Blobs: manifestBlobs(&m)}
	if out.VM.Ports, out.Publish, err = d.choosePorts(m.Ports, req.Ports, vm.Vsock); err != nil {
		return row.NewVM{}, err
	}
	out.Lease, err = d.lease(&out.VM, req.IPAddress)
	return out, err
}

// canRun refuses what could only fail in the background.
func (d *Daemon) canRun(ctx context.Context, m *api.Manifest, req api.VMCreate) error {
	if err := checkSupported(m); err != nil {
		return err
	}
	if req.AutoRemove && policyOf(m).Policy != api.RestartNever {
		return api.Errorf(api.CodeInvalid, "auto_remove: the plugin's VMs are started again when they end (restart.policy %s)", m.Restart.Policy).
			WithHint("give restart.policy never too")
	}
	if m.Kernel != "" || !req.Stopped {
		if _, err := d.bootKernel(ctx, m.Kernel, m); err != nil {
			return err
		}
	}
	// Without a hypervisor VMs can be created all the same, and none is looked for
	// here: that takes too long.
	var caps hv.Capabilities
	if drv, err := d.chosen(m.Hypervisor); err == nil {
		caps, _ = d.caps.get(drv.Name())
	}
	return checkDisks(m, caps)
}

func (d *Daemon) fromPlugin(ctx context.Context, req api.VMCreate) (origin, error) {
	p, err := d.plugin(ctx, req.Plugin)
	if err != nil {
		return origin{}, err
	}
	if !p.Enabled {
		return origin{}, api.Errorf(api.CodeConflict, "plugin %s is disabled", p.Name).WithHint("volar plugins enable %s", p.Name)
	}
	const room = 12 // for a hyphen and a number
	return origin{
		manifest: p.Manifest, vm: api.VM{Plugin: p.Name, Runtime: p.Runtime}, version: p.Version,
		prefix: strings.TrimRight(p.Name[:min(len(p.Name), api.MaxNameLength-room)], "-"),
	}, nil
}

// Resources of a VM made from an image that is given none. An image says nothing
// of what it needs; most serve in this.
const (
	imageCPUs      = 1
	imageMemoryMiB = 256
)

func (d *Daemon) fromImage(ctx context.Context, req api.VMCreate) (origin, error) {
	img, ref, err := d.image(ctx, req.Image)
	if err != nil {
		return origin{}, err
	}
	if ref == "" { // named by its ID
		ref = img.ID
		if len(img.References) > 0 {
			ref = img.References[0]
		}
	}
	if own := "linux/" + runtime.GOARCH; img.Platform != "" && img.Platform != own && !strings.HasPrefix(img.Platform, own+"/") {
		return origin{}, api.Errorf(api.CodeUnsupported, "image %s is for %s; this host runs %s", ref, img.Platform, own).WithHint("pull it for this platform")
	}
	name := api.ImageName(ref)
	if ref == img.ID {
		name = "image"
	}
	m, err := api.ImageManifest(name, img.Config)
	if err != nil {
		return origin{}, at("image "+ref, err)
	}
	m.Runtime, m.Image, m.ImageDigest = name, ref, img.ID
	m.Resources = api.Resources{CPUCores: imageCPUs, MemoryMB: imageMemoryMiB}
	source := "docker://" + ref
	switch form := formOf(req.Form); {
	case form == api.FormInitramfs && img.Initramfs != "":
		// It is in memory twice while the kernel unpacks it.
		m.Resources.MemoryMB += int(2 * (img.InitramfsSize >> 20))
		m.Initramfs = &api.Initramfs{URL: source, Checksum: img.Initramfs, Agent: api.AgentHost}
	case form == api.FormDisk && img.Disk != "":
		m.Rootfs = &api.Rootfs{URL: source, Checksum: img.Disk}
	default:
		return origin{}, api.Errorf(api.CodeNotFound, "image %s is here, but not in the form %s", ref, form).
			WithHint("pull it in that form too: volar images pull %s --form %s", ref, form)
	}
	return origin{manifest: m, image: &img.Config, vm: api.VM{Image: ref, ImageID: img.ID, Runtime: name}, prefix: name}, nil
}

func formOf(f api.ImageForm) api.ImageForm {
	if f == "" {
		return api.FormDisk
	}
	return f
}

// choosePorts returns the ports of a VM and, if any is to be published, what
// chooses the host's ports once those that are taken are known.
func (d *Daemon) choosePorts(manifest, request []api.Port, vsock bool) ([]api.Port, func([]row.Published) ([]api.Port, error), error) {
	all := api.MergePorts(manifest, request)
	published := len(request) > 0
	for i := range all {
		p := &all[i]
		if p.Protocol == "" {
			p.Protocol = api.ProtocolTCP
		}
		if p.HostIP == "0.0.0.0" {
			p.HostIP = ""
		}
		published = published || p.HostPort != 0
	}
	if !published {
		return all, nil, nil
	}
	if vsock {
		return nil, nil, api.Errorf(api.CodeInvalid, "ports: with network mode vsock the VM has no address whose ports could be published")
	}
	return all, func(taken []row.Published) ([]api.Port, error) {
		out := slices.Clone(all)
		for i := range out {
			p := &out[i]
			asked := i >= len(out)-len(request)
			switch {
			case p.HostPort != 0:
				j := slices.IndexFunc(taken, func(t row.Published) bool { return t.Port.Conflicts(*p) })
				if j >= 0 {
					return nil, api.Errorf(api.CodeExists, "host port %d/%s is published by VM %s", p.HostPort, p.Protocol, taken[j].VM).
						WithHint("choose another host port, or delete that VM")
				}
				if err := d.hostPortFree(*p); err != nil {
					return nil, err
				}
			case asked:
				if p.HostPort = d.freePort(*p, out, taken); p.HostPort == 0 {
					return nil, api.Errorf(api.CodeExhausted, "no host port from %d on is free", api.FirstHostPort).WithHint("delete VMs that are not needed, or name a port")
				}
			}
		}
		return out, nil
	}, nil
}

// freePort returns the lowest host port that p can have, 0 when there is none.
func (d *Daemon) freePort(p api.Port, own []api.Port, taken []row.Published) int {
	for p.HostPort = api.FirstHostPort; p.HostPort <= 65535; p.HostPort++ {
		if slices.ContainsFunc(own, p.Conflicts) || slices.ContainsFunc(taken, func(t row.Published) bool { return t.Port.Conflicts(p) }) {
			continue
		}
		if d.hostPortFree(p) == nil {
			return p.HostPort
		}
	}
	return 0
}

// hostPortFree asks whether another program of the host has the port.
func (d *Daemon) hostPortFree(p api.Port) error {
	if d.cfg.Network == nil {
		return nil
	}
	pub, err := publishOf(p)
	if err != nil {
		return err
	}
	if err := d.cfg.Network.CheckPort(pub); err != nil {
		return fmt.Errorf("publish %d/%s: %w", p.HostPort, p.Protocol, err)
	}
	return nil
}

// lease returns what chooses the VM's address from those taken: the pinned one
// or the lowest that is free; nil for a VM without a NIC.
func (d *Daemon) lease(vm *row.VM, pinned string) (func([]netip.Addr) (netip.Addr, error), error) {
	if vm.Vsock {
		if pinned != "" {
			return nil, api.Errorf(api.CodeInvalid, "ip_address: with network mode vsock the VM has no address")
		}
		return nil, nil
	}
	if d.cfg.Network == nil {
		return nil, api.Errorf(api.CodeUnavailable, "this volantd has no network").WithHint("start it with a bridge, or give the VM network mode vsock")
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
		case what == api.WaitHealthy && !vm.HealthCheck:
			return false, api.Errorf(api.CodeInvalid, "VM %s has no health check: nothing says when it is healthy", vm.Name).
				WithHint("wait for it to be running, or create it with a check (--health-cmd)")
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

// goneError is the error for a VM that is no more, with how it ended if it was
// removed for that.
func (d *Daemon) goneError(vm *row.VM) error {
	end, ok := d.ends.get(vm.ID)
	if ok && end.Reason != "" {
		return api.Errorf(api.CodeConflict, "VM %s has %s, and was deleted for that: %s", vm.Name, end.Status, end.Reason)
	}
	return api.Errorf(api.CodeConflict, "VM %s was deleted meanwhile", vm.Name)
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
