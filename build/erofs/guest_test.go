package erofs_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/kernel"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// bootDeadline is generous: software emulation on a loaded machine.
const bootDeadline = 3 * time.Minute

// TestGuestKernels boots the kernels that guests run, Linux 6.12 at
// $VOLANT_TEST_KERNEL and Debian's 6.1 at $VOLANT_TEST_DEBIAN_KERNEL, and has each
// compare an image with the tree it was made of.
func TestGuestKernels(t *testing.T) {
	qemu := need.Tool(t, "qemu-system-x86_64")
	need.Root(t, "to set attributes that only root may")
	tree := edges(t, false)
	disk, want := image(t, tree, erofs.Options{}), layertest.Dump(t, tree)

	probe := filepath.Join(t.TempDir(), "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", probe, ".")
	build.Dir = "testdata/probe"
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	init, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}

	boot := func(t *testing.T, image string, modules []kernel.Module) {
		t.Helper()
		var a initramfs.Archive
		entries := []initramfs.Entry{{Name: "init", Mode: 0o755, Data: init}, {Name: "want", Mode: 0o644, Data: []byte(want)},
			{Name: "dev/console", Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Major: 5, Minor: 1}}
		for _, m := range modules {
			entries = append(entries, initramfs.Entry{Name: m.Path, Mode: 0o644, Data: m.Data})
		}
		for _, e := range entries {
			if err := a.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "initramfs"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteTo(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
		defer cancel()
		out, err := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot",
			"-serial", "stdio", "-drive", "if=none,id=disk,format=raw,readonly=on,file="+disk, "-device", "virtio-blk-pci,drive=disk",
			"-kernel", image, "-initrd", f.Name(), "-append", "console=ttyS0 panic=-1 quiet").CombinedOutput()
		console := strings.ReplaceAll(string(out), "\r\n", "\n")
		if err != nil || !strings.Contains(console, "PROBE END 0 <nil>\n") {
			t.Errorf("qemu: %v\n%s", err, console[max(0, len(console)-8000):])
		}
	}
	t.Run("6.12", func(t *testing.T) {
		boot(t, need.Env(t, "VOLANT_TEST_KERNEL"), nil)
	})
	t.Run("6.1", func(t *testing.T) {
		debian := need.Env(t, "VOLANT_TEST_DEBIAN_KERNEL")
		images, err := filepath.Glob(filepath.Join(debian, "boot", "vmlinuz-*"))
		if err != nil || len(images) != 1 {
			t.Fatalf("kernels in %s: %q, %v, want one", debian, images, err)
		}
		_, version, _ := strings.Cut(filepath.Base(images[0]), "-")
		modules, err := kernel.SelectModules(t.Context(), os.DirFS(filepath.Join(debian, "lib/modules", version)), version,
			[]kernel.Wanted{{Name: "virtio_pci"}, {Name: "virtio_blk"}, {Name: "crc32c_generic"}, {Name: "erofs"}})
		if err != nil {
			t.Fatal(err)
		}
		boot(t, images[0], modules)
	})
}
