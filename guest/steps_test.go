package guest

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

func bootConfig(w wire.WorkloadConfig) wire.BootConfig {
	return wire.BootConfig{
		Protocol: wire.Protocol, Version: "t", VM: "vm-1", Name: "web", Incarnation: 1, Hostname: "web",
		MachineID: strings.Repeat("ab", 16), Time: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Seed: make([]byte, 32),
		Workload: w,
	}
}

func TestMountAll(t *testing.T) {
	mounts := []string{
		"mount sysfs /sys", "mount devtmpfs /dev", "mount devpts /dev/pts", "mount tmpfs /dev/shm",
		"mount tmpfs /run", "mount tmpfs /tmp", "mount cgroup2 /sys/fs/cgroup",
	}
	tests := []struct {
		name     string
		fail     string
		err      error
		mounts   int // how many are tried
		survived bool
		want     error
	}{
		{"all", "", nil, 7, false, nil},
		{"mounted before", "mount devtmpfs /dev", unix.EBUSY, 7, false, nil},
		{"no sysfs", "mount sysfs /sys", unix.ENODEV, 1, false, unix.ENODEV},
		{"no cgroup2", "mount cgroup2 /sys/fs/cgroup", unix.ENODEV, 7, true, unix.ENODEV},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.fail[tt.fail] = tt.err
			err := mountAll(sys)
			if !errors.Is(err, tt.want) || errors.Is(err, errSurvived) != tt.survived {
				t.Errorf("mountAll() = %v, want %v, survived %v", err, tt.want, tt.survived)
			}
			var got []string
			for _, c := range sys.called() {
				if strings.HasPrefix(c, "mount ") {
					got = append(got, c)
				}
			}
			if !slices.Equal(got, mounts[:tt.mounts]) {
				t.Errorf("mounted %q, want %q", got, mounts[:tt.mounts])
			}
		})
	}
}

func TestLoadModules(t *testing.T) {
	sys := newFakeSys(t)
	if err := loadModules(sys); err != nil || len(sys.called()) != 0 {
		t.Errorf("without a list loadModules() = %v, did %q", err, sys.called())
	}
	sys.put(t, wire.ModulesDir+"/order", "# comment\nvirtio.ko\n\nvirtio_blk.ko\n../../evil.ko\nlate.ko", 0o644)
	sys.fail["module "+wire.ModulesDir+"/virtio.ko"] = unix.EEXIST
	sys.fail["module "+wire.ModulesDir+"/virtio_blk.ko"] = unix.ENOEXEC
	err := loadModules(sys)
	if !errors.Is(err, errSurvived) || !errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "evil") {
		t.Errorf("loadModules() = %v, want ENOEXEC and the odd name, survived", err)
	}
	dir := "module " + wire.ModulesDir
	if want := []string{dir + "/virtio.ko", dir + "/virtio_blk.ko", dir + "/late.ko"}; !slices.Equal(sys.called(), want) {
		t.Errorf("loaded %q, want %q", sys.called(), want)
	}
}

func TestReadConfig(t *testing.T) {
	image, err := wire.EncodeBoot(bootConfig(wire.WorkloadConfig{Args: []string{"x"}}))
	if err != nil {
		t.Fatal(err)
	}
	sys := newFakeSys(t)
	sys.put(t, "/sys/block/vda/serial", "other", 0o444)
	_, err = readConfig(t.Context(), newDisks(sys), 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), `vda="other"`) || !strings.Contains(err.Error(), wire.ConfigSerial) {
		t.Errorf("without the disk readConfig() = %v, want an error that names both serials", err)
	}
	// The disk appears late.
	go func() {
		time.Sleep(30 * time.Millisecond)
		_ = sys.WriteFile("/dev/vdb", image, 0o600)
		_ = sys.WriteFile("/sys/block/vdb/serial", []byte(wire.ConfigSerial), 0o444)
	}()
	cfg, err := readConfig(t.Context(), newDisks(sys), time.Minute)
	if err != nil || cfg.VM != "vm-1" {
		t.Errorf("readConfig() = %+v, %v", cfg, err)
	}
	sys.put(t, "/dev/vdb", "scratch", 0o600)
	if _, err := readConfig(t.Context(), newDisks(sys), time.Minute); !errors.Is(err, wire.ErrNotBootConfig) || !strings.Contains(err.Error(), "/dev/vdb") {
		t.Errorf("readConfig() of something else = %v, want ErrNotBootConfig and the device", err)
	}
}

func TestIdentity(t *testing.T) {
	sys := newFakeSys(t)
	if err := os.MkdirAll(sys.at("/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	// What a link points to, or does not, is none of our business.
	if err := os.Symlink("/nowhere/hosts", filepath.Join(string(sys.rooted), "etc/hosts")); err != nil {
		t.Fatal(err)
	}
	cfg := bootConfig(wire.WorkloadConfig{})
	cfg.Hostname = "web.example"
	cfg.Network = &wire.NetworkConfig{Address: netip.MustParsePrefix("192.0.2.7/24"),
		Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	if err := setIdentity(sys, cfg); err != nil {
		t.Fatal(err)
	}
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n192.0.2.7\tweb.example web\n"
	if got := sys.content(t, "/etc/hosts"); got != want {
		t.Errorf("/etc/hosts = %q, want %q", got, want)
	}
	if got := sys.content(t, "/etc/machine-id"); got != cfg.MachineID+"\n" {
		t.Errorf("/etc/machine-id = %q", got)
	}
	if got := sys.content(t, "/etc/resolv.conf"); got != "nameserver 192.0.2.1\nnameserver 2001:db8::1\n" {
		t.Errorf("resolv.conf = %q", got)
	}
	if !sys.did("hostname web.example") || !sys.did("clock 2030-01-02") {
		t.Errorf("did %q", sys.called())
	}
	sys.fail["hostname web.example"] = unix.EPERM
	if err := setIdentity(sys, cfg); !errors.Is(err, errSurvived) || !errors.Is(err, unix.EPERM) {
		t.Errorf("setIdentity() = %v, want EPERM, survived", err)
	}
}

func TestSetNetwork(t *testing.T) {
	sys := newFakeSys(t)
	if err := setNetwork(sys, nil); err != nil || !slices.Equal(sys.called(), []string{"loopback"}) {
		t.Errorf("without a NIC setNetwork() = %v, did %q", err, sys.called())
	}
	cfg := wire.NetworkConfig{MAC: "02:56:00:00:00:01"}
	if err := setNetwork(sys, &cfg); err != nil || !sys.did("network "+cfg.MAC) {
		t.Errorf("setNetwork() = %v, did %q", err, sys.called())
	}
	sys.fail["network "+cfg.MAC] = unix.ENODEV
	if err := setNetwork(sys, &cfg); !errors.Is(err, unix.ENODEV) || errors.Is(err, errSurvived) {
		t.Errorf("setNetwork() = %v, want ENODEV, fatal", err)
	}
}

func TestUnmountDisks(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/proc/self/mounts", `rootfs / rootfs rw 0 0
proc /proc proc rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /run/lower erofs ro 0 0
/dev/vdc /run/upper ext4 rw 0 0
overlay /run/root overlay rw 0 0
devtmpfs /run/root/dev devtmpfs rw 0 0
devpts /run/root/dev/pts devpts rw 0 0
/dev/vdd /run/root/data ext4 rw 0 0
tmpfs /run/root/data/tmp tmpfs rw 0 0
/dev/vde /run/root/data/my\040disk ext4 rw 0 0
`, 0o444)
	busy := 0
	sys.onUnmount = func(target string) error {
		if busy++; target == "/run/root/data" && busy < 5 {
			return unix.EBUSY // who used it takes time to die
		}
		return nil
	}
	sys.fail["unmount /run/upper"] = unix.EPERM
	if err := unmountDisks(sys); !errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
		t.Errorf("unmountDisks() = %v, want EPERM and not EBUSY", err)
	}
	want := []string{
		"detach /run/root/data/tmp", "detach /run/root/dev/pts", "detach /run/root/dev",
		"unmount /run/root/data/my disk",
		"unmount /run/root/data", "unmount /run/root/data", "unmount /run/root/data", "unmount /run/root/data",
		"unmount /run/root", "unmount /run/upper", "mount  /run/upper", "unmount /run/lower",
	}
	if !slices.Equal(sys.called(), want) {
		t.Errorf("did %q, want %q", sys.called(), want)
	}
}

func TestUnmountDisksThatStayBusy(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/proc/self/mounts", "/dev/vdb /data ext4 rw 0 0\n", 0o444)
	sys.fail["unmount /data"] = unix.EBUSY
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := unmountDisks(sys)
		if took := time.Since(start); !errors.Is(err, unix.EBUSY) || took < busyTimeout || took > 2*busyTimeout {
			t.Errorf("unmountDisks() = %v after %v, want EBUSY after %v", err, took, busyTimeout)
		}
	})
	if calls := sys.called(); calls[len(calls)-1] != "mount  /data" {
		t.Errorf("did %q, want it to be made read-only at last", calls)
	}
}

func TestTimelineIsInOrder(t *testing.T) {
	now := time.Duration(0)
	tl := &timeline{now: func() time.Duration { return now }}
	now = 5
	tl.add("second", 3, nil)
	now = 9
	tl.add("first", 1, errors.New("late"))
	got := tl.snapshot()
	want := []wire.Step{{Name: "first", Start: 1, Took: 8, Error: "late"}, {Name: "second", Start: 3, Took: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("snapshot() = %+v, want %+v", got, want)
	}
}
