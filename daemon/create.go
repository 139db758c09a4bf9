package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store/row"
)

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
	if req.Wait == api.WaitHealthy && !vm.HealthCheck {
		return row.NewVM{}, unprobed(strings.TrimSpace("the VM " + req.Name))
	}
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
