package daemon

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/store/row"
)

// slowReader gives a byte at a time, and may be killed before each.
type slowReader struct {
	in   *instance
	rest io.Reader
}

func (r slowReader) Read(b []byte) (int, error) {
	if err := r.in.gate.act(); err != nil {
		return 0, err
	}
	return r.rest.Read(b[:min(len(b), 1)])
}

// artifactCrashCases are those of what VMs are made from, and of what is done
// inside of them.
func artifactCrashCases() []crashCase {
	ctx := context.Background()
	running := func(d *instance) {
		d.create("web", "serve")
		d.settle()
	}
	// untouched wants the VM as running left it.
	untouched := func(t *testing.T, vms []row.VM) {
		t.Helper()
		if len(vms) != 1 || vms[0].Status != api.VMRunning || vms[0].Incarnation != 1 {
			t.Errorf("VMs: %+v, want one that was not touched", vms)
		}
	}
	second := func(d *instance) api.KernelImport {
		return api.KernelImport{Name: "second", Version: "7", Digest: d.put(kernelImage("second"))}
	}
	importSecond := func(d *instance) {
		if _, err := d.ImportKernel(ctx, second(d)); err != nil {
			d.w.t.Fatal(err)
		}
	}
	kernels := func(t *testing.T, d *instance) map[string]api.Kernel {
		t.Helper()
		ks, err := d.Kernels(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out, defaults := make(map[string]api.Kernel), 0
		for _, k := range ks {
			if err := d.blobRef(k.Digest).verify(); err != nil {
				t.Errorf("kernel %s is there, but %v", k.Name, err)
			}
			if out[k.Name] = k; k.Default {
				defaults++
			}
		}
		if defaults != 1 {
			t.Errorf("%d kernels are the default: %+v", defaults, ks)
		}
		return out
	}
	return []crashCase{
		{
			name: "pull under another name", op: "PullImage",
			prepare: func(d *instance) { d.pullOf("nginx") },
			act:     func(d *instance) { d.PullImage(ctx, api.ImagePull{Reference: "nginx:latest-alias"}, nil) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				img, err := d.Image(ctx, "nginx")
				if err != nil || len(img.References) > 2 {
					t.Errorf("the image has references %v, %v", img.References, err)
				}
			},
		},
		{
			name: "prune images", op: "PruneImages",
			prepare: func(d *instance) { d.pullOf("nginx"); d.pullOf("redis") },
			act:     func(d *instance) { d.PruneImages(ctx, api.ImagePrune{All: true}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				imgs, err := d.Images(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, img := range imgs {
					if err := d.blobRef(img.Disk).verify(); err != nil {
						t.Errorf("image %v is there, but %v", img.References, err)
					}
				}
				d.pullOf("nginx")
				d.pullOf("redis")
			},
		},
		{
			name: "disable a plugin", op: "EnablePlugin",
			act: func(d *instance) { d.EnablePlugin(ctx, "serve", false) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if _, err := d.EnablePlugin(ctx, "serve", true); err != nil {
					t.Error(err)
				}
			},
		},
		{
			name: "remove a plugin", op: "RemovePlugin",
			act: func(d *instance) { d.RemovePlugin(ctx, "serve") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if p, err := d.Plugin(ctx, "serve"); err == nil {
					if err := d.blobRef(p.Manifest.Initramfs.Checksum).verify(); err != nil {
						t.Errorf("the plugin is there, but %v", err)
					}
				} else if _, err := d.InstallPlugin(ctx, d.manifest("serve")); err != nil {
					t.Error(err)
				}
			},
		},
		{
			name: "import a kernel", op: "ImportKernel",
			act: func(d *instance) { d.ImportKernel(ctx, second(d)) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				kernels(t, d)
				if _, err := d.ImportKernel(ctx, second(d)); err != nil {
					t.Errorf("ImportKernel again = %v", err)
				}
			},
		},
		{
			name: "change the default kernel", op: "DefaultKernel",
			prepare: importSecond,
			act:     func(d *instance) { d.DefaultKernel(ctx, "second") },
			check:   func(t *testing.T, d *instance, vms []row.VM) { kernels(t, d) },
		},
		{
			name: "remove a kernel", op: "RemoveKernel",
			prepare: importSecond,
			act:     func(d *instance) { d.RemoveKernel(ctx, "second") },
			check:   func(t *testing.T, d *instance, vms []row.VM) { kernels(t, d) },
		},
		{
			name: "upload a blob", op: "PutBlob", writes: writesNone,
			act: func(d *instance) {
				sum := sha256.Sum256([]byte("a blob"))
				d.PutBlob(ctx, digestOf(sum[:]), slowReader{d, strings.NewReader("a blob")})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				sum := sha256.Sum256([]byte("a blob"))
				if b, err := d.Blob(ctx, digestOf(sum[:])); err == nil {
					if err := d.blobRef(b.Digest).verify(); err != nil {
						t.Errorf("half of a blob counts as one: %v", err)
					}
				}
				d.put([]byte("a blob"))
			},
		},
		{
			name: "copy into a VM", op: "VMCopyTo", writes: writesNone,
			prepare: running,
			act: func(d *instance) {
				d.VMCopyTo(ctx, "web", "/to", false, slowReader{d, strings.NewReader("an archive")})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) { untouched(t, vms) },
		},
		{
			name: "copy from a VM", op: "VMCopyFrom", writes: writesNone,
			prepare: running,
			act: func(d *instance) {
				if r, err := d.VMCopyFrom(ctx, "web", "/from", false); err == nil {
					defer r.Close()
					io.Copy(io.Discard, slowReader{d, r})
				}
			},
			check: func(t *testing.T, d *instance, vms []row.VM) { untouched(t, vms) },
		},
		{
			name: "exec", op: "VMExec", writes: writesNone,
			prepare: running,
			act: func(d *instance) {
				if conn, err := d.VMExec(ctx, "web", api.Exec{Args: []string{"x"}}); err == nil {
					defer conn.Close()
					io.Copy(io.Discard, slowReader{d, io.LimitReader(conn, 8)})
				}
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				untouched(t, vms)
				conn, err := d.VMExec(ctx, "web", api.Exec{Args: []string{"x"}})
				if err != nil {
					t.Fatal(err)
				}
				if _, exit := readSession(t, conn); exit.Code != 3 {
					t.Errorf("exec afterwards exits with %+v", exit)
				}
			},
		},
		{
			name: "attach", op: "VMAttach", writes: writesNone,
			prepare: running,
			act: func(d *instance) {
				if conn, err := d.VMAttach(ctx, "web"); err == nil {
					defer conn.Close()
					if d.gate.act() == nil { // attached
						stdio.NewWriter(conn).Write(stdio.Frame{Type: stdio.Stdin, Data: []byte("in")})
						d.gate.act()
					}
				}
			},
			check: func(t *testing.T, d *instance, vms []row.VM) { untouched(t, vms) },
		},
		{
			name: "tick",
			prepare: func(d *instance) {
				running(d)
				d.put([]byte("nobody wants this"))
				d.cfg.KeepEvents, d.t.grace = 1, -time.Hour // the first tick of itself is half a minute away
			},
			act: func(d *instance) { d.tick(ctx) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				untouched(t, vms)
				p, err := d.Plugin(ctx, "serve")
				if err == nil {
					err = d.blobRef(p.Manifest.Initramfs.Checksum).verify()
				}
				if err != nil {
					t.Error(err)
				}
				page, err := d.db.Events(ctx, api.EventFilter{}, 1000)
				if err != nil || len(page.Events) == 0 {
					t.Errorf("the journal has %d events, %v", len(page.Events), err)
				}
				if temps, err := os.ReadDir(filepath.Join(d.w.root, "data", "blobs", "tmp")); err != nil || len(temps) > 0 {
					t.Errorf("left: %v, %v", temps, err)
				}
			},
		},
	}
}
