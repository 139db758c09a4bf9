package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// originFile, in the directory that a VM keeps, holds all that its row can be
// made from again should the database be lost. It is written before each start,
// and like the boot configuration may hold secrets: mode 0600.
const originFile = "vm.json"

// maxOrigin bounds what is read of such a file, in bytes.
const maxOrigin = 8 << 20

// lostDir, in the data directory, is where a recovery puts the directories of
// VMs that it can make nothing of.
const lostDir = "lost"

// vmOrigin says what a VM is, and what it is made from, as its rows did when it
// was last started.
type vmOrigin struct {
	VM       row.VM       `json:"vm"`
	Manifest api.Manifest `json:"manifest"`
	Kernel   api.Kernel   `json:"kernel"`
	Plugin   *api.Plugin  `json:"plugin,omitempty"`
	Image    *row.Image   `json:"image,omitempty"`
}

// writeOrigin keeps what a VM that is about to be launched can be found again by.
func (d *Daemon) writeOrigin(ctx context.Context, vm *row.VM, m *api.Manifest, kernel api.Kernel) error {
	o := vmOrigin{VM: *vm, Manifest: *m, Kernel: kernel}
	o.VM.Kernel = kernel.Name
	if vm.Plugin != "" {
		p, err := d.store.Plugin(ctx, vm.Plugin)
		if err != nil {
			return err
		}
		o.Plugin = &p.Plugin
	}
	if vm.ImageID != "" {
		img, err := d.store.Image(ctx, vm.ImageID)
		if err != nil {
			return err
		}
		o.Image = &img
	}
	b, err := json.Marshal(&o)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(d.dataDir(vm.ID), originFile), b, 0o600)
}

// readOrigin reads what writeOrigin wrote of the VM with this id.
func (d *Daemon) readOrigin(id string) (*vmOrigin, error) {
	path := filepath.Join(d.dataDir(id), originFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAtMost(f, maxOrigin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var o vmOrigin
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if o.VM.ID != id {
		return nil, fmt.Errorf("%s: is of VM %.40q", path, o.VM.ID)
	}
	return &o, errors.Join(api.ValidateName("VM", o.VM.Name), o.Manifest.Validate())
}

// Recovered is what Recover has done, in sentences for an operator.
type Recovered struct {
	Running []string // VMs that run and were not known, or not as running
	Stopped []string // VMs that do not run, and were not known
	Volumes []string // volumes that were not known
	Lost    []string // what nothing could be made of, and where it is now
}

// Recover writes into the store what the host still proves of VMs that it does
// not know, or knows less of: their machines, their directories, their volumes.
// It ends no machine and deletes nothing. It is for a store that was recovered,
// before the first Run: that would take what is not known for leftovers.
//
// An error says that a machine runs of which nobody knows what it is.
func (d *Daemon) Recover(ctx context.Context) (Recovered, error) {
	var out Recovered
	if err := d.recoverVolumes(ctx, &out); err != nil {
		return out, err
	}
	running, err := idsIn(d.runDirs(""))
	if err != nil {
		return out, err
	}
	for _, id := range running {
		if err := d.recoverMachine(ctx, id, &out); err != nil {
			return out, err
		}
	}
	kept, err := idsIn(d.dataDir(""))
	if err != nil {
		return out, err
	}
	for _, id := range kept {
		if err := d.recoverStopped(ctx, id, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// recoverVolumes adds a row for each disk of a volume that has none.
func (d *Daemon) recoverVolumes(ctx context.Context, out *Recovered) error {
	disks, err := filepath.Glob(filepath.Join(d.volumesDir(), "*.img"))
	if err != nil {
		return err
	}
	for _, disk := range disks {
		name := strings.TrimSuffix(filepath.Base(disk), ".img")
		fi, err := os.Lstat(disk)
		if err != nil {
			return err
		}
		if api.ValidateName("volume", name) != nil || !fi.Mode().IsRegular() || fi.Size() < 1<<20 {
			continue
		}
		_, _, err = d.store.CreateVolume(ctx, api.Volume{Name: name, SizeMB: int(fi.Size() >> 20)}, api.Event{Type: api.EventVolumeCreated, Message: "recovered"})
		switch {
		case errors.Is(err, row.ErrExists):
			continue
		case err != nil:
			return err
		}
		if err := d.store.VolumeReady(ctx, name); err != nil {
			return err
		}
		out.Volumes = append(out.Volumes, name)
	}
	return nil
}

// liveMachine returns the newest machine of a VM that runs, hv.ErrGone when none
// does.
func (d *Daemon) liveMachine(ctx context.Context, id string) (hv.Record, int, error) {
	dirs, err := incarnations(d.runDirs(id))
	if err != nil {
		return hv.Record{}, 0, err
	}
	for _, dir := range slices.Backward(dirs) {
		rec, err := d.findMachine(ctx, dir)
		if errors.Is(err, hv.ErrGone) {
			continue
		}
		n, aerr := strconv.Atoi(filepath.Base(dir))
		return rec, n, errors.Join(err, aerr)
	}
	return hv.Record{}, 0, hv.ErrGone
}

// recoverMachine makes sure that the store knows of a VM that its machine runs,
// if one does.
func (d *Daemon) recoverMachine(ctx context.Context, id string, out *Recovered) error {
	rec, incarnation, err := d.liveMachine(ctx, id)
	if errors.Is(err, hv.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	record, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	runs := func(vm *row.VM) {
		vm.Status, vm.Desired, vm.Reason = api.VMStarting, api.DesiredRunning, "" // whether it is up its agent tells
		vm.Incarnation, vm.BootID, vm.Record = incarnation, rec.BootID, record
		vm.PID, vm.Hypervisor, vm.Accel = rec.PID, rec.Driver, string(rec.Accel)
		vm.AgentUp, vm.Replace, vm.Exit, vm.StartedAt = false, 0, nil, nil
		resetHealth(vm)
	}
	vm, err := d.store.VMByID(ctx, id)
	if err == nil && vm.Incarnation == incarnation && !vm.Ended() && vm.Status != api.VMPending {
		return nil
	}
	if err == nil { // an older state of its row
		_, _, err = d.store.ChangeVM(ctx, id, func(vm *row.VM) ([]api.Event, error) {
			runs(vm)
			return []api.Event{{Type: api.EventVMStarting, Message: "recovered"}}, nil
		})
	} else if errors.Is(err, row.ErrNotFound) {
		var o *vmOrigin
		if o, err = d.readOrigin(id); err != nil {
			return fmt.Errorf("VM %s runs as process %d, but what it is cannot be told (%w): end that process, or move %s away, and recover again", id, rec.PID, err, d.runDirs(id))
		}
		runs(&o.VM)
		vm, err = d.recreate(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("VM %s, process %d: %w", id, rec.PID, err)
	}
	out.Running = append(out.Running, fmt.Sprintf("%s, process %d, address %s", vm.Name, rec.PID, vm.IPAddress))
	return nil
}

// recoverStopped makes the row of a VM again that does not run and of which only
// the directory is left. What nothing can be made of is moved out of the way of
// the next Run, which would delete it.
func (d *Daemon) recoverStopped(ctx context.Context, id string, out *Recovered) error {
	_, err := d.store.VMByID(ctx, id)
	if !errors.Is(err, row.ErrNotFound) {
		return err
	}
	o, err := d.readOrigin(id)
	if err == nil {
		o.VM.Status, o.VM.Desired, o.VM.Reason = api.VMStopped, api.DesiredStopped, ""
		o.VM.Record, o.VM.PID, o.VM.AgentUp, o.VM.Replace = nil, 0, false, 0
		resetHealth(&o.VM)
		var vm row.VM
		if vm, err = d.recreate(ctx, o); err == nil {
			out.Stopped = append(out.Stopped, fmt.Sprintf("%s, address %s", vm.Name, vm.IPAddress))
			return nil
		}
	}
	if errors.Is(err, row.ErrFull) || errors.Is(err, row.ErrBusy) || ctx.Err() != nil {
		return err
	}
	lost := filepath.Join(d.cfg.DataDir, lostDir, id)
	if err := os.MkdirAll(filepath.Dir(lost), 0o700); err != nil {
		return err
	}
	if err := os.Rename(d.dataDir(id), lost); err != nil {
		return err
	}
	out.Lost = append(out.Lost, fmt.Sprintf("%s (%v)", lost, err))
	return nil
}

// recreate writes the rows of a VM again, with those that it refers to unless
// they are there.
func (d *Daemon) recreate(ctx context.Context, o *vmOrigin) (row.VM, error) {
	const recovered = "recovered"
	k := o.Kernel
	if _, err := d.store.Kernel(ctx, k.Name); errors.Is(err, row.ErrNotFound) && k.Name != "" {
		if _, _, err := d.store.CreateKernel(ctx, k, api.Event{Type: api.EventKernelImported, Message: recovered}); err != nil {
			return row.VM{}, err
		}
	}
	if p := o.Plugin; p != nil {
		if _, err := d.store.Plugin(ctx, p.Name); errors.Is(err, row.ErrNotFound) {
			if _, _, err := d.store.PutPlugin(ctx, *p, manifestBlobs(&p.Manifest), api.Event{Type: api.EventPluginInstalled, Message: recovered}); err != nil {
				return row.VM{}, err
			}
		}
	}
	if img := o.Image; img != nil {
		if _, err := d.store.Image(ctx, img.ID); errors.Is(err, row.ErrNotFound) {
			if _, _, err := d.store.PutImage(ctx, *img, img.References, api.Event{Type: api.EventImagePulled, Message: recovered}); err != nil {
				return row.VM{}, err
			}
		}
	}
	vm := row.NewVM{VM: o.VM, NamePrefix: o.VM.Name, Manifest: o.Manifest, Blobs: manifestBlobs(&o.Manifest)}
	if o.VM.IPAddress != "" {
		addr, err := netip.ParseAddr(o.VM.IPAddress)
		if err != nil {
			return row.VM{}, err
		}
		vm.Lease = func(taken []netip.Addr) (netip.Addr, error) { return addr, d.cfg.Pool.Check(addr, taken) }
	}
	made, _, err := d.store.CreateVM(ctx, vm, api.Event{Type: api.EventVMCreated, Message: recovered})
	var exists *row.ExistsError
	if errors.As(err, &exists) && exists.Column == "vms.name" { // given to another meanwhile
		vm.VM.Name = ""
		made, _, err = d.store.CreateVM(ctx, vm, api.Event{Type: api.EventVMCreated, Message: recovered})
	}
	if err != nil || made.Ended() {
		return made, err
	}
	// It has the disks of its volumes.
	var named []api.VolumeMount
	for _, v := range o.Manifest.Volumes {
		if v.Name != "" {
			v.SizeMB = volumeSize(v.SizeMB)
			named = append(named, v)
		}
	}
	if len(named) > 0 {
		_, _, err = d.store.ClaimVolumes(ctx, made.ID, named, api.Event{Type: api.EventVolumeCreated, Message: recovered})
	}
	return made, err
}
