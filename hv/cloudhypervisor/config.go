package cloudhypervisor

import (
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/hv"
)

// The bodies of requests. They are sent from these types only: Cloud Hypervisor
// ignores a field that it does not know, so that a misspelt one would be lost
// silently. TestRequests holds them against its API description. Whatever has a
// default that could hurt is sent always.

// vmConfig is the body of vm.create.
type vmConfig struct {
	CPUs         cpusConfig     `json:"cpus"`
	Memory       memoryConfig   `json:"memory"`
	Payload      payloadConfig  `json:"payload"`
	Disks        []diskConfig   `json:"disks,omitempty"`
	Pmem         []pmemConfig   `json:"pmem,omitempty"`
	FS           []fsConfig     `json:"fs,omitempty"`
	Devices      []deviceConfig `json:"devices,omitempty"`
	Balloon      *balloonConfig `json:"balloon,omitempty"`
	RNG          rngConfig      `json:"rng"`
	Serial       consoleConfig  `json:"serial"`
	Console      consoleConfig  `json:"console"`
	DebugConsole consoleConfig  `json:"debug_console"`
	Vsock        *vsockConfig   `json:"vsock,omitempty"`
	PVPanic      bool           `json:"pvpanic"`
	Watchdog     bool           `json:"watchdog"`
	Landlock     bool           `json:"landlock_enable"`
	Rules        []landlockRule `json:"landlock_rules,omitempty"`
}

type cpusConfig struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memoryConfig struct {
	Size int64 `json:"size"` // bytes; 0 with zones
	// HotplugSize is how many bytes can be added, by virtio-mem, which unlike ACPI
	// gives memory back too.
	HotplugSize   int64  `json:"hotplug_size,omitempty"`
	HotplugMethod string `json:"hotplug_method,omitempty"`
	// Shared makes the memory a memfd's: it costs nothing at boot, snapshots of
	// it are sparse, and version 52 holds private memory twice.
	Shared    bool `json:"shared"`
	Hugepages bool `json:"hugepages"`
	Prefault  bool `json:"prefault"`
	// Zones is one, for memory that is a file.
	Zones []zoneConfig `json:"zones,omitempty"`
}

type zoneConfig struct {
	ID        string `json:"id"`
	Size      int64  `json:"size"` // bytes
	File      string `json:"file"`
	Shared    bool   `json:"shared"`
	Hugepages bool   `json:"hugepages"`
	Prefault  bool   `json:"prefault"`
}

type payloadConfig struct {
	Kernel    string `json:"kernel"`
	Cmdline   string `json:"cmdline"`
	Initramfs string `json:"initramfs,omitempty"`
}

type diskConfig struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readonly"`
	// ImageType is always "Raw". What it is guessed for is not writable in its
	// first sector.
	ImageType string `json:"image_type"`
	// BackingFiles would let a guest's disk name files of the host.
	BackingFiles bool   `json:"backing_files"`
	Direct       bool   `json:"direct"`
	Sparse       bool   `json:"sparse"` // pass on what the guest discards
	Serial       string `json:"serial"`
}

// pmemConfig is a file that the guest maps. DiscardWrites makes the mapping
// private: what the guest writes does not reach the file.
type pmemConfig struct {
	ID            string `json:"id"`
	File          string `json:"file"`
	DiscardWrites bool   `json:"discard_writes"`
}

// netConfig is the body of vm.add-net, with which the TAP comes as a file: the
// VMM needs no rights for it. The MTU and the addresses of the host's side are
// set by whoever makes the TAP, since CAP_NET_ADMIN would be needed for them.
type netConfig struct {
	ID          string `json:"id"`
	MAC         string `json:"mac"`
	Queues      int    `json:"num_queues"` // two of each file
	QueueSize   int    `json:"queue_size"`
	OffloadTSO  bool   `json:"offload_tso"`
	OffloadUFO  bool   `json:"offload_ufo"`
	OffloadCSum bool   `json:"offload_csum"`
}

type fsConfig struct {
	ID        string `json:"id"`
	Tag       string `json:"tag"`
	Socket    string `json:"socket"`
	Queues    int    `json:"num_queues"`
	QueueSize int    `json:"queue_size"`
}

type deviceConfig struct {
	ID    string `json:"id"`
	Path  string `json:"path"` // in sysfs
	IOMMU bool   `json:"iommu"`
}

type balloonConfig struct {
	ID            string `json:"id"`
	Size          int64  `json:"size"`           // bytes taken from the guest
	DeflateOnOOM  bool   `json:"deflate_on_oom"` // give them back rather than have processes killed
	FreeReporting bool   `json:"free_page_reporting"`
}

type rngConfig struct {
	Src string `json:"src"`
}

type consoleConfig struct {
	Mode   string `json:"mode"` // "Off" or "Socket"; the default of one of them is the terminal
	Socket string `json:"socket,omitempty"`
}

type vsockConfig struct {
	ID     string `json:"id"`
	CID    uint32 `json:"cid"`
	Socket string `json:"socket"`
}

type landlockRule struct {
	Path   string `json:"path"`
	Access string `json:"access"` // of "r", "w", "rw"
}

// The bodies of the other calls.

type removeConfig struct {
	ID string `json:"id"`
}

type resizeConfig struct {
	VCPUs int   `json:"desired_vcpus,omitempty"`
	RAM   int64 `json:"desired_ram,omitempty"` // bytes
}

type snapshotConfig struct {
	Destination string `json:"destination_url"`
}

type restoreConfig struct {
	Source   string `json:"source_url"`
	Prefault bool   `json:"prefault"`
	Mode     string `json:"memory_restore_mode"` // "Copy", or "OnDemand" from the first access on
	Resume   bool   `json:"resume"`
	// NetFDs name the NICs whose TAPs come as files, in the files' order. The API
	// description does not have it.
	NetFDs []netFD `json:"net_fds,omitempty"`
}

type netFD struct {
	ID  string `json:"id"`
	FDs int    `json:"num_fds"`
}

// zoneID names the zone of memory that is a file.
const zoneID = "memory"

// newConfig returns the configuration of a machine that check has accepted, but
// for its NICs, which are added.
func newConfig(spec *hv.Spec, f *findings) vmConfig {
	c := vmConfig{
		CPUs:         cpusConfig{Boot: spec.VCPUs, Max: max(spec.VCPUs, spec.MaxVCPUs)},
		Memory:       memoryConfig{Size: int64(spec.MemoryMiB) << 20, Shared: true},
		Payload:      payloadConfig{Kernel: spec.Kernel, Cmdline: cmdline(spec), Initramfs: spec.Initramfs},
		RNG:          rngConfig{Src: "/dev/urandom"},
		Serial:       consoleConfig{Mode: "Socket", Socket: filepath.Join(spec.Dir, consoleSocket)},
		Console:      consoleConfig{Mode: "Off"},
		DebugConsole: consoleConfig{Mode: "Off"},
		PVPanic:      true,
	}
	if more := spec.MaxMemoryMiB - spec.MemoryMiB; more > 0 {
		c.Memory.HotplugSize, c.Memory.HotplugMethod = int64(more)<<20, "VirtioMem"
	}
	if spec.MemoryFile != "" {
		c.Memory.Size, c.Memory.Shared = 0, false // the zone's are meant
		c.Memory.Zones = []zoneConfig{{ID: zoneID, Size: int64(spec.MemoryMiB) << 20, File: spec.MemoryFile, Shared: true}}
	}
	for _, d := range spec.Disks {
		if d.Pmem {
			c.Pmem = append(c.Pmem, pmemConfig{ID: pmemID(d.Serial), File: d.Path, DiscardWrites: true})
		} else {
			c.Disks = append(c.Disks, newDisk(d))
		}
	}
	for _, sh := range spec.Shares {
		c.FS = append(c.FS, fsConfig{ID: "fs-" + sh.Tag, Tag: sh.Tag, Socket: sh.Socket, Queues: 1, QueueSize: 1024})
	}
	for _, d := range spec.Devices {
		c.Devices = append(c.Devices, deviceConfig{ID: "vfio-" + d, Path: "/sys/bus/pci/devices/" + d})
	}
	if spec.Balloon {
		// What is reported becomes a hole in the file behind the memory, also where
		// that is mapped privately. A fork has its template's balloon, and would make
		// holes in the memory of all forks.
		c.Balloon = &balloonConfig{ID: "balloon", DeflateOnOOM: true, FreeReporting: spec.MemoryFile == ""}
	}
	if spec.CID != 0 {
		c.Vsock = &vsockConfig{ID: "vsock", CID: spec.CID, Socket: filepath.Join(spec.Dir, agentSocket)}
	}
	if f.landlock {
		c.Landlock, c.Rules = true, rules(spec)
	}
	return c
}

// rules returns what Landlock lets the VMM reach, beside the files that it is
// told to open, for which it derives rules itself. Its sockets it makes in a
// directory that it must be given.
func rules(spec *hv.Spec) []landlockRule {
	list := []landlockRule{{Path: filepath.Join(spec.Dir, ioDir), Access: "rw"}}
	if spec.MemoryFile != "" {
		list = append(list, landlockRule{Path: spec.MemoryFile, Access: "rw"})
	}
	if len(spec.Devices) > 0 {
		// It derives one of the device's address, but opens /dev/vfio/GROUP (as of
		// versions 52 to 54).
		list = append(list, landlockRule{Path: "/dev/vfio", Access: "rw"})
	}
	for _, dir := range spec.Reach {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() { // it refuses a rule for what is not there
			list = append(list, landlockRule{Path: dir, Access: "rw"})
		}
	}
	return list
}

func newDisk(d hv.Disk) diskConfig {
	// The page cache is used: it holds a read-only root once for all machines.
	return diskConfig{ID: diskID(d.Serial), Path: d.Path, ReadOnly: d.ReadOnly, ImageType: "Raw", Sparse: true, Serial: d.Serial}
}

func newNIC(id string, n hv.NIC) netConfig {
	return netConfig{ID: id, MAC: n.MAC.String(), Queues: 2, QueueSize: 256, OffloadTSO: true, OffloadUFO: true, OffloadCSum: true}
}

// Ids of devices. Those of NICs are of the address that they began with, and stay
// when a restored machine has another.
const (
	diskPrefix = "disk-"
	pmemPrefix = "pmem-"
	nicPrefix  = "net-"
)

func diskID(serial string) string { return diskPrefix + serial }

func pmemID(serial string) string { return pmemPrefix + serial }

func nicID(mac net.HardwareAddr) string { return nicPrefix + hex.EncodeToString(mac) }

// cmdline returns the kernel's command line: what the machine needs, then the
// Spec's own parameters, which therefore win.
func cmdline(spec *hv.Spec) string {
	// ttyS0 is there in every kernel, and each byte on it is an exit: "quiet"
	// makes a boot six times as fast. A guest that panics must end, not hang.
	p := []string{"console=ttyS0", "quiet", "panic=-1"}
	if spec.MaxMemoryMiB > spec.MemoryMiB {
		p = append(p, "memhp_default_state=online") // nobody in the guest need ask for what is added
	}
	return strings.Join(append(p, spec.Cmdline...), " ")
}
