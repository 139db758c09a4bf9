package kernel

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/testdata/need"
)

// debianKernel returns the folder with an unpacked Debian kernel package, as
// testdata/debian-kernel.sh leaves it.
func debianKernel(t *testing.T) string {
	t.Helper()
	return need.Env(t, "VOLANT_TEST_DEBIAN_KERNEL")
}

func TestDebianKernel(t *testing.T) {
	dir := debianKernel(t)
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("images in %s: %q, %v, want one", dir, images, err)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	img, err := ImportFile(t.Context(), images[0], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", img)
	if img.Version != version {
		t.Errorf("version = %q, want %q", img.Version, version)
	}

	tree := os.DirFS(filepath.Join(dir, "lib", "modules", version))
	for _, set := range []struct {
		name   string
		wanted []Wanted
		has    []string
	}{
		{"appliance", ApplianceModules(), []string{"virtio_blk", "virtio_net", "virtio_rng"}},
		{"rootfs", RootfsModules(), []string{"virtio_blk", "virtio_net", "overlay", "erofs"}},
	} {
		t.Run(set.name, func(t *testing.T) {
			modules, err := SelectModules(t.Context(), tree, img.Version, set.wanted)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			total := 0
			for _, m := range modules {
				info, err := parseModinfo(m.Data)
				if err != nil {
					t.Fatalf("%s: %v", m.Name, err)
				}
				for _, dep := range info.depends {
					if !slices.Contains(names, dep) && hasFile(t, tree, dep) {
						t.Errorf("%s comes before %s, which it depends on", m.Name, dep)
					}
				}
				names = append(names, m.Name)
				total += len(m.Data)
			}
			t.Logf("%d modules, %d bytes: %s", len(modules), total, strings.Join(names, " "))
			for _, name := range set.has {
				if !slices.Contains(names, name) {
					t.Errorf("%s is missing", name)
				}
			}
		})
	}
}

func hasFile(t *testing.T, tree fs.FS, name string) bool {
	t.Helper()
	files, err := findModules(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return files[name] != ""
}
