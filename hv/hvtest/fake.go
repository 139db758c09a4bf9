package hvtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// FakeName is the name of the Fake driver.
const FakeName = "fake"

// Op names a call on the Fake where a test can interfere.
type Op string

// The calls, each met before it does anything, unless said otherwise.
const (
	OpProbe       Op = "probe"
	OpLaunch      Op = "launch"
	OpLaunched    Op = "launched" // the machine runs and its record is in Spec.Dir; Launch has not returned. An error here makes Launch undo everything.
	OpFind        Op = "find"
	OpAttach      Op = "attach"
	OpMachines    Op = "machines"
	OpEnd         Op = "end"
	OpState       Op = "state"
	OpPause       Op = "pause"
	OpResume      Op = "resume"
	OpResumed     Op = "resumed" // the guest runs; Resume has not returned
	OpPowerButton Op = "power-button"
	OpKill        Op = "kill"
	OpDial        Op = "dial"
	OpSnapshot    Op = "snapshot"
	OpSnapshotted Op = "snapshotted" // all is written but hv.SnapshotFile
	OpRestore     Op = "restore"
	OpRestored    Op = "restored" // as OpLaunched
	OpResize      Op = "resize"
	OpAddDisk     Op = "add-disk"
	OpRemoveDisk  Op = "remove-disk"
	OpAddNIC      Op = "add-nic"
	OpRemoveNIC   Op = "remove-nic"
)

// Hook interferes with a call for the machine with the given id (for OpFind
// and OpMachines the directory, for OpProbe ""). An error that it returns is the call's
// result; it may wait, and must then heed ctx. It is called without locks held.
type Hook func(ctx context.Context, id string) error

// Guest is how the inside of one machine behaves.
type Guest struct {
	// Agent answers on the agent channel. With nil no agent ever answers, and
	// Dial fails when its context ends.
	Agent http.Handler
	// Boot is how long the guest takes until its agent answers.
	Boot time.Duration
	// PowerButton is called, in a goroutine of its own, when the button is
	// pressed. With nil the guest powers off.
	PowerButton func()
	// Save returns what the guest remembers, for a snapshot: the guest that is
	// restored from it finds it by Machine.Memory. It is called while the machine
	// is paused. With nil a guest remembers nothing.
	Save func() ([]byte, error)
}

// Fake is one host with a scripted hypervisor. It is an hv.Driver, and the
// table of the machines that run on that host: a test that "restarts" a daemon
// gives the same Fake to the next one, which can then Find and Attach what the
// first launched. It is safe for concurrent use. Configure it before the first
// Launch.
//
// A machine has no process: its PID is beyond what a kernel assigns, so that a
// signal sent by mistake hits nothing.
type Fake struct {
	mu       sync.Mutex
	caps     hv.Capabilities           // guarded by mu
	guest    func(m *Machine) Guest    // guarded by mu
	check    func(spec *hv.Spec) error // guarded by mu
	hooks    map[Op]Hook               // guarded by mu
	calls    map[Op]int                // guarded by mu
	bootID   string                    // guarded by mu
	boots    int                       // guarded by mu
	nextPID  int                       // guarded by mu
	machines []*Machine                // guarded by mu; every machine ever, in order
}

var _ hv.Driver = (*Fake)(nil)

// firstFakePID lies above PID_MAX_LIMIT of the kernel (proc_sys_kernel(5)).
const firstFakePID = 1<<22 + 1

// NewFake returns a host with no machines whose guests have no agent.
func NewFake() *Fake {
	return &Fake{
		caps: hv.Capabilities{
			Driver: FakeName, Version: "1.0", Binary: "/nonexistent/fake", Accel: hv.AccelTCG, Channel: hv.ChannelSerial,
			Pause: true, PowerButton: true, Snapshot: true, Template: true, OnDemand: true,
			ResizeCPU: true, ResizeMemory: true, PlugDisk: true, PlugNIC: true,
			Pmem: true, Share: true, Device: true, Balloon: true, Merge: true, Unprivileged: true,
			MaxVCPUs: 64, MaxDisks: 19, MaxNICs: 1,
		},
		guest:   func(*Machine) Guest { return Guest{} },
		hooks:   make(map[Op]Hook),
		calls:   make(map[Op]int),
		bootID:  "00000000-0000-4000-8000-000000000001",
		boots:   1,
		nextPID: firstFakePID,
	}
}

// SetCapabilities changes what Probe reports and Launch accepts.
func (f *Fake) SetCapabilities(c hv.Capabilities) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.caps = c
}

// SetGuest says how the guests of machines launched from now on behave. The
// function is called once for each, within Launch.
func (f *Fake) SetGuest(guest func(m *Machine) Guest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guest = guest
}

// SetAgent gives every machine launched from now on the same agent.
func (f *Fake) SetAgent(agent http.Handler) {
	f.SetGuest(func(*Machine) Guest { return Guest{Agent: agent} })
}

// SetCheck adds a check to Launch, beyond Spec.Validate and that the files
// exist. Its error is Launch's.
func (f *Fake) SetCheck(check func(spec *hv.Spec) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.check = check
}

// SetHook has hook called in every further op, in place of what was there
// before; nil removes it.
func (f *Fake) SetHook(op Op, hook Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[op] = hook
}

// Fail makes every further op fail with err, until Fail(op, nil).
func (f *Fake) Fail(op Op, err error) {
	if err == nil {
		f.SetHook(op, nil)
		return
	}
	f.SetHook(op, func(context.Context, string) error { return err })
}

// FailNext makes the next n ops fail with err.
func (f *Fake) FailNext(op Op, n int, err error) {
	var mu sync.Mutex
	f.SetHook(op, func(context.Context, string) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return err
		}
		return nil
	})
}

// Delay makes every further op take d longer, or fail when its context ends
// first.
func (f *Fake) Delay(op Op, d time.Duration) {
	f.SetHook(op, func(ctx context.Context, _ string) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// Hang makes every further op wait until release is called or its context
// ends. Entered receives the machine's id each time one begins to wait.
func (f *Fake) Hang(op Op) (entered <-chan string, release func()) {
	in, out := make(chan string, 16), make(chan struct{})
	f.SetHook(op, func(ctx context.Context, id string) error {
		select {
		case in <- id:
		default:
		}
		select {
		case <-out:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return in, sync.OnceFunc(func() { close(out) })
}

// Calls returns how often op was called.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Running returns the machines whose VMM exists, in the order of their launch.
// A leak check wants it empty.
func (f *Fake) Running() []*Machine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.machines), (*Machine).gone)
}

// Machine returns the running machine of the VM with this id, the newest if
// there are several, or nil.
func (f *Fake) Machine(id string) *Machine {
	running := f.Running()
	slices.Reverse(running)
	if i := slices.IndexFunc(running, func(m *Machine) bool { return m.rec.ID == id }); i >= 0 {
		return running[i]
	}
	return nil
}

// DetachAll cuts every VM value off its machine, as the death of the daemon's
// process would: its calls fail, its streams break, its goroutines end. The
// machines run on.
func (f *Fake) DetachAll() {
	for _, m := range f.Running() {
		if vm := m.client(); vm != nil {
			vm.Detach() // returns nil always
		}
	}
}

// Reboot restarts the host: every machine is gone without a word, and the boot
// id is another. What was attached sees a crash.
func (f *Fake) Reboot() {
	f.mu.Lock()
	f.boots++
	f.bootID = fmt.Sprintf("00000000-0000-4000-8000-%012d", f.boots)
	f.mu.Unlock()
	for _, m := range f.Running() {
		m.Crash()
	}
}

// Name implements hv.Driver. It is FakeName, unless SetCapabilities says otherwise.
func (f *Fake) Name() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.caps.Driver
}

// Probe implements hv.Driver.
func (f *Fake) Probe(ctx context.Context) (hv.Capabilities, error) {
	if err := f.enter(ctx, OpProbe, ""); err != nil {
		return hv.Capabilities{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.caps, nil
}

// Launch implements hv.Driver.
func (f *Fake) Launch(ctx context.Context, spec hv.Spec) (hv.VM, error) {
	vm, err := f.launch(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("fake: launch %s: %w", spec.ID, err)
	}
	return vm, nil
}

func (f *Fake) launch(ctx context.Context, spec hv.Spec) (hv.VM, error) {
	if err := f.enter(ctx, OpLaunch, spec.ID); err != nil {
		return nil, err
	}
	if err := f.checkSpec(&spec); err != nil {
		return nil, err
	}
	return f.begin(ctx, spec, nil, OpLaunched)
}

// begin starts a machine, or one that goes on with memory, which is then paused.
func (f *Fake) begin(ctx context.Context, spec hv.Spec, memory []byte, begun Op) (hv.VM, error) {
	made := []string{filepath.Join(spec.Dir, vmm.RecordFile), filepath.Join(spec.Dir, vmm.ExitFile), filepath.Join(spec.Dir, vmm.LogFile)}
	if _, err := os.Lstat(spec.ConsoleLog); errors.Is(err, fs.ErrNotExist) {
		made = append(made, spec.ConsoleLog)
	}
	if spec.MemoryFile != "" {
		file, err := os.OpenFile(spec.MemoryFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		made = append(made, spec.MemoryFile)
		if err := file.Close(); err != nil {
			return nil, errors.Join(err, removeFiles(made))
		}
	}
	console, err := vmm.OpenConsole(spec.ConsoleLog, spec.ConsoleLimit)
	if err != nil {
		return nil, errors.Join(err, removeFiles(made))
	}
	log, err := vmm.OpenLog(&spec)
	if err != nil {
		return nil, errors.Join(err, console.Close(), removeFiles(made))
	}
	m, err := f.add(spec, memory)
	if err = errors.Join(err, log.Close()); err != nil {
		return nil, errors.Join(err, console.Close(), removeFiles(made))
	}
	vm := attach(m, console)
	undo := func(err error) (hv.VM, error) {
		m.end(hv.Exit{Reason: hv.ExitKilled, Detail: "launch undone"})
		<-vm.done
		return nil, errors.Join(err, removeFiles(made))
	}
	if err := vmm.WriteRecord(m.rec); err != nil {
		return undo(err)
	}
	f.mu.Lock()
	guest := f.guest
	f.mu.Unlock()
	m.boot(guest(m))
	if err := f.enter(ctx, begun, spec.ID); err != nil {
		return undo(err)
	}
	return vm, nil
}

func (f *Fake) checkSpec(spec *hv.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	f.mu.Lock()
	caps, check := f.caps, f.check
	f.mu.Unlock()
	switch {
	case spec.VCPUs > caps.MaxVCPUs:
		return fmt.Errorf("%w: %d vCPUs, at most %d can be had", hv.ErrInvalidSpec, spec.VCPUs, caps.MaxVCPUs)
	case len(spec.Disks) > caps.MaxDisks:
		return fmt.Errorf("%w: %d disks, at most %d can be had", hv.ErrInvalidSpec, len(spec.Disks), caps.MaxDisks)
	case len(spec.NICs) > caps.MaxNICs:
		return fmt.Errorf("%w: %d NICs, at most %d can be had", hv.ErrInvalidSpec, len(spec.NICs), caps.MaxNICs)
	case spec.MaxVCPUs > spec.VCPUs && !caps.ResizeCPU, spec.MaxMemoryMiB > spec.MemoryMiB && !caps.ResizeMemory,
		spec.MemoryFile != "" && !caps.Template, spec.Balloon && !caps.Balloon, spec.MergeMemory && !caps.Merge, len(spec.Shares) > 0 && !caps.Share, len(spec.Devices) > 0 && !caps.Device,
		spec.User != nil && !caps.Unprivileged, slices.ContainsFunc(spec.Disks, func(d hv.Disk) bool { return d.Pmem }) && !caps.Pmem:
		return fmt.Errorf("%w: it wants what the capabilities say is not there", hv.ErrInvalidSpec)
	}
	if len(spec.Dir)+len("/agent.sock") > hv.MaxSocketPath {
		return fmt.Errorf("%w: directory %s leaves no room for a socket path of %d bytes", hv.ErrInvalidSpec, spec.Dir, hv.MaxSocketPath)
	}
	files := []string{spec.Dir, spec.Kernel}
	if spec.Initramfs != "" {
		files = append(files, spec.Initramfs)
	}
	for _, d := range spec.Disks {
		files = append(files, d.Path)
	}
	for _, path := range files {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: %w", hv.ErrInvalidSpec, err)
		}
	}
	if check != nil {
		return check(spec)
	}
	return nil
}

// inUse says which of the disks another machine has that cannot share it; f.mu
// is held.
func (f *Fake) inUse(self *Machine, disks []hv.Disk) error {
	for _, other := range f.machines {
		if other == self || other.gone() {
			continue
		}
		for _, d := range disks {
			if slices.ContainsFunc(other.Spec().Disks, func(o hv.Disk) bool { return o.Path == d.Path && !(o.ReadOnly && d.ReadOnly) }) {
				return fmt.Errorf("%w: %s: machine %s has it", hv.ErrDiskInUse, d.Path, other.rec.ID)
			}
		}
	}
	return nil
}

// add enters a new machine into the table, unless one has a disk that it
// cannot share.
func (f *Fake) add(spec hv.Spec, memory []byte) (*Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.inUse(nil, spec.Disks); err != nil {
		return nil, err
	}
	m := &Machine{host: f, spec: spec, memory: memory, started: time.Now(), over: make(chan struct{}), up: make(chan struct{})}
	m.state = hv.StateRunning
	if memory != nil {
		m.state, m.resumed = hv.StatePaused, make(chan struct{})
	}
	m.rec = hv.Record{
		Driver: f.caps.Driver, Version: f.caps.Version, Accel: f.caps.Accel, ID: spec.ID, Dir: spec.Dir,
		PID: f.nextPID, StartTime: uint64(len(f.machines) + 1), BootID: f.bootID, ArgvSHA256: strings.Repeat("0", 64),
		Channel: f.caps.Channel, CID: spec.CID, ConsoleLog: spec.ConsoleLog, ConsoleLimit: spec.ConsoleLimit,
	}
	f.nextPID++
	f.machines = append(f.machines, m)
	return m, nil
}

// Find implements hv.Driver.
func (f *Fake) Find(ctx context.Context, dir string) (hv.Record, error) {
	if err := f.enter(ctx, OpFind, dir); err != nil {
		return hv.Record{}, err
	}
	for _, m := range f.Running() {
		if m.rec.Dir == dir {
			return m.rec, nil
		}
	}
	return hv.Record{}, fmt.Errorf("fake: find %s: %w", dir, hv.ErrGone)
}

// Attach implements hv.Driver.
func (f *Fake) Attach(ctx context.Context, rec hv.Record) (hv.VM, error) {
	if err := f.enter(ctx, OpAttach, rec.ID); err != nil {
		return nil, err
	}
	f.mu.Lock()
	var m *Machine
	if i := slices.IndexFunc(f.machines, func(m *Machine) bool { return m.rec == rec }); i >= 0 && rec.BootID == f.bootID {
		m = f.machines[i]
	}
	f.mu.Unlock()
	if m == nil {
		return nil, fmt.Errorf("fake: attach %s: %w", rec.ID, hv.ErrGone)
	}
	if m.gone() {
		return nil, fmt.Errorf("fake: attach %s: %w", rec.ID, &hv.GoneError{Exit: m.ended()})
	}
	console, err := vmm.OpenConsole(rec.ConsoleLog, rec.ConsoleLimit)
	if err != nil {
		return nil, fmt.Errorf("fake: attach %s: %w", rec.ID, err)
	}
	vm := attach(m, console)
	if vm == nil {
		return nil, errors.Join(fmt.Errorf("fake: attach %s: another is attached", rec.ID), console.Close())
	}
	return vm, nil
}

// Machines implements hv.Driver.
func (f *Fake) Machines(ctx context.Context, dir string) ([]hv.Record, error) {
	if err := f.enter(ctx, OpMachines, dir); err != nil {
		return nil, err
	}
	var recs []hv.Record
	for _, m := range f.Running() {
		if strings.HasPrefix(m.rec.Dir, dir+"/") {
			recs = append(recs, m.rec)
		}
	}
	return recs, nil
}

// End implements hv.Driver.
func (f *Fake) End(ctx context.Context, rec hv.Record) error {
	if err := f.enter(ctx, OpEnd, rec.ID); err != nil {
		return err
	}
	for _, m := range f.Running() {
		if m.rec == rec {
			m.end(hv.Exit{Reason: hv.ExitKilled, Detail: "ended by its record"})
		}
	}
	return nil
}

// enter counts the call and lets the hook of op have its way.
func (f *Fake) enter(ctx context.Context, op Op, id string) error {
	f.mu.Lock()
	f.calls[op]++
	hook := f.hooks[op]
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, id); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func removeFiles(paths []string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
