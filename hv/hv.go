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
	MaxVCPUs    int  `json:"max_vcpus"`
	MaxDisks    int  `json:"max_disks"`
	MaxNICs     int  `json:"max_nics"`
}

// Spec describes one incarnation of a machine. The caller owns every file it
// names and keeps them until the VMM has exited.
type Spec struct {
	ID  string // the VM's id: [a-z0-9-], at most 40 bytes
	Dir string // absolute, existing, empty, mode 0700; sockets (paths <= 107 bytes) and the record live here

	VCPUs     int
	MemoryMiB int

	Kernel    string   // uncompressed ELF with a PVH entry note
	Initramfs string   // path; empty for none
	Cmdline   []string // Volant's parameters; the driver adds what its machine needs (console, clock) in front

	Disks []Disk
	NICs  []NIC
	CID   uint32 // vsock context id, >= 3; 0 for no vsock device

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
