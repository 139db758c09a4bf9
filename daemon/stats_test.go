package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/cgroup"
)

// once takes one sample of the VMs with these names.
func (in *instance) statsOnce(names ...string) (sample api.StatsSample, err error) {
	in.w.t.Helper()
	err = in.Stats(context.Background(), api.StatsQuery{VMs: names}, func(s api.StatsSample) error {
		sample = s
		return nil
	})
	return sample, err
}

func TestStats(t *testing.T) {
	w := newWorld(t)
	w.cgs.usage = cgroup.Usage{CPU: 3 * time.Second, Memory: 50 << 20, ReadBytes: 7, WriteBytes: 8, Pids: 9}
	d := w.start(options{timing: func(tm *timing) { tm.stats = 200 * time.Millisecond }})
	d.equip(d.manifest("sick"))
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.create("hung", "sick") // its agent never says what memory it has
	d.must("hung", api.WaitRunning)
	if _, err := d.CreateVM(context.Background(), api.VMCreate{Name: "off", Plugin: "serve", Stopped: true}); err != nil {
		t.Fatal(err)
	}

	begun := time.Now()
	s, err := d.statsOnce()
	if err != nil || len(s.VMs) != 2 || s.VMs[0].VM != "hung" || s.VMs[1].VM != "web" {
		t.Fatalf("Stats = %+v, %v, want hung and web", s, err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("a hung guest held it for %v", took)
	}
	hung, web := s.VMs[0], s.VMs[1]
	if *web.CPUNanos != 3e9 || *web.MemoryUsed != 50<<20 || *web.DiskRead != 7 || *web.DiskWrite != 8 || *web.Threads != 9 || web.MemoryGiven != 64<<20 || web.VCPUs != 1 ||
		*web.NetReceived != 1000 || *web.NetSent != 2000 || web.UptimeSeconds <= 0 || web.Guest == nil || *web.Guest != (api.GuestMemory{Total: 60 << 20, Available: 40 << 20, Agent: 9 << 20, Kernel: 5 << 20, Workload: 4 << 20}) || web.Missing != nil {
		t.Errorf("web uses %+v", web)
	}
	if hung.Guest != nil || *hung.CPUNanos != 3e9 || !slices.Equal(hung.Missing, []string{"guest: it did not answer in time"}) {
		t.Errorf("hung uses %+v, want all but what the guest says", hung)
	}

	// A paused VM is not asked, one that has ended has nothing, and names are found.
	d.pause("web")
	s, err = d.statsOnce("web", "off", "web")
	if err != nil || len(s.VMs) != 2 || s.VMs[0].VM != "off" || s.VMs[0].CPUNanos != nil || s.VMs[0].Missing != nil ||
		s.VMs[1].Guest != nil || s.VMs[1].Missing != nil || s.VMs[1].MemoryUsed == nil || s.VMs[1].Status != api.VMPaused {
		t.Errorf("Stats of a stopped and a paused VM = %+v, %v", s, err)
	}
	if _, err := d.statsOnce("wed"); api.CodeOf(err) != api.CodeNotFound || !strings.Contains(err.Error(), "web") && !strings.Contains(err.(*api.Error).Hint, "web") {
		t.Errorf("Stats of none: %v, want it to be told of web", err)
	}
	if err := d.Stats(context.Background(), api.StatsQuery{Interval: time.Millisecond}, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("Stats every millisecond: %v", err)
	}

	// Following goes on until somebody has enough, also past a VM's deletion.
	enough := errors.New("enough")
	var sizes []int
	err = d.Stats(context.Background(), api.StatsQuery{VMs: []string{"off"}, Follow: true, Interval: api.MinStatsInterval}, func(s api.StatsSample) error {
		if sizes = append(sizes, len(s.VMs)); len(sizes) == 1 {
			if err := d.DeleteVM(context.Background(), "off", api.VMStop{}); err != nil {
				t.Error(err)
			}
			d.must("off", api.WaitDeleted)
		}
		if len(sizes) == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || !slices.Equal(sizes, []int{1, 0, 0}) {
		t.Errorf("followed %v, %v", sizes, err)
	}
}

func TestDiskBytes(t *testing.T) {
	r, w := diskBytes(map[string]map[string]uint64{
		"_disk0": {"read_bytes": 5, "write_bytes": 1<<64 - 1}, "_disk1": {"rd_bytes": 6, "read_ops": 9}, "_net0": {"rx_bytes": 100},
	})
	if r == nil || *r != 11 || w != nil {
		t.Errorf("diskBytes = %v, %v, want 11 and nothing", r, w)
	}
}
