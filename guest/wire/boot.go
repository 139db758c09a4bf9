package wire

import (
	"net/netip"
	"strconv"
	"time"
)

// BootConfig is everything a guest is told at boot. It is written to a
// read-only disk by the host (see EncodeBoot) and read once by kestrel. It may
// hold secrets in Env: the file is 0600 and is deleted with the VM.
type BootConfig struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the host's binary
	VM       string `json:"vm"`      // the VM's id
	Name     string `json:"name"`
	// Incarnation counts the VM's lives, from 1.
	Incarnation int `json:"incarnation"`

	Hostname  string `json:"hostname"`
	MachineID string `json:"machine_id"` // 32 lower-case hex digits, machine-id(5)
	// Time is the host's wall clock when the configuration was written.
	Time time.Time `json:"time"`
	// Seed is entropy from the host for the guest's random pool, 32 to 64 bytes.
	Seed []byte `json:"seed"`

	Network  *NetworkConfig `json:"network,omitempty"` // nil: loopback only
	Root     *RootConfig    `json:"root,omitempty"`    // nil: the initramfs is the root
	Mounts   []MountConfig  `json:"mounts,omitempty"`  // in the order in which they are to be made
	Workload WorkloadConfig `json:"workload"`
}

// Serials of the disks that a guest may have beside ConfigSerial.
const (
	RootSerial  = "volant-root"  // the read-only root file system
	UpperSerial = "volant-upper" // ext4: what the VM changed in its root
)

// VolumeSerial is the serial of the disk of Mounts[i].
func VolumeSerial(i int) string { return "volant-vol-" + strconv.Itoa(i) }

// Upper says where changes of the root go.
type Upper string

const (
	UpperDisk     Upper = "disk"     // to the disk UpperSerial
	UpperMemory   Upper = "memory"   // to a tmpfs
	UpperReadOnly Upper = "readonly" // there are none; only what mounts need is added, in memory
)

// RootConfig is the root file system of a guest whose root is not its
// initramfs: the disk RootSerial, which is erofs, squashfs or ext4 (told by its
// superblock) and is mounted read-only, under an overlay.
type RootConfig struct {
	Upper   Upper `json:"upper"`
	SizeMiB int   `json:"size_mib,omitempty"` // of the tmpfs; 0 for half of the memory
}

// MountType is what is mounted.
type MountType string

const (
	MountDisk  MountType = "disk"  // the disk VolumeSerial(its index)
	MountTmpfs MountType = "tmpfs" // the guest's memory
)

// MountConfig is one further file system of the guest. Its target is made when
// it is not there, and never leads out of the root.
type MountConfig struct {
	Type     MountType `json:"type"`
	Target   string    `json:"target"` // absolute
	ReadOnly bool      `json:"read_only,omitempty"`
	SizeMiB  int       `json:"size_mib,omitempty"` // of a tmpfs; 0 for half of the memory
	Mode     uint32    `json:"mode,omitempty"`     // of a tmpfs: permission bits; 0 for 01777
	// Copy fills a file system that is empty (lost+found aside) with what the
	// root has at Target, and gives it that directory's owner and mode, before
	// the workload sees it. Cut short by whatever, it is begun anew at the next
	// boot.
	Copy bool `json:"copy,omitempty"`
}

// NetworkConfig is the static configuration of the guest's only NIC, which is
// found by its MAC address.
type NetworkConfig struct {
	MAC         string       `json:"mac"` // "02:..."
	Address     netip.Prefix `json:"address"`
	Gateway     netip.Addr   `json:"gateway"`
	MTU         int          `json:"mtu,omitempty"` // bytes; 0 keeps the device's own
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`
}

// RestartPolicy says when a workload that exited is started again in the guest.
type RestartPolicy string

const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// WorkloadConfig is the process that the VM exists for.
type WorkloadConfig struct {
	Args    []string      `json:"args"` // argv; Args[0] is looked up in PATH when it holds no slash
	Env     []string      `json:"env,omitempty"`
	Workdir string        `json:"workdir,omitempty"` // default /
	User    string        `json:"user,omitempty"`    // name or uid[:gid]; default root
	Restart RestartPolicy `json:"restart,omitempty"` // default never
	// RestartMax is how often it may be started again in this incarnation; 0 for
	// any number of times.
	RestartMax int `json:"restart_max,omitempty"`
	// StopSignal is sent on shutdown: by name ("SIGTERM", the default, "INT",
	// "SIGRTMIN+3") or by number.
	StopSignal string `json:"stop_signal,omitempty"`
	// StopTimeout is how long the workload may take to exit after StopSignal
	// before SIGKILL; 0 means DefaultStopTimeout.
	StopTimeout time.Duration `json:"stop_timeout,omitempty"`
	// BaseURL is where the workload serves HTTP inside the guest
	// ("http://127.0.0.1:8080"); empty for workloads that do not. PathWorkload
	// proxies to it.
	BaseURL string  `json:"base_url,omitempty"`
	Health  *Health `json:"health,omitempty"`
	// TTY runs it on a terminal of its own, Stdin keeps its standard input open
	// for those who attach (PathAttach); else that is /dev/null.
	TTY   bool `json:"tty,omitempty"`
	Stdin bool `json:"stdin,omitempty"`
	// Init has a process 1 before it that reaps orphans and passes signals on, where
	// it would be process 1 itself: where the guest has a Root.
	Init bool `json:"init,omitempty"`
	// Attach says that somebody is about to attach, and wants all of the output:
	// what is written before is held back rather than lost, for a while.
	Attach bool `json:"attach,omitempty"`
}

// DefaultStopTimeout is the grace a workload has to exit after its stop signal.
const DefaultStopTimeout = 10 * time.Second

// Health is the probe that kestrel runs against the workload, often until it
// first succeeds and every Interval afterwards. Exactly one of HTTP, TCP and
// Exec is set.
type Health struct {
	HTTP string   `json:"http,omitempty"` // URL; healthy on any 2xx or 3xx status
	TCP  string   `json:"tcp,omitempty"`  // host:port; healthy when a connection opens
	Exec []string `json:"exec,omitempty"` // a command, run as the workload's user; healthy when it exits with 0
	// StartPeriod is how long after the workload's start failures do not count,
	// unless there was a success in it. After it, and before the first success,
	// one failure counts in every Interval.
	StartPeriod time.Duration `json:"start_period,omitempty"`
	Timeout     time.Duration `json:"timeout"`  // of one probe
	Interval    time.Duration `json:"interval"` // between probes once healthy; 0 means DefaultHealthInterval
	Retries     int           `json:"retries"`  // consecutive failures until unhealthy; 0 means 3
}

// DefaultHealthInterval is the pause between two probes of a healthy workload.
const DefaultHealthInterval = 10 * time.Second
