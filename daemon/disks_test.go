package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
)

// createFrom creates a VM that must be accepted.
func (in *instance) createFrom(req api.VMCreate) api.VM {
	in.w.t.Helper()
	vm, err := in.CreateVM(context.Background(), req)
	if err != nil {
		in.w.t.Fatalf("CreateVM %+v: %v", req, err)
	}
	return vm
}

// diskList is what a machine has beside its agent's disk: "serial ro|rw path below
// the world's root".
func (w *world) diskList(id string) []string {
	w.t.Helper()
	m := w.hv.Machine(id)
	if m == nil {
		w.t.Fatalf("no machine of VM %s", id)
	}
	var out []string
	for _, d := range m.Spec().Disks {
		if d.Serial == wire.AgentSerial {
			continue
		}
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		rel, err := filepath.Rel(w.root, d.Path)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, d.Serial+" "+mode+" "+rel)
	}
	return out
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func (w *world) blob(digest string) string {
	h := hexOf(digest)
	return "data/blobs/sha256/" + h[:2] + "/" + h
}

func isExt4(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], 1024+0x38); err != nil {
		t.Fatal(err)
	}
	return magic == [2]byte{0x53, 0xef}
}

func TestVMFromImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.imgs.config = api.ImageConfig{
		Entrypoint: []string{"/serve"}, Cmd: []string{"a"}, Env: []string{"A=image", "B=image"}, WorkingDir: "/srv", User: "www", StopSignal: "SIGQUIT",
		ExposedPorts: []string{"80/tcp", "443/tcp"}, Labels: map[string]string{"from": "image"},
		Healthcheck: &api.ImageHealthcheck{Test: []string{"CMD", "/check"}, StartPeriod: time.Second},
	}
	d := w.start(options{})
	d.equip()
	img := d.pullOf("nginx")
	vm := d.createFrom(api.VMCreate{
		Image: "nginx", Command: &[]string{"b"}, Env: map[string]string{"A": "request"}, Labels: map[string]string{"of": "request"},
		Hostname: "web.example", TTY: true, Stdin: true, Ports: []api.Port{{Port: 80}, {Port: 443, HostPort: 8443, HostIP: "0.0.0.0"}},
		Tmpfs: []api.Tmpfs{{Target: "/run/x", SizeMB: 8, Mode: "700"}},
	})
	if vm.Name != "nginx-1" || vm.Image != "docker.io/library/nginx:latest" || vm.ImageID != img.ID || vm.Plugin != "" || vm.Runtime != "nginx" ||
		vm.CPUCores != 1 || vm.MemoryMB != 256 || vm.Labels["from"] != "image" || vm.Labels["of"] != "request" || !vm.TTY || !vm.Stdin {
		t.Errorf("VM %+v", vm)
	}
	if want := []api.Port{{HostPort: api.FirstHostPort, Port: 80, Protocol: "tcp"}, {HostPort: 8443, Port: 443, Protocol: "tcp"}}; !slices.Equal(vm.Ports, want) {
		t.Errorf("ports %+v, want %+v", vm.Ports, want)
	}
	vm = d.must(vm.Name, api.WaitRunning)

	upper := "data/vms/" + vm.ID + "/upper.img"
	want := []string{"volant-config ro run/vms/" + vm.ID + "/1/config.img", "volant-root ro " + w.blob(img.Disk), "volant-upper rw " + upper}
	if got := w.diskList(vm.ID); !slices.Equal(got, want) {
		t.Errorf("disks %q\nwant  %q", got, want)
	}
	if path := filepath.Join(w.root, upper); !isExt4(t, path) {
		t.Errorf("%s is no ext4 file system", upper)
	} else if fi, err := os.Stat(path); err != nil || fi.Size() != int64(api.DefaultRootMB)<<20 {
		t.Errorf("%s: %d bytes, %v", upper, fi.Size(), err)
	}
	cfg := w.guest(vm.ID).cfg
	if cfg.Root == nil || cfg.Root.Upper != wire.UpperDisk || cfg.Hostname != "web.example" {
		t.Errorf("boot configuration: root %+v, hostname %q", cfg.Root, cfg.Hostname)
	}
	if want := []wire.MountConfig{{Type: wire.MountTmpfs, Target: "/run/x", SizeMiB: 8, Mode: 0o700}}; !slices.Equal(cfg.Mounts, want) {
		t.Errorf("mounts %+v, want %+v", cfg.Mounts, want)
	}
	wl := cfg.Workload
	if fmt.Sprintf("%v %v %v %v %v %v %v", wl.Args, wl.Env, wl.Workdir, wl.User, wl.StopSignal, wl.TTY, wl.Stdin) != "[/serve b] [A=request B=image] /srv www SIGQUIT true true" {
		t.Errorf("workload %+v", wl)
	}
	if h := wl.Health; h == nil || fmt.Sprint(h.Exec) != "[/check]" || h.StartPeriod != time.Second || h.Interval != 30*time.Second || h.Retries != 3 {
		t.Errorf("health check %+v", h)
	}
	if got, err := d.Image(ctx, "nginx"); err != nil || got.VMs != 1 || !got.LastUsed.After(img.LastUsed) {
		t.Errorf("image in use: %+v, %v", got, err)
	}
	w.checkWorld(d.settle())

	// What the VM wrote is there after its next start, and gone with it.
	if err := os.WriteFile(filepath.Join(w.root, upper), []byte("written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RestartVM(ctx, vm.Name, api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.settle()
	if b, err := os.ReadFile(filepath.Join(w.root, upper)); err != nil || string(b) != "written" {
		t.Errorf("its disk after a restart: %q, %v", b, err)
	}
	second := d.createFrom(api.VMCreate{Image: img.ID[:20], Stopped: true})
	if second.Name != "nginx-2" || second.ImageID != img.ID || len(second.Ports) != 2 || second.Ports[0].HostPort != 0 {
		t.Errorf("second VM: %+v", second)
	}
	if err := d.DeleteVM(ctx, vm.Name, api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must(vm.Name, api.WaitDeleted)
	w.checkWorld(d.settle())
	if third := d.createFrom(api.VMCreate{Image: "nginx", Stopped: true}); third.Name != "nginx-1" {
		t.Errorf("third VM is called %s, want the freed nginx-1", third.Name)
	}
}

func TestRootModes(t *testing.T) {
	w := newWorld(t)
	w.imgs.config.Volumes = []string{"/var/lib/data"}
	d := w.start(options{})
	d.equip()
	img := d.pullOf("nginx")
	for name, c := range map[string]struct {
		root  api.Root
		want  wire.RootConfig
		disks []string // beside agent, configuration and root, by serial
	}{
		"small":  {api.Root{SizeMB: 32}, wire.RootConfig{Upper: wire.UpperDisk}, []string{"volant-upper"}},
		"memory": {api.Root{Mode: api.RootMemory, SizeMB: 64}, wire.RootConfig{Upper: wire.UpperMemory, SizeMiB: 64}, nil},
		"fixed":  {api.Root{Mode: api.RootReadOnly}, wire.RootConfig{Upper: wire.UpperReadOnly}, []string{"volant-vol-0"}},
	} {
		vm := d.createFrom(api.VMCreate{Name: name, Image: "nginx", Root: &c.root})
		d.must(name, api.WaitRunning)
		if got := w.guest(vm.ID).cfg.Root; got == nil || *got != c.want {
			t.Errorf("%s: root %+v, want %+v", name, got, c.want)
		}
		var serials []string
		for _, disk := range w.hv.Machine(vm.ID).Spec().Disks[3:] {
			serials = append(serials, disk.Serial)
			if !isExt4(t, disk.Path) {
				t.Errorf("%s: %s is no ext4 file system", name, disk.Path)
			}
			if want := int64(32 << 20); disk.Serial == wire.UpperSerial {
				if fi, err := os.Stat(disk.Path); err != nil || fi.Size() != want {
					t.Errorf("%s: its disk has %d bytes, %v; want %d", name, fi.Size(), err, want)
				}
			}
		}
		if !slices.Equal(serials, c.disks) {
			t.Errorf("%s: disks %v, want %v", name, serials, c.disks)
		}
	}
	if img.Disk == "" {
		t.Error("no disk")
	}
	w.checkWorld(d.settle())
}

// A plugin's rootfs is a blob like any other artifact.
func TestPluginRootfs(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	m := d.manifest("serve")
	m.Name, m.Initramfs = "disk", nil
	m.Rootfs = &api.Rootfs{URL: "file:///disk.img", Checksum: d.put([]byte("a disk"))}
	data := d.put([]byte("more data"))
	m.Volumes = []api.VolumeMount{{Blob: data, Target: "/data"}}
	if _, err := d.InstallPlugin(ctx, m); err != nil {
		t.Fatal(err)
	}
	vm := d.create("a", "disk")
	vm = d.must("a", api.WaitRunning)
	if vm.Kernel != "generic" {
		t.Errorf("it boots %s, want the default kernel while there is no other", vm.Kernel)
	}
	want := []string{"volant-root ro " + w.blob(m.Rootfs.Checksum), "volant-upper rw data/vms/" + vm.ID + "/upper.img", "volant-vol-0 ro " + w.blob(data)}
	if got := w.diskList(vm.ID); !slices.Equal(got[1:], want) {
		t.Errorf("disks %q\nwant  %q", got[1:], want)
	}
	if got := w.guest(vm.ID).cfg.Mounts; !slices.Equal(got, []wire.MountConfig{{Type: wire.MountDisk, Target: "/data", ReadOnly: true}}) {
		t.Errorf("mounts %+v", got)
	}

	if _, err := d.ImportKernel(ctx, api.KernelImport{Name: "volant", Version: "6.12", Digest: d.put(kernelImage("volant"))}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ plugin, kernel, want string }{
		"rooted": {"disk", "", "volant"}, "told": {"disk", "generic", "generic"}, "appliance": {"serve", "", "generic"},
	} {
		d.createFrom(api.VMCreate{Name: name, Plugin: c.plugin, Kernel: c.kernel})
		if vm := d.must(name, api.WaitRunning); vm.Kernel != c.want {
			t.Errorf("%s boots %s, want %s", name, vm.Kernel, c.want)
		}
	}
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "b", Plugin: "disk", Volumes: []api.VolumeMount{{Blob: "sha256:" + strings.Repeat("0", 64), Target: "/x"}}}); api.CodeOf(err) != api.CodeNotFound || !strings.HasPrefix(err.Error(), "volumes[1].blob: ") {
		t.Errorf("CreateVM with a blob that is not there = %v", err)
	}
	w.checkWorld(d.settle())
}

// A disk is read once in the daemon's life and again when it has changed; a
// damaged one is not booted.
func TestRootIsVerified(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	img := d.pullOf("nginx")
	path := d.blobPath(img.Disk)
	d.createFrom(api.VMCreate{Name: "a", Image: "nginx"})
	d.must("a", api.WaitRunning)
	if ok, err := d.disks.known(d.blobRef(img.Disk)); !ok || err != nil {
		t.Errorf("after a boot the disk is verified: %v, %v; want true", ok, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Of the same size, and with the time that it had: its ctime tells.
	if err := os.WriteFile(path, bytes.ToUpper(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	d.createFrom(api.VMCreate{Name: "b", Image: "nginx"})
	if vm, err := d.wait("b", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "damaged") {
		t.Errorf("boot from a damaged disk: %s, %q, %v", vm.Status, vm.Reason, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartVM(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if vm, err := d.wait("b", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || !strings.Contains(vm.Reason, "missing") {
		t.Errorf("boot from a missing disk: %s, %q, %v", vm.Status, vm.Reason, err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartVM(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	d.must("b", api.WaitRunning)
	w.checkWorld(d.settle())
}

// An image as an initramfs: no disk at all, and an agent that no file of the
// image takes the place of.
func TestInitramfsImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.pullOf("nginx")
	_, err := d.CreateVM(ctx, api.VMCreate{Name: "a", Image: "nginx", Form: api.FormInitramfs})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNotFound || !strings.Contains(e.Hint, "--form initramfs") {
		t.Errorf("CreateVM of a form that is not here = %v", err)
	}
	img, err := d.PullImage(ctx, api.ImagePull{Reference: "nginx", Form: api.FormInitramfs}, nil)
	if err != nil {
		t.Fatal(err)
	}
	vm := d.createFrom(api.VMCreate{Name: "a", Image: "nginx", Form: api.FormInitramfs})
	d.must("a", api.WaitRunning)
	spec := w.hv.Machine(vm.ID).Spec()
	if !slices.Contains(spec.Cmdline, "rdinit=/.volant/init") || len(w.diskList(vm.ID)) != 1 {
		t.Errorf("command line %q, disks %v", spec.Cmdline, spec.Disks)
	}
	content, err := os.ReadFile(spec.Initramfs)
	if err != nil || !bytes.Contains(content, []byte(".volant/init")) || !bytes.Contains(content, []byte(img.ID)) || !strings.Contains(string(content), shim.Binary()) {
		t.Errorf("its initramfs lacks shim or image (%v)", err)
	}
	if w.guest(vm.ID).cfg.Root != nil {
		t.Error("the guest was told of a root")
	}
	if _, err := d.CreateVM(ctx, api.VMCreate{Image: "nginx", Form: api.FormInitramfs, Root: &api.Root{}}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("CreateVM of an initramfs with a root = %v, want invalid", err)
	}
	w.checkWorld(d.settle())
}

func TestCreateFromImageRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	always := d.manifest("serve")
	always.Name, always.Restart = "always", &api.Restart{Policy: "always"}
	d.equip(always)
	d.pullOf("nginx")
	w.imgs.set(func(f *fakeImages) { f.alter = func(r *ImageResult) { r.Platform = "linux/s390x" } })
	d.pullOf("big-iron")
	w.imgs.set(func(f *fakeImages) { f.alter, f.config = nil, api.ImageConfig{} })
	d.pullOf("empty")
	w.imgs.set(func(f *fakeImages) { f.config = api.ImageConfig{Entrypoint: []string{"/serve"}, Env: []string{"=x"}} })
	d.pullOf("odd")
	many := make([]api.VolumeMount, 17)
	for i := range many {
		many[i] = api.VolumeMount{Target: fmt.Sprintf("/v%d", i)}
	}
	d.createFrom(api.VMCreate{Name: "has", Image: "nginx", Ports: []api.Port{{Port: 80, HostPort: 8080}}, Stopped: true})
	w.net.busy[9090] = true
	for name, c := range map[string]struct {
		req  api.VMCreate
		code api.Code
		text string
	}{
		"unknown":            {api.VMCreate{Image: "redis"}, api.CodeNotFound, "volar images pull redis"},
		"image and plugin":   {api.VMCreate{Image: "nginx", Plugin: "serve"}, api.CodeInvalid, "image: "},
		"other machine":      {api.VMCreate{Image: "big-iron"}, api.CodeUnsupported, "linux/s390x"},
		"nothing to run":     {api.VMCreate{Image: "empty"}, api.CodeInvalid, "command: "},
		"odd configuration":  {api.VMCreate{Image: "odd"}, api.CodeInvalid, "config.Env"},
		"too many disks":     {api.VMCreate{Image: "nginx", Volumes: many}, api.CodeUnsupported, "at most 19"},
		"dhcp":               {api.VMCreate{Image: "nginx", NetworkMode: api.NetworkDHCP}, api.CodeUnsupported, "network.mode"},
		"port taken":         {api.VMCreate{Image: "nginx", Ports: []api.Port{{Port: 80, HostPort: 8080, HostIP: "10.0.0.1"}}}, api.CodeExists, "published by VM has"},
		"port of the host":   {api.VMCreate{Image: "nginx", Ports: []api.Port{{Port: 80, HostPort: 9090}}}, api.CodeConflict, "9090"},
		"ports without NIC":  {api.VMCreate{Image: "nginx", NetworkMode: api.NetworkVsock, Ports: []api.Port{{Port: 80}}}, api.CodeInvalid, "ports: "},
		"removed, restarted": {api.VMCreate{Plugin: "always", AutoRemove: true}, api.CodeInvalid, "auto_remove"},
		"bad target":         {api.VMCreate{Image: "nginx", Tmpfs: []api.Tmpfs{{Target: "/proc/x"}}}, api.CodeInvalid, "tmpfs[0].target"},
	} {
		_, err := d.CreateVM(ctx, c.req)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message+" "+e.Hint, c.text) {
			t.Errorf("%s: CreateVM = %+v, want %s with %q", name, err, c.code, c.text)
		}
	}
	if _, total, err := d.VMs(ctx, api.VMFilter{}); err != nil || total != 1 {
		t.Errorf("%d VMs after refused requests, %v; want 1", total, err)
	}
	// An automatic port is one that nobody has.
	w.net.busy[api.FirstHostPort] = true
	for i := range 3 {
		vm := d.createFrom(api.VMCreate{Image: "nginx", Ports: []api.Port{{Port: 80}}, Stopped: true})
		if got := vm.Ports[0].HostPort; got != api.FirstHostPort+1+i {
			t.Errorf("automatic port %d, want %d", got, api.FirstHostPort+1+i)
		}
	}
}

// A hypervisor that takes fewer disks than were promised at the creation.
func TestTooManyDisksAtStart(t *testing.T) {
	w := newWorld(t)
	w.hv.SetCapabilities(hv.Capabilities{Driver: hvtest.FakeName, Channel: hv.ChannelSerial, MaxVCPUs: 4, MaxDisks: 2, MaxNICs: 1})
	d := w.start(options{notRunning: true}) // it has not looked for a hypervisor yet
	d.equip()
	m := d.manifest("serve")
	m.Name, m.Initramfs = "disk", nil
	m.Rootfs = &api.Rootfs{URL: "x", Checksum: d.put([]byte("a disk"))}
	if _, err := d.InstallPlugin(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	d.create("a", "disk")
	d.stop()
	d = w.start(options{})
	if vm, err := d.wait("a", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "at most 2") {
		t.Errorf("started with too many disks: %s, %q, %v", vm.Status, vm.Reason, err)
	}
	w.checkWorld(d.settle())
}

func TestDiskFullAtStart(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.pullOf("nginx")
	d.stop()
	d = w.start(options{config: func(c *Config) { c.MinFree = 1 << 62 }})
	d.createFrom(api.VMCreate{Name: "a", Image: "nginx"})
	if vm, err := d.wait("a", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || !strings.Contains(vm.Reason, "stay free") {
		t.Errorf("start on a full disk: %s, %q, %v", vm.Status, vm.Reason, err)
	}
	if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data"}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("CreateVolume on a full disk = %v, want exhausted", err)
	}
	if vs, err := d.Volumes(ctx); err != nil || len(vs) != 0 {
		t.Errorf("left of it: %+v, %v", vs, err)
	}
	w.checkWorld(d.settle())
	d.checkVolumes(t)
}

func TestAutoRemove(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("exit", "3"), d.manifest("nostart"))
	// It goes once it has ended, however that was, and who waits learns how.
	for name, c := range map[string]struct {
		plugin string
		status api.VMState
		code   int
	}{
		"fails":   {"exit", api.VMCrashed, 3},
		"nothing": {"nostart", api.VMFailed, 0},
	} {
		vm := d.createFrom(api.VMCreate{Name: name, Plugin: c.plugin, AutoRemove: true})
		end, err := d.wait(vm.ID, api.WaitStopped)
		if err != nil || end.Status != c.status || c.code != 0 && (end.Exit == nil || end.Exit.Code != c.code) {
			t.Errorf("%s: ended as %s, %+v, %v; want %s", name, end.Status, end.Exit, err, c.status)
		}
		d.must(vm.ID, api.WaitDeleted)
		if again, err := d.wait(name, api.WaitStopped); err != nil || again.ID != vm.ID || again.Status != c.status {
			t.Errorf("%s: asked later: %s, %v", name, again.Status, err)
		}
	}
	vm := d.createFrom(api.VMCreate{Name: "stopped", Plugin: "serve", AutoRemove: true})
	d.must("stopped", api.WaitRunning)
	if _, err := d.RestartVM(ctx, "stopped", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.settle() // a restart is no end
	if now, err := d.VM(ctx, "stopped"); err != nil || now.Incarnation != 2 {
		t.Errorf("after a restart: %+v, %v", now, err)
	}
	if _, err := d.StopVM(ctx, "stopped", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must(vm.ID, api.WaitDeleted)
	// One that was never started waits for that.
	d.createFrom(api.VMCreate{Name: "later", Plugin: "serve", AutoRemove: true, Stopped: true})
	if _, err := d.StopVM(ctx, "later", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	vms := d.settle()
	if len(vms) != 1 || vms[0].Name != "later" {
		t.Errorf("VMs %+v, want the one that was not started alone", vms)
	}
	w.checkWorld(vms)
}
