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

	"golang.org/x/sys/unix"

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
	return []string{vmm.RecordFile, vmm.ExitFile, qmpSocket, debugSocket, consoleSocket, agentSocket, journalFile, machineFile, resumedFile, logFile}
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
	if err := check(spec, f, nil); err != nil {
		return nil, err
	}
	ctx, cancel := withStartTimeout(ctx)
	defer cancel()
	return begin(ctx, spec, f, nil)
}

// begin starts a machine that was checked, at its first instruction or after the
// snapshot from. When it fails, everything is as it was.
func begin(ctx context.Context, spec *hv.Spec, f *findings, from *hv.Snapshot) (*machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	_, err := os.Lstat(spec.ConsoleLog)
	freshConsole := errors.Is(err, fs.ErrNotExist)
	if err := makeMemory(spec); err != nil {
		return nil, err
	}
	m, proc, err := start(ctx, spec, f, from)
	if err == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // what it broke off is of no interest
	} else if said := lastWords(spec.Dir); said != "" {
		if path, locked := lockedDisk(said); locked {
			err = diskInUse(path)
		} else {
			err = fmt.Errorf("%w; QEMU said: %q%s", err, said, hint(spec, f, said))
		}
	}
	if freshConsole {
		err = errors.Join(err, vmm.RemoveIfThere(spec.ConsoleLog))
	}
	err = errors.Join(err, undo(spec.Dir, m, proc))
	if spec.MemoryFile != "" {
		err = errors.Join(err, vmm.RemoveIfThere(spec.MemoryFile))
	}
	return nil, err
}

// maxWords is how much of QEMU's own words an error quotes, in bytes.
const maxWords = 1024

func lastWords(dir string) string {
	return strings.TrimSpace(string(vmm.Tail(filepath.Join(dir, logFile), maxWords)))
}

func diskInUse(path string) error {
	return fmt.Errorf("%w: %s: another machine has it, and one of the two means to write to it", hv.ErrDiskInUse, path)
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

// start runs QEMU, connects to it, and sets the guest going or takes it to where
// the snapshot from was taken. On error it returns what there is to undo.
func start(ctx context.Context, spec *hv.Spec, f *findings, from *hv.Snapshot) (*machine, *vmm.Process, error) {
	if err := makeFiles(spec, f, from); err != nil {
		return nil, nil, err
	}
	taps, err := openTaps(spec)
	defer closeAll(taps)
	if err != nil {
		return nil, nil, err
	}
	rec := hv.Record{Driver: Name, Version: f.caps.Version, Accel: f.caps.Accel, Channel: channel(spec, f)}
	proc, err := vmm.Spawn(spec, &rec, argv(spec, f, from), taps...)
	if err != nil {
		return nil, proc, err
	}
	m, err := take(ctx, rec, proc)
	if err != nil {
		return nil, proc, err
	}
	if from == nil {
		err = m.monitor.run(ctx, "cont", nil, nil)
	} else {
		err = m.wake(ctx, from)
	}
	if err != nil {
		return m, proc, err
	}
	m.mu.Lock()
	m.begun = true
	m.mu.Unlock()
	return m, proc, nil
}

// makeFiles makes what is in the machine's directory before QEMU is. The journal
// stays ours: a QEMU that was taken over must not put a link in its place.
func makeFiles(spec *hv.Spec, f *findings, from *hv.Snapshot) error {
	if err := writeNew(filepath.Join(spec.Dir, machineFile), draftOf(spec, f, from)); err != nil {
		return err
	}
	path := filepath.Join(spec.Dir, journalFile)
	journal, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := journal.Close(); err != nil || spec.User == nil {
		return err
	}
	return errors.Join(os.Chown(path, -1, int(spec.User.GID)), os.Chmod(path, 0o660))
}

// openTaps opens the TAPs in order. On error it returns those that it has opened.
func openTaps(spec *hv.Spec) (files []*os.File, err error) {
	for _, n := range spec.NICs {
		f, err := vmm.OpenTap(n.Tap)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // QEMU has its own, and nothing was written
	}
}

// hint says what a user needs who was denied something.
func hint(spec *hv.Spec, f *findings, said string) string {
	if spec.User == nil || !strings.Contains(said, "Permission denied") {
		return ""
	}
	s := fmt.Sprintf("; it runs as user %d of group %d, who must be able to read the kernel, the initramfs and the disks, and to write to those that are not read-only",
		spec.User.UID, spec.User.GID)
	if f.caps.Accel != hv.AccelKVM {
		return s
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return s
	}
	return s + fmt.Sprintf("; /dev/kvm is for group %d, with mode %#o", st.Gid, st.Mode&0o777)
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
	rec, err := vmm.Find(ctx, Name, dir, func(argv []string) bool { return owns(dir, argv) })
	return rec, gone(dir, err)
}

// owns reports whether these are the arguments of a machine that was launched
// with dir.
func owns(dir string, argv []string) bool { return slices.Contains(argv, driverMonitor(dir)) }

// Machines implements hv.Driver.
func (d *Driver) Machines(ctx context.Context, dir string) ([]hv.Record, error) {
	recs, err := vmm.Machines(ctx, Name, dir, owns)
	if err != nil {
		return nil, fmt.Errorf("qemu: look for machines below %s: %w", dir, err)
	}
	return recs, nil
}

// End implements hv.Driver.
func (d *Driver) End(ctx context.Context, rec hv.Record) error {
	if err := vmm.EndMachine(ctx, rec); err != nil {
		return fmt.Errorf("qemu: end %s: %w", rec.ID, err)
	}
	return nil
}
