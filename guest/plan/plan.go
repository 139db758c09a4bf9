// Package plan is what a guest's boot is made of, and as much of it as can be
// known ahead, as a list of system calls.
//
// Kestrel takes the steps of a boot (package guest). It is a large Go program
// though, and to start it costs an emulated guest more than all that a workload
// needs of it. Where the initramfs is the root, the host knows nearly everything:
// it compiles the boot configuration to a plan, which the shim (package
// guest/shim) follows before it becomes kestrel. The workload then comes up while
// kestrel starts, which adopts it: its pid, and the pipes of its output.
//
// A plan leaves nothing out that kestrel does before a workload, and does it in
// the same order. It is never needed: whatever fails in it, or is not as it
// expects, ends it, and kestrel takes all steps from the first, finds what was
// done already, and says what is wrong, as without a plan. So there is none, or it
// ends before the workload, where only kestrel can tell: the workload has a
// terminal or open input, further mounts, or is looked up in PATH; the image has
// users or groups of its own; the address is IPv6; the kernel lacks something.
//
// # Format
//
// All numbers are little endian, and offsets count from the plan's first byte.
//
//	 0  "volplan1"
//	 8  u32 size of the plan, u32 number of operations
//	16  u64 FNV-1a, 64 bit, of everything from 40 on
//	24  u32 for the pid of the workload
//	28  u32, u32 for the files that its output and errors are read from
//	36  u32 for the shim's own use
//	40  the operations, 56 bytes each; then what they point to
//
// An operation is one system call: u16 its number on amd64, six u8 the kinds of
// its arguments, i32 an errno that is no error, u32 where to store its result as
// a u32 (0: nowhere), five u64 arguments. Kinds are 0 for the value, 1 for the
// address of what is at that offset, 2 for the u32 at that offset. Some numbers
// that are no system calls stand for what the shim does itself, see op.
package plan

import (
	"encoding/binary"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// MaxSize is what the shim has room for, in bytes.
const MaxSize = 64 << 10

const (
	magic    = "volplan1"
	headSize = 40
	opSize   = 56
	// Where results are stored.
	pidAt = 24
	outAt = 28
	errAt = 32
)

// op is a system call, or one of these.
type op uint16

const (
	// opEqual fails unless two regions (address, address, length) are equal.
	opEqual op = 0xff00 + iota
	// opFlags fails unless the u16 at an address has all bits of the second argument.
	opFlags
	// opHolds asks whether a file (path) has a content (address, length): 1 if so, 0
	// where there is no file, and it fails where there is another.
	opHolds
	// opClock sets the clock to its argument, in ns since 1970, plus the uptime.
	opClock
	// opPoint stores the address that is its second argument at the first.
	opPoint
	// opChoose does so if its third argument is not 0.
	opChoose
)

// Compile returns the plan of a boot that cfg configures, or nil where kestrel is
// to do everything. cfg is valid.
func Compile(cfg wire.BootConfig) []byte {
	w := cfg.Workload
	user, ok := numericUser(w.User)
	if !ok || cfg.Root != nil || len(cfg.Mounts) > 0 || w.TTY || w.Stdin || !path.IsAbs(w.Args[0]) {
		return nil
	}
	if n := cfg.Network; n != nil && !(n.Address.Addr().Is4() && (!n.Gateway.IsValid() || n.Gateway.Is4())) {
		return nil
	}
	p := new(program)
	// Others have to be looked up, which kestrel does.
	based := p.space(4)
	p.call(opHolds, p.text("/etc/passwd"), p.text(BasePasswd), value(uintptr(len(BasePasswd)))).into(based)
	p.call(opHolds, p.text("/etc/group"), p.text(BaseGroup), value(uintptr(len(BaseGroup))))
	p.mounts()
	p.identity(cfg)
	p.entropy(cfg.Seed)
	p.network(cfg.Network)
	p.workload(cfg, user, based)
	if image := p.link(); len(image) <= MaxSize {
		return image
	}
	return nil
}

// ids are a user without a name.
type ids struct{ uid, gid uint32 }

// numericUser reads "", "UID" and "UID:GID" of one that is no other with BasePasswd
// than without, but for root's home.
func numericUser(spec string) (ids, bool) {
	if spec == "" {
		return ids{}, true
	}
	user, group, grouped := strings.Cut(spec, ":")
	uid, err := strconv.ParseUint(user, 10, 31)
	if err != nil || uid == nobody {
		return ids{}, false
	}
	gid := uint64(0)
	if grouped {
		if gid, err = strconv.ParseUint(group, 10, 31); err != nil {
			return ids{}, false
		}
	}
	return ids{uint32(uid), uint32(gid)}, true
}

func (p *program) mounts() {
	for _, m := range Mounts() {
		if m.Shim {
			continue
		}
		p.call(unix.SYS_MKDIR, p.text(m.Target), value(0o755)).allow(unix.EEXIST)
		p.call(unix.SYS_MOUNT, p.text(m.Source), p.text(m.Target), p.text(m.Type), value(m.Flags), p.text(m.Data)).allow(unix.EBUSY)
	}
	for _, l := range DeviceLinks() {
		p.call(unix.SYS_SYMLINK, p.text(l[0]), p.text(l[1])).allow(unix.EEXIST)
	}
}

func (p *program) identity(cfg wire.BootConfig) {
	p.call(opClock, value(uintptr(cfg.Time.UnixNano())))
	p.call(unix.SYS_SETHOSTNAME, p.text(cfg.Hostname), value(uintptr(len(cfg.Hostname))))
	for _, f := range OwnFiles(cfg.Identity()) {
		p.call(unix.SYS_MKDIR, p.text(path.Dir(f.Path)), value(0o755)).allow(unix.EEXIST)
		p.call(unix.SYS_UNLINK, p.text(f.Path)).allow(unix.ENOENT)
		fd := p.space(4)
		p.call(unix.SYS_OPEN, p.text(f.Path), value(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC), value(uintptr(f.Perm))).into(fd)
		p.call(unix.SYS_WRITE, number(fd), p.bytes(f.Content), value(uintptr(len(f.Content))))
		p.call(unix.SYS_CLOSE, number(fd))
	}
}

// entropy is AddEntropy of package guest.
func (p *program) entropy(seed []byte) {
	fd := p.space(4)
	// struct rand_pool_info: entropy in bits, size in bytes, the bytes.
	info := binary.LittleEndian.AppendUint32(nil, uint32(8*len(seed)))
	info = binary.LittleEndian.AppendUint32(info, uint32(len(seed)))
	info = append(info, seed...)
	p.call(unix.SYS_OPEN, p.text("/dev/urandom"), value(unix.O_WRONLY|unix.O_CLOEXEC)).into(fd)
	p.call(unix.SYS_IOCTL, number(fd), value(unix.RNDADDENTROPY), p.bytes(info))
	p.call(unix.SYS_IOCTL, number(fd), value(unix.RNDRESEEDCRNG))
	p.call(unix.SYS_CLOSE, number(fd))
}

// firstNIC is what the kernel calls a machine's only one.
const firstNIC = "eth0"

// ifreq returns a struct ifreq of net/if.h.
func ifreq(name string, data ...byte) []byte {
	r := make([]byte, 40)
	copy(r[:unix.IFNAMSIZ-1], name)
	copy(r[unix.IFNAMSIZ:], data)
	return r
}

// sockaddr is an IPv4 address as a struct sockaddr_in.
func sockaddr(ip net.IP) []byte {
	sa := make([]byte, 16)
	binary.LittleEndian.PutUint16(sa, unix.AF_INET)
	copy(sa[4:], ip.To4())
	return sa
}

// network is Loopback and Network of package guest's Sys, in the same order.
func (p *program) network(n *wire.NetworkConfig) {
	fd := p.space(4)
	ioctl := func(request uintptr, at offset) *call {
		return p.call(unix.SYS_IOCTL, number(fd), value(request), address(at))
	}
	// Flags that a device has from its start stay, of which some can be changed.
	up := func(name string, has uint16) {
		ioctl(unix.SIOCSIFFLAGS, p.data(ifreq(name, binary.LittleEndian.AppendUint16(nil, has|unix.IFF_UP)...)))
	}
	p.call(unix.SYS_SOCKET, value(unix.AF_INET), value(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), value(0)).into(fd)
	up("lo", unix.IFF_LOOPBACK)
	if n != nil {
		mac, _ := net.ParseMAC(n.MAC) // was validated
		found := p.data(ifreq(firstNIC))
		ioctl(unix.SIOCGIFHWADDR, found)
		// A struct sockaddr, whose family is the kind of the device.
		p.call(opEqual, address(found+unix.IFNAMSIZ), p.bytes(append([]byte{unix.ARPHRD_ETHER, 0}, mac...)), value(8))
		if n.MTU != 0 {
			ioctl(unix.SIOCSIFMTU, p.data(ifreq(firstNIC, binary.LittleEndian.AppendUint32(nil, uint32(n.MTU))...)))
		}
		up(firstNIC, unix.IFF_BROADCAST|unix.IFF_MULTICAST)
		// To ask for the link has the kernel, from Linux 6.7 on, note the carrier at
		// once. An address before there is one loses the host's first question.
		link := p.data(binary.LittleEndian.AppendUint64(nil, unix.ETHTOOL_GLINK)) // struct ethtool_value
		ask := p.data(ifreq(firstNIC))
		p.pointer(ask+unix.IFNAMSIZ, link)
		ioctl(unix.SIOCETHTOOL, ask).allow(unix.EOPNOTSUPP)
		flags := p.data(ifreq(firstNIC))
		ioctl(unix.SIOCGIFFLAGS, flags)
		p.call(opFlags, address(flags+unix.IFNAMSIZ), value(unix.IFF_RUNNING))
		ip := n.Address.Addr().AsSlice()
		ioctl(unix.SIOCSIFADDR, p.data(ifreq(firstNIC, sockaddr(ip)...)))
		ioctl(unix.SIOCSIFNETMASK, p.data(ifreq(firstNIC, sockaddr(net.IP(net.CIDRMask(n.Address.Bits(), 32)))...)))
		if n.Gateway.IsValid() {
			// struct rtentry of net/route.h
			const dstAt, gatewayAt, maskAt, flagsAt, devAt, size = 8, 24, 40, 56, 88, 120
			rt := make([]byte, size)
			copy(rt[dstAt:], sockaddr(net.IPv4zero))
			copy(rt[gatewayAt:], sockaddr(n.Gateway.AsSlice()))
			copy(rt[maskAt:], sockaddr(net.IPv4zero))
			binary.LittleEndian.PutUint16(rt[flagsAt:], unix.RTF_UP|unix.RTF_GATEWAY)
			at := p.data(rt)
			p.pointer(at+devAt, p.data([]byte(firstNIC+"\x00")))
			ioctl(unix.SIOCADDRT, at).allow(unix.EEXIST)
		}
	}
	p.call(unix.SYS_CLOSE, number(fd))
}

// high is above the descriptors that a process is to have: none overwrites another.
const high = 10

// aside is the nice value with which kestrel starts: it leaves three quarters of a
// processor to a workload that comes up. One that never rests delays kestrel, and
// with it all that the host may ask of the guest, no more than fourfold.
const aside = 5

// workload starts it, in a control group and a session of its own.
//
// based is the u32 that says whether the image has BasePasswd.
func (p *program) workload(cfg wire.BootConfig, user ids, based offset) {
	w := cfg.Workload
	p.call(unix.SYS_MKDIR, p.text(WorkloadCgroup), value(0o755)).allow(unix.EEXIST)
	const controllers = "+memory +pids"
	fd := p.space(4)
	p.call(unix.SYS_OPEN, p.text(CgroupRoot+"/cgroup.subtree_control"), value(unix.O_WRONLY|unix.O_CLOEXEC)).into(fd)
	p.call(unix.SYS_WRITE, number(fd), p.text(controllers), value(uintptr(len(controllers)))).allow(unix.ENOENT)
	p.call(unix.SYS_CLOSE, number(fd))

	// struct clone_args of linux/sched.h; the group's descriptor is its last member.
	const signalAt, groupAt, size = 32, 80, 88
	clone := make([]byte, size)
	binary.LittleEndian.PutUint64(clone, unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_INTO_CGROUP)
	binary.LittleEndian.PutUint64(clone[signalAt:], uint64(unix.SIGCHLD))
	args := p.data(clone)
	p.call(unix.SYS_OPEN, p.text(WorkloadCgroup), value(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)).into(args + groupAt)

	null, stdin := p.space(4), p.space(4)
	p.call(unix.SYS_OPEN, p.text("/dev/null"), value(unix.O_RDONLY|unix.O_CLOEXEC)).into(null)
	p.lift(null, stdin)
	var far [2]offset
	for i, near := range []offset{outAt, errAt} {
		ends := p.space(8)
		far[i] = p.space(4)
		p.call(unix.SYS_PIPE2, address(ends), value(unix.O_CLOEXEC))
		p.lift(ends, near)
		p.lift(ends+4, far[i])
		p.call(unix.SYS_FCHOWN, number(far[i]), value(uintptr(user.uid)), value(uintptr(user.gid)))
	}
	vars := Env(w.Env, cfg.Hostname, "/", false)
	argv, env := p.strings(w.Args), p.strings(vars)
	if i := slices.Index(vars, "HOME=/"); user.uid == 0 && i >= 0 && !slices.Contains(w.Env, "HOME=/") {
		p.call(opChoose, address(offset(env.value)+offset(8*i)), p.text("HOME="+baseHome), number(based))
	}
	child := func() {
		p.call(unix.SYS_SETSID)
		p.call(unix.SYS_SETGROUPS, value(0), value(0))
		p.call(unix.SYS_SETGID, value(uintptr(user.gid)))
		p.call(unix.SYS_SETUID, value(uintptr(user.uid)))
		p.call(unix.SYS_CHDIR, p.text(path.Join("/", w.Workdir)))
		for to, from := range []offset{stdin, far[0], far[1]} {
			p.call(unix.SYS_DUP3, number(from), value(uintptr(to)), value(0))
		}
		p.call(unix.SYS_EXECVE, p.text(w.Args[0]), argv, env)
	}
	fork := p.call(unix.SYS_CLONE3, address(args), value(size), value(0)).into(pidAt)
	at := len(p.calls)
	child()
	fork.args[2] = value(uintptr(len(p.calls) - at))

	// What kestrel goes on with stays open for it.
	p.call(unix.SYS_FCNTL, number(outAt), value(unix.F_SETFD), value(0))
	p.call(unix.SYS_FCNTL, number(errAt), value(unix.F_SETFD), value(0))
	p.call(unix.SYS_SETPRIORITY, value(unix.PRIO_PROCESS), value(0), value(aside))
}

// lift gives a copy of a file a descriptor above those of the child.
func (p *program) lift(from, to offset) {
	p.call(unix.SYS_FCNTL, number(from), value(unix.F_DUPFD_CLOEXEC), value(high)).into(to)
}
