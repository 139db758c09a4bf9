package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// volumeVM creates a VM that mounts volumes.
func volumeVM(t *testing.T, s *Store, n int, mounts ...api.VolumeMount) row.VM {
	t.Helper()
	img := putImage(t, s, image("sha256:a", "sha256:d", ""))
	v := imageVM(fmt.Sprintf("id%d", n), img, n)
	v.Manifest.Volumes = mounts
	vm, _, err := s.CreateVM(context.Background(), v, api.Event{Type: api.EventVMCreated})
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestVolumes(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	created := api.Event{Type: api.EventVolumeCreated}
	v, evs, err := s.CreateVolume(ctx, api.Volume{Name: "data", SizeMB: 64, Labels: map[string]string{"a": "b"}}, created)
	if err != nil || len(evs) != 1 || evs[0].Name != "data" || v.State != row.VolumeNew || v.CreatedAt.IsZero() || v.Labels["a"] != "b" {
		t.Fatalf("CreateVolume = %+v, %v, %v", v, evs, err)
	}
	if _, _, err := s.CreateVolume(ctx, api.Volume{Name: "data"}, created); !errors.Is(err, row.ErrExists) {
		t.Errorf("CreateVolume again: %v, want exists", err)
	}
	for range 2 {
		if err := s.VolumeReady(ctx, "data"); err != nil {
			t.Fatal(err)
		}
	}
	rw := api.VolumeMount{Name: "data", Target: "/data"}
	ro := api.VolumeMount{Name: "data", Target: "/data", ReadOnly: true}
	a, b := volumeVM(t, s, 1, rw), volumeVM(t, s, 2, ro, api.VolumeMount{Name: "fresh", Target: "/f", SizeMB: 32})
	c := volumeVM(t, s, 3, ro)
	if v, err := s.Volume(ctx, "data"); err != nil || v.State != row.VolumeReady || !slices.Equal(v.VMs, []string{"vm1", "vm2", "vm3"}) || v.Running != "" {
		t.Errorf("Volume = %+v, %v", v, err)
	}

	claim := func(vm row.VM, mounts ...api.VolumeMount) ([]row.Volume, error) {
		vs, _, err := s.ClaimVolumes(ctx, vm.ID, mounts, created)
		return vs, err
	}
	end := func(vm row.VM) {
		t.Helper()
		for _, st := range []api.VMState{api.VMStarting, api.VMStopped} {
			if _, _, err := s.ChangeVM(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
				vm.Status = st
				return []api.Event{{Type: api.EventVMStopped}}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // the second time it has it already
		if vs, err := claim(a, rw); err != nil || len(vs) != 1 || vs[0].Running != "vm1" {
			t.Fatalf("ClaimVolumes = %+v, %v", vs, err)
		}
	}
	var busy *row.VolumeBusyError
	if _, err := claim(b, ro, api.VolumeMount{Name: "fresh", SizeMB: 32}); !errors.As(err, &busy) || *busy != (row.VolumeBusyError{Volume: "data", VM: "vm1"}) {
		t.Errorf("claim of a volume that is held: %v, want busy", err)
	}
	if _, err := s.Volume(ctx, "fresh"); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("a refused claim made a volume: %v", err)
	}
	end(a)
	if vs, err := claim(b, ro, api.VolumeMount{Name: "fresh", SizeMB: 32}); err != nil || len(vs) != 2 || vs[1].SizeMB != 32 || vs[1].State != row.VolumeNew {
		t.Errorf("claim after the end: %+v, %v", vs, err)
	}
	if _, err := claim(c, ro); err != nil {
		t.Errorf("second reader: %v", err)
	}
	if _, err := claim(a, rw); !errors.As(err, &busy) {
		t.Errorf("writer beside readers: %v, want busy", err)
	}

	var used *row.InUseError
	if err := s.CondemnVolume(ctx, "data"); !errors.As(err, &used) || !slices.Equal(used.By, []string{"vm1", "vm2", "vm3"}) {
		t.Errorf("CondemnVolume of one in use: %v", err)
	}
	for _, vm := range []row.VM{a, b, c} {
		if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.RemoveVolume(ctx, "data", api.Event{}); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("RemoveVolume of one not condemned: %v, want not found", err)
	}
	for range 2 {
		if err := s.CondemnVolume(ctx, "data"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.VolumeReady(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	if ev, err := s.RemoveVolume(ctx, "data", api.Event{Type: api.EventVolumeRemoved}); err != nil || ev.Name != "data" {
		t.Errorf("RemoveVolume = %+v, %v; readiness does not undo condemnation", ev, err)
	}
	if vs, err := s.Volumes(ctx); err != nil || len(vs) != 1 || vs[0].Name != "fresh" || vs[0].Running != "" {
		t.Errorf("Volumes = %+v, %v; want fresh alone", vs, err)
	}
}
