package plan

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// Mount is a file system that every guest has.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
	Essential            bool // the guest cannot work without
	Shim                 bool // the shim has mounted it before a plan
}

// Where control groups are, and the workload's: that of all that belongs to it, and,
// where it may make groups of its own, that of its first process.
const (
	CgroupRoot     = "/sys/fs/cgroup"
	WorkloadCgroup = CgroupRoot + "/workload"
	FirstCgroup    = WorkloadCgroup + "/1"
)

// DefaultPath is the PATH of a workload that is given none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Where the parts of a root that is not the initramfs are put together. All of it
// is on a tmpfs of the initramfs, which nobody sees any more once the root was
// changed.
const (
	stageDir = "/run/kestrel"
	LowerDir = stageDir + "/lower" // the read-only disk
	UpperDir = stageDir + "/upper" // the file system of the changes
	RootDir  = stageDir + "/root"  // the overlay of the two
	ownDir   = stageDir + "/own"   // files that are the machine's
)

// MaxOpenFiles is what container engines give, and the kernel's own bound
// (fs.nr_open).
const MaxOpenFiles = 1 << 20

// Controllers are those of control groups that container engines use.
func Controllers() []string { return []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"} }

const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// Mounts lists what is mounted beside /proc, in order.
func Mounts() []Mount {
	return []Mount{
		{"sysfs", "/sys", "sysfs", strict, "", true, true},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", true, true},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", false, false},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false, false},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false, false},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false, false},
		{"cgroup2", CgroupRoot, "cgroup2", strict, "nsdelegate,memory_recursiveprot", false, false},
	}
}

// Queues is what a container has in /dev beyond what every guest has.
func Queues() Mount {
	return Mount{"mqueue", "/dev/mqueue", "mqueue", strict, "", false, false}
}

// OverlayOptions says everything that the kernel's configuration would decide
// otherwise: an upper layer made under one kernel must be read under another.
// Directories of the image can be renamed (redirect_dir), inode numbers are
// those of one file system (xino), and a file whose owner changes is copied
// whole, so that the upper layer is complete without further features.
func OverlayOptions() string {
	return "lowerdir=" + LowerDir + ",upperdir=" + UpperDir + "/upper,workdir=" + UpperDir + "/work" +
		",redirect_dir=on,metacopy=off,index=off,xino=auto"
}

// TmpfsOptions are those of a tmpfs; a size of 0 is the kernel's default.
func TmpfsOptions(mode uint32, sizeMiB int) string {
	s := fmt.Sprintf("mode=%04o", mode)
	if sizeMiB > 0 {
		s += fmt.Sprintf(",size=%dm", sizeMiB)
	}
	return s
}

// Ext4Options are those of an ext4 that is written to: rather than go on with a
// structure that is known to be broken, it becomes read-only.
const Ext4Options = "errors=remount-ro"

// Grafted are the directories of the initramfs that a root shows too.
func Grafted() []string { return []string{"/proc", "/sys", "/dev"} }

// Sysctls are files and values that give an image what it is used to from
// container engines: ports below 1024 and ping are for everybody.
func Sysctls() [][2]string {
	return [][2]string{
		{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	}
}

// DeviceLinks are the symbolic links in /dev, target and path, that programs
// expect and devtmpfs does not make.
func DeviceLinks() [][2]string {
	return [][2]string{
		{"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	}
}

// File is a file of the machine's own.
type File struct {
	Path    string
	Content []byte
	Perm    fs.FileMode
}

// Staged is where the file is written that is mounted over that of an image.
func (f File) Staged() string { return path.Join(ownDir, path.Base(f.Path)) }

// OwnFiles are those that say who the machine is.
func OwnFiles(id wire.Identity) []File {
	files := []File{
		{"/etc/hostname", []byte(id.Hostname + "\n"), 0o644},
		{"/etc/hosts", hostsFile(id), 0o644},
		{"/etc/machine-id", []byte(id.MachineID + "\n"), 0o444},
	}
	if id.Network != nil {
		if b := resolvConf(*id.Network); b != nil {
			files = append(files, File{"/etc/resolv.conf", b, 0o644})
		}
	}
	return files
}

// hostsFile is /etc/hosts: the loopback names, and the host name at the
// guest's own address, or at 127.0.1.1 where it has none.
func hostsFile(id wire.Identity) []byte {
	addr := netip.AddrFrom4([4]byte{127, 0, 1, 1})
	if id.Network != nil {
		addr = id.Network.Address.Addr()
	}
	names := id.Hostname
	if short, _, ok := strings.Cut(id.Hostname, "."); ok {
		names += " " + short
	}
	return fmt.Appendf(nil, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", addr, names)
}

// resolvConf is resolv.conf(5), or nil where no name servers are configured:
// then the image's own stands.
func resolvConf(n wire.NetworkConfig) []byte {
	if len(n.Nameservers) == 0 {
		return nil
	}
	var b strings.Builder
	if len(n.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.Search, " "))
	}
	for _, a := range n.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return []byte(b.String())
}

// Env is the environment of the workload: what it was given, the last value of
// each name, and what any program may expect.
func Env(given []string, hostname, home string, tty bool) []string {
	all := []string{"PATH=" + DefaultPath, "HOSTNAME=" + hostname, "HOME=" + home}
	if tty {
		all = append(all, "TERM=xterm")
	}
	all = append(all, given...)
	var env []string
	seen := make(map[string]bool)
	for _, kv := range slices.Backward(all) {
		name, _, _ := strings.Cut(kv, "=")
		if !seen[name] {
			seen[name] = true
			env = append(env, kv)
		}
	}
	slices.Reverse(env)
	return env
}
