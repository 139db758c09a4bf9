package cloudhypervisor

import (
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
	Net          []netConfig    `json:"net,omitempty"`
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
	Size int64 `json:"size"` // bytes
	// Shared makes the memory a memfd's: it costs nothing at boot, snapshots of
	// it are sparse, and version 52 holds private memory twice.
	Shared    bool `json:"shared"`
	Hugepages bool `json:"hugepages"`
	Prefault  bool `json:"prefault"`
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

type netConfig struct {
	ID          string `json:"id"`
	Tap         string `json:"tap"`
	MAC         string `json:"mac"`
	OffloadTSO  bool   `json:"offload_tso"`
	OffloadUFO  bool   `json:"offload_ufo"`
	OffloadCSum bool   `json:"offload_csum"`
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

// newConfig returns the configuration of a machine that check has accepted.
func newConfig(spec *hv.Spec, f *findings) vmConfig {
	dir := filepath.Join(spec.Dir, ioDir)
	c := vmConfig{
		CPUs:         cpusConfig{Boot: spec.VCPUs, Max: spec.VCPUs},
		Memory:       memoryConfig{Size: int64(spec.MemoryMiB) << 20, Shared: true},
		Payload:      payloadConfig{Kernel: spec.Kernel, Cmdline: cmdline(spec), Initramfs: spec.Initramfs},
		RNG:          rngConfig{Src: "/dev/urandom"},
		Serial:       consoleConfig{Mode: "Socket", Socket: filepath.Join(spec.Dir, consoleSocket)},
		Console:      consoleConfig{Mode: "Off"},
		DebugConsole: consoleConfig{Mode: "Off"},
		PVPanic:      true,
	}
	for _, d := range spec.Disks {
		// The page cache is used: it holds a read-only root once for all machines.
		c.Disks = append(c.Disks, diskConfig{
			ID: "disk-" + d.Serial, Path: d.Path, ReadOnly: d.ReadOnly, ImageType: "Raw", Sparse: true, Serial: d.Serial,
		})
	}
	for _, n := range spec.NICs {
		c.Net = append(c.Net, netConfig{
			ID: "net-" + n.Tap, Tap: n.Tap, MAC: n.MAC.String(), OffloadTSO: true, OffloadUFO: true, OffloadCSum: true,
		})
	}
	if spec.CID != 0 {
		c.Vsock = &vsockConfig{ID: "vsock", CID: spec.CID, Socket: filepath.Join(spec.Dir, agentSocket)}
	}
	if f.landlock {
		// The VMM derives rules for the files that it is told to open, but makes
		// its sockets in a directory that it must be given.
		c.Landlock = true
		c.Rules = []landlockRule{{Path: dir, Access: "rw"}}
		for _, n := range spec.NICs {
			c.Rules = append(c.Rules, landlockRule{Path: "/sys/class/net/" + n.Tap, Access: "r"}) // it reads tun_flags
		}
	}
	return c
}

// cmdline returns the kernel's command line: what the machine needs, then the
// Spec's own parameters, which therefore win.
func cmdline(spec *hv.Spec) string {
	// ttyS0 is there in every kernel, and each byte on it is an exit: "quiet"
	// makes a boot six times as fast. A guest that panics must end, not hang.
	p := []string{"console=ttyS0", "quiet", "panic=-1"}
	return strings.Join(append(p, spec.Cmdline...), " ")
}
