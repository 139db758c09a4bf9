package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// Names of the files in the directory of a snapshot, beside hv.SnapshotFile.
const (
	stateFile = "state"     // what QEMU migrated
	buildFile = "qemu.json" // a build
)

const (
	// snapshotTimeout bounds a snapshot or a restore when its context has no
	// earlier end. A gigabyte takes seconds.
	snapshotTimeout = 15 * time.Minute
)

// build is what must be the same at a restore beside the Spec: microvm is no
// versioned machine, its firmware is part of it, and processors differ by what
// executes them.
type build struct {
	Package string     `json:"package"` // as the distribution calls it, with its revision
	Accel   hv.Accel   `json:"accel"`
	Channel hv.Channel `json:"channel"`
}

// draft is what a snapshot of a machine will say of it. It is kept in the
// machine's directory, for a daemon that comes later.
type draft struct {
	hv.Snapshot
	Build    build `json:"build"`
	Restored bool  `json:"restored"` // rather than booted
}

// draftOf describes the machine of a Spec; its Dir is that of no snapshot yet.
func draftOf(spec *hv.Spec, f *findings, from *hv.Snapshot) draft {
	return draft{
		Snapshot: hv.Snapshot{
			Driver: Name, Version: f.caps.Version, VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
			Machine: vmm.ShapeOf(spec).Digest(), MemoryFile: spec.MemoryFile,
		},
		Build:    build{Package: f.pkg, Accel: f.caps.Accel, Channel: channel(spec, f)},
		Restored: from != nil,
	}
}

// writeNew writes v to a file that is not there yet. It is not synced: what it
// belongs to is worth nothing after a crash of the host, or is synced later.
func writeNew(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

var _ hv.Snapshotter = (*machine)(nil)

// Snapshot implements hv.Snapshotter. QEMU takes one in a pause, and lets go of
// the machine's disks for the rest of it: Resume locks them again.
func (m *machine) Snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	s, err := m.snapshot(ctx, dir)
	if err != nil {
		return hv.Snapshot{}, m.wrap(ctx, "snapshot", err)
	}
	return s, nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	if !m.saving.TryLock() {
		return hv.Snapshot{}, errors.New("another snapshot is being taken, or the machine is about to be resumed")
	}
	defer m.saving.Unlock()
	switch status, err := m.status(ctx); {
	case err != nil:
		return hv.Snapshot{}, err
	case status == "postmigrate":
		return hv.Snapshot{}, errors.New("QEMU has taken one in this pause: resume the machine, and pause it again")
	case stateOf(status) != hv.StatePaused:
		return hv.Snapshot{}, fmt.Errorf("machine is in state %s", stateOf(status))
	}
	var d draft
	if err := vmm.ReadJSON(m.path(machineFile), &d); err != nil {
		return hv.Snapshot{}, fmt.Errorf("what the machine is was not kept: %w", err)
	}
	if !m.hasRun(&d) {
		// Its disks are not active yet, which QEMU before 10.0 does not survive.
		return hv.Snapshot{}, errors.New("QEMU takes none of a restored machine that has not run: resume it first")
	}
	if err := vmm.CheckEmpty(dir); err != nil {
		return hv.Snapshot{}, err
	}
	s := d.Snapshot
	s.Dir = dir
	err := m.save(ctx, filepath.Join(dir, stateFile), s.MemoryFile != "")
	if err == nil {
		err = writeNew(filepath.Join(dir, buildFile), d.Build)
	}
	if err == nil {
		err = vmm.WriteSnapshot(s, m.rec)
	}
	if err != nil {
		return hv.Snapshot{}, errors.Join(err, m.breakOff(), vmm.ClearDir(dir))
	}
	return s, nil
}

// Restore implements hv.Driver.
func (d *Driver) Restore(ctx context.Context, spec hv.Spec, from hv.Snapshot, o hv.RestoreOptions) (hv.VM, error) {
	m, err := d.restore(ctx, &spec, &from, o)
	if err != nil {
		return nil, fmt.Errorf("qemu: restore %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, spec *hv.Spec, from *hv.Snapshot, o hv.RestoreOptions) (*machine, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	if o.OnDemand && from.MemoryFile == "" {
		return nil, fmt.Errorf("%w: QEMU reads all of a snapshot that is no template", hv.ErrUnsupported)
	}
	if spec.MemoryFile != "" {
		return nil, fmt.Errorf("%w: a restored machine has no memory file of its own", hv.ErrUnsupported)
	}
	if err := check(spec, f, from); err != nil {
		return nil, err
	}
	if err := vmm.CheckSnapshot(from, spec, &f.caps); err != nil {
		return nil, err
	}
	var was build
	if err := vmm.ReadJSON(filepath.Join(from.Dir, buildFile), &was); err != nil {
		return nil, err
	}
	if is := draftOf(spec, f, from).Build; was != is {
		return nil, fmt.Errorf("%w: the snapshot is of a machine of QEMU %s with %s and %s, this is %s with %s and %s",
			hv.ErrUnsupported, was.Package, was.Accel, was.Channel, is.Package, is.Accel, is.Channel)
	}
	if err := checkLocks(spec.Disks); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	return begin(ctx, spec, f, from)
}

// wake has a restored machine go on from its snapshot, as far as its next
// instruction.
func (m *machine) wake(ctx context.Context, from *hv.Snapshot) error {
	if err := m.load(ctx, filepath.Join(from.Dir, stateFile), from.MemoryFile != ""); err != nil {
		return err
	}
	status, err := m.status(ctx)
	if err == nil && stateOf(status) != hv.StatePaused {
		err = fmt.Errorf("the restored machine is in state %s", status)
	}
	return err
}

// hasRun says that the machine has executed instructions in this incarnation.
func (m *machine) hasRun(d *draft) bool {
	if !d.Restored {
		return true
	}
	_, err := os.Lstat(m.path(resumedFile))
	return err == nil
}

// ran notes that it does. Without the note the machine is only not snapshotted
// before it is resumed again.
func (m *machine) ran() {
	var d draft
	if vmm.ReadJSON(m.path(machineFile), &d) == nil && !m.hasRun(&d) {
		_ = writeNew(m.path(resumedFile), true)
	}
}
