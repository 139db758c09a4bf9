package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// startTimeout bounds the time until the guest runs, some 30 ms on an idle
	// machine, when Launch's context has no earlier end.
	startTimeout = 2 * time.Minute
)

// errUnfinished is why a machine ends that a daemon left before its boot.
var errUnfinished = errors.New("its launch was never finished")

func withStartTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the machine did not run after %v: %w", startTimeout, context.DeadlineExceeded))
}

// Launch implements hv.Driver.
func (d *Driver) Launch(ctx context.Context, spec hv.Spec) (hv.VM, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: launch %s: %w", spec.ID, err)
	}
	m, err := d.launch(ctx, &spec, f)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: launch %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) launch(ctx context.Context, spec *hv.Spec, f *findings) (*machine, error) {
	if err := checkLaunch(spec, f); err != nil {
		return nil, err
	}
	return d.begin(ctx, spec, f, beginning{
		prepare: func() error { return makeMemory(spec) },
		create:  func(ctx context.Context, api *client) error { return d.create(ctx, api, spec, f) },
		run:     func(ctx context.Context, api *client) error { return api.put(ctx, opBoot, nil) },
	})
}

// beginning is how a machine comes to be in a new process: what is done before
// that is started, what makes the machine and its console, and what makes it run.
type beginning struct {
	prepare     func() error
	create, run func(ctx context.Context, api *client) error
}

// begin starts Cloud Hypervisor and a machine in it. On error nothing is left.
func (d *Driver) begin(ctx context.Context, spec *hv.Spec, f *findings, how beginning) (*machine, error) {
	ctx, cancel := withStartTimeout(ctx)
	defer cancel()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	_, err := os.Lstat(spec.ConsoleLog)
	freshConsole := errors.Is(err, fs.ErrNotExist)
	m, proc, err := d.start(ctx, spec, f, how)
	if err == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // what it broke off is of no interest
	} else if said := strings.TrimSpace(string(vmm.Tail(filepath.Join(spec.Dir, logFile), 1024))); said != "" {
		err = fmt.Errorf("%w; Cloud Hypervisor said: %q", err, said)
	}
	err = errors.Join(err, undo(spec, m, proc))
	if freshConsole {
		err = errors.Join(err, vmm.RemoveIfThere(spec.ConsoleLog))
	}
	if locked := checkLocks(spec.Disks); ctx.Err() == nil && errors.Is(locked, hv.ErrDiskInUse) {
		err = fmt.Errorf("%w (%w)", locked, err) // somebody was faster
	}
	return nil, err
}

// start does what begin does. On error it returns what there is to undo.
func (d *Driver) start(ctx context.Context, spec *hv.Spec, f *findings, how beginning) (*machine, *vmm.Process, error) {
	dir := filepath.Join(spec.Dir, ioDir)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = vmm.Give(dir, spec.User)
	}
	if err == nil {
		err = how.prepare()
	}
	if err != nil {
		return nil, nil, err
	}
	rec := hv.Record{Driver: Name, Version: f.caps.Version, Accel: f.caps.Accel, Channel: hv.ChannelVsock}
	proc, err := vmm.Spawn(spec, &rec, argv(spec, f))
	if err != nil {
		return nil, proc, err
	}
	api, err := d.reach(ctx, rec, proc)
	if err != nil {
		return nil, proc, err
	}
	if err := how.create(ctx, api); err != nil {
		api.close()
		return nil, proc, err
	}
	// Version 52 drops what the guest says before somebody listens, so that the
	// console comes before the guest runs.
	screen, err := dialConsole(spec.Dir)
	if err != nil {
		api.close()
		return nil, proc, fmt.Errorf("console: %w", err)
	}
	m, err := take(rec, proc, api, screen, true)
	if err != nil {
		api.close()
		return nil, proc, errors.Join(err, screen.Close())
	}
	m.openTap = d.openTap
	if err := how.run(ctx, api); err != nil {
		return m, proc, err
	}
	m.mu.Lock()
	m.launching = false
	m.mu.Unlock()
	return m, proc, nil
}

// makeMemory makes the file that is to be the guest's memory.
func makeMemory(spec *hv.Spec) error {
	if spec.MemoryFile == "" {
		return nil
	}
	f, err := os.OpenFile(spec.MemoryFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(spec.MemoryMiB) << 20)
	return errors.Join(err, f.Close(), vmm.Give(spec.MemoryFile, spec.User))
}

// create tells Cloud Hypervisor of the machine, and of its NICs, whose TAPs are
// opened here.
func (d *Driver) create(ctx context.Context, api *client, spec *hv.Spec, f *findings) error {
	if err := api.put(ctx, opCreate, newConfig(spec, f)); err != nil {
		return err
	}
	for _, n := range spec.NICs {
		if err := addNIC(ctx, api, d.openTap, nicID(n.MAC), n); err != nil {
			return err
		}
	}
	return nil
}

// addNIC adds a NIC to a machine, cold or running.
func addNIC(ctx context.Context, api *client, open func(string) (*os.File, error), id string, n hv.NIC) error {
	tap, err := open(n.Tap)
	if err != nil {
		return err
	}
	defer tap.Close() // the VMM has its own
	return api.put(ctx, opAddNet, newNIC(id, n), tap)
}

// reach waits until the API answers, and wants it to be that of proc.
func (d *Driver) reach(ctx context.Context, rec hv.Record, proc *vmm.Process) (*client, error) {
	api := newClient(filepath.Join(rec.Dir, apiSocket), d.budget)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		var p ping
		err := api.get(ctx, opPing, &p)
		switch {
		case err == nil && p.PID != proc.PID():
			api.close()
			return nil, fmt.Errorf("the API of process %d is served by process %d", proc.PID(), p.PID)
		case err != nil && !vmm.NotListening(err):
			api.close()
			if ended(proc, err) {
				err = fmt.Errorf("it ended at once: %s", proc.Status())
			}
			return nil, err
		case err == nil:
			return api, nil
		}
		select {
		case <-proc.Done():
			api.close()
			return nil, fmt.Errorf("it ended at once: %s", proc.Status())
		case <-ctx.Done():
			api.close()
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// ended says whether err, of a call, came of the end of the process, whose
// connections break a moment before it has ended.
func ended(proc *vmm.Process, err error) bool {
	var broken *brokenError
	wait := time.Duration(0)
	if errors.As(err, &broken) {
		wait = quitTimeout
	}
	select {
	case <-proc.Done():
		return true
	case <-time.After(wait):
		return false
	}
}

// undo ends what start began.
func undo(spec *hv.Spec, m *machine, proc *vmm.Process) error {
	var err error
	if proc != nil {
		var over chan struct{}
		if m != nil {
			over = m.over
		}
		err = proc.End(over)
	}
	for _, name := range ownFiles() {
		err = errors.Join(err, os.RemoveAll(filepath.Join(spec.Dir, name)))
	}
	if spec.MemoryFile != "" {
		err = errors.Join(err, vmm.RemoveIfThere(spec.MemoryFile))
	}
	return err
}

// Attach implements hv.Driver.
func (d *Driver) Attach(ctx context.Context, rec hv.Record) (hv.VM, error) {
	m, err := d.attach(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: attach %s: %w", rec.ID, err)
	}
	return m, nil
}

func (d *Driver) attach(ctx context.Context, rec hv.Record) (*machine, error) {
	if rec.Driver != Name {
		return nil, fmt.Errorf("%w: the record is of driver %q", hv.ErrUnsupported, rec.Driver)
	}
	proc, err := vmm.Verify(rec)
	if err != nil {
		return nil, gone(rec.Dir, err)
	}
	ctx, cancel := withStartTimeout(ctx)
	defer cancel()
	api, err := d.reach(ctx, rec, proc)
	if err == nil {
		screen, cerr := dialConsole(rec.Dir)
		if cerr != nil {
			screen = nil // there is none yet, if the launch was broken off
		}
		var m *machine
		if m, err = take(rec, proc, api, screen, false); err == nil {
			m.openTap = d.openTap
			m.look()
			return m, nil
		}
		api.close()
		if screen != nil {
			err = errors.Join(err, screen.Close())
		}
	}
	select {
	case <-proc.Done():
		err = gone(rec.Dir, fmt.Errorf("%w: %w", hv.ErrGone, err))
	default:
	}
	proc.Close()
	return nil, err
}

// gone adds to an ErrGone what the directory tells of the machine's end.
func gone(dir string, err error) error {
	if !errors.Is(err, hv.ErrGone) {
		return err
	}
	if exit, xerr := vmm.ReadExit(dir); xerr == nil {
		return fmt.Errorf("%w: %w", &hv.GoneError{Exit: exit}, err)
	}
	if exit, ok := readJournal(dir); ok {
		return fmt.Errorf("%w: %w", &hv.GoneError{Exit: believe(dir, exit)}, err)
	}
	if exit, ok := orderly(dir); ok {
		return fmt.Errorf("%w: %w", &hv.GoneError{Exit: exit}, err)
	}
	return err
}

// Find implements hv.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hv.Record, error) {
	rec, err := vmm.Find(ctx, Name, dir, func(argv []string) bool { return owns(dir, argv) })
	if err != nil {
		return hv.Record{}, fmt.Errorf("cloud-hypervisor: find the machine of %s: %w", dir, gone(dir, err))
	}
	return rec, nil
}

// owns reports whether these are the arguments of a machine that was launched
// with dir.
func owns(dir string, argv []string) bool { return slices.Contains(argv, socketArgument(dir)) }

// Machines implements hv.Driver.
func (d *Driver) Machines(ctx context.Context, dir string) ([]hv.Record, error) {
	recs, err := vmm.Machines(ctx, Name, dir, owns)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: look for machines below %s: %w", dir, err)
	}
	return recs, nil
}

// End implements hv.Driver.
func (d *Driver) End(ctx context.Context, rec hv.Record) error {
	if err := vmm.EndMachine(ctx, rec); err != nil {
		return fmt.Errorf("cloud-hypervisor: end %s: %w", rec.ID, err)
	}
	return nil
}
