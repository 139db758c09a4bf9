package cloudhypervisor

import (
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/hv/vmm"
)

// stored is what is used of a machine's configuration as Cloud Hypervisor tells
// it, in vm.info and in the config.json of a snapshot, which are alike: what has
// been added since the boot is in it.
type stored struct {
	CPUs   cpusConfig `json:"cpus"`
	Memory struct {
		Size        int64        `json:"size"`
		HotplugSize int64        `json:"hotplug_size"`
		Hotplugged  int64        `json:"hotplugged_size"`
		Zones       []zoneConfig `json:"zones"`
	} `json:"memory"`
	Disks []diskConfig `json:"disks"`
	Pmem  []pmemConfig `json:"pmem"`
	Net   []struct {
		ID  string `json:"id"`
		MAC string `json:"mac"`
	} `json:"net"`
	FS       []fsConfig     `json:"fs"`
	Devices  []deviceConfig `json:"devices"`
	Balloon  *balloonConfig `json:"balloon"`
	Vsock    *vsockConfig   `json:"vsock"`
	Landlock bool           `json:"landlock_enable"`
	Rules    []landlockRule `json:"landlock_rules"`
}

// bootBytes is how much memory the machine began with.
func (c *stored) bootBytes() int64 {
	size := c.Memory.Size
	for _, z := range c.Memory.Zones {
		size += z.Size
	}
	return size
}

// shape returns what ShapeOf would of a Spec of the machine as it is now.
func (c *stored) shape() vmm.Shape {
	const mib = 1 << 20
	s := vmm.Shape{
		VCPUs: c.CPUs.Boot, MaxVCPUs: max(c.CPUs.Boot, c.CPUs.Max),
		MemoryMiB:    int((c.bootBytes() + c.Memory.Hotplugged) / mib),
		MaxMemoryMiB: int((c.bootBytes() + max(c.Memory.HotplugSize, c.Memory.Hotplugged)) / mib),
		NICs:         len(c.Net), Devices: len(c.Devices), Vsock: c.Vsock != nil, Balloon: c.Balloon != nil,
	}
	for _, d := range c.Disks {
		s.Disks = append(s.Disks, vmm.DiskShape{Serial: strings.TrimPrefix(d.ID, diskPrefix), ReadOnly: d.ReadOnly})
	}
	for _, p := range c.Pmem {
		s.Disks = append(s.Disks, vmm.DiskShape{Serial: strings.TrimPrefix(p.ID, pmemPrefix), ReadOnly: true, Pmem: true})
	}
	for _, fs := range c.FS {
		s.Shares = append(s.Shares, fs.Tag)
	}
	return s
}

// template returns the file that is the machine's memory, "" when it has a memory
// of its own: a fork's is that of its template, mapped privately.
func (c *stored) template() string {
	if z := c.Memory.Zones; len(z) == 1 && z[0].Shared {
		return z[0].File
	}
	return ""
}

// reaches says whether Landlock lets the VMM make or open files in dir.
func (c *stored) reaches(dir string) bool {
	if !c.Landlock {
		return true
	}
	for _, r := range c.Rules {
		if rel, err := filepath.Rel(r.Path, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") && r.Access == "rw" {
			return true
		}
	}
	return false
}

// disk and nic find a device by what the Spec names it by; nil when there is none.
func (c *stored) disk(serial string) *diskConfig {
	for i := range c.Disks {
		if c.Disks[i].ID == diskID(serial) {
			return &c.Disks[i]
		}
	}
	return nil
}

func (c *stored) nic(mac string) (id string, ok bool) {
	for _, n := range c.Net {
		if n.MAC == mac {
			return n.ID, true
		}
	}
	return "", false
}
