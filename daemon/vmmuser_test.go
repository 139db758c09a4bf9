package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/need"
)

func TestVMMUser(t *testing.T) {
	need.Root(t, "to give files away")
	w := newWorld(t)
	opt := options{config: func(c *Config) { c.VMMUser = &hv.User{UID: 1234, GID: 4321} }}
	d := w.start(opt)
	d.equip()
	d.createWithVolume("web")
	vms := d.settle()
	spec := w.hv.Machine(vms[0].ID).Spec()
	if spec.User == nil || *spec.User != (hv.User{UID: 1234, GID: 4321}) {
		t.Fatalf("the VMM runs as %v", spec.User)
	}
	owner := func(path string) (uid, gid uint32, mode os.FileMode) {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		return st.Uid, st.Gid, fi.Mode().Perm()
	}
	want := map[string]struct {
		uid, gid uint32
		mode     os.FileMode
	}{
		spec.Kernel:                       {0, 4321, 0o640},
		spec.Initramfs:                    {0, 4321, 0o640},
		filepath.Join(w.root, "data"):     {0, 4321, 0o710},
		filepath.Join(w.root, "run/vms"):  {0, 4321, 0o710},
		filepath.Join(w.root, "data/vms"): {0, 0, 0o700}, // nothing that this VM is made of lies there
	}
	for _, disk := range spec.Disks {
		if disk.ReadOnly {
			want[disk.Path] = want[spec.Kernel]
		} else {
			want[disk.Path] = struct {
				uid, gid uint32
				mode     os.FileMode
			}{1234, 4321, 0o600}
		}
	}
	for path, p := range want {
		if uid, gid, mode := owner(path); uid != p.uid || gid != p.gid || mode != p.mode {
			t.Errorf("%s is %d:%d %v, want %d:%d %v", path, uid, gid, mode, p.uid, p.gid, p.mode)
		}
	}

	// A hypervisor that cannot is not used as root instead.
	caps, err := w.hv.Probe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	caps.Unprivileged = false
	w.hv.SetCapabilities(caps)
	d.stop()
	d = w.start(opt)
	if _, err := d.RestartVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if got, err := d.wait("web", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || got.Status != api.VMFailed || !strings.Contains(got.Reason, "cannot run as another user") {
		t.Errorf("after a restart: %s, %q, %v", got.Status, got.Reason, err)
	}
}
