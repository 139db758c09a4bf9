package daemon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/cgroup"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// statsAtOnce bounds how many VMs are measured at the same time.
const statsAtOnce = 64

// Stats yields a sample of what VMs use, with q.Follow one every q.Interval until
// ctx ends or yield fails. A guest or VMM that does not answer within timing.stats
// is left out of the sample, which says so; all of them together take no longer.
// Codes: not_found, invalid.
func (d *Daemon) Stats(ctx context.Context, q api.StatsQuery, yield func(api.StatsSample) error) error {
	if q.Interval == 0 {
		q.Interval = api.DefaultStatsInterval
	}
	if q.Interval < api.MinStatsInterval || q.Interval > api.MaxStatsInterval {
		return api.Errorf(api.CodeInvalid, "interval: is %v; give %v to %v", q.Interval, api.MinStatsInterval, api.MaxStatsInterval)
	}
	ids := make([]string, 0, len(q.VMs))
	for _, name := range q.VMs {
		vm, err := d.find(ctx, name)
		if err != nil {
			return err
		}
		if !slices.Contains(ids, vm.ID) {
			ids = append(ids, vm.ID)
		}
	}
	for next := time.Now(); ; next = next.Add(q.Interval) {
		sample, err := d.sample(ctx, ids)
		if err != nil {
			return d.publicError("measure VMs", err)
		}
		if err := yield(sample); err != nil || !q.Follow {
			return err
		}
		if late := time.Since(next); late > q.Interval {
			next = next.Add(late) // a sample that took long is not followed by a burst
		}
		select {
		case <-time.After(time.Until(next.Add(q.Interval))):
		case <-ctx.Done():
			return ctx.Err()
		case <-d.stopping:
			return api.Errorf(api.CodeUnavailable, "volantd is stopping")
		}
	}
}

// sample measures the VMs with these ids, or with none all that have a machine.
func (d *Daemon) sample(ctx context.Context, ids []string) (api.StatsSample, error) {
	vms, err := d.toMeasure(ctx, ids)
	if err != nil {
		return api.StatsSample{}, err
	}
	slices.SortFunc(vms, func(a, b row.VM) int { return strings.Compare(a.Name, b.Name) })
	s := api.StatsSample{Time: d.cfg.Now().UTC(), VMs: make([]api.VMStats, len(vms))}
	bounded, cancel := context.WithTimeout(ctx, d.t.stats)
	defer cancel()
	slots := make(chan struct{}, statsAtOnce)
	var wg sync.WaitGroup
	for i := range vms {
		slots <- struct{}{} // comes free by the deadline of those who have them
		wg.Go(func() {
			defer func() { <-slots }()
			s.VMs[i] = d.measure(bounded, &vms[i])
		})
	}
	wg.Wait()
	return s, ctx.Err()
}

func (d *Daemon) toMeasure(ctx context.Context, ids []string) ([]row.VM, error) {
	if len(ids) == 0 {
		vms, err := d.store.ActiveVMs(ctx)
		return slices.DeleteFunc(vms, func(vm row.VM) bool { return vm.Record == nil }), err
	}
	var vms []row.VM
	for _, id := range ids {
		vm, err := d.store.VMByID(ctx, id)
		if errors.Is(err, row.ErrNotFound) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	return vms, nil
}

// measure asks all who know something of the VM, at the same time.
func (d *Daemon) measure(ctx context.Context, vm *row.VM) api.VMStats {
	now := d.cfg.Now().UTC()
	s := api.VMStats{
		VM: vm.Name, ID: vm.ID, Status: vm.Status, Time: now, VCPUs: vm.CPUCores, MemoryGiven: int64(vm.MemoryMB) << 20,
	}
	if vm.StartedAt != nil && !vm.Ended() {
		s.UptimeSeconds = max(0, now.Sub(*vm.StartedAt).Seconds())
	}
	if vm.Record == nil {
		return s
	}
	var mu sync.Mutex // guards s
	var wg sync.WaitGroup
	ask := func(what string, do func() (func(), error)) {
		wg.Go(func() {
			set, err := do()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if ctx.Err() != nil {
					err = errors.New("it did not answer in time")
				}
				s.Missing = append(s.Missing, what+": "+clip(err.Error(), maxStepText))
				return
			}
			set()
		})
	}
	ask("host", func() (func(), error) {
		u, err := d.usage(vm)
		return func() { setUsage(&s, u) }, err
	})
	if !vm.Vsock && d.cfg.Network != nil {
		ask("network", func() (func(), error) {
			in, out, err := d.cfg.Network.Traffic(ctx, vm.ID)
			return func() { s.NetReceived, s.NetSent = &in, &out }, err
		})
	}
	w := d.worker(vm.ID)
	if w != nil && vm.Status == api.VMRunning {
		if a := w.agent.Load(); a != nil {
			ask("guest", func() (func(), error) {
				m, err := a.memory(ctx)
				return func() { s.Guest = &m }, err
			})
		}
	}
	var read, written *int64 // as the guest sees its disks; better than what the host had to do for it
	if w != nil {
		if m, ok := w.meter(); ok {
			ask("disks", func() (func(), error) {
				c, err := m.Counters(ctx)
				return func() { read, written = diskBytes(c) }, err
			})
		}
	}
	wg.Wait()
	if read != nil {
		s.DiskRead = read
	}
	if written != nil {
		s.DiskWrite = written
	}
	slices.Sort(s.Missing)
	return s
}

// usage is what the host has counted for the VM: in its cgroup, and what that does
// not say, for its process.
func (d *Daemon) usage(vm *row.VM) (cgroup.Usage, error) {
	rec, err := decodeRecord(vm.Record)
	if err != nil {
		return cgroup.Usage{}, err
	}
	u, err := cgroup.Process(rec.PID, rec.StartTime)
	if d.cfg.Cgroups == nil {
		return u, err
	}
	g, gerr := d.cfg.Cgroups.Usage(vm.ID)
	if gerr != nil {
		return u, errors.Join(err, gerr)
	}
	if g.CPU >= 0 {
		u.CPU, err = g.CPU, nil
	}
	if g.Memory >= 0 {
		u.Memory = g.Memory
	}
	if g.Pids >= 0 {
		u.Pids = g.Pids
	}
	// Of what is written to the page cache the cgroup learns late or never, the
	// process at once.
	u.ReadBytes, u.WriteBytes = max(u.ReadBytes, g.ReadBytes), max(u.WriteBytes, g.WriteBytes)
	return u, err
}

// setUsage keeps what was measured.
func setUsage(s *api.VMStats, u cgroup.Usage) {
	keep := func(n int64) *int64 {
		if n < 0 {
			return nil
		}
		return &n
	}
	s.CPUNanos, s.MemoryUsed = keep(int64(u.CPU)), keep(u.Memory)
	s.DiskRead, s.DiskWrite = keep(u.ReadBytes), keep(u.WriteBytes)
	if u.Pids >= 0 {
		s.Threads = &u.Pids
	}
}

// diskBytes adds up what a driver has counted for the disks of a machine, by the
// names that Cloud Hypervisor and QEMU give it.
func diskBytes(counters map[string]map[string]uint64) (read, written *int64) {
	add := func(sum **int64, n uint64) {
		if n > math.MaxInt64 { // nothing was measured
			return
		}
		if *sum == nil {
			*sum = new(int64)
		}
		**sum += int64(n)
	}
	for _, c := range counters {
		for name, n := range c {
			switch name {
			case "read_bytes", "rd_bytes":
				add(&read, n)
			case "write_bytes", "wr_bytes":
				add(&written, n)
			}
		}
	}
	return read, written
}

// meter returns what counts for the machine that the worker holds, if its driver
// does.
func (w *worker) meter() (hv.Meter, bool) {
	m := w.shown.Load()
	if m == nil {
		return nil, false
	}
	meter, ok := m.vm.(hv.Meter)
	return meter, ok
}

// memory asks the guest what memory it has.
func (a *agent) memory(ctx context.Context) (api.GuestMemory, error) {
	var m wire.Memory
	if err := a.get(ctx, wire.PathMemory, nil, &m); err != nil {
		return api.GuestMemory{}, err
	}
	if min(m.Total, m.Available, m.Agent, m.Kernel, m.Workload) < 0 {
		return api.GuestMemory{}, fmt.Errorf("the guest says %+v", m)
	}
	return api.GuestMemory{Total: m.Total, Available: m.Available, Agent: m.Agent, Kernel: m.Kernel, Workload: m.Workload}, nil
}
