package httpapitest

import (
	"context"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) SystemInfo(context.Context) (api.SystemInfo, error) {
	if err := s.Err["SystemInfo"]; err != nil {
		return api.SystemInfo{}, err
	}
	return api.SystemInfo{
		Status: "ok", Version: "1.2.3", Listen: "unix:/run/volant/volantd.sock", Bridge: "vbr0", Subnet: "192.168.127.0/24", HostIP: "192.168.127.1",
		DataDir: "/var/lib/volant", RuntimeDir: "/run/volant",
		Hypervisor: api.Hypervisor{Driver: "qemu", Version: "7.2.22", Binary: "/usr/bin/qemu-system-x86_64", Accel: "tcg", Channel: "serial", Notice: "VMs are emulated: isolation is not by hardware"},
	}, nil
}

func (s *Service) Doctor(context.Context) (api.Doctor, error) {
	if err := s.Err["Doctor"]; err != nil {
		return api.Doctor{}, err
	}
	if s.Hypervisors != nil {
		return api.Doctor{Hypervisors: s.Hypervisors, Limits: api.LimitsCheck{Cgroups: "v2 (cpu, io, memory, pids)"}}, nil
	}
	return api.Doctor{Limits: api.LimitsCheck{Cgroups: "v2 (cpu)", Problem: "VMs run without limits of memory, pids: ask the host for them"}, Hypervisors: []api.HypervisorCheck{
		{Name: "qemu", Chosen: true, Works: true, Version: "7.2.22", Binary: "/usr/bin/qemu-system-x86_64", Accel: "tcg", Notice: "VMs are emulated: isolation is not by hardware", Features: []api.Feature{
			{Name: "pause", Works: true}, {Name: "snapshot", Works: true}, {Name: "pmem", Needs: "another hypervisor"},
			{Name: "unprivileged", Needs: "root"}, {Name: "vfio", Needs: "another hypervisor"},
		}},
		{Name: "cloud-hypervisor", Problem: "it is not in PATH: put it there"},
	}}, nil
}

func (s *Service) SystemSummary(context.Context) (api.SystemSummary, error) {
	s.lock()
	defer s.mu.Unlock()
	sum := api.SystemSummary{TotalVMs: len(s.vms), ByStatus: map[api.VMState]int{}, ByRuntime: map[string]int{}, TotalPlugins: len(s.plugins)}
	for _, vm := range s.vms {
		sum.ByStatus[vm.Status]++
		sum.ByRuntime[vm.Runtime]++
	}
	for _, p := range s.plugins {
		if p.Enabled {
			sum.EnabledPlugins++
		}
	}
	return sum, nil
}
