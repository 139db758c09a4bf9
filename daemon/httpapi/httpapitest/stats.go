package httpapitest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Stats has VMs use more with every sample.
func (s *Service) Stats(ctx context.Context, q api.StatsQuery, yield func(api.StatsSample) error) error {
	for n := int64(1); ; n++ {
		sample, err := s.stats(q, n)
		if err != nil {
			return err
		}
		if err := yield(sample); err != nil || !q.Follow {
			return err
		}
		select {
		case <-time.After(cmp.Or(q.Interval, api.DefaultStatsInterval)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) stats(q api.StatsQuery, n int64) (api.StatsSample, error) {
	s.lock()
	defer s.mu.Unlock()
	sample := api.StatsSample{Time: epoch().Add(time.Duration(n) * time.Second)}
	if err := s.Err["Stats"]; err != nil {
		return sample, err
	}
	for _, name := range q.VMs {
		if _, err := s.vm(name); err != nil {
			return sample, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.vms)) {
		vm := s.vms[name]
		if len(q.VMs) > 0 && !slices.Contains(q.VMs, name) || len(q.VMs) == 0 && vm.Status == api.VMStopped {
			continue
		}
		one := api.VMStats{VM: name, ID: vm.ID, Status: vm.Status, Time: sample.Time, VCPUs: vm.CPUCores, MemoryGiven: int64(vm.MemoryMB) << 20}
		if vm.Status != api.VMStopped {
			cpu, used, bytes, threads := n*500e6, int64(100<<20), n<<20, 7
			one.UptimeSeconds, one.CPUNanos, one.MemoryUsed, one.Threads = float64(60+n), &cpu, &used, &threads
			one.DiskRead, one.DiskWrite, one.NetReceived, one.NetSent = &bytes, &bytes, &bytes, &bytes
			one.Guest = &api.GuestMemory{Total: 120 << 20, Available: 90 << 20, Agent: 9 << 20, Kernel: 7 << 20, Workload: 12 << 20}
		}
		if name == "slow" {
			one.Guest, one.Missing = nil, []string{"guest: it did not answer in time"}
		}
		sample.VMs = append(sample.VMs, one)
	}
	return sample, nil
}
