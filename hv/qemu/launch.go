package qemu

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
	// startTimeout bounds the time until QEMU answers, 0.1 s on an idle
	// machine, when Launch's context has no earlier end.
	startTimeout = time.Minute
)

func withStartTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("QEMU did not answer in %v: %w", startTimeout, context.DeadlineExceeded))
}

// ownFiles lists what a machine makes in its directory.
func ownFiles() []string {
	return []string{vmm.RecordFile, vmm.ExitFile, qmpSocket, debugSocket, consoleSocket, agentSocket, journalFile, logFile}
}

// Launch implements hv.Driver.
func (d *Driver) Launch(ctx context.Context, spec hv.Spec) (hv.VM, error) {
	m, err := d.launch(ctx, &spec)
	if err != nil {
		return nil, fmt.Errorf("qemu: launch %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) launch(ctx context.Context, spec *hv.Spec) (*machine, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	if err := check(spec, f); err != nil {
		return nil, err
	}
	ctx, cancel := withStartTimeout(ctx)
	defer cancel()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	_, err = os.Lstat(spec.ConsoleLog)
	freshConsole := errors.Is(err, fs.ErrNotExist)
	m, proc, err := start(ctx, spec, f)
	if err == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // what it broke off is of no interest
	} else if said := strings.TrimSpace(string(vmm.Tail(filepath.Join(spec.Dir, logFile), 1024))); said != "" {
		if path, locked := lockedDisk(said); locked {
			err = fmt.Errorf("%w: %s: another machine has it, and one of the two means to write to it", hv.ErrDiskInUse, path)
		} else {
			err = fmt.Errorf("%w; QEMU said: %q", err, said)
		}
	}
	if freshConsole {
		err = errors.Join(err, vmm.RemoveIfThere(spec.ConsoleLog))
	}
	return nil, errors.Join(err, undo(spec.Dir, m, proc))
}

// lockedDisk finds in QEMU's last words the disk that it could not lock. They
// have been these since version 2.10 (raw_check_lock_bytes in
// block/file-posix.c), and are not translated:
//
//	qemu-system-x86_64: -device virtio-blk-device,drive=disk0: Failed to get "write" lock
//	Is another process using the image [/path]?
func lockedDisk(said string) (path string, ok bool) {
	_, rest, found := strings.Cut(said, "Failed to get ")
	if !found {
		return "", false
	}
	_, rest, found = strings.Cut(rest, "Is another process using the image [")
	if !found {
		return "", false
	}
	end := strings.LastIndex(rest, "]?")
	if end < 0 {
		return "", false
	}
	return rest[:end], true
}

// start runs QEMU, connects to it and sets the guest going. On error it returns
// what there is to undo.
func start(ctx context.Context, spec *hv.Spec, f *findings) (*machine, *vmm.Process, error) {
	rec := hv.Record{Driver: Name, Version: f.caps.Version, Accel: f.caps.Accel, Channel: channel(spec, f)}
	proc, err := vmm.Spawn(spec, &rec, argv(spec, f))
	if err != nil {
		return nil, proc, err
	}
	m, err := take(ctx, rec, proc)
	if err != nil {
		return nil, proc, err
	}
	if err := m.monitor.run(ctx, "cont", nil, nil); err != nil {
		return m, proc, err
	}
	m.mu.Lock()
	m.begun = true
	m.mu.Unlock()
	return m, proc, nil
}

// undo ends what start began.
func undo(dir string, m *machine, proc *vmm.Process) error {
	var err error
	if proc != nil {
		var over chan struct{}
		if m != nil {
			over = m.over
		}
		err = proc.End(over)
	}
	for _, name := range ownFiles() {
		err = errors.Join(err, vmm.RemoveIfThere(filepath.Join(dir, name)))
	}
	return err
}

// Attach implements hv.Driver.
func (d *Driver) Attach(ctx context.Context, rec hv.Record) (hv.VM, error) {
	m, err := attach(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("qemu: attach %s: %w", rec.ID, err)
	}
	return m, nil
}

func attach(ctx context.Context, rec hv.Record) (*machine, error) {
	if rec.Driver != Name {
		return nil, fmt.Errorf("%w: the record is of driver %q", hv.ErrUnsupported, rec.Driver)
	}
	proc, err := vmm.Verify(rec)
	if err != nil {
		return nil, gone(rec.Dir, err)
	}
	ctx, cancel := withStartTimeout(ctx)
	defer cancel()
	m, err := take(ctx, rec, proc)
	if err != nil {
		select {
		case <-proc.Done():
			err = gone(rec.Dir, fmt.Errorf("%w: %w", hv.ErrGone, err))
		default:
		}
		proc.Close()
		return nil, err
	}
	// A daemon that was killed before cont left the guest at its first
	// instruction. Whether it is to run or to be killed is for others to say.
	m.mu.Lock()
	m.begun = true
	m.mu.Unlock()
	m.look()
	return m, nil
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
		return fmt.Errorf("%w: %w", &hv.GoneError{Exit: exit}, err)
	}
	return err
}

// Find implements hv.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hv.Record, error) {
	rec, err := find(ctx, dir)
	if err != nil {
		return hv.Record{}, fmt.Errorf("qemu: find the machine of %s: %w", dir, err)
	}
	return rec, nil
}

func find(ctx context.Context, dir string) (hv.Record, error) {
	rec, err := vmm.Find(ctx, Name, dir, func(argv []string) bool { return slices.Contains(argv, driverMonitor(dir)) })
	return rec, gone(dir, err)
}

// Restore is not offered yet: Capabilities say so.
func (d *Driver) Restore(context.Context, hv.Spec, hv.Snapshot, hv.RestoreOptions) (hv.VM, error) {
	return nil, fmt.Errorf("%s: restore: %w", Name, hv.ErrUnsupported)
}
