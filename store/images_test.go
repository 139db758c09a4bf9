package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// ticking returns a clock that goes on by a second each time it is looked at.
func ticking() func() time.Time {
	now := time.Unix(1000, 0)
	return func() time.Time {
		now = now.Add(time.Second)
		return now
	}
}

func image(id string, disk, initramfs string) row.Image {
	img := row.Image{Image: api.Image{
		ID: id, Platform: "linux/amd64", Layers: 2, Disk: disk, Initramfs: initramfs, CreatedAt: time.Unix(7, 0).UTC(),
		Config: api.ImageConfig{Cmd: []string{"sh"}, Labels: map[string]string{"a": "b"}},
	}}
	if disk != "" {
		img.DiskSize = 100
	}
	if initramfs != "" {
		img.InitramfsSize = 10
	}
	return img
}

func putImage(t testing.TB, s *Store, img row.Image, refs ...string) row.Image {
	t.Helper()
	img, evs, err := s.PutImage(context.Background(), img, refs, api.Event{Type: api.EventImagePulled})
	if err != nil || len(evs) != 1 {
		t.Fatalf("PutImage = %v, %v; want one event", evs, err)
	}
	return img
}

func imageVM(id string, img row.Image, n int) row.NewVM {
	vm := newVM(row.Plugin{}, n)
	vm.Plugin, vm.PluginVersion = "", ""
	vm.ID, vm.Image, vm.ImageID, vm.Runtime = id, "ref", img.ID, "img"
	m := manifest("img", "1")
	m.Initramfs, m.Rootfs = nil, &api.Rootfs{URL: "x", Checksum: img.Disk}
	return row.NewVM{VM: vm, Manifest: m, Blobs: []string{img.Disk}, Lease: nth}
}

func TestImages(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir()+"/db", Options{Now: ticking()})
	a := putImage(t, s, image("sha256:aa1", "sha256:da", ""), "x:2", "x:1")
	if !slices.Equal(a.References, []string{"x:1", "x:2"}) || a.Size != 100 || a.VMs != 0 || a.Config.Cmd[0] != "sh" || a.PulledAt.IsZero() || a.LastUsed != a.PulledAt {
		t.Errorf("image %+v", a)
	}
	// The other form is added, what is there stays.
	a = putImage(t, s, image("sha256:aa1", "", "sha256:ia"))
	if a.Disk != "sha256:da" || a.Initramfs != "sha256:ia" || a.Size != 110 || len(a.References) != 2 {
		t.Errorf("image with both forms: %+v", a)
	}
	// A reference moves to the image that it names now.
	b := putImage(t, s, image("sha256:aa2", "sha256:db", ""), "x:2")
	if got, err := s.ImageByReference(ctx, "x:2"); err != nil || got.ID != b.ID {
		t.Errorf("x:2 is %v, %v; want the newer image", got.ID, err)
	}
	if got, err := s.Image(ctx, a.ID); err != nil || !slices.Equal(got.References, []string{"x:1"}) {
		t.Errorf("the older image has %v, %v", got.References, err)
	}
	if ids, err := s.ImageIDs(ctx, "sha256:aa", 5); err != nil || !slices.Equal(ids, []string{"sha256:aa1", "sha256:aa2"}) {
		t.Errorf("ImageIDs = %v, %v", ids, err)
	}
	if ids, err := s.ImageIDs(ctx, "sha256:aa2", 5); err != nil || len(ids) != 1 {
		t.Errorf("ImageIDs of a whole one = %v, %v", ids, err)
	}
	all, err := s.Images(ctx)
	if err != nil || len(all) != 2 || all[0].ID != b.ID {
		t.Errorf("Images = %+v, %v; want both, the one used last first", all, err)
	}
	refs, err := s.BlobRefs(ctx)
	if slices.Sort(refs); err != nil || !slices.Equal(refs, []string{"sha256:da", "sha256:db", "sha256:ia"}) {
		t.Errorf("BlobRefs = %v, %v", refs, err)
	}

	for _, tag := range []struct {
		ref  string
		evs  int
		refs []string
	}{{"x:1", 0, []string{"x:1"}}, {"y", 1, []string{"x:1", "y"}}} {
		img, evs, err := s.TagImage(ctx, a.ID, tag.ref, api.Event{Type: api.EventImagePulled})
		if err != nil || len(evs) != tag.evs || !slices.Equal(img.References, tag.refs) {
			t.Errorf("TagImage %s = %v, %v, %v", tag.ref, img.References, evs, err)
		}
	}
	if _, _, err := s.TagImage(ctx, "sha256:none", "z", api.Event{}); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("TagImage of none: %v, want not found", err)
	}
	if _, err := s.Image(ctx, "sha256:none"); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("Image of none: %v, want not found", err)
	}
}

func TestRemoveImage(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	img := putImage(t, s, image("sha256:a", "sha256:d", ""), "x:1", "x:2")
	ev := api.Event{Type: api.EventImageRemoved}
	if _, _, err := s.CreateVM(ctx, imageVM("vm", img, 1), api.Event{Type: api.EventVMCreated}); err != nil {
		t.Fatal(err)
	}
	if _, removed, evs, err := s.RemoveImage(ctx, img.ID, []string{"x:1"}, ev); err != nil || removed || len(evs) != 1 || evs[0].Name != "x:1" {
		t.Errorf("untag = removed %v, %v, %v", removed, evs, err)
	}
	var used *row.InUseError
	if _, _, _, err := s.RemoveImage(ctx, img.ID, nil, ev); !errors.As(err, &used) || !slices.Equal(used.By, []string{"vm1"}) {
		t.Errorf("removal of one in use: %v, want in use by vm1", err)
	}
	if got, _ := s.Image(ctx, img.ID); !slices.Equal(got.References, []string{"x:2"}) || got.VMs != 1 {
		t.Errorf("a refused removal left %+v", got)
	}
	if _, _, _, err := s.RemoveImage(ctx, img.ID, []string{"x:1"}, ev); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("untag of what is untagged: %v, want not found", err)
	}
	if _, err := s.DeleteVM(ctx, "vm", api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	if _, removed, _, err := s.RemoveImage(ctx, img.ID, nil, ev); err != nil || !removed {
		t.Errorf("removal = %v, %v", removed, err)
	}
	if refs, err := s.BlobRefs(ctx); err != nil || len(refs) != 0 {
		t.Errorf("blobs still needed: %v, %v", refs, err)
	}
	if _, err := s.ImageByReference(ctx, "x:2"); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("reference of a removed image: %v, want not found", err)
	}
	if _, _, err := s.CreateVM(ctx, imageVM("late", img, 2), api.Event{Type: api.EventVMCreated}); !errors.Is(err, row.ErrInUse) {
		t.Errorf("CreateVM of a removed image: %v, want in use", err)
	}
}

// Creating, starting and deleting a VM are uses of its image.
func TestLastUsed(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir()+"/db", Options{Now: ticking()})
	img := putImage(t, s, image("sha256:a", "sha256:d", ""))
	last := img.LastUsed
	used := func(op string, want bool) {
		t.Helper()
		got, err := s.Image(ctx, img.ID)
		if err != nil || got.LastUsed.After(last) != want {
			t.Errorf("%s: last used %s, was %s, %v", op, got.LastUsed, last, err)
		}
		last = got.LastUsed
	}
	vm, _, err := s.CreateVM(ctx, imageVM("vm", img, 1), api.Event{Type: api.EventVMCreated})
	if err != nil || vm.Plugin != "" || vm.ImageID != img.ID {
		t.Fatalf("CreateVM = %+v, %v", vm, err)
	}
	used("create", true)
	change := func(alter func(vm *row.VM)) {
		t.Helper()
		if _, _, err := s.ChangeVM(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) { alter(vm); return nil, nil }); err != nil {
			t.Fatal(err)
		}
	}
	change(func(vm *row.VM) { vm.Healthy = true })
	used("other change", false)
	change(func(vm *row.VM) { vm.Incarnation++ })
	used("start", true)
	if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	used("delete", true)
}

func TestNameAndPorts(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	img := putImage(t, s, image("sha256:a", "sha256:d", ""))
	n := 0
	create := func(name, prefix string, want ...api.Port) (row.VM, error) {
		n++
		v := imageVM("id"+string(rune('a'+n)), img, n)
		v.VM.Name, v.NamePrefix, v.Lease = name, prefix, nil
		if want != nil {
			v.Publish = func(taken []row.Published) ([]api.Port, error) {
				for _, p := range taken {
					if slices.ContainsFunc(want, p.Port.Conflicts) {
						return nil, errors.New("taken by " + p.VM)
					}
				}
				return want, nil
			}
		}
		vm, _, err := s.CreateVM(ctx, v, api.Event{Type: api.EventVMCreated})
		return vm, err
	}
	var ids []string
	for _, c := range []struct{ name, prefix, want string }{
		{"", "nginx", "nginx-1"}, {"nginx-3", "", "nginx-3"}, {"", "nginx", "nginx-2"}, {"", "nginx", "nginx-4"}, {"", "nginx-4", "nginx-4-1"}, {"", "ngin", "ngin-1"},
	} {
		vm, err := create(c.name, c.prefix)
		if err != nil || vm.Name != c.want {
			t.Errorf("create %+v = %s, %v", c, vm.Name, err)
		}
		ids = append(ids, vm.ID)
	}
	if _, err := s.DeleteVM(ctx, ids[2], api.Event{}); err != nil {
		t.Fatal(err)
	}
	if vm, err := create("", "nginx"); err != nil || vm.Name != "nginx-2" {
		t.Errorf("create after a deletion = %s, %v; want the freed number", vm.Name, err)
	}

	port := api.Port{Protocol: "tcp", HostPort: 80, Port: 8080}
	web, err := create("web", "", port, api.Port{Protocol: "udp", Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.VM(ctx, "web"); err != nil || !slices.Equal(got.Ports, web.Ports) || len(got.Ports) != 2 {
		t.Errorf("ports %+v, %v", got.Ports, err)
	}
	if _, err := create("other", "", port); err == nil || err.Error() != "create VM other: taken by web" {
		t.Errorf("second publication: %v, want that web has it", err)
	}
	var exists *row.ExistsError
	if _, err := create("web", "", port); !errors.As(err, &exists) || exists.Column != "vms.name" {
		t.Errorf("taken name and port: %v, want the name told of", err)
	}
	if _, err := s.DeleteVM(ctx, web.ID, api.Event{}); err != nil {
		t.Fatal(err)
	}
	if _, err := create("other", "", port); err != nil {
		t.Errorf("publication after the deletion: %v", err)
	}
}
