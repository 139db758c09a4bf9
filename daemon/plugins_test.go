package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/shim"
)

func TestInstallPluginRefuses(t *testing.T) {
	ctx := context.Background()
	d := newWorld(t).start(options{})
	for _, tc := range []struct {
		name  string
		alter func(m *api.Manifest)
		code  api.Code
		text  string
	}{
		{"no name", func(m *api.Manifest) { m.Name = "" }, api.CodeInvalid, "name"},
		{"no checksum", func(m *api.Manifest) { m.Initramfs.Checksum = "" }, api.CodeInvalid, "sha256sum"},
		{"odd checksum", func(m *api.Manifest) { m.Initramfs.Checksum = "md5:1" }, api.CodeInvalid, "initramfs.checksum"},
		{"artifact not there", func(m *api.Manifest) { m.Initramfs.Checksum = "sha256:" + strings.Repeat("0", 64) }, api.CodeNotFound, "initramfs.checksum"},
		{"kernel not there", func(m *api.Manifest) { m.Kernel = "none" }, api.CodeNotFound, "kernel"},
		{"rootfs, no checksum", func(m *api.Manifest) { m.Rootfs, m.Initramfs = &api.Rootfs{URL: "x"}, nil }, api.CodeInvalid, "rootfs.checksum"},
		{"rootfs not there", func(m *api.Manifest) {
			m.Rootfs, m.Initramfs = &api.Rootfs{URL: "x", Checksum: "sha256:" + strings.Repeat("0", 64)}, nil
		}, api.CodeNotFound, "rootfs.checksum"},
		{"qcow2", func(m *api.Manifest) { m.Rootfs, m.Initramfs = &api.Rootfs{URL: "x", Format: "qcow2"}, nil }, api.CodeUnsupported, "qemu-img convert"},
		{"blob not there", func(m *api.Manifest) {
			m.Volumes = []api.VolumeMount{{Blob: "sha256:" + strings.Repeat("0", 64), Target: "/x"}}
		}, api.CodeNotFound, "volumes[0].blob"},
		{"disks", func(m *api.Manifest) { m.Disks = []api.ManifestDisk{{Name: "d", Source: "x"}} }, api.CodeUnsupported, "disks"},
		{"cloud-init", func(m *api.Manifest) { m.CloudInit = &api.CloudInit{} }, api.CodeUnsupported, "cloud_init"},
		{"devices", func(m *api.Manifest) { m.Devices = &api.Devices{PCIPassthrough: []string{"0000:01:00.0"}} }, api.CodeUnsupported, "devices"},
		{"dhcp", func(m *api.Manifest) { m.Network = &api.Network{Mode: api.NetworkDHCP} }, api.CodeUnsupported, "network.mode"},
		{"own subnet", func(m *api.Manifest) { m.Network = &api.Network{Subnet: "10.0.0.0/8"} }, api.CodeUnsupported, "network.subnet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := d.manifest("serve")
			tc.alter(&m)
			_, err := d.InstallPlugin(ctx, m)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message+" "+e.Hint, tc.text) {
				t.Errorf("InstallPlugin = %+v, want %s with %q", err, tc.code, tc.text)
			}
		})
	}
	if ps, err := d.Plugins(ctx); err != nil || len(ps) != 0 {
		t.Errorf("plugins after refused ones: %v, %v", ps, err)
	}
}

func TestPluginUpgrade(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	old := d.create("old", "serve")
	d.must("old", api.WaitHealthy)
	m := d.manifest("serve")
	m.Version, m.Resources.MemoryMB = "2", 128
	m.Initramfs.Checksum = d.put(archive(t, "serve-2"))
	if p, err := d.InstallPlugin(ctx, m); err != nil || p.Version != "2" {
		t.Fatalf("upgrade = %+v, %v", p, err)
	}
	fresh := d.create("new", "serve")
	d.must("new", api.WaitHealthy)
	if _, err := d.RestartVM(ctx, "old", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("old", api.WaitHealthy)
	for id, want := range map[string]string{old.ID: "serve", fresh.ID: "serve-2"} {
		image, err := os.ReadFile(w.hv.Machine(id).Spec().Initramfs)
		if err != nil || !bytes.Contains(image, archive(t, want)) || !strings.Contains(string(image), shim.Binary()) {
			t.Errorf("initramfs of %s does not hold shim and archive %q: %v", id, want, err)
		}
	}
	if fresh.MemoryMB != 128 || w.hv.Machine(old.ID).Spec().MemoryMiB != 64 {
		t.Errorf("memory: new %d, old %d", fresh.MemoryMB, w.hv.Machine(old.ID).Spec().MemoryMiB)
	}

	err := d.RemovePlugin(ctx, "serve")
	if api.CodeOf(err) != api.CodeConflict {
		t.Errorf("RemovePlugin in use = %v, want conflict", err)
	}
	for _, name := range []string{"old", "new"} {
		if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
	}
	if err := d.RemovePlugin(ctx, "serve"); err != nil {
		t.Errorf("RemovePlugin = %v", err)
	}
	if err := d.RemovePlugin(ctx, "serve"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("RemovePlugin twice = %v, want not_found", err)
	}
	w.checkWorld(d.settle())
}

func TestKernels(t *testing.T) {
	ctx := context.Background()
	d := newWorld(t).start(options{})
	d.equip()
	good := d.put(kernelImage("other"))
	arm := kernelImage("arm")
	arm[18] = 183
	for _, tc := range []struct {
		name string
		in   api.KernelImport
		code api.Code
	}{
		{"odd name", api.KernelImport{Name: "../k", Version: "1", Digest: good}, api.CodeInvalid},
		{"no version", api.KernelImport{Name: "k", Digest: good}, api.CodeInvalid},
		{"no digest", api.KernelImport{Name: "k", Version: "1"}, api.CodeInvalid},
		{"not there", api.KernelImport{Name: "k", Version: "1", Digest: "sha256:" + strings.Repeat("0", 64)}, api.CodeNotFound},
		{"modules not there", api.KernelImport{Name: "k", Version: "1", Digest: good, Modules: "sha256:" + strings.Repeat("0", 64)}, api.CodeNotFound},
		{"no ELF", api.KernelImport{Name: "k", Version: "1", Digest: d.put([]byte("MZ bzImage"))}, api.CodeInvalid},
		{"other machine", api.KernelImport{Name: "k", Version: "1", Digest: d.put(arm)}, api.CodeInvalid},
		{"name taken", api.KernelImport{Name: "generic", Version: "1", Digest: good}, api.CodeExists},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := d.ImportKernel(ctx, tc.in); api.CodeOf(err) != tc.code {
				t.Errorf("ImportKernel = %v, want %s", err, tc.code)
			}
		})
	}
	if _, err := d.ImportKernel(ctx, api.KernelImport{Name: "other", Version: "7", Digest: good}); err != nil {
		t.Fatal(err)
	}
	d.create("web", "serve") // runs generic
	d.must("web", api.WaitHealthy)
	if err := d.RemoveKernel(ctx, "generic"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("RemoveKernel in use = %v, want conflict", err)
	}
	if _, err := d.DefaultKernel(ctx, "otter"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("DefaultKernel = %v, want not_found", err)
	}
	if k, err := d.DefaultKernel(ctx, "other"); err != nil || !k.Default {
		t.Errorf("DefaultKernel = %+v, %v", k, err)
	}
	if _, err := d.RestartVM(ctx, "web", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitHealthy); vm.Kernel != "other" {
		t.Errorf("kernel after the default changed = %s, want other", vm.Kernel)
	}
	if err := d.RemoveKernel(ctx, "generic"); err != nil {
		t.Errorf("RemoveKernel = %v", err)
	}
	if ks, err := d.Kernels(ctx); err != nil || len(ks) != 1 {
		t.Errorf("Kernels = %v, %v", ks, err)
	}
}

// broken delivers some bytes and then fails.
type broken struct{ n int }

func (b *broken) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := min(b.n, len(p))
	b.n -= n
	return n, nil
}

func TestPutBlob(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{config: func(c *Config) { c.MaxBlob = 1000 }})
	content := []byte("an artifact")
	digest := d.put(content)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		digest string
		r      io.Reader
		code   api.Code
	}{
		{"odd digest", ctx, "sha256:../../etc/passwd", strings.NewReader(""), api.CodeInvalid},
		{"wrong content", ctx, "sha256:" + strings.Repeat("0", 64), strings.NewReader("x"), api.CodeInvalid},
		{"too large", ctx, "sha256:" + strings.Repeat("1", 64), strings.NewReader(strings.Repeat("x", 1001)), api.CodeTooLarge},
		{"breaks off", ctx, "sha256:" + strings.Repeat("2", 64), &broken{10}, api.CodeUnavailable},
		{"caller went away", gone, "sha256:" + strings.Repeat("3", 64), strings.NewReader("x"), api.CodeUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := d.PutBlob(tc.ctx, tc.digest, tc.r); api.CodeOf(err) != tc.code {
				t.Errorf("PutBlob = %v, want %s", err, tc.code)
			}
			if _, err := d.Blob(ctx, tc.digest); err == nil {
				t.Error("it is there all the same")
			}
		})
	}
	t.Run("again", func(t *testing.T) {
		r := bytes.NewReader(content)
		if b, err := d.PutBlob(ctx, digest, r); err != nil || b.Size != int64(len(content)) || r.Len() != 0 {
			t.Errorf("PutBlob again = %+v, %v, %d bytes not read", b, err, r.Len())
		}
	})
	t.Run("repairs", func(t *testing.T) {
		if err := os.WriteFile(d.blobPath(digest), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		d.put(content)
		if err := d.blobRef(digest).verify(); err != nil {
			t.Errorf("after the upload: %v", err)
		}
	})
	t.Run("disk full", func(t *testing.T) {
		d.cfg.MinFree = 1 << 62
		_, err := d.PutBlob(ctx, "sha256:"+strings.Repeat("4", 64), strings.NewReader("x"))
		if api.CodeOf(err) != api.CodeExhausted {
			t.Errorf("PutBlob = %v, want exhausted", err)
		}
	})
	if temps, _ := filepath.Glob(filepath.Join(d.blobTemp(), "*")); len(temps) != 0 {
		t.Errorf("left behind: %v", temps)
	}
}

// An image that was damaged on disk is made again from its parts.
func TestDamagedImageIsMadeAgain(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	path := w.hv.Machine(vm.ID).Spec().Initramfs
	damage(t, path)
	if _, err := d.RestartVM(ctx, "web", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	if again := w.hv.Machine(vm.ID).Spec().Initramfs; again != path {
		t.Errorf("image %s, want %s again", again, path)
	}
	got, _, err := fileDigest(path)
	if err != nil || !strings.Contains(path, strings.TrimPrefix(got, "sha256:")) {
		t.Errorf("digest of the image = %s, %v, its name is %s", got, err, path)
	}
}

func TestArtifactThatIsNoArchive(t *testing.T) {
	d := newWorld(t).start(options{})
	m := d.manifest("serve")
	m.Initramfs.Checksum = d.put([]byte("MZ, but no archive"))
	d.equip()
	if _, err := d.InstallPlugin(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	d.create("web", "serve")
	if vm := d.must("web", api.WaitStopped); vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "not an initramfs archive") {
		t.Errorf("VM is %s because %q", vm.Status, vm.Reason)
	}
}
