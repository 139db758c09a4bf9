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

// configTries is how often a change of a configuration is made anew because
// another one came first.
const configTries = 8

// configOf is the newest configuration of a VM, with the manifest of it.
func (d *Daemon) configOf(ctx context.Context, vm *row.VM) (api.VMConfig, api.Manifest, error) {
	digest := vm.Manifest
	if vm.Next != nil {
		digest = vm.Next.Manifest
	}
	m, err := d.store.Manifest(ctx, digest)
	if err != nil {
		return api.VMConfig{}, m, err
	}
	var c api.VMConfig
	if vm.Next != nil {
		c = vm.Next.Config
	} else {
		c = api.VMConfig{
			CPUCores: vm.CPUCores, MemoryMB: vm.MemoryMB, Kernel: vm.WantKernel, KernelCmdline: vm.KernelCmdline,
			Env: vm.Env, Ports: vm.Ports, Hostname: m.Hostname, Restart: m.Restart, HealthCheck: m.HealthCheck,
		}
		if oversized(vm) { // what it is to become is its configuration once its machine is so
			c.CPUCores, c.MemoryMB = vm.Has.VCPUs, vm.Has.MemoryMiB
		}
		if w := m.Workload; w != nil {
			c.Command, c.Workdir, c.User = w.Entrypoint, w.Workdir, w.User
			c.StopSignal, c.StopTimeout, c.TTY, c.Stdin = w.StopSignal, w.StopTimeout, w.TTY, w.Stdin
		}
	}
	c.Labels, c.AutoRemove, c.TTLSeconds = vm.Labels, vm.AutoRemove, vm.TTLSeconds // these are in effect at once
	return c, m, nil
}

// configured returns the manifest of a VM that has configuration c. m is not
// altered.
func configured(m api.Manifest, c *api.VMConfig) (api.Manifest, error) {
	if m.Workload != nil {
		w := *m.Workload
		w.Entrypoint, w.Workdir, w.User = c.Command, c.Workdir, c.User
		w.StopSignal, w.StopTimeout, w.TTY, w.Stdin = c.StopSignal, c.StopTimeout, c.TTY, c.Stdin
		m.Workload = &w
	} else if len(c.Command) > 0 {
		return m, api.Errorf(api.CodeInvalid, "command: the VM has no agent that could run it")
	}
	m.Kernel, m.Hostname, m.Restart, m.HealthCheck = c.Kernel, c.Hostname, c.Restart, c.HealthCheck
	return m, m.Validate()
}

// VMConfig returns a version of a VM's configuration, the newest for 0. Codes:
// not_found.
func (d *Daemon) VMConfig(ctx context.Context, name string, version int) (api.VMConfigVersion, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VMConfigVersion{}, err
	}
	v, err := d.configVersion(ctx, &vm, version)
	return v, d.publicError("get configuration", err)
}

func (d *Daemon) configVersion(ctx context.Context, vm *row.VM, version int) (api.VMConfigVersion, error) {
	if version == 0 {
		version = vm.ConfigVersion
	}
	list, err := d.store.Configs(ctx, vm.ID, version, 1)
	if err != nil {
		return api.VMConfigVersion{}, err
	}
	v := api.VMConfigVersion{VM: vm.Name, Version: version, Time: vm.CreatedAt}
	switch {
	case version > vm.ConfigVersion || len(list) == 0 && version != vm.ConfigVersion:
		return v, api.Errorf(api.CodeNotFound, "VM %s has no version %d of its configuration", vm.Name, version).
			WithHint("volar vms config history %s lists those that are kept", vm.Name)
	case len(list) > 0:
		v = list[0]
	}
	if version == vm.ConfigVersion {
		v.Pending = vm.Next != nil
		v.Config, _, err = d.configOf(ctx, vm) // what is true now, whoever changed it
	}
	return v, err
}

// VMConfigHistory returns up to limit versions of a VM's configuration, the
// newest first; 0 for all that are kept. Codes: not_found.
func (d *Daemon) VMConfigHistory(ctx context.Context, name string, limit int) ([]api.VMConfigVersion, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if limit <= 0 || limit > api.MaxConfigVersions {
		limit = api.MaxConfigVersions
	}
	list, err := d.store.Configs(ctx, vm.ID, 0, limit)
	if err != nil {
		return nil, d.publicError("get history", err)
	}
	newest, err := d.configVersion(ctx, &vm, 0)
	if err != nil {
		return nil, d.publicError("get history", err)
	}
	if len(list) == 0 {
		return []api.VMConfigVersion{newest}, nil
	}
	list[0] = newest
	return list, nil
}

// SetVMConfig makes a further version of a VM's configuration and returns it; one
// that would be the same as the present is none. It is in effect with the VM's
// next start, which in.Restart makes at once. Codes: invalid, not_found (VM,
// version, kernel), conflict (in.Expect, being deleted), exists (host port).
func (d *Daemon) SetVMConfig(ctx context.Context, name string, in api.VMConfigChange) (api.VMConfigVersion, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VMConfigVersion{}, err
	}
	for range configTries {
		if in.Expect != 0 && in.Expect != vm.ConfigVersion {
			return api.VMConfigVersion{}, api.Errorf(api.CodeConflict, "the configuration of VM %s is version %d, not %d", vm.Name, vm.ConfigVersion, in.Expect).
				WithHint("look at what changed: volar vms config history %s", vm.Name)
		}
		v, err := d.setConfig(ctx, &vm, in)
		if !errors.Is(err, row.ErrStale) {
			return v, d.publicError("configure VM", err)
		}
		if vm, err = d.store.VMByID(ctx, vm.ID); err != nil {
			return v, d.publicError("configure VM", err)
		}
	}
	return api.VMConfigVersion{}, api.Errorf(api.CodeConflict, "the configuration of VM %s keeps changing", vm.Name)
}

// setConfig is one try of SetVMConfig, on the VM as it was read.
func (d *Daemon) setConfig(ctx context.Context, vm *row.VM, in api.VMConfigChange) (api.VMConfigVersion, error) {
	none := api.VMConfigVersion{}
	if vm.Desired == api.DesiredAbsent {
		return none, beingDeleted(vm)
	}
	present, err := d.configVersion(ctx, vm, 0)
	if err != nil {
		return none, err
	}
	old, m, err := d.configOf(ctx, vm)
	if err != nil {
		return none, err
	}
	base := old
	if in.Version != 0 {
		earlier, err := d.configVersion(ctx, vm, in.Version)
		if err != nil {
			return none, err
		}
		base = earlier.Config
	}
	c, err := base.Merge(in.Patch)
	if err != nil {
		return none, err
	}
	if err := d.checkConfig(ctx, vm, &old, &c); err != nil {
		return none, err
	}
	changed := old.Changes(c)
	if len(changed) == 0 {
		if in.Restart && vm.Next != nil {
			_, err = d.RestartVM(ctx, vm.ID, api.VMStop{})
		}
		return present, err
	}
	next, err := configured(m, &c)
	if err != nil {
		return none, err
	}
	if err := d.canRun(ctx, &next, api.VMCreate{AutoRemove: c.AutoRemove, Stopped: true}); err != nil {
		return none, err
	}
	if !vm.Settled() && c.MemoryMB > old.MemoryMB {
		refusal, release, err := d.admit(ctx, vm.ID, c.MemoryMB)
		if err != nil {
			return none, err
		}
		defer release()
		if refusal != nil {
			return none, refusal
		}
	}
	v := api.VMConfigVersion{VM: vm.Name, Version: vm.ConfigVersion + 1, By: in.By, From: in.Version, Changed: changed, Config: c}
	present.Pending = false
	now, err := d.putConfig(ctx, vm, row.ConfigChange{
		First: present, Version: v, Manifest: next, AtOnce: !slices.ContainsFunc(changed, atNextStart),
		Check: func(taken []row.Published) error { return d.checkPorts(c.Ports, old.Ports, taken) },
	}, func(vm *row.VM) ([]api.Event, error) {
		if vm.Desired == api.DesiredAbsent {
			return nil, beingDeleted(vm)
		}
		vm.Labels, vm.AutoRemove = c.Labels, c.AutoRemove
		vm.SetTTL(c.TTLSeconds)
		if in.Restart {
			d.wishRestart(vm, api.VMStop{})
			if vm.Next != nil {
				vm.Replace = vm.Incarnation // also one that has just begun: it has not taken the configuration over
			}
		}
		return nil, nil
	})
	if err != nil {
		return none, err
	}
	d.expiries.look()
	if !now.Settled() {
		d.kick(vm.ID)
	}
	return d.configVersion(ctx, &now, 0)
}

// putConfig writes a further version of a VM's configuration, with what else
// change alters. Of c it fills in what follows from its manifest. It returns
// row.ErrStale when another version came first.
func (d *Daemon) putConfig(ctx context.Context, vm *row.VM, c row.ConfigChange, change func(vm *row.VM) ([]api.Event, error)) (row.VM, error) {
	c.Blobs, c.Probed = manifestBlobs(&c.Manifest), probed(&c.Manifest)
	now, evs, err := d.store.ChangeConfig(ctx, vm.ID, c, func(vm *row.VM) ([]api.Event, error) {
		evs, err := change(vm)
		return append(evs, api.Event{Type: api.EventVMConfigured, Message: configWords(c.Version.Version, c.Version.Changed, vm.Next != nil)}), err
	})
	if err == nil {
		d.bus.notify(vm.ID, len(evs) > 0)
	}
	return now, err
}

// sizeVersion is the version of a VM's configuration that differs from the present
// one by the size; ok is false when it does not.
func (d *Daemon) sizeVersion(ctx context.Context, vm *row.VM, size api.Resources, by string) (c row.ConfigChange, ok bool, err error) {
	present, err := d.configVersion(ctx, vm, 0)
	if err != nil {
		return c, false, err
	}
	old, m, err := d.configOf(ctx, vm)
	if err != nil {
		return c, false, err
	}
	config := old
	config.CPUCores, config.MemoryMB = size.CPUCores, size.MemoryMB
	changed := old.Changes(config)
	present.Pending = false
	next, err := configured(m, &config)
	return row.ConfigChange{
		First: present, Manifest: next, OfVM: true, Check: func([]row.Published) error { return nil },
		Version: api.VMConfigVersion{VM: vm.Name, Version: vm.ConfigVersion + 1, By: by, Changed: changed, Config: config},
	}, len(changed) > 0, err
}

// atNextStart reports whether a setting that a version changes is in effect with
// the next start only; see api.VMConfig.
func atNextStart(changed string) bool {
	return changed != "auto_remove" && changed != "ttl_seconds" && !strings.HasPrefix(changed, "labels.")
}

// configWords says what a version changes; of what there is much, the beginning.
func configWords(version int, changed []string, pending bool) string {
	const most = 8
	s := fmt.Sprintf("version %d: %s", version, strings.Join(changed[:min(len(changed), most)], ", "))
	if more := len(changed) - most; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	if pending {
		s += "; waits for the next start"
	}
	return s
}

// checkConfig completes c, which is to follow old, and refuses what could only
// fail in the background.
func (d *Daemon) checkConfig(ctx context.Context, vm *row.VM, old, c *api.VMConfig) error {
	if _, err := kernelParameters(c.KernelCmdline); err != nil {
		return err
	}
	if c.Kernel != "" && c.Kernel != old.Kernel {
		if _, err := d.kernel(ctx, c.Kernel); err != nil {
			return at("kernel", err)
		}
	}
	if age := d.cfg.Now().Sub(vm.CreatedAt); c.TTLSeconds != 0 && c.TTLSeconds != old.TTLSeconds && int64(age.Seconds()) >= c.TTLSeconds {
		return api.Errorf(api.CodeInvalid, "ttl_seconds: VM %s is %d s old already", vm.Name, int64(age.Seconds())).WithHint("delete it: volar vms delete %s", vm.Name)
	}
	for i := range c.Ports {
		complete(&c.Ports[i])
		if vm.Vsock && c.Ports[i].HostPort != 0 {
			return api.Errorf(api.CodeInvalid, "ports[%d]: the VM has no address whose ports could be published", i)
		}
	}
	return api.ValidatePorts("ports", c.Ports)
}

// checkPorts refuses ports of the host that others have, VMs or programs. own
// are those that the VM has.
func (d *Daemon) checkPorts(ports, own []api.Port, taken []row.Published) error {
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		if err := d.canPublish(p, own, taken); err != nil {
			return err
		}
	}
	return nil
}

// RenameVM gives a VM another name, running or not. Its address, its files and,
// until its next start, its host name stay. Codes: invalid, not_found, exists,
// conflict (being deleted, others depend on it by its name).
func (d *Daemon) RenameVM(ctx context.Context, name, to string) (api.VM, error) {
	if err := api.ValidateName("VM", to); err != nil {
		return api.VM{}, err
	}
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.VM{}, err
	}
	all, _, err := d.store.VMs(ctx, api.VMFilter{})
	if err != nil {
		return api.VM{}, d.publicError("rename VM", err)
	}
	for i := range all {
		if slices.ContainsFunc(all[i].DependsOn, func(dep api.Dependency) bool { return dep.VM == vm.Name }) && vm.Name != to {
			return api.VM{}, api.Errorf(api.CodeConflict, "VM %s depends on VM %s by its name", all[i].Name, vm.Name).WithHint("create %s anew with the new name", all[i].Name)
		}
	}
	now, evs, err := d.store.RenameVM(ctx, vm.ID, to, func(vm *row.VM) error {
		if vm.Desired == api.DesiredAbsent {
			return beingDeleted(vm)
		}
		return nil
	}, api.Event{Type: api.EventVMRenamed})
	switch {
	case errors.Is(err, row.ErrExists):
		return api.VM{}, api.Errorf(api.CodeExists, "a VM named %s exists", to).WithHint("choose another name, or rename that one first")
	case errors.Is(err, row.ErrNotFound):
		return api.VM{}, notFound("VM", name, nil)
	case err != nil:
		return api.VM{}, d.publicError("rename VM", err)
	}
	d.bus.notify(vm.ID, len(evs) > 0)
	return now.VM, nil
}
