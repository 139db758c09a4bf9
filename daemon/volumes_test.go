package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

func TestVolumes(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	<-d.Ready()
	v, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 64, Labels: map[string]string{"a": "b"}})
	if err != nil || v.SizeMB != 64 || v.Used == 0 || v.Labels["a"] != "b" || v.CreatedAt.IsZero() {
		t.Fatalf("CreateVolume = %+v, %v", v, err)
	}
	if !isExt4(t, d.volumePath("data")) {
		t.Error("its disk is no ext4 file system")
	}
	for name, c := range map[string]struct {
		in   api.VolumeCreate
		code api.Code
	}{
		"again": {api.VolumeCreate{Name: "data"}, api.CodeExists}, "name": {api.VolumeCreate{Name: "../x"}, api.CodeInvalid}, "no name": {api.VolumeCreate{}, api.CodeInvalid},
		"small": {api.VolumeCreate{Name: "x", SizeMB: 1}, api.CodeInvalid}, "label": {api.VolumeCreate{Name: "x", Labels: map[string]string{"": ""}}, api.CodeInvalid},
	} {
		if _, err := d.CreateVolume(ctx, c.in); api.CodeOf(err) != c.code {
			t.Errorf("%s: CreateVolume = %v, want %s", name, err, c.code)
		}
	}

	rw := []api.VolumeMount{{Name: "data", Target: "/data"}, {Name: "fresh", Target: "/data/below", SizeMB: 32, NoCopy: true}}
	a := d.createFrom(api.VMCreate{Name: "a", Plugin: "serve", Volumes: rw, Tmpfs: []api.Tmpfs{{Target: "/b"}}})
	d.must("a", api.WaitHealthy)
	want := []string{"volant-vol-1 rw data/volumes/data.img", "volant-vol-2 rw data/volumes/fresh.img"}
	if got := w.diskList(a.ID)[1:]; !slices.Equal(got, want) {
		t.Errorf("disks %q, want %q", got, want)
	}
	// What lies below another mount comes after it, and places name the disks.
	wantMounts := []wire.MountConfig{
		{Type: wire.MountTmpfs, Target: "/b"}, {Type: wire.MountDisk, Target: "/data", Copy: true}, {Type: wire.MountDisk, Target: "/data/below"},
	}
	if got := w.guest(a.ID).cfg.Mounts; !slices.Equal(got, wantMounts) {
		t.Errorf("mounts %+v, want %+v", got, wantMounts)
	}
	if v, err := d.Volume(ctx, "fresh"); err != nil || v.SizeMB != 32 || !slices.Equal(v.VMs, []string{"a"}) || v.Running != "a" {
		t.Errorf("volume made at the first start: %+v, %v", v, err)
	}

	// Only one VM at a time writes; readers share.
	d.createFrom(api.VMCreate{Name: "b", Plugin: "serve", Volumes: rw[:1]})
	vm, err := d.wait("b", api.WaitHealthy)
	if api.CodeOf(err) != api.CodeConflict || vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "volume data is in use by VM a") {
		t.Errorf("second VM: %s, %q, %v", vm.Status, vm.Reason, err)
	}
	var e *api.Error
	if _, err := d.StartVM(ctx, "b"); !errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Hint, "stop a first") {
		t.Errorf("StartVM of the second = %v, want refused at once", err)
	}
	if err := d.RemoveVolume(ctx, "data"); !errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Message, "a, b") {
		t.Errorf("RemoveVolume of one in use = %v", err)
	}
	if _, err := d.StopVM(ctx, "a", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("a", api.WaitStopped)
	ro := []api.VolumeMount{{Name: "data", Target: "/data", ReadOnly: true}}
	for _, name := range []string{"r1", "r2"} {
		d.createFrom(api.VMCreate{Name: name, Plugin: "serve", Volumes: ro})
		d.must(name, api.WaitHealthy)
	}
	if _, err := d.StartVM(ctx, "b"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a writer beside readers: %v, want conflict", err)
	}
	for _, name := range []string{"r1", "r2", "a", "b"} {
		if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
	}

	// Volumes stay when their VMs go.
	if list, err := d.Volumes(ctx); err != nil || len(list) != 2 || len(list[0].VMs) > 0 {
		t.Errorf("Volumes = %+v, %v", list, err)
	}
	for _, name := range []string{"data", "fresh"} {
		if err := d.RemoveVolume(ctx, name); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(d.volumePath(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("disk of the removed volume %s: %v", name, err)
		}
	}
	if err := d.RemoveVolume(ctx, "data"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("RemoveVolume again: %v, want not found", err)
	}
	w.checkWorld(d.settle())
}

// A volume whose disk has gone is not mistaken for a new one.
func TestVolumeDiskMissing(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	<-d.Ready()
	if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.volumePath("data")); err != nil {
		t.Fatal(err)
	}
	d.createFrom(api.VMCreate{Name: "a", Plugin: "serve", Volumes: []api.VolumeMount{{Name: "data", Target: "/data"}}})
	if vm, err := d.wait("a", api.WaitHealthy); api.CodeOf(err) != api.CodeConflict || !strings.Contains(vm.Reason, "volume data is missing") {
		t.Errorf("start without the volume's disk: %q, %v", vm.Reason, err)
	}
}

// Of many VMs that want one volume at the same time one gets it, and the next
// when that has ended.
func TestVolumeRace(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	var wg sync.WaitGroup
	names := []string{"a", "b", "c", "d", "e"}
	for _, name := range names {
		wg.Go(func() {
			if _, err := d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve", Volumes: []api.VolumeMount{{Name: "data", Target: "/data", SizeMB: 16}}}); err != nil {
				t.Errorf("CreateVM %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	for range names {
		running, failed := "", 0
		for _, vm := range d.settle() {
			switch vm.Status {
			case api.VMRunning:
				if running != "" {
					t.Fatalf("%s and %s both have the volume", running, vm.Name)
				}
				running = vm.Name
			case api.VMFailed:
				failed++
			}
		}
		if running == "" {
			t.Fatal("nobody has the volume")
		}
		if err := d.DeleteVM(ctx, running, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(running, api.WaitDeleted)
		for _, vm := range d.settle() {
			if _, err := d.StartVM(ctx, vm.Name); err != nil && api.CodeOf(err) != api.CodeConflict {
				t.Errorf("StartVM %s: %v", vm.Name, err)
			}
		}
		if failed == 0 {
			break
		}
	}
	if left := d.settle(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	w.checkWorld(d.settle())
}

// checkVolumes compares the rows of volumes with their disks.
func (in *instance) checkVolumes(t *testing.T) {
	t.Helper()
	vs, err := in.db.Volumes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, v := range vs {
		known[v.Name+".img"] = true
		_, err := os.Stat(in.volumePath(v.Name))
		if v.State == "removing" || v.State == "ready" && err != nil {
			t.Errorf("volume %s is %s: %v", v.Name, v.State, err)
		}
		if err == nil && !isExt4(t, in.volumePath(v.Name)) {
			t.Errorf("the disk of volume %s is half made", v.Name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(in.w.root, "data", "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !known[e.Name()] {
			t.Errorf("%s belongs to no volume", e.Name())
		}
	}
}

// Labels of a volume change one by one, and events tell of them.
func TestVolumeLabels(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{notRunning: true})
	if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16, Labels: map[string]string{"tier": "db", "old": "1"}}); err != nil {
		t.Fatal(err)
	}
	word := func(s string) *string { return &s }
	for _, tc := range []struct {
		name   string
		change map[string]*string
		code   api.Code
		want   map[string]string
		events int
	}{
		{"data", map[string]*string{"tier": word("cache"), "old": nil, "none": nil}, "", map[string]string{"tier": "cache"}, 1},
		{"data", map[string]*string{"tier": word("cache")}, "", map[string]string{"tier": "cache"}, 1}, // as it is
		{"data", nil, "", map[string]string{"tier": "cache"}, 1},
		{"data", map[string]*string{"": word("x")}, api.CodeInvalid, nil, 1},
		{"data", map[string]*string{"x": word(strings.Repeat("y", 1<<20))}, api.CodeInvalid, nil, 1},
		{"dato", map[string]*string{"x": word("y")}, api.CodeNotFound, nil, 1},
		{"data", map[string]*string{"tier": nil}, "", map[string]string{}, 2},
		{"data", map[string]*string{"again": word("")}, "", map[string]string{"again": ""}, 3},
	} {
		v, err := d.LabelVolume(ctx, tc.name, api.VolumeChange{Labels: tc.change})
		if api.CodeOf(err) != tc.code || tc.code == "" && !maps.Equal(v.Labels, tc.want) || d.told(api.EventVolumeLabeled) != tc.events {
			t.Errorf("LabelVolume(%s, %v) = %v, %v, after %d events; want %v, %q, %d", tc.name, tc.change, v.Labels, err, d.told(api.EventVolumeLabeled), tc.want, tc.code, tc.events)
		}
	}
}
