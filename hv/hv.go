package hv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Errors that callers test for. Drivers wrap them with the operation and its
// subject.
var (
	// ErrGone says that the VMM of a record or directory no longer exists, or
	// cannot be proven to be ours. Nothing was signalled.
	ErrGone = errors.New("virtual machine is gone")
	// ErrUnavailable says that the hypervisor cannot run on this host: the
	// binary is missing, too old, or lacks a device. The text says which and
	// what to do.
	ErrUnavailable = errors.New("hypervisor is not available")
	// ErrUnsupported says that this driver cannot do what was asked.
	// Capabilities tell so beforehand.
	ErrUnsupported = errors.New("not supported by this hypervisor")
	// ErrInvalidSpec says that a Spec cannot be run by this driver (too many
	// disks, a socket path that is too long, a kernel that is not PVH).
	ErrInvalidSpec = errors.New("invalid machine")
	// ErrDiskInUse says that another machine, or program, has a disk in a way
	// that excludes this use of it. The text names the disk.
	ErrDiskInUse = errors.New("disk is in use")
)

// Accel says what executes the guest's instructions.
type Accel string

const (
	AccelKVM Accel = "kvm" // hardware virtualization
	AccelTCG Accel = "tcg" // software emulation: isolation is not by hardware
)

// Channel says which kind of stream the agent channel uses.
type Channel string

const (
	ChannelVsock  Channel = "vsock"  // AF_VSOCK in the guest
	ChannelSerial Channel = "serial" // framed, multiplexed virtio-serial port
)

// Capabilities says what a driver can do on this host. What a driver cannot do
// is a capability that is absent, not an error at run time.
type Capabilities struct {
	Driver  string  `json:"driver"`  // "qemu", "cloud-hypervisor"
	Version string  `json:"version"` // of the VMM binary
	Binary  string  `json:"binary"`  // its absolute path
	Accel   Accel   `json:"accel"`
	Channel Channel `json:"channel"`
	// Notice is a sentence that an operator must see, such as that emulation
	// does not isolate by hardware. Empty when there is nothing to say.
	Notice string `json:"notice,omitempty"`

	Pause       bool `json:"pause"`
	PowerButton bool `json:"power_button"`
	// Snapshot says that VMs are Snapshotters and that Restore works, Template
	// that a snapshot may be one to fork from, OnDemand that a restore can read
	// memory as the guest touches it.
	Snapshot bool `json:"snapshot"`
	Template bool `json:"template"`
	OnDemand bool `json:"on_demand"`
	// ResizeCPU and ResizeMemory say what a Resizer can change of a machine that
	// runs; PlugDisk and PlugNIC what a Plugger can.
	ResizeCPU    bool `json:"resize_cpu"`
	ResizeMemory bool `json:"resize_memory"`
	PlugDisk     bool `json:"plug_disk"`
	PlugNIC      bool `json:"plug_nic"`
	// Pmem, Share, Device, Balloon and Merge say which of a Spec's things are
	// understood.
	Pmem    bool `json:"pmem"`
	Share   bool `json:"share"`
	Device  bool `json:"device"`
	Balloon bool `json:"balloon"`
	Merge   bool `json:"merge"`
	// Unprivileged says that the VMM can run as Spec.User.
	Unprivileged bool `json:"unprivileged"`

	MaxVCPUs int `json:"max_vcpus"`
	MaxDisks int `json:"max_disks"`
	MaxNICs  int `json:"max_nics"`
}

// Spec describes one incarnation of a machine. The caller owns every file it
// names and keeps them until the VMM has exited.
type Spec struct {
	ID  string // the VM's id: [a-z0-9-], at most 40 bytes
	Dir string // absolute, existing, empty, mode 0700; sockets (paths <= 107 bytes) and the record live here

	VCPUs     int
	MemoryMiB int
	// MaxVCPUs and MaxMemoryMiB are what Resize may go up to; 0 for no more than
	// the machine starts with.
	MaxVCPUs     int
	MaxMemoryMiB int
	// MemoryFile makes the guest's memory a shared mapping of this file, which the
	// driver makes: a snapshot of the machine can then be a template. Not with
	// Shares. "" for memory of the machine's own.
	MemoryFile string
	// Balloon gives the guest a device by which it returns the memory that it does
	// not use to the host. A template has the device, and reports nothing by it, and
	// so have its forks: what one of them returned would be gone from the memory of
	// all.
	Balloon bool
	// MergeMemory lets the host's kernel keep pages once that are the same in
	// several machines (KSM). Whoever shares a page so can tell by the time that a
	// write takes whether another machine has the like: without it, which is the
	// default, the driver sees to it that nothing is merged. Only memory of the
	// machine's own is; a file's, and what shares need, is not.
	MergeMemory bool

	Kernel    string   // uncompressed ELF with a PVH entry note
	Initramfs string   // path; empty for none
	Cmdline   []string // Volant's parameters; the driver adds what its machine needs (console, clock) in front

	Disks   []Disk
	NICs    []NIC
	Shares  []Share
	Devices []string // host PCI devices, bound to vfio-pci: "0000:01:00.0"
	CID     uint32   // vsock context id, >= 3; 0 for no vsock device

	// User is who the VMM runs as, without supplementary groups; nil for whoever
	// runs the driver. The driver gives it what it makes itself, and lets its group
	// make files in Dir; what the caller names must be within its reach, but for
	// the TAPs, which the driver opens for it.
	User *User
	// Cgroups are directories of existing cgroups, at most one of a hierarchy, that
	// the VMM is in before it executes its first instruction. Empty for the
	// caller's own.
	Cgroups []string

	// Reach are directories that hold what AddDisk and Snapshot may name later. A
	// VMM that confines itself reaches, beside these, only what the Spec names.
	// Those that do not exist are left out.
	Reach []string

	// ConsoleLog is where the driver keeps the guest's console output. It is
	// appended to, and never holds more than ConsoleLimit bytes: older output
	// moves to ConsoleLog + ".1", which is replaced.
	ConsoleLog   string
	ConsoleLimit int64 // bytes per file; 0 means 1 MiB
	// VMMLog is where the VMM's own words go, "" for a file in Dir. It is
	// appended to. The driver bounds it; what it holds of a VMM that could not
	// be started is left there.
	VMMLog string
}

// Disk is one raw disk image attached by virtio-blk. A driver locks it for the
// life of the machine: many may have it read-only, or one read-write, and
// nobody else; Launch fails with ErrDiskInUse where that is not so. What a
// guest has flushed outlives its VMM, and the host's crash as far as the host's
// own disk keeps what it was told to. What a guest discards or fills with zeros
// becomes a hole in the file, where the file system can.
type Disk struct {
	Serial   string // virtio serial, <= 20 bytes; the guest finds the disk by it
	Path     string
	ReadOnly bool
	// Pmem attaches it as persistent memory instead, which the guest maps without
	// a copy of its own. Only with ReadOnly, and Capabilities.Pmem; the guest sees
	// no serial, but /dev/pmemN in the order of these disks.
	Pmem bool
}

// User is an account by its numbers.
type User struct {
	UID uint32
	GID uint32
}

// Share is a directory of the host, served by a virtiofsd that the caller runs
// at Socket. Machines with shares have shared memory.
type Share struct {
	Tag    string // the guest mounts it by this name, <= MaxShareTag bytes
	Socket string
}

// NIC is one virtio-net device on an existing TAP.
type NIC struct {
	Tap string
	MAC net.HardwareAddr
}

// Record is what must be remembered to find a VMM again. It is plain data and
// is stored as JSON. PID, StartTime and BootID together name one process for
// all time; a number alone never does.
type Record struct {
	Driver     string  `json:"driver"`
	Version    string  `json:"version"`
	Accel      Accel   `json:"accel"`
	ID         string  `json:"id"`
	Dir        string  `json:"dir"`
	PID        int     `json:"pid"`
	StartTime  uint64  `json:"start_time"` // clock ticks since boot, proc_pid_stat(5) field 22
	BootID     string  `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
	ArgvSHA256 string  `json:"argv_sha256"`
	Channel    Channel `json:"channel"`
	ConsoleLog string  `json:"console_log"`
	// ConsoleLimit is Spec.ConsoleLimit, needed to go on logging after Attach.
	ConsoleLimit int64 `json:"console_limit"`
	// CID is Spec.CID, the address of the agent when Channel is ChannelVsock.
	CID uint32 `json:"cid,omitempty"`
}

// State is what the VMM says of its machine now. It is evidence, not a wish.
type State string

const (
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateShutdown State = "shutdown" // the guest has powered off or reset; the VMM is about to exit
	StatePanicked State = "panicked" // the guest kernel panicked
	StateExited   State = "exited"   // the VMM process is gone
)

// ExitReason says why a machine ended.
type ExitReason string

const (
	ExitShutdown ExitReason = "shutdown" // the guest powered itself off
	ExitReset    ExitReason = "reset"    // the guest reset itself (reboot, or a panic without pvpanic)
	ExitPanic    ExitReason = "panic"    // the guest kernel panicked
	ExitKilled   ExitReason = "killed"   // Kill was called
	ExitCrashed  ExitReason = "crashed"  // the VMM died without saying why
)

// Exit is the end of one incarnation.
type Exit struct {
	Reason ExitReason
	// Detail is for people: the VMM's exit status or its last words.
	Detail string
}

// GoneError is the ErrGone of a driver that knows how the machine ended, from
// what the VMM left behind.
type GoneError struct {
	Exit Exit
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("%v: it ended by %s (%s)", ErrGone, e.Exit.Reason, e.Exit.Detail)
}

// Is makes errors.Is(err, ErrGone) hold.
func (e *GoneError) Is(target error) bool { return target == ErrGone }

// EventType names what happened to a machine.
type EventType string

const (
	EventPaused        EventType = "paused"
	EventResumed       EventType = "resumed"
	EventGuestShutdown EventType = "guest-shutdown"
	EventGuestReset    EventType = "guest-reset"
	EventGuestPanic    EventType = "guest-panic"
	EventExited        EventType = "exited"
)

// Event is a hint: events can be lost (no client was attached, the buffer was
// full). Reconcile with State and Wait.
type Event struct {
	Type EventType
	Time time.Time
}

// Driver starts and finds machines of one hypervisor. It is safe for
// concurrent use.
type Driver interface {
	// Name is the driver's name as users write it: "qemu".
	Name() string
	// Probe finds out what this driver can do on this host. It returns an
	// error wrapping ErrUnavailable when it cannot run at all.
	Probe(ctx context.Context) (Capabilities, error)
	// Launch starts a machine and returns once the VMM owns it and the guest
	// runs. The record has then been written to Spec.Dir too. On error, or
	// when ctx ends first, nothing is left but what the caller made.
	Launch(ctx context.Context, spec Spec) (VM, error)
	// Find looks for a VMM that was launched with this directory, by the
	// record in it or else by the process table, for a daemon that was killed
	// between Launch and its own record. It returns ErrGone when there is none.
	Find(ctx context.Context, dir string) (Record, error)
	// Attach takes up a machine again after the daemon restarted. It returns
	// ErrGone unless the recorded process provably is the one that runs; the
	// error is a *GoneError when the driver knows how the machine ended. A
	// machine that ended while nobody was attached may still be taken up: Wait
	// then returns at once.
	Attach(ctx context.Context, rec Record) (VM, error)
	// Machines returns the records of this driver's machines that run and were
	// launched with a directory below dir. It goes by the process table alone, and
	// so finds those too whose directory is gone.
	Machines(ctx context.Context, dir string) ([]Record, error)
	// End kills the machine of a record without taking it up, which needs a
	// directory, and returns when its process is gone. It is no error if it was: a
	// process that is not provably the record's is never signalled.
	End(ctx context.Context, rec Record) error
	// Restore starts a machine that goes on where from was taken, and returns it
	// paused: the caller resumes it, and tells the guest what has changed (see
	// guest/wire, PathWake). spec is a Launch's, of which kernel, initramfs and
	// command line are ignored; what makes up the machine (vCPUs, memory, disks by
	// number, serial and kind, NICs by number) must be as it was, while paths of
	// disks, TAPs, MAC addresses as the VMM knows them, sockets and logs are its
	// own. The snapshot is only read, and may be restored many times. It wraps
	// ErrUnsupported when from is of another driver, version or machine. On error
	// nothing is left but what the caller made.
	Restore(ctx context.Context, spec Spec, from Snapshot, o RestoreOptions) (VM, error)
}

// Snapshot is a machine at rest: a directory, which the driver fills and reads,
// and what must be known of it. It is plain data; SnapshotFile in Dir holds it
// as JSON, and is written last.
type Snapshot struct {
	Driver    string `json:"driver"`
	Version   string `json:"version"` // of the VMM
	Dir       string `json:"dir"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	// Machine is a digest of everything that must be the same at a restore.
	Machine string `json:"machine_sha256"`
	// MemoryFile is the Spec.MemoryFile of a template: its restores map it
	// privately, and it must neither change nor go while one of them lives. "" for
	// a snapshot that holds its memory in Dir.
	MemoryFile string `json:"memory_file,omitempty"`
}

// SnapshotFile is the name of the file in Snapshot.Dir that makes it complete.
const SnapshotFile = "snapshot.json"

// RestoreOptions say how a machine is restored.
type RestoreOptions struct {
	// OnDemand reads memory when the guest touches it; Snapshot.Dir must then stay
	// until the machine has ended. Capabilities.OnDemand. A template's memory is
	// always so, and a VMM that runs as a Spec.User who may not do so reads all at once.
	OnDemand bool
}

// VM is one running incarnation. Its methods are safe for concurrent use; each
// is bounded by its context and by the driver's own time limits.
type VM interface {
	Record() Record
	State(ctx context.Context) (State, error)
	Pause(ctx context.Context) error  // idempotent
	Resume(ctx context.Context) error // idempotent
	// PowerButton asks the guest to shut down, as the ACPI power button does.
	// It returns when the button was pressed, not when the guest obeyed.
	PowerButton(ctx context.Context) error
	// Kill ends the VMM now and returns when the process is gone. It is
	// idempotent, and succeeds on a machine that has already exited.
	Kill(ctx context.Context) error
	// Agent is the way to the agent in the guest. It stays the same for the
	// life of the VM value.
	Agent() Transport
	// Events is closed after EventExited or Detach.
	Events() <-chan Event
	// Wait blocks until the machine has ended, also for an attached one that
	// is no child of this process. It may be called many times.
	Wait(ctx context.Context) (Exit, error)
	// Detach lets go of sockets and goroutines; the machine lives on. The VM
	// value cannot be used afterwards.
	Detach() error
}

// Meter is a VM whose driver counts what its devices do.
type Meter interface {
	// Counters returns by device and name what was counted since the machine was
	// launched. Names and units are the VMM's. A value may be the largest of its
	// type, which says that nothing was measured.
	Counters(ctx context.Context) (map[string]map[string]uint64, error)
}

// Snapshotter is a VM that can be snapshotted: Capabilities.Snapshot.
type Snapshotter interface {
	// Snapshot writes the paused machine to dir, which exists and is empty, and
	// leaves it paused. It is a template when the machine has a Spec.MemoryFile:
	// then the machine must be killed before the first restore, for its memory is
	// the file. Disks are the caller's to copy while it is paused. On error dir
	// holds no SnapshotFile and the machine is as it was.
	Snapshot(ctx context.Context, dir string) (Snapshot, error)
}

// Resizer is a VM whose size can change while it runs: Capabilities.ResizeCPU
// and ResizeMemory.
type Resizer interface {
	// Resize asks for this many vCPUs and MiB of memory, 0 for no change, within
	// Spec.MaxVCPUs and MaxMemoryMiB. The guest may take a while to follow.
	Resize(ctx context.Context, vcpus, memoryMiB int) error
}

// Plugger is a VM that takes devices while it runs: Capabilities.PlugDisk and
// PlugNIC. To add what is there, or to remove what is not, is no error.
type Plugger interface {
	AddDisk(ctx context.Context, d Disk) error
	RemoveDisk(ctx context.Context, serial string) error
	AddNIC(ctx context.Context, n NIC) error
	RemoveNIC(ctx context.Context, mac net.HardwareAddr) error
}

// Transport opens streams to the agent in the guest. Streams carry no half
// close: a protocol on them must mark its own ends.
type Transport interface {
	// Dial opens one stream. It fails when no agent answers before ctx ends.
	Dial(ctx context.Context) (net.Conn, error)
	// Reset drops the link, to be made anew by the next Dial: call it after
	// Pause, Resume and restore.
	Reset()
	Close() error
}
