package httpapitest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Advance takes a held VM on: its Boot becomes outcome, as in Service.Boot.
func (s *Service) Advance(name, outcome string) {
	s.lock()
	defer s.mu.Unlock()
	if vm := s.find(name); vm != nil {
		s.boot(vm, outcome)
	}
}

func (s *Service) start(vm *api.VM) {
	vm.Desired, vm.Status, vm.Reason, vm.Exit = api.DesiredRunning, api.VMStarting, "", nil
	if vm.HealthCheck {
		vm.Health = api.VMHealth{Status: api.HealthStarting}
	}
	vm.Incarnation++
	vm.PID = 4000 + vm.Incarnation
	started := s.now()
	vm.StartedAt = &started
	s.emitVM(api.EventVMStarting, vm)
	s.boot(vm, s.Boot[vm.Name])
}

func (s *Service) boot(vm *api.VM, outcome string) {
	switch outcome {
	case "starting":
	case "waiting":
		vm.WaitingFor = "VM db to be healthy: it is starting"
		s.emitVM(api.EventVMWaiting, vm)
	case "", "healthy", "running", "unhealthy":
		vm.Status, vm.AgentUp = api.VMRunning, true
		s.emitVM(api.EventVMRunning, vm)
		switch {
		case !vm.HealthCheck || outcome == "running":
		case outcome == "unhealthy":
			vm.Health = api.VMHealth{Status: api.HealthUnhealthy, FailingStreak: 3, Output: "status 503: no database"}
			s.emitVM(api.EventVMUnhealthy, vm)
		default:
			vm.Healthy, vm.Health.Status = true, api.HealthHealthy
			s.emitVM(api.EventVMHealthy, vm)
		}
	case "loop":
		at := s.now().Add(time.Hour + 30*time.Second)
		vm.Status, vm.Reason, vm.CrashLoop, vm.RestartCount, vm.NextStartAt = api.VMCrashed, "the guest kernel panicked", true, 5, &at
		vm.Health = api.VMHealth{Status: api.HealthNone}
		s.emitVM(api.EventVMCrashLoop, vm)
	default:
		vm.Status, vm.Reason, vm.AgentUp, vm.PID = api.VMCrashed, outcome, false, 0
		vm.Healthy, vm.Health = false, api.VMHealth{Status: api.HealthNone}
		s.emitVM(api.EventVMCrashed, vm)
	}
	vm.UpdatedAt = s.now()
}

func (s *Service) stop(vm *api.VM) {
	vm.Desired = api.DesiredStopped
	if vm.Status == api.VMStopped {
		return
	}
	vm.Status = api.VMStopping
	s.emitVM(api.EventVMStopping, vm)
	vm.Status, vm.AgentUp, vm.PID = api.VMStopped, false, 0
	vm.Healthy, vm.Health = false, api.VMHealth{Status: api.HealthNone}
	s.emitVM(api.EventVMStopped, vm)
	vm.UpdatedAt = s.now()
}

// checked says whether a VM has a health check: those of plugins do, unless the
// request says otherwise.
func checked(req api.VMCreate) bool {
	if h := req.HealthCheck; h != nil {
		return !h.Disable
	}
	return req.Plugin != ""
}

func (s *Service) CreateVM(_ context.Context, req api.VMCreate) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["CreateVM"]; err != nil {
		return api.VM{}, err
	}
	p, img, err := s.origin(req)
	if err != nil {
		return api.VM{}, err
	}
	if req.Wait == api.WaitHealthy && !checked(req) {
		return api.VM{}, api.Errorf(api.CodeInvalid, "the VM %s has no health check", req.Name)
	}
	for i := 1; req.Name == ""; i++ {
		if name := fmt.Sprintf("%s-%d", p.Name, i); s.vms[name] == nil {
			req.Name = name
		}
	}
	if s.vms[req.Name] != nil {
		return api.VM{}, api.Errorf(api.CodeExists, "there is a VM %q already", req.Name)
	}
	s.serial++
	vm := &api.VM{
		ID: fmt.Sprintf("vm-%04d", s.serial), Name: req.Name, Plugin: req.Plugin, Image: p.Manifest.Image, ImageID: img.ID, Runtime: p.Runtime,
		Status: api.VMPending, Desired: api.DesiredRunning,
		IPAddress: cmp.Or(req.IPAddress, fmt.Sprintf("192.168.127.%d", s.serial+1)), MACAddress: fmt.Sprintf("52:54:00:00:00:%02x", s.serial),
		VsockCID: uint32(s.serial + 2), CPUCores: cmp.Or(req.CPUCores, p.Manifest.Resources.CPUCores), MemoryMB: cmp.Or(req.MemoryMB, p.Manifest.Resources.MemoryMB),
		KernelCmdline: req.KernelCmdline, Kernel: req.Kernel, Hypervisor: "qemu", Accel: "tcg", Labels: req.Labels, CreatedAt: s.now(), UpdatedAt: s.now(),
		HealthCheck: checked(req), Health: api.VMHealth{Status: api.HealthNone}, Restart: req.Restart, DependsOn: req.DependsOn, AutoRemove: req.AutoRemove, TTLSeconds: req.TTLSeconds, TTY: req.TTY, Stdin: req.Stdin, Ports: api.MergePorts(p.Manifest.Ports, req.Ports),
	}
	for i := range vm.Ports {
		if i >= len(vm.Ports)-len(req.Ports) && vm.Ports[i].HostPort == 0 {
			vm.Ports[i].HostPort = api.FirstHostPort + s.serial
		}
	}
	for _, m := range req.Volumes {
		v, ok := s.volumes[m.Name]
		if m.Name == "" {
			continue
		}
		if !ok {
			v = s.addVolume(api.VolumeCreate{Name: m.Name, SizeMB: m.SizeMB})
		}
		v.VMs = append(v.VMs, vm.Name)
		s.volumes[m.Name] = v
	}
	s.vms[vm.Name] = vm
	s.created = req
	s.emitVM(api.EventVMCreated, vm)
	accepted := *vm
	if req.Stopped {
		vm.Status, vm.Desired = api.VMStopped, api.DesiredStopped
		return *vm, nil
	}
	s.start(vm)
	return accepted, nil
}

// origin returns what a VM is made from: the plugin, or one that stands for the
// image. The caller holds mu.
func (s *Service) origin(req api.VMCreate) (api.Plugin, api.Image, error) {
	if req.Image != "" {
		img, err := s.image(req.Image)
		if err != nil {
			return api.Plugin{}, img, err
		}
		m, err := api.ImageManifest(api.ImageName(img.References[0]), img.Config)
		m.Image, m.Resources = img.References[0], api.Resources{CPUCores: 1, MemoryMB: 256}
		return api.Plugin{Name: m.Name, Runtime: m.Name, Manifest: m}, img, err
	}
	p, ok := s.plugins[req.Plugin]
	if !ok {
		return p, api.Image{}, api.Errorf(api.CodeNotFound, "there is no plugin %q", req.Plugin).WithHint("volar plugins list shows what is installed")
	}
	if !p.Enabled {
		return p, api.Image{}, api.Errorf(api.CodeConflict, "plugin %s is disabled", p.Name)
	}
	return p, api.Image{}, nil
}

// Created returns the last request that made a VM, its name filled in.
func (s *Service) Created() api.VMCreate {
	s.lock()
	defer s.mu.Unlock()
	return s.created
}

func (s *Service) VM(_ context.Context, name string) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	return *vm, s.Err["VM"]
}

// up finds a VM that runs, for a method that needs one: why says so. s is locked.
func (s *Service) up(method, name, why string) (*api.VM, error) {
	if err := s.Err[method]; err != nil {
		return nil, err
	}
	vm, err := s.vm(name)
	if err == nil && vm.Status != api.VMRunning {
		err = api.Errorf(api.CodeConflict, "VM %s is %s; %s", vm.Name, vm.Status, why).WithHint("volar vms start %s", vm.Name)
	}
	return vm, err
}

func (s *Service) VMs(_ context.Context, f api.VMFilter) ([]api.VM, int, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["VMs"]; err != nil {
		return nil, 0, err
	}
	var out []api.VM
	for _, vm := range s.vms {
		if (f.Plugin == "" || vm.Plugin == f.Plugin) && strings.Contains(vm.Name, f.Query) && f.Selector.Matches(vm.Labels) && (f.Status == nil || slices.Contains(f.Status, vm.Status)) {
			out = append(out, *vm)
		}
	}
	slices.SortFunc(out, func(a, b api.VM) int {
		var n int
		switch f.Sort {
		case "created_at":
			n = a.CreatedAt.Compare(b.CreatedAt)
		case "updated_at":
			n = a.UpdatedAt.Compare(b.UpdatedAt)
		case "status":
			n = cmp.Compare(a.Status, b.Status)
		}
		n = cmp.Or(n, cmp.Compare(a.Name, b.Name))
		if f.Desc {
			n = -n
		}
		return n
	})
	total := len(out)
	out = out[min(f.Offset, len(out)):]
	if f.Limit > 0 {
		out = out[:min(f.Limit, len(out))]
	}
	return out, total, nil
}

// change runs do on the VM and returns how it is then.
func (s *Service) change(method, name string, do func(*api.VM) error) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err[method]; err != nil {
		return api.VM{}, err
	}
	vm, err := s.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	if err := do(vm); err != nil {
		return api.VM{}, err
	}
	return *vm, nil
}

func (s *Service) StartVM(_ context.Context, name string) (api.VM, error) {
	return s.change("StartVM", name, func(vm *api.VM) error {
		if vm.Status != api.VMRunning && vm.Status != api.VMStarting {
			s.start(vm)
		}
		return nil
	})
}

func (s *Service) StopVM(_ context.Context, name string, _ api.VMStop) (api.VM, error) {
	return s.change("StopVM", name, func(vm *api.VM) error { s.stop(vm); return nil })
}

func (s *Service) RestartVM(_ context.Context, name string, _ api.VMStop) (api.VM, error) {
	return s.change("RestartVM", name, func(vm *api.VM) error { s.stop(vm); s.start(vm); return nil })
}

func (s *Service) PauseVM(_ context.Context, name string) (api.VM, error) {
	return s.move("PauseVM", name, api.VMRunning, api.VMPaused, api.EventVMPaused)
}

func (s *Service) ResumeVM(_ context.Context, name string) (api.VM, error) {
	return s.move("ResumeVM", name, api.VMPaused, api.VMRunning, api.EventVMResumed)
}

func (s *Service) move(method, name string, from, to api.VMState, event api.EventType) (api.VM, error) {
	return s.change(method, name, func(vm *api.VM) error {
		switch vm.Status {
		case from:
			vm.Status = to
			s.emitVM(event, vm)
			return nil
		case to:
			return nil
		}
		return api.Errorf(api.CodeConflict, "VM %s is %s", vm.Name, vm.Status)
	})
}

// ScaleVM cannot change the memory of a VM that runs.
func (s *Service) ScaleVM(_ context.Context, name string, in api.VMScale) (api.VM, error) {
	return s.change("ScaleVM", name, func(vm *api.VM) error {
		if vm.Status == api.VMRunning && in.MemoryMB != 0 && in.MemoryMB != vm.MemoryMB {
			if !in.Restart {
				return api.Errorf(api.CodeConflict, "VM %s cannot be scaled while it runs", vm.Name).WithHint("restart it")
			}
			s.stop(vm)
			s.start(vm)
		}
		vm.CPUCores, vm.MemoryMB = cmp.Or(in.CPUCores, vm.CPUCores), cmp.Or(in.MemoryMB, vm.MemoryMB)
		s.emitVM(api.EventVMScaled, vm)
		return nil
	})
}

func (s *Service) DeleteVM(_ context.Context, name string, _ api.VMStop) error {
	_, err := s.change("DeleteVM", name, func(vm *api.VM) error {
		if vm.Status != api.VMStopped {
			s.stop(vm)
		}
		delete(s.vms, vm.Name)
		for name, v := range s.volumes {
			v.VMs = slices.DeleteFunc(v.VMs, func(n string) bool { return n == vm.Name })
			s.volumes[name] = v
		}
		s.emitVM(api.EventVMDeleted, vm)
		return nil
	})
	return err
}

func (s *Service) CheckWait(_ context.Context, name string, what api.VMWait) error {
	s.lock()
	defer s.mu.Unlock()
	switch vm := s.find(name); {
	case what != api.WaitHealthy:
		return nil
	case vm == nil:
		return api.Errorf(api.CodeNotFound, "there is no VM %q", name)
	case !vm.HealthCheck:
		return api.Errorf(api.CodeInvalid, "VM %s has no health check", vm.Name)
	}
	return nil
}

func (s *Service) WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error) {
	for {
		s.lock()
		vm, changed := s.find(name), s.changed
		var now api.VM
		if vm != nil {
			now = *vm
		}
		s.mu.Unlock()
		switch {
		case vm == nil && what == api.WaitDeleted:
			return api.VM{}, nil
		case vm == nil:
			return api.VM{}, api.Errorf(api.CodeNotFound, "there is no VM %q", name)
		case what == api.WaitRunning && now.Status == api.VMRunning, what == api.WaitHealthy && now.Healthy:
			return now, nil
		case what == api.WaitPaused && now.Status == api.VMPaused:
			return now, nil
		case what == api.WaitStopped && (now.Status == api.VMStopped || now.Status == api.VMCrashed):
			return now, nil
		case what == api.WaitHealthy && !now.HealthCheck:
			return now, api.Errorf(api.CodeInvalid, "VM %s has no health check", now.Name)
		case what == api.WaitHealthy && now.Health.Status == api.HealthUnhealthy:
			return now, api.Errorf(api.CodeConflict, "VM %s is unhealthy: %s", now.Name, now.Health.Output)
		case what != api.WaitStopped && now.Status == api.VMCrashed:
			return now, api.Errorf(api.CodeConflict, "it crashed: %s", now.Reason)
		case (what == api.WaitRunning || what == api.WaitHealthy) && now.Desired == api.DesiredStopped:
			return now, api.Errorf(api.CodeConflict, "it is stopped")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return now, api.Errorf(api.CodeTimeout, "VM %s is %s", name, now.Status)
			}
			return now, ctx.Err()
		}
	}
}

func (s *Service) VMTimeline(_ context.Context, name string) (api.Timeline, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.Timeline{}, err
	}
	return api.Timeline{VM: vm.Name, Incarnation: vm.Incarnation, Steps: []api.TimelineStep{
		{Where: "host", Name: "prepare", StartMS: 0, TookMS: 3.25},
		{Where: "host", Name: "launch", StartMS: 3.25, TookMS: 41.5},
		{Where: "guest", Name: "network", StartMS: 512.125, TookMS: 1.0625},
		{Where: "guest", Name: "workload", StartMS: 520, TookMS: 8.5, Error: "slow"},
	}}, nil
}
