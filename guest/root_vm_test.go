package guest_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// imageTree makes the root of an image from a static busybox: what images have,
// and what they should not.
func imageTree(t *testing.T) string {
	t.Helper()
	need.Root(t, "to make files of other users")
	busybox, err := os.ReadFile(need.Tool(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	workload, err := os.ReadFile(filepath.Join(testImage.dir, "workload"))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(name string, mode uint32, uid int, data string) {
		t.Helper()
		path := filepath.Join(root, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		if data == "/" {
			must(os.MkdirAll(path, 0o755))
		} else {
			must(os.WriteFile(path, []byte(data), 0o600))
		}
		must(os.Lchown(path, uid, uid))
		must(unix.Chmod(path, mode))
	}
	must(os.Chmod(root, 0o751)) // an overlay must show it
	add("bin/busybox", 0o755, 0, string(busybox))
	for _, applet := range strings.Fields(command(t, "busybox", "--list")) {
		if applet != "busybox" {
			must(os.Symlink("busybox", filepath.Join(root, "bin", applet)))
		}
	}
	add("usr/bin/workload", 0o4755, 0, string(workload))
	add("tmp", 0o1777, 0, "/")
	add("run/left.pid", 0o644, 0, "1")
	add("etc/passwd", 0o644, 0, "root:x:0:0:root:/root:/bin/sh\npostgres:x:70:71::/var/lib/postgresql:/bin/sh\n")
	add("etc/group", 0o644, 0, "root:x:0:\npostgres:x:71:\ntape:x:26:other,postgres\nssl:x:101:postgres\n")
	add("etc/hosts", 0o644, 0, "the image's own\n")
	must(os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf")))
	add("var/lib/postgresql/data", 0o700, 70, "/")
	add("var/lib/postgresql/data/PG_VERSION", 0o640, 70, "17\n")
	add("var/lib/postgresql/data/base/1/filenode", 0o600, 70, strings.Repeat("x", 100_000))
	add("var/lib/postgresql/data/sticky", 0o3775, 70, "/")
	must(os.Symlink("/etc/hosts", filepath.Join(root, "var/lib/postgresql/data/link")))
	must(os.Lchown(filepath.Join(root, "var/lib/postgresql/data/link"), 70, 26))
	must(unix.Mknod(filepath.Join(root, "var/lib/postgresql/data/null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))))
	must(unix.Chmod(filepath.Join(root, "var/lib/postgresql/data/null"), 0o666))
	must(os.Chtimes(filepath.Join(root, "var/lib/postgresql/data/PG_VERSION"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	must(os.Symlink("../../proc", filepath.Join(root, "hostile")))
	must(os.Symlink("/mnt/deep/er", filepath.Join(root, "dangling")))
	add("etc/interpreted", 0o755, 0, "#!/no/such/interpreter\n")
	add("seed/file", 0o644, 5, "seed\n")
	add("etc/plain", 0o644, 0, "no program\n")
	return root
}

func erofs(t *testing.T, tree string) disk {
	path := filepath.Join(t.TempDir(), "root.erofs")
	command(t, "mkfs.erofs", path, tree)
	return disk{wire.RootSerial, path, true}
}

func squashfs(t *testing.T, tree string) disk {
	path := filepath.Join(t.TempDir(), "root.squashfs")
	command(t, "mksquashfs", tree, path, "-noappend", "-quiet", "-no-progress", "-processors", "1")
	return disk{wire.RootSerial, path, true}
}

// ext4 makes a file system, of a tree if that is not "".
func ext4(t *testing.T, serial, tree string, sizeMiB int) disk {
	path := filepath.Join(t.TempDir(), serial+".ext4")
	args := []string{"-q", "-t", "ext4", path, fmt.Sprintf("%dM", sizeMiB)}
	if tree != "" {
		args = append([]string{"-d", tree}, args...)
	}
	command(t, "mke2fs", args...)
	return disk{serial, path, false}
}

// clean checks that the machine left an ext4 disk unmounted.
func clean(t *testing.T, d disk) {
	t.Helper()
	out := command(t, "dumpe2fs", "-h", d.path)
	if !strings.Contains(out, "Filesystem state:         clean") || strings.Contains(out, "needs_recovery") {
		t.Errorf("%s was not unmounted:\n%s", d.serial, out)
	}
	command(t, "e2fsck", "-fn", d.path)
}

// stdout waits for the workload's end and returns what it said.
func (m *machine) stdout() string {
	m.t.Helper()
	st := m.await("over", func(st wire.Status) bool {
		return st.Workload == wire.WorkloadExited || st.Workload == wire.WorkloadFailed
	})
	if st.Workload == wire.WorkloadFailed {
		m.t.Fatalf("the guest failed: %s", st.Error)
	}
	return m.said(wire.Stdout)
}

func (m *machine) said(stream wire.LogStream) string {
	m.t.Helper()
	var b strings.Builder
	for _, e := range m.logs() {
		if e.Stream == stream {
			b.WriteString(e.Data + "\n")
		}
	}
	return b.String()
}

// off dismisses the guest and waits for its end.
func (m *machine) off() {
	m.t.Helper()
	if code, body := m.request("POST", wire.PathShutdown, ""); code != http.StatusAccepted {
		m.t.Errorf("POST shutdown = %d %s", code, body)
	}
	m.awaitOff()
}

// wants checks that the text has each of the lines.
func wants(t *testing.T, text string, lines ...string) {
	t.Helper()
	have := strings.Split(text, "\n")
	for _, line := range lines {
		if !slices.Contains(have, line) {
			t.Errorf("it did not say %q", line)
		}
	}
	if t.Failed() {
		t.Logf("it said:\n%s", text)
	}
}

func rootConfig(upper wire.Upper, script string) wire.BootConfig {
	cfg := sampleConfig(wire.WorkloadConfig{Args: []string{"sh", "-c", script}})
	cfg.Root = &wire.RootConfig{Upper: upper}
	return cfg
}

// TestVMRoot boots an image with everything twice, on the same disks.
func TestVMRoot(t *testing.T) {
	buildTestImage(t)
	root, upper := erofs(t, imageTree(t)), ext4(t, wire.UpperSerial, "", 64)
	data, other := ext4(t, wire.VolumeSerial(0), "", 32), ext4(t, wire.VolumeSerial(2), "", 16)
	blob := squashfs(t, imageTree(t))
	blob.serial = wire.VolumeSerial(3)
	disks := []disk{root, upper, data, other, blob}
	// A power cut while this volume was filled left a mark and part of a file.
	command(t, "debugfs", "-w", "-R", "ea_set / trusted.volant.filling 1", other.path)
	command(t, "debugfs", "-w", "-R", "mkdir torn", other.path)
	mounts := []wire.MountConfig{
		{Type: wire.MountDisk, Target: "/var/lib/postgresql/data", Copy: true},
		{Type: wire.MountTmpfs, Target: "/dangling/below/", SizeMiB: 3, Mode: 0o750},
		{Type: wire.MountDisk, Target: "/seed", Copy: true, ReadOnly: true},
		{Type: wire.MountDisk, Target: "/blob"},
	}
	network := &wire.NetworkConfig{
		MAC: "02:56:00:00:00:02", Address: netip.MustParsePrefix("192.168.127.7/24"), Gateway: netip.MustParseAddr("192.168.127.1"),
		Nameservers: []netip.Addr{netip.MustParseAddr("192.168.127.1")},
	}

	cfg := rootConfig(wire.UpperDisk, `
		echo "id=$(id -u) $(id -g) $(id -G)"; echo "pwd=$(pwd) home=$HOME nofile=$(ulimit -n)"
		workload euid
		stat -c 'mode %a %u:%g %n' / /tmp /proc /sys /dev /run /dev/shm /dangling/below /srv/made/on/demand
		echo "resolv=$(readlink -f /etc/resolv.conf) $(cat /etc/resolv.conf)"; cat /etc/hosts /etc/hostname /etc/machine-id
		cd /var/lib/postgresql/data && stat -c 'copy %A %u:%g %n' . PG_VERSION base/1 base/1/filenode sticky null link
		wc -c PG_VERSION base/1/filenode
		stat -c 'time %Y' PG_VERSION; ls -l null; readlink link; cmp base/1/filenode /blob/var/lib/postgresql/data/base/1/filenode && echo same
		ls -d lost+found; touch mine /tmp/mine && echo wrote
		ls /seed; touch /seed/x || echo refused; echo "left $(cat /run/left.pid)"
		echo as a user > /dev/stderr; head -c 3 /dev/zero | wc -c
		cat /proc/1/comm /proc/self/cgroup; readlink /proc/1/exe; grep -c . /proc/mounts; grep -E ' (/|/dev/mqueue|/mnt/deep/er/below|/blob) ' /proc/mounts
		cat /proc/sys/net/ipv4/ip_unprivileged_port_start; [ -e /initramfs ] || [ -e /init ] || echo no initramfs
		readlink /etc/mtab; grep Shmem: /proc/meminfo`)
	cfg.Workload.User, cfg.Workload.Workdir = "postgres", "/srv/made/on/demand"
	cfg.Mounts, cfg.Network = mounts, network
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), disks...)
	m.dial()
	out := m.stdout()
	wants(t, out,
		"id=70 71 71 26 101", "pwd=/srv/made/on/demand home=/var/lib/postgresql nofile=1048576", "euid=0",
		"mode 751 0:0 /", "mode 1777 0:0 /tmp", "mode 555 0:0 /proc", "mode 755 0:0 /dev", "mode 1777 0:0 /dev/shm", "mode 750 0:0 /dangling/below",
		"mode 755 0:0 /srv/made/on/demand",
		"resolv=/run/systemd/resolve/stub-resolv.conf nameserver 192.168.127.1", "192.168.127.7\tweb.example web", "web.example", cfg.MachineID,
		"copy drwx------ 70:70 .", "copy -rw-r----- 70:70 PG_VERSION", "copy drwxr-xr-x 0:0 base/1", "copy -rw------- 70:70 base/1/filenode",
		"copy drwxrwsr-t 70:70 sticky", "copy crw-rw-rw- 0:0 null", "copy lrwxrwxrwx 70:26 link", "        3 PG_VERSION", "   100000 base/1/filenode",
		"time 1000000000", "/etc/hosts", "same", "lost+found", "wrote", "refused", "left 1", "3", "sh", "/bin/busybox", "0::/workload/1", "no initramfs", "0", "/proc/mounts",
	)
	// Of the initramfs nothing is left but the binary that runs.
	var shmemKiB int64
	if i := strings.Index(out, "Shmem:"); i >= 0 {
		fmt.Sscan(out[i+len("Shmem:"):], &shmemKiB)
	}
	if info, err := os.Stat(filepath.Join(testImage.dir, "init")); err != nil || shmemKiB == 0 || shmemKiB > info.Size()>>10+2048 {
		t.Errorf("%d KiB are in memory file systems, of which the binary is %d KiB (%v)", shmemKiB, info.Size()>>10, err)
	}
	if got := m.said(wire.Stderr); !strings.Contains(got, "as a user") {
		t.Errorf("a user's words on /dev/stderr are lost: %q", got)
	}
	if strings.Contains(out, "torn") || !strings.Contains(out, "\nfile\nlost+found\nrefused\n") {
		t.Errorf("the volume whose filling was cut short was not filled anew, or is not read-only:\n%s", out)
	}
	for _, want := range []string{"overlay / overlay rw,", "mqueue /dev/mqueue mqueue rw,nosuid,nodev,noexec", "tmpfs /mnt/deep/er/below tmpfs rw,nosuid,nodev,noexec,relatime,size=3072k,mode=750", "/blob squashfs ro,"} {
		if !strings.Contains(out, want) {
			t.Errorf("the mounts lack %q:\n%s", want, out)
		}
	}
	m.off()
	clean(t, upper)
	clean(t, data)
	clean(t, other)

	cfg = rootConfig(wire.UpperDisk, `
		cd /var/lib/postgresql/data; ls -l mine /tmp/mine | wc -l; rm PG_VERSION
		echo "first $(cat /sys/fs/cgroup/cgroup.subtree_control)"; mkdir /sys/fs/cgroup/mine && echo made
		me=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir $me/leaf && echo $$ > $me/leaf/cgroup.procs &&
			echo +memory +pids > $me/cgroup.subtree_control && echo delegated
		cat /proc/self/oom_score_adj; grep Cap /proc/self/status; dmesg | grep -i 'ext4.*recover'
		echo up > /tmp/health; trap 'echo stopping; exit 5' 37
		sleep 1.5; echo down > /tmp/health; while :; do sleep 0.1; done`)
	cfg.Mounts, cfg.Network, cfg.Incarnation = mounts, network, 4
	cfg.Workload.StopSignal, cfg.Workload.Restart = "SIGRTMIN+3", wire.RestartOnFailure
	cfg.Workload.Health = &wire.Health{
		Exec: []string{"sh", "-c", "echo the probe says $(cat /tmp/health) in $(cat /proc/self/cgroup); exec grep -q up /tmp/health"}, Interval: 300 * time.Millisecond, Retries: 2,
		StartPeriod: time.Minute, // until it is healthy once, on a busy host
	}
	m = bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), disks...)
	m.dial()
	st := m.await("unhealthy", func(st wire.Status) bool { return st.Healthy != nil && !*st.Healthy })
	if !m.hasLog(wire.Agent, "the probe says down in 0::/workload/side") {
		t.Errorf("the probe's words are not in the log:\n%s", m.said(wire.Agent))
	}
	wants(t, m.said(wire.Stdout), "2", "made", "delegated", "CapEff:\t000001ffffffffff")
	if out := m.said(wire.Stdout); !strings.Contains(out, "first ") || !strings.Contains(out, " memory") || strings.Contains(out, "recover") {
		t.Errorf("controllers or recovery:\n%s", out)
	}
	var steps []string
	for _, s := range st.Timeline {
		steps = append(steps, s.Name)
		t.Logf("%-9s at %8.1f ms took %7.1f ms %s", s.Name, float64(s.Start)/1e6, float64(s.Took)/1e6, s.Error)
		if s.Error != "" {
			t.Errorf("step %s: %s", s.Name, s.Error)
		}
	}
	// It was ready, that is, healthy once; when the agent began is up to the host.
	steps = slices.DeleteFunc(steps, func(name string) bool { return name == "agent" })
	if got, want := strings.Join(steps, " "), "kernel mounts modules config identity entropy network root volumes files workload ready"; got != want {
		t.Errorf("timeline = %s, want %s", got, want)
	}
	m.off()
	clean(t, upper)
	clean(t, data)
	if out := command(t, "debugfs", "-R", "ls -p /", data.path); strings.Contains(out, "PG_VERSION") || !strings.Contains(out, "mine") {
		t.Errorf("the volume was filled again, or lost what was written:\n%s", out)
	}
}

// TestVMReadOnlyRoot has an image on squashfs of which nothing changes.
func TestVMReadOnlyRoot(t *testing.T) {
	buildTestImage(t)
	cfg := rootConfig(wire.UpperReadOnly, `
		touch /x /tmp/x /etc/hosts2 || echo refused; mount -o remount,rw /; touch /x || echo refused for good
		cat /etc/hosts | head -n 1; touch /new/volume/x && echo written; pwd; cat /etc/machine-id; workload euid
		df -k / | tail -n 1; mount -t tmpfs x /tmp && touch /tmp/x && echo mounted`)
	cfg.Mounts = []wire.MountConfig{{Type: wire.MountDisk, Target: "/new/volume"}}
	cfg.Workload.Workdir = "/not/in/the/image"
	volume := ext4(t, wire.VolumeSerial(0), "", 16)
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), squashfs(t, imageTree(t)), volume)
	m.dial()
	out := m.stdout()
	wants(t, out, "refused", "refused for good", "127.0.0.1\tlocalhost", "written", "/not/in/the/image", cfg.MachineID, "euid=0", "mounted")
	m.off()
	clean(t, volume)
}

// TestVMRootFails has images that lead out of themselves, and commands that
// are none.
func TestVMRootFails(t *testing.T) {
	buildTestImage(t)
	root := ext4(t, wire.RootSerial, imageTree(t), 64)
	root.readOnly = true
	junk := disk{wire.VolumeSerial(0), filepath.Join(t.TempDir(), "junk"), false}
	if err := os.WriteFile(junk.path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := func(target string) func(*wire.BootConfig) {
		return func(c *wire.BootConfig) { c.Mounts = []wire.MountConfig{{Type: wire.MountDisk, Target: target}} }
	}
	args := func(args ...string) func(*wire.BootConfig) {
		return func(c *wire.BootConfig) { c.Workload.Args = args }
	}
	tests := []struct {
		name string
		edit func(*wire.BootConfig)
		want string
		code int // exit status; 0 for none
	}{
		{"hostile target", volume("/hostile/sub"), "volumes: disk at /hostile/sub: /hostile/sub leads to /proc/sub in this image", 0},
		{"not a file system", volume("/data"), "volumes: disk at /data: /dev/vdc: its superblock is that of neither", 0},
		{"no interpreter", args("/etc/interpreted"), "start /etc/interpreted: no such file or directory: its interpreter or dynamic loader is not in the image", 127},
		{"not executable", args("/etc/plain"), "/etc/plain is not executable", 126},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := rootConfig(wire.UpperMemory, "")
			cfg.Root.SizeMiB = 8
			tt.edit(&cfg)
			m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), root, junk)
			m.dial()
			st := m.await("failed", func(st wire.Status) bool { return st.Workload == wire.WorkloadFailed })
			if !strings.Contains(st.Error, tt.want) {
				t.Errorf("error = %q, want %q", st.Error, tt.want)
			}
			if code := exitCode(st); code != tt.code {
				t.Errorf("exit status = %d, want %d", code, tt.code)
			}
			m.off()
		})
	}
}

func exitCode(st wire.Status) int {
	if st.Exit == nil {
		return 0
	}
	return st.Exit.Code
}

// withLibraries puts a program of the host and its libraries into a tree.
func withLibraries(t *testing.T, tree, program string) {
	t.Helper()
	path := need.Tool(t, program)
	files := []string{path}
	for _, word := range strings.Fields(command(t, "ldd", path)) {
		if filepath.IsAbs(word) {
			files = append(files, word)
		}
	}
	for _, file := range files {
		command(t, "mkdir", "-p", filepath.Join(tree, filepath.Dir(file)))
		command(t, "cp", "-L", file, filepath.Join(tree, file))
	}
}

// TestVMContainers does in the kernel "volant" what container engines do, and
// keeps the changes of the root in memory.
func TestVMContainers(t *testing.T) {
	buildTestImage(t)
	tree := imageTree(t)
	withLibraries(t, tree, "ip")
	withLibraries(t, tree, "nft")
	withLibraries(t, tree, "unshare")
	ip, nft, unshare := need.Tool(t, "ip"), need.Tool(t, "nft"), need.Tool(t, "unshare")
	cfg := rootConfig(wire.UpperMemory, `
		ip=`+ip+` nft=`+nft+` unshare=`+unshare+`
		set -e
		$ip link add br0 type bridge && $ip link add v0 type veth peer name v1 && $ip link set v0 master br0 up && echo bridged
		$nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post oifname "br0" masquerade' && echo masqueraded
		mkdir -p /mnt/m && mount -t tmpfs t /mnt/m && mkdir /mnt/m/u /mnt/m/w /mnt/m/r
		mount -t overlay o -o lowerdir=/bin:/etc,upperdir=/mnt/m/u,workdir=/mnt/m/w /mnt/m/r && touch /mnt/m/r/new && ls /mnt/m/u
		$unshare -Urmpfn --mount-proc sh -c 'echo "in a container: $(id -u) pid $$"; ip=`+ip+`; $ip link add d0 type dummy && mount -t tmpfs t /mnt && mount -t overlay o -o lowerdir=/etc,upperdir=/mnt,workdir=/mnt /tmp 2>/dev/null; ls -d /proc/1'
		mkdir /mnt/m/c && $unshare -m sh -c 'mount --bind / /mnt/m/c && cd /mnt/m/c && pivot_root . tmp && umount -l /tmp && echo pivoted'
		mkdir /sys/fs/cgroup/c && echo 10 > /sys/fs/cgroup/c/pids.max && cat /sys/fs/cgroup/c/pids.max
		mount -t proc p /mnt && echo "masks nothing"
		dd if=/dev/zero of=/big bs=1M count=40 || echo bounded`)
	cfg.Root.SizeMiB = 24
	m := bootDisks(t, "VOLANT_TEST_KERNEL_VOLANT", encode(t, cfg), erofs(t, tree))
	m.dial()
	out := m.stdout()
	wants(t, out, "bridged", "masqueraded", "new", "in a container: 0 pid 1", "/proc/1", "pivoted", "10", "masks nothing", "bounded")
	if t.Failed() {
		t.Logf("and on stderr:\n%s", m.said(wire.Stderr))
	}
	m.off()
}
