package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// The files of a snapshot. A template has no memoryFile.
const (
	configFile = "config.json"
	stateFile  = "state.json"
	memoryFile = "memory-ranges"
)

// maxConfig bounds what is read of a configuration, in bytes; they have some
// 10 KiB.
const maxConfig = 4 << 20

// Snapshot implements hv.Snapshotter.
func (m *machine) Snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	var s hv.Snapshot
	err := m.call(ctx, "snapshot", func() error {
		if err := m.plug(ctx); err != nil {
			return err
		}
		defer m.unplug()
		var err error
		s, err = m.snapshot(ctx, dir)
		return err
	})
	return s, err
}

func (m *machine) snapshot(ctx context.Context, dir string) (hv.Snapshot, error) {
	i, err := m.ask(ctx)
	switch {
	case err != nil:
		return hv.Snapshot{}, err
	case i.State != statePaused:
		return hv.Snapshot{}, fmt.Errorf("machine is in state %s, want it paused", i.State)
	case len(i.Config.Devices) > 0:
		return hv.Snapshot{}, fmt.Errorf("%w: it has the host's PCI device %s, whose state cannot be read", hv.ErrUnsupported, strings.TrimPrefix(i.Config.Devices[0].ID, "vfio-"))
	case !i.Config.reaches(dir):
		return hv.Snapshot{}, fmt.Errorf("%w: %s is in none of the directories that the VMM was given to reach at its launch", hv.ErrUnsupported, dir)
	}
	if err := vmm.CheckEmpty(dir); err != nil {
		return hv.Snapshot{}, err
	}
	s, err := m.write(ctx, dir)
	if err != nil {
		// A VMM that has not answered in time may still be writing.
		return hv.Snapshot{}, errors.Join(err, vmm.Reclaim(dir), vmm.ClearDir(dir))
	}
	return s, nil
}

// write has the VMM write its parts of the snapshot, and completes it.
func (m *machine) write(ctx context.Context, dir string) (hv.Snapshot, error) {
	if err := vmm.Lend(dir, m.proc.PID()); err != nil {
		return hv.Snapshot{}, err
	}
	// Only the answer says that the files are whole; the event comes before.
	if err := m.api.put(ctx, opSnapshot, snapshotConfig{Destination: "file://" + dir}); err != nil {
		return hv.Snapshot{}, err
	}
	if err := vmm.Reclaim(dir); err != nil {
		return hv.Snapshot{}, err
	}
	raw, err := readConfig(dir)
	if err != nil {
		return hv.Snapshot{}, err
	}
	var c stored
	if err := json.Unmarshal(raw, &c); err != nil {
		return hv.Snapshot{}, fmt.Errorf("%s: %w", configFile, err)
	}
	shape := c.shape()
	s := hv.Snapshot{
		Driver: Name, Version: m.rec.Version, Dir: dir, VCPUs: shape.VCPUs, MemoryMiB: shape.MemoryMiB,
		Machine: shape.Digest(), MemoryFile: c.template(),
	}
	parts := []string{stateFile}
	if s.MemoryFile == "" {
		parts = append(parts, memoryFile)
	}
	for _, name := range parts {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return hv.Snapshot{}, err
		}
		if fi.Size() == 0 {
			return hv.Snapshot{}, fmt.Errorf("%s is empty", name)
		}
	}
	return s, vmm.WriteSnapshot(s, m.rec)
}

func readConfig(dir string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, configFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("%s is larger than %d bytes", f.Name(), maxConfig)
	}
	return b, err
}

// Restore implements hv.Driver.
func (d *Driver) Restore(ctx context.Context, spec hv.Spec, from hv.Snapshot, o hv.RestoreOptions) (hv.VM, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: restore %s: %w", spec.ID, err)
	}
	m, err := d.restore(ctx, &spec, f, from, o)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: restore %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, spec *hv.Spec, f *findings, from hv.Snapshot, o hv.RestoreOptions) (*machine, error) {
	if err := checkMachine(spec, f); err != nil {
		return nil, err
	}
	switch {
	case !f.caps.Snapshot:
		return nil, fmt.Errorf("%w: this host's Cloud Hypervisor cannot", hv.ErrUnsupported)
	case o.OnDemand && !f.caps.OnDemand:
		return nil, fmt.Errorf("%w: memory cannot be restored on demand here", hv.ErrUnsupported)
	case spec.MemoryFile != "":
		return nil, fmt.Errorf("%w: what is restored cannot be a template: memory file %s", hv.ErrUnsupported, spec.MemoryFile)
	}
	if err := vmm.CheckSnapshot(&from, spec, &f.caps); err != nil {
		return nil, err
	}
	if err := errors.Join(vmm.CheckHost(spec, ownFiles()), checkLocks(spec.Disks)); err != nil {
		return nil, err
	}
	request := restoreConfig{Source: "file://" + filepath.Join(spec.Dir, stageDir), Mode: "Copy"}
	// A template has nothing to be read on demand: it is mapped.
	if o.OnDemand && from.MemoryFile == "" && vmm.CanFault(spec.User) {
		request.Mode = "OnDemand"
	}
	m, err := d.begin(ctx, spec, f, beginning{
		prepare: func() error {
			var err error
			request.NetFDs, err = stage(spec, f, from)
			return err
		},
		create: func(ctx context.Context, api *client) error { return d.load(ctx, api, spec, request) },
		run:    func(context.Context, *client) error { return nil },
	})
	if err != nil {
		return nil, err
	}
	// All that is still read of the snapshot is open.
	if err := os.RemoveAll(filepath.Join(spec.Dir, stageDir)); err != nil {
		return nil, errors.Join(err, m.Kill(ctx), undo(spec, nil, nil))
	}
	return m, nil
}

// stage makes a directory that Cloud Hypervisor can restore the machine of spec
// from: the snapshot's parts, and its configuration with what is the machine's own.
// It returns the NICs whose TAPs must come with the request.
func stage(spec *hv.Spec, f *findings, from hv.Snapshot) ([]netFD, error) {
	raw, err := readConfig(from.Dir)
	if err != nil {
		return nil, err
	}
	config, nics, err := adapt(raw, spec, f, from.MemoryFile)
	if err != nil {
		return nil, err
	}
	if len(nics) != len(spec.NICs) {
		return nil, fmt.Errorf("%w: the snapshot has %d NICs, the machine %d", hv.ErrUnsupported, len(nics), len(spec.NICs))
	}
	dir := filepath.Join(spec.Dir, stageDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	parts := []string{stateFile}
	if _, err := os.Lstat(filepath.Join(from.Dir, memoryFile)); err == nil {
		parts = append(parts, memoryFile)
	}
	for _, name := range parts {
		part := filepath.Join(from.Dir, name)
		if err := errors.Join(vmm.LetRead(part, spec.User), os.Symlink(part, filepath.Join(dir, name))); err != nil {
			return nil, err
		}
	}
	path := filepath.Join(dir, configFile)
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return nil, err
	}
	return nics, errors.Join(vmm.Give(path, spec.User), vmm.Give(dir, spec.User))
}

// load has Cloud Hypervisor restore the machine, which is then paused.
func (d *Driver) load(ctx context.Context, api *client, spec *hv.Spec, request restoreConfig) error {
	var taps []*os.File
	defer func() {
		for _, tap := range taps {
			tap.Close() // the VMM has its own
		}
	}()
	for _, n := range spec.NICs {
		tap, err := d.openTap(n.Tap)
		if err != nil {
			return err
		}
		taps = append(taps, tap)
	}
	return api.put(ctx, opRestore, request, taps...)
}
