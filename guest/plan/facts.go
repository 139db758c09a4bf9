package plan

import (
	"fmt"
	"io/fs"
	"net/netip"
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

// Where control groups are, and the workload's.
const (
	CgroupRoot     = "/sys/fs/cgroup"
	WorkloadCgroup = CgroupRoot + "/workload"
)

// DefaultPath is the PATH of a workload that is given none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// What fledge gives an initramfs that has none: /etc/passwd and /etc/group.
const (
	BasePasswd = "root:x:0:0:root:" + baseHome + ":/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	BaseGroup  = "root:x:0:\nnogroup:x:65534:\n"

	baseHome = "/root"
	nobody   = 65534
)

// Mounts lists what is mounted beside /proc, in order.
func Mounts() []Mount {
	const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
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
