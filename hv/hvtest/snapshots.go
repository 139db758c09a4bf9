package hvtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// memoryFile holds, in the directory of a snapshot that is no template, what the
// guest remembers.
const memoryFile = "memory"

var _ hv.Snapshotter = (*fakeVM)(nil)

// Snapshot implements hv.Snapshotter.
func (v *fakeVM) Snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	s, err := v.snapshot(ctx, dir)
	if err != nil {
		return hv.Snapshot{}, fmt.Errorf("fake: snapshot %s: %w", v.m.rec.ID, err)
	}
	return s, nil
}

func (v *fakeVM) snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	if err := v.enter(ctx, OpSnapshot); err != nil {
		return hv.Snapshot{}, err
	}
	m := v.m
	m.mu.Lock()
	spec, state, save := m.spec, m.state, m.guest.Save
	m.mu.Unlock()
	m.host.mu.Lock()
	caps := m.host.caps
	m.host.mu.Unlock()
	switch {
	case !caps.Snapshot || len(spec.Devices) > 0:
		return hv.Snapshot{}, hv.ErrUnsupported
	case state == hv.StateExited:
		return hv.Snapshot{}, hv.ErrGone
	case state != hv.StatePaused:
		return hv.Snapshot{}, fmt.Errorf("machine is in state %s", state)
	}
	if err := vmm.CheckEmpty(dir); err != nil {
		return hv.Snapshot{}, err
	}
	s := hv.Snapshot{
		Driver: FakeName, Version: m.rec.Version, Dir: dir, VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
		Machine: vmm.ShapeOf(&spec).Digest(), MemoryFile: spec.MemoryFile,
	}
	file := spec.MemoryFile
	if file == "" {
		file = filepath.Join(dir, memoryFile)
	}
	err := func() error {
		memory := []byte{}
		if save != nil {
			var err error
			if memory, err = save(); err != nil {
				return err
			}
		}
		if err := os.WriteFile(file, memory, 0o600); err != nil {
			return err
		}
		if err := m.host.enter(ctx, OpSnapshotted, m.rec.ID); err != nil {
			return err
		}
		return vmm.WriteSnapshot(s, m.rec)
	}()
	if err != nil {
		return hv.Snapshot{}, errors.Join(err, vmm.ClearDir(dir))
	}
	return s, nil
}

// Restore implements hv.Driver.
func (f *Fake) Restore(ctx context.Context, spec hv.Spec, from hv.Snapshot, o hv.RestoreOptions) (hv.VM, error) {
	vm, err := f.restore(ctx, spec, from, o)
	if err != nil {
		return nil, fmt.Errorf("fake: restore %s: %w", spec.ID, err)
	}
	return vm, nil
}

func (f *Fake) restore(ctx context.Context, spec hv.Spec, from hv.Snapshot, o hv.RestoreOptions) (hv.VM, error) {
	if err := f.enter(ctx, OpRestore, spec.ID); err != nil {
		return nil, err
	}
	if err := f.checkSpec(&spec); err != nil {
		return nil, err
	}
	f.mu.Lock()
	caps := f.caps
	f.mu.Unlock()
	if !caps.Snapshot || o.OnDemand && !caps.OnDemand || spec.MemoryFile != "" {
		return nil, fmt.Errorf("%w: a restore, on demand: %t, with the memory file %q", hv.ErrUnsupported, o.OnDemand, spec.MemoryFile)
	}
	if err := vmm.CheckSnapshot(&from, &spec, &caps); err != nil {
		return nil, err
	}
	for _, m := range f.Running() {
		if from.MemoryFile != "" && m.Spec().MemoryFile == from.MemoryFile {
			return nil, fmt.Errorf("machine %s still runs in the template's memory %s", m.rec.ID, from.MemoryFile)
		}
	}
	file := from.MemoryFile
	if file == "" {
		file = filepath.Join(from.Dir, memoryFile)
	}
	memory, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return f.begin(ctx, spec, memory, OpRestored)
}
