package guest

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

// rootConfig is the configuration of a guest with an image.
func rootConfig(upper wire.Upper) wire.BootConfig {
	cfg := bootConfig(wire.WorkloadConfig{Args: []string{"sh"}, Workdir: "/srv"})
	cfg.Root = &wire.RootConfig{Upper: upper}
	return cfg
}

// putDisk makes the fake have a disk.
func (s *fakeSys) putDisk(t *testing.T, name, serial, kind string) {
	t.Helper()
	s.put(t, "/sys/block/"+name+"/serial", serial, 0o444)
	s.put(t, "/dev/"+name, diskImage(kind), 0o600)
}

// withRoot gives the fake the disks of a root.
func (s *fakeSys) withRoot(t *testing.T) {
	t.Helper()
	need.Root(t, "giving a directory away")
	s.putDisk(t, "vdb", wire.RootSerial, fsErofs)
	s.putDisk(t, "vdc", wire.UpperSerial, fsExt4)
	for _, dir := range []string{"/proc", "/sys", lowerDir, rootDir + "/etc"} {
		if err := s.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootMounts(t *testing.T) {
	overlay := Mount{"overlay", rootDir, "overlay", 0,
		"lowerdir=/run/kestrel/lower,upperdir=/run/kestrel/upper/upper,workdir=/run/kestrel/upper/work,redirect_dir=on,metacopy=off,index=off,xino=auto"}
	lower := Mount{"/dev/vdb", lowerDir, "erofs", unix.MS_RDONLY, ""}
	tests := []struct {
		name string
		cfg  wire.RootConfig
		want []Mount
	}{
		{"disk", wire.RootConfig{Upper: wire.UpperDisk}, []Mount{lower, {"/dev/vdc", upperDir, "ext4", 0, "errors=remount-ro"}, overlay}},
		{"memory", wire.RootConfig{Upper: wire.UpperMemory}, []Mount{lower, {"tmpfs", upperDir, "tmpfs", 0, "mode=0755"}, overlay}},
		{"some memory", wire.RootConfig{Upper: wire.UpperMemory, SizeMiB: 64}, []Mount{lower, {"tmpfs", upperDir, "tmpfs", 0, "mode=0755,size=64m"}, overlay}},
		{"read-only", wire.RootConfig{Upper: wire.UpperReadOnly}, []Mount{lower, {"tmpfs", upperDir, "tmpfs", 0, "mode=0755,size=1m"}, overlay}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.withRoot(t)
			if err := errors.Join(os.Chown(sys.at(lowerDir), 3, 4), os.Chmod(sys.at(lowerDir), fs.ModeSticky|0o711)); err != nil {
				t.Fatal(err)
			}
			if err := (&root{sys: sys, disks: newDisks(sys)}).mount(t.Context(), tt.cfg); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(sys.mounts, tt.want) {
				t.Errorf("mounted %+v, want %+v", sys.mounts, tt.want)
			}
			info, err := sys.Stat(upperDir + "/upper")
			if err != nil {
				t.Fatal(err)
			}
			if uid, gid := owner(info); uid != 3 || gid != 4 || info.Mode() != fs.ModeDir|fs.ModeSticky|0o711 {
				t.Errorf("the root directory has mode %v and owner %d:%d, want the image's", info.Mode(), uid, gid)
			}
			// What the VM changed since then stays.
			if err := os.Chmod(sys.at(upperDir+"/upper"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := makeUpper(sys); err != nil {
				t.Fatal(err)
			}
			if info, _ := sys.Stat(upperDir + "/upper"); info.Mode() != fs.ModeDir|0o700 {
				t.Errorf("at the next boot the root directory has mode %v", info.Mode())
			}
		})
	}
}

func TestRootRefuses(t *testing.T) {
	tests := []struct {
		name string
		edit func(*testing.T, *fakeSys)
		want string
	}{
		{"no file system", func(t *testing.T, s *fakeSys) { s.put(t, "/dev/vdb", diskImage(""), 0o600) }, "root disk: /dev/vdb: its superblock"},
		{"upper that is none", func(t *testing.T, s *fakeSys) { s.put(t, "/dev/vdc", diskImage(fsSquashfs), 0o600) },
			"disk of the root's changes: /dev/vdc: is squashfs, which cannot be written to"},
		{"no overlay", func(t *testing.T, s *fakeSys) { s.fail["mount overlay "+rootDir] = unix.ENODEV }, "no such device"},
		{"dev is a link", func(t *testing.T, s *fakeSys) { _ = os.Symlink("/etc", s.at(rootDir+"/dev")) }, "/dev of the image is no directory"},
		{"proc is a file", func(t *testing.T, s *fakeSys) { s.put(t, rootDir+"/proc", "", 0o644) }, "/proc of the image is no directory"},
		{"no way in", func(t *testing.T, s *fakeSys) { s.fail["switch root "+rootDir] = unix.EINVAL }, "invalid argument"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.withRoot(t)
			tt.edit(t, sys)
			r := &root{sys: sys, disks: newDisks(sys)}
			defer r.close()
			err := r.enter(t.Context(), rootConfig(wire.UpperDisk), false)
			if err == nil || errors.Is(err, errSurvived) || !strings.Contains(err.Error(), tt.want) || r.leave != nil {
				t.Errorf("enter() = %v, left behind a way back %v, want %q", err, r.leave != nil, tt.want)
			}
		})
	}
}

// TestRootOfPlan goes on where a plan has mounted the root.
func TestRootOfPlan(t *testing.T) {
	sys := newFakeSys(t)
	sys.withRoot(t)
	cfg := rootConfig(wire.UpperDisk)
	for _, f := range plan.OwnFiles(cfg.Identity()) {
		sys.put(t, f.Staged(), "as the plan has it", f.Perm)
	}
	if err := sys.MkdirAll(upperDir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := &root{sys: sys, disks: newDisks(sys)}
	defer r.close()
	if err := r.enter(t.Context(), cfg, true); err != nil {
		t.Fatal(err)
	}
	if len(sys.mounts) > 0 || !sys.did("switch root "+rootDir) || r.upper == nil || len(r.own) != len(plan.OwnFiles(cfg.Identity())) {
		t.Errorf("it mounted %v, did %q, and has %d files open", sys.mounts, sys.called(), len(r.own))
	}
	sys.rooted = rooted(strings.TrimSuffix(string(sys.rooted), rootDir))
	for _, o := range r.own {
		if got := sys.content(t, o.Staged()); got != "as the plan has it" {
			t.Errorf("%s became %q", o.Path, got)
		}
	}
}

// TestRootFiles has an image whose files are in the way.
func TestRootFiles(t *testing.T) {
	sys := newFakeSys(t)
	sys.withRoot(t)
	sys.fail["mount mqueue /dev/mqueue"] = unix.ENODEV
	sys.put(t, rootDir+"/etc/hosts", "the image's own\n", 0o600)
	if err := os.Symlink("../var/lib/machine-id", sys.at(rootDir+"/etc/machine-id")); err != nil {
		t.Fatal(err)
	}
	if err := sys.MkdirAll(rootDir+"/etc/hostname", 0o755); err != nil {
		t.Fatal(err)
	}
	r := &root{sys: sys, disks: newDisks(sys)}
	defer r.close()
	cfg := rootConfig(wire.UpperReadOnly)
	if err := r.enter(t.Context(), cfg, false); !errors.Is(err, errSurvived) || !errors.Is(err, unix.ENODEV) {
		t.Fatalf("enter() = %v, want ENODEV, survived", err)
	}
	sys.mounts = nil
	err := r.finish(cfg)
	if !errors.Is(err, errSurvived) || !strings.Contains(err.Error(), "/etc/hostname: /etc/hostname of the image is no regular file") {
		t.Errorf("finish() = %v, want a word about /etc/hostname, survived", err)
	}
	var got []string
	for _, m := range sys.mounts {
		what := m.Source
		if strings.HasPrefix(what, "/proc/self/fd/") {
			what, _ = os.Readlink(what)
			what = strings.TrimPrefix(what, strings.TrimSuffix(string(sys.rooted), rootDir))
		}
		got = append(got, strings.TrimSpace(what+" "+m.Target))
	}
	want := []string{"/run/kestrel/own/hosts /etc/hosts", "/run/kestrel/own/machine-id /var/lib/machine-id", "/", procFD(r.upper)}
	if !slices.Equal(got, want) {
		t.Errorf("mounted %q, want %q", got, want)
	}
	for _, m := range sys.mounts[2:] {
		if m.Flags != unix.MS_REMOUNT|unix.MS_RDONLY {
			t.Errorf("%+v, want it to become read-only", m)
		}
	}
	if got := sys.content(t, "/etc/hosts"); got != "the image's own\n" {
		t.Errorf("the image's file became %q", got)
	}
	if !sys.did("symlink /proc/mounts /etc/mtab") {
		t.Error("/etc/mtab was not made")
	}
	for _, path := range []string{"/var/lib/machine-id", "/srv"} {
		if _, err := sys.Stat(path); err != nil {
			t.Errorf("%s was not made: %v", path, err)
		}
	}
	if !sys.did("limits") {
		t.Error("the limits were not raised")
	}
	r2 := &root{sys: sys, upper: r.upper}
	sys.fail["mount  /"] = unix.EBUSY
	if err := r2.finish(cfg); errors.Is(err, errSurvived) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("where the root stays writable finish() = %v, want EBUSY, fatal", err)
	}
}

func TestSysctls(t *testing.T) {
	sys := newFakeSys(t)
	if err := setSysctls(sys); err != nil {
		t.Errorf("without IPv4 setSysctls() = %v", err)
	}
	sys.put(t, "/proc/sys/net/ipv4/ping_group_range", "1 0", 0o644)
	if err := setSysctls(sys); err != nil || sys.content(t, "/proc/sys/net/ipv4/ping_group_range") != "0 2147483647" {
		t.Errorf("setSysctls() = %v", err)
	}
}

func TestVolumes(t *testing.T) {
	disks := wire.MountConfig{Type: wire.MountDisk, Target: "/data"}
	tests := []struct {
		name string
		m    wire.MountConfig
		want []Mount
		err  string
	}{
		{"disk", disks, []Mount{{"/dev/vdd", "/data", "ext4", 0, "errors=remount-ro"}}, ""},
		{"read-only", wire.MountConfig{Type: wire.MountDisk, Target: "/data/", ReadOnly: true}, []Mount{{"/dev/vdd", "/data", "ext4", unix.MS_RDONLY, ""}}, ""},
		{"read-only, filled", wire.MountConfig{Type: wire.MountDisk, Target: "/data", ReadOnly: true, Copy: true},
			[]Mount{{"/dev/vdd", "/data", "ext4", 0, "errors=remount-ro"}, {"", "/data", "", unix.MS_REMOUNT | unix.MS_RDONLY, ""}}, ""},
		{"by a link", wire.MountConfig{Type: wire.MountDisk, Target: "/link/x"}, []Mount{{"/dev/vdd", "/deep/er/x", "ext4", 0, "errors=remount-ro"}}, ""},
		{"tmpfs", wire.MountConfig{Type: wire.MountTmpfs, Target: "/dev/shm"},
			[]Mount{{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777"}}, ""},
		{"read-only tmpfs", wire.MountConfig{Type: wire.MountTmpfs, Target: "/t", SizeMiB: 5, Mode: 0o700, ReadOnly: true},
			[]Mount{{"tmpfs", "/t", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY, "mode=0700,size=5m"}}, ""},
		{"hostile", wire.MountConfig{Type: wire.MountDisk, Target: "/hostile"}, nil, "disk at /hostile: /hostile leads to /proc in this image"},
		{"hostile tmpfs", wire.MountConfig{Type: wire.MountTmpfs, Target: "/hostile/sys"}, nil, "tmpfs at /hostile/sys: /hostile/sys leads to /proc/sys"},
		{"a file", wire.MountConfig{Type: wire.MountDisk, Target: "/file"}, nil, "something else than a directory"},
		{"below a file", wire.MountConfig{Type: wire.MountDisk, Target: "/file/x"}, nil, "not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.putDisk(t, "vdd", wire.VolumeSerial(0), fsExt4)
			sys.put(t, "/file", "", 0o644)
			for link, target := range map[string]string{"/link": "/deep/er", "/hostile": "../../proc"} {
				if err := os.Symlink(target, sys.at(link)); err != nil {
					t.Fatal(err)
				}
			}
			err := volumes{sys: sys, disks: newDisks(sys), copying: func() {}}.mount(t.Context(), []wire.MountConfig{tt.m})
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("mount() = %v, want %q", err, tt.err)
			}
			if !slices.Equal(sys.mounts, tt.want) {
				t.Errorf("mounted %+v, want %+v", sys.mounts, tt.want)
			}
		})
	}
}

// runRoot runs a guest with an image in this process.
func runRoot(t *testing.T, cfg wire.BootConfig, edit func(*fakeSys)) *guestRun {
	t.Helper()
	return runGuestConfig(t, cfg, func(sys *fakeSys) {
		sys.withRoot(t)
		sys.rooted = rooted(sys.at(rootDir)) // the image
		sys.linkProgram(t, "/bin/sh")
		sys.rooted = rooted(strings.TrimSuffix(string(sys.rooted), rootDir))
		if edit != nil {
			edit(sys)
		}
	})
}

func TestRunWithRoot(t *testing.T) {
	cfg := rootConfig(wire.UpperDisk)
	cfg.Workload.Args = []string{"sh", "-c", "exit 4"}
	g := runRoot(t, cfg, nil)
	if st := g.await(t, wire.WorkloadExited); st.Exit == nil || st.Exit.Code != 4 {
		t.Errorf("status = %+v", st)
	} else if n := len(st.Timeline); n < 9 || st.Timeline[7].Name != "root" || st.Timeline[8].Name != "files" {
		t.Errorf("timeline = %+v", st.Timeline)
	}
	g.over(t)
	calls := strings.Join(g.sys.called(), "\n")
	for _, want := range []string{
		"mount overlay " + rootDir, "mount  " + rootDir + "/dev\nswitch root " + rootDir, "limits",
		"kill all\nsync\nleave root for " + rootDir + "\nunmount /data\npower off",
	} {
		if !strings.Contains(calls, want) {
			t.Errorf("the guest did not %q:\n%s", want, calls)
		}
	}
	if _, err := g.sys.Stat("/etc/hosts"); err == nil {
		t.Error("the initramfs, which is about to go, was given an /etc/hosts")
	}
}

// TestRunStopsWhileCopying has a volume that takes for ever to fill, and a host
// that asks for the end meanwhile.
func TestRunStopsWhileCopying(t *testing.T) {
	cfg := rootConfig(wire.UpperMemory)
	cfg.Mounts = []wire.MountConfig{{Type: wire.MountDisk, Target: "/data", Copy: true}}
	g := runRoot(t, cfg, func(sys *fakeSys) {
		sys.putDisk(t, "vdd", wire.VolumeSerial(0), fsExt4)
		sys.put(t, rootDir+"/data/first", "", 0o644)
		endless, err := os.OpenFile(sys.at(rootDir+"/data/second"), os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(endless.Truncate(1<<40), endless.Close()); err != nil { // a hole
			t.Fatal(err)
		}
		sys.onMount = func(m Mount) { // covers the directory
			if m.Target == "/data" {
				if err := errors.Join(sys.Rename("/data", "/covered"), os.Mkdir(sys.at("/data"), 0o755)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var hello wire.Hello
	g.get(t, wire.PathHello, &hello) // answers in the middle of it
	time.Sleep(50 * time.Millisecond)
	resp, err := g.client.Post("http://agent"+wire.PathShutdown, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
		t.Errorf("POST shutdown = %d %s", resp.StatusCode, b)
	}
	resp.Body.Close()
	g.over(t)
	if got := g.console.String(); !strings.Contains(got, "volumes: stopped before the workload was started") {
		t.Errorf("console = %q", got)
	}
	if !g.sys.did("power off") {
		t.Error("the machine is still on")
	}
}
