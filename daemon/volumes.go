package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// A volume is a row and a disk below DataDir/volumes. The row comes first and
// goes last: its state says whether the disk is to be made, is there, or is to
// be removed, so that whatever is cut short is finished later, and a disk that
// is missing is never taken for one that is new.

func (d *Daemon) volumesDir() string { return filepath.Join(d.cfg.DataDir, "volumes") }

// volumePath is where a volume's disk is. The name must have been checked by
// api.ValidateName.
func (d *Daemon) volumePath(name string) string { return filepath.Join(d.volumesDir(), name+".img") }

// volumeSize is mib, or the default for 0.
func volumeSize(mib int) int {
	if mib == 0 {
		return api.DefaultVolumeMB
	}
	return mib
}

// takeVolumes waits for its turn to make or remove disks of volumes.
func (d *Daemon) takeVolumes(ctx context.Context) (release func(), err error) {
	select {
	case d.volumes <- struct{}{}:
		return func() { <-d.volumes }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// claimVolumes makes the named volumes of mounts the VM's until it has ended,
// and their disks if they are not there yet.
func (d *Daemon) claimVolumes(ctx context.Context, vm *row.VM, mounts []guestMount) error {
	var named []api.VolumeMount
	for _, g := range mounts {
		if g.volume.Name != "" {
			v := g.volume
			v.SizeMB = volumeSize(v.SizeMB)
			named = append(named, v)
		}
	}
	if len(named) == 0 {
		return nil
	}
	release, err := d.takeVolumes(ctx)
	if err != nil {
		return err
	}
	defer release()
	// What is being removed is gone first, and then made anew.
	for _, v := range named {
		have, err := d.store.Volume(ctx, v.Name)
		if err == nil && have.State == row.VolumeRemoving {
			err = d.finishRemoval(ctx, v.Name)
		}
		if err != nil && !errors.Is(err, row.ErrNotFound) {
			return err
		}
	}
	volumes, evs, err := d.store.ClaimVolumes(ctx, vm.ID, named, api.Event{Type: api.EventVolumeCreated})
	if err != nil {
		return err
	}
	d.bus.notify("", len(evs) > 0)
	for i := range volumes {
		if err := d.makeVolume(ctx, &volumes[i]); err != nil {
			return err
		}
	}
	return nil
}

// makeVolume makes the disk of a volume, unless that was done. The caller has
// the turn.
func (d *Daemon) makeVolume(ctx context.Context, v *row.Volume) error {
	if v.State != row.VolumeNew {
		if _, err := os.Stat(d.volumePath(v.Name)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("the disk of volume %s is missing from the data directory", v.Name)
			}
			return err
		}
		return nil
	}
	if err := d.makeDisk(d.volumePath(v.Name), v.SizeMB, "volume"); err != nil {
		return err
	}
	return d.store.VolumeReady(ctx, v.Name)
}

// finishRemoval removes the disk of a condemned volume, and then its row. The
// caller has the turn.
func (d *Daemon) finishRemoval(ctx context.Context, name string) error {
	if err := removeIfThere(d.volumePath(name)); err != nil {
		return err
	}
	if err := syncDir(d.volumesDir()); err != nil {
		return err
	}
	if _, err := d.store.RemoveVolume(ctx, name, api.Event{Type: api.EventVolumeRemoved}); err != nil {
		return err
	}
	d.bus.notify("", true)
	return nil
}

// finishRemovals ends what a killed daemon had begun.
func (d *Daemon) finishRemovals(ctx context.Context) error {
	release, err := d.takeVolumes(ctx)
	if err != nil {
		return err
	}
	defer release()
	all, err := d.store.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		if v.State != row.VolumeRemoving {
			continue
		}
		if err := d.finishRemoval(ctx, v.Name); err != nil {
			return err
		}
	}
	return nil
}

// publicVolume is a volume as the API shows it.
func (d *Daemon) publicVolume(v row.Volume) api.Volume {
	var st syscall.Stat_t
	if syscall.Stat(d.volumePath(v.Name), &st) == nil { // else it was not made yet
		v.Used = st.Blocks * 512
	}
	return v.Volume
}

// Volumes returns all volumes by name.
func (d *Daemon) Volumes(ctx context.Context) ([]api.Volume, error) {
	rows, err := d.store.Volumes(ctx)
	if err != nil {
		return nil, d.publicError("list volumes", err)
	}
	out := make([]api.Volume, 0, len(rows))
	for _, v := range rows {
		if v.State != row.VolumeRemoving {
			out = append(out, d.publicVolume(v))
		}
	}
	return out, nil
}

// volume returns one volume, or an *api.Error.
func (d *Daemon) volume(ctx context.Context, name string) (row.Volume, error) {
	if err := api.ValidateName("volume", name); err != nil {
		return row.Volume{}, err
	}
	v, err := d.store.Volume(ctx, name)
	if err == nil && v.State == row.VolumeRemoving {
		err = row.ErrNotFound
	}
	if !errors.Is(err, row.ErrNotFound) {
		return v, err
	}
	all, err := d.store.Volumes(ctx)
	if err != nil {
		return row.Volume{}, err
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return row.Volume{}, notFound("volume", name, names)
}

// Volume returns one volume. Codes: invalid, not_found.
func (d *Daemon) Volume(ctx context.Context, name string) (api.Volume, error) {
	v, err := d.volume(ctx, name)
	if err != nil {
		return api.Volume{}, d.publicError("get volume", err)
	}
	return d.publicVolume(v), nil
}

// CreateVolume makes an empty volume. Codes: invalid, exists, exhausted (disk).
func (d *Daemon) CreateVolume(ctx context.Context, in api.VolumeCreate) (api.Volume, error) {
	if err := api.ValidateName("volume", in.Name); err != nil {
		return api.Volume{}, err
	}
	if err := api.ValidateDiskSize("size_mb", in.SizeMB); err != nil {
		return api.Volume{}, err
	}
	if err := api.ValidateLabels("labels", in.Labels); err != nil {
		return api.Volume{}, err
	}
	v, err := d.createVolume(ctx, in)
	if err != nil {
		return api.Volume{}, d.publicError("create volume", err)
	}
	return d.publicVolume(v), nil
}

func (d *Daemon) createVolume(ctx context.Context, in api.VolumeCreate) (row.Volume, error) {
	release, err := d.takeVolumes(ctx)
	if err != nil {
		return row.Volume{}, err
	}
	defer release()
	if old, err := d.store.Volume(ctx, in.Name); err == nil && old.State == row.VolumeRemoving {
		if err := d.finishRemoval(ctx, in.Name); err != nil {
			return row.Volume{}, err
		}
	}
	v, evs, err := d.store.CreateVolume(ctx, api.Volume{Name: in.Name, SizeMB: volumeSize(in.SizeMB), Labels: in.Labels}, api.Event{Type: api.EventVolumeCreated})
	if err != nil {
		return row.Volume{}, err
	}
	d.bus.notify("", len(evs) > 0)
	if err := d.makeVolume(ctx, &v); err != nil {
		// Nothing is left of it, unless a VM has come to want it meanwhile.
		undo := context.WithoutCancel(ctx)
		if cerr := d.store.CondemnVolume(undo, v.Name); cerr != nil {
			return row.Volume{}, errors.Join(err, cerr)
		}
		return row.Volume{}, errors.Join(err, d.finishRemoval(undo, v.Name))
	}
	v.State = row.VolumeReady
	return v, nil
}

// LabelVolume changes labels of a volume. Codes: invalid, not_found.
func (d *Daemon) LabelVolume(ctx context.Context, name string, in api.VolumeChange) (api.Volume, error) {
	if _, err := d.volume(ctx, name); err != nil {
		return api.Volume{}, d.publicError("label volume", err)
	}
	words := strings.Join(slices.Sorted(maps.Keys(in.Labels)), ", ")
	v, evs, err := d.store.LabelVolume(ctx, name, api.Event{Type: api.EventVolumeLabeled, Message: clip(words, maxStepText)}, func(labels map[string]string) (map[string]string, error) {
		for key, value := range in.Labels {
			if value == nil {
				delete(labels, key)
				continue
			}
			if labels == nil {
				labels = make(map[string]string)
			}
			labels[key] = *value
		}
		return labels, api.ValidateLabels("labels", labels)
	})
	switch {
	case errors.Is(err, row.ErrNotFound):
		return api.Volume{}, notFound("volume", name, nil)
	case err != nil:
		return api.Volume{}, d.publicError("label volume", err)
	}
	d.bus.notify("", len(evs) > 0)
	return d.publicVolume(v), nil
}

// RemoveVolume removes a volume with what it holds. Codes: invalid, not_found,
// conflict (VMs mount it).
func (d *Daemon) RemoveVolume(ctx context.Context, name string) error {
	if _, err := d.volume(ctx, name); err != nil {
		return d.publicError("remove volume", err)
	}
	release, err := d.takeVolumes(ctx)
	if err != nil {
		return d.publicError("remove volume", err)
	}
	defer release()
	err = d.store.CondemnVolume(ctx, name)
	var used *row.InUseError
	if errors.As(err, &used) {
		return inUse("volume "+name, used)
	}
	if err == nil {
		err = d.finishRemoval(ctx, name)
	}
	return d.publicError("remove volume", err)
}
