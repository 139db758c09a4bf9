package daemon

import (
	"context"
	"fmt"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/cgroup"
)

// Cgroups is what the daemon needs of the host's control groups. *cgroup.Host is
// one; its methods are documented there.
type Cgroups interface {
	Make(id string, l cgroup.Limits) (dirs []string, err error)
	Limit(id string, l cgroup.Limits) error
	Usage(id string) (cgroup.Usage, error)
	Remove(ctx context.Context, id string) error
	IDs() ([]string, error)
	Problem() string
	Words() string
}

const (
	// A VMM takes more than the memory of its guest: code, buffers of devices and 32
	// MiB of translated code of an emulated guest; for each MiB of the guest tables
	// of its pages. Measured: 60 to 90 MiB. The page cache of its disks counts too,
	// but can be dropped.
	overheadMiB   = 192
	overheadShare = 64 // of the guest's memory, one part
	// vmmThreads is how many a VMM may have beside a few for each vCPU: QEMU alone
	// has up to 64 workers for its disks.
	vmmThreads = 256
	// cpuWeight is that of a VM with one vCPU; the kernel's own of a group.
	cpuWeight    = 100
	maxCPUWeight = 10_000
)

// limitsOf returns what the VMM of a VM of this size may have: a little more than
// its guest, so that a limit is met by what has gone wrong only.
func limitsOf(vcpus, memoryMiB int) cgroup.Limits {
	return cgroup.Limits{
		MemoryBytes: int64(memoryMiB+memoryMiB/overheadShare+overheadMiB) << 20,
		Pids:        vmmThreads + 16*vcpus,
		CPUWeight:   min(cpuWeight*vcpus, maxCPUWeight),
		CPUPercent:  100 * (vcpus + 1), // its own threads work beside the vCPUs
	}
}

// ungroup removes the VM's groups, and ends what may be left in them.
func (w *worker) ungroup(ctx context.Context) error {
	if w.d.cfg.Cgroups == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.t.kill)
	defer cancel()
	if err := w.d.cfg.Cgroups.Remove(ctx, w.id); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// groups lists the ids that have a cgroup.
func (d *Daemon) groups() ([]string, error) {
	if d.cfg.Cgroups == nil {
		return nil, nil
	}
	ids, err := d.cfg.Cgroups.IDs()
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	var ours []string
	for _, id := range ids {
		if validID(id) {
			ours = append(ours, id)
		}
	}
	return ours, nil
}

// limitsCheck says what keeps VMs to their size.
func (d *Daemon) limitsCheck() api.LimitsCheck {
	if d.cfg.Cgroups == nil {
		return api.LimitsCheck{Cgroups: "none", Problem: "VMs run without limits: volantd was told to use no cgroups"}
	}
	return api.LimitsCheck{Cgroups: d.cfg.Cgroups.Words(), Problem: d.cfg.Cgroups.Problem()}
}
