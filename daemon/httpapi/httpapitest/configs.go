package httpapitest

import (
	"context"

	"github.com/volantvm/volant/client/api"
)

// versions returns the versions of a VM's configuration, the newest first.
func (s *Service) versions(vm *api.VM) []api.VMConfigVersion {
	if list := s.configs[vm.ID]; len(list) > 0 {
		list[0].VM = vm.Name
		return list
	}
	return []api.VMConfigVersion{{
		VM: vm.Name, Version: 1, Time: vm.CreatedAt,
		Config: api.VMConfig{CPUCores: vm.CPUCores, MemoryMB: vm.MemoryMB, KernelCmdline: vm.KernelCmdline, Labels: vm.Labels, Ports: vm.Ports, AutoRemove: vm.AutoRemove, TTLSeconds: vm.TTLSeconds},
	}}
}

func (s *Service) VMConfig(_ context.Context, name string, version int) (api.VMConfigVersion, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.VMConfigVersion{}, err
	}
	for _, v := range s.versions(vm) {
		if version == 0 || v.Version == version {
			return v, s.Err["VMConfig"]
		}
	}
	return api.VMConfigVersion{}, api.Errorf(api.CodeNotFound, "VM %s has no version %d of its configuration", name, version)
}

func (s *Service) VMConfigHistory(_ context.Context, name string, limit int) ([]api.VMConfigVersion, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return nil, err
	}
	list := s.versions(vm)
	if limit > 0 {
		list = list[:min(limit, len(list))]
	}
	return list, s.Err["VMConfigHistory"]
}

// SetVMConfig puts CPUs, memory and labels into effect at once.
func (s *Service) SetVMConfig(ctx context.Context, name string, in api.VMConfigChange) (api.VMConfigVersion, error) {
	base, err := s.VMConfig(ctx, name, in.Version)
	if err != nil {
		return base, err
	}
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return base, err
	}
	list := s.versions(vm)
	if in.Expect != 0 && in.Expect != list[0].Version {
		return base, api.Errorf(api.CodeConflict, "the configuration of VM %s is version %d, not %d", name, list[0].Version, in.Expect)
	}
	c, err := base.Config.Merge(in.Patch)
	if err != nil {
		return base, err
	}
	changed := list[0].Config.Changes(c)
	if len(changed) == 0 {
		return list[0], nil
	}
	v := api.VMConfigVersion{VM: vm.Name, Version: list[0].Version + 1, Time: s.now(), By: "uid 0", From: in.Version, Changed: changed, Config: c}
	if s.configs == nil {
		s.configs = make(map[string][]api.VMConfigVersion)
	}
	s.configs[vm.ID] = append([]api.VMConfigVersion{v}, list...)
	vm.CPUCores, vm.MemoryMB, vm.Labels, vm.AutoRemove, vm.TTLSeconds = c.CPUCores, c.MemoryMB, c.Labels, c.AutoRemove, c.TTLSeconds
	vm.ConfigVersion = v.Version
	s.emitVM(api.EventVMConfigured, vm)
	return v, s.Err["SetVMConfig"]
}

func (s *Service) RenameVM(_ context.Context, name, to string) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	if s.find(to) != nil && to != vm.Name {
		return api.VM{}, api.Errorf(api.CodeExists, "a VM named %s exists", to)
	}
	old := vm.Name
	vm.Name = to
	delete(s.vms, old)
	s.vms[to] = vm
	s.emit(api.Event{Type: api.EventVMRenamed, Name: to, OldName: old, VMID: vm.ID, Status: vm.Status})
	return *vm, s.Err["RenameVM"]
}
