// Package plan is what a guest's boot is made of, and as much of it as can be
// known ahead, as a list of system calls.
//
// Kestrel takes the steps of a boot (package guest). It is a large Go program
// though, and to start it costs an emulated guest more than all that a workload
// needs of it. The host knows nearly everything: it compiles the boot configuration
// to a plan, which the shim (package guest/shim) follows before it becomes kestrel.
// The workload then comes up while kestrel starts, which adopts it: its pid, and the
// pipes of its output. Where the root is a disk, the workload changes to it in a
// mount namespace of its own, and kestrel follows in that of the guest.
//
// A plan leaves nothing out that kestrel does before a workload, and does it in
// the same order. It is never needed: whatever fails in it, or is not as it
// expects, ends it, and kestrel takes all steps from the first, finds what was
// done already, and says what is wrong, as without a plan. So there is none, or it
// ends before the workload, where only kestrel can tell: the workload has a
// terminal, open input, or an init before it, further mounts, or a root that is
// read-only or none of erofs; the address is IPv6; the kernel lacks something.
//
// # Format
//
// All numbers are little endian, and offsets count from the plan's first byte.
//
//	 0  "volplan2"
//	 8  u32 size of the plan, u32 number of operations
//	16  u64 FNV-1a, 64 bit, of everything from 40 on
//	24  u32 for the pid of the workload
//	28  u32, u32 for the files that its output and errors are read from
//	36  u32 for the shim's own use
//	40  the operations, 56 bytes each; then what they point to
//
// An operation is one system call: u16 its number on amd64, six u8 the kinds of
// its arguments, i32 an errno that is no error (-1: any), u32 where to store its result as
// a u32 (0: nowhere), five u64 arguments. Kinds are 0 for the value, 1 for the
// address of what is at that offset, 2 for the u32 at that offset. Some numbers
// that are no system calls stand for what the shim does itself, see op.
package plan

import (
	"encoding/binary"
	"net"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// MaxSize is what the shim has room for, in bytes.
const MaxSize = 64 << 10

const (
	magic    = "volplan2"
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
	// opClock sets the clock to its argument, in ns since 1970, plus the uptime.
	opClock
	// opPoint stores the address that is its second argument at the first.
	opPoint
	// opSkip passes over so many operations (its second argument) if whether a file
	// (path) is there is what its third says.
	opSkip
	// opDisk finds the disk with a serial (text), and writes the path of its device
	// to an address, with room for deviceSize bytes.
	opDisk
	// opControllers turns on those controllers of a control group (its directory)
	// that are in a list (text), for the groups below.
	opControllers
	// opAccount looks a user and, if not 0, a group up (texts), as lookupUser of
	// package guest does. It writes uid, gid, the number of further groups and those
	// to an address with room for accountSize bytes, each a u32, and the home to
	// another, if that is not 0, with room for homeSize.
	opAccount
)

// What operations need room for, in bytes.
const (
	deviceSize  = 48
	accountSize = 4 * (3 + 64)
	homeSize    = 1024
)

// Compile returns the plan of a boot that cfg configures, or nil where kestrel is
// to do everything. cfg is valid.
func Compile(cfg wire.BootConfig) []byte {
	w := cfg.Workload
	if len(cfg.Mounts) > 0 || w.TTY || w.Stdin {
		return nil
	}
	if cfg.Root != nil && (cfg.Root.Upper == wire.UpperReadOnly || w.Init) {
		return nil
	}
	if n := cfg.Network; n != nil && !(n.Address.Addr().Is4() && (!n.Gateway.IsValid() || n.Gateway.Is4())) {
		return nil
	}
	p := new(program)
	p.mounts()
	p.identity(cfg)
	p.entropy(cfg.Seed)
	p.network(cfg.Network)
	if cfg.Root != nil {
		p.root(*cfg.Root)
	}
	p.workload(cfg)
	if image := p.link(); len(image) <= MaxSize {
		return image
	}
	return nil
}

func (p *program) mounts() {
	for _, m := range Mounts() {
		if m.Shim {
			continue
		}
		p.mkdir(m.Target)
		p.mount(m).allow(unix.EBUSY)
	}
	for _, l := range DeviceLinks() {
		p.call(unix.SYS_SYMLINK, p.text(l[0]), p.text(l[1])).allow(unix.EEXIST)
	}
}

func (p *program) identity(cfg wire.BootConfig) {
	p.call(opClock, value(uintptr(cfg.Time.UnixNano())))
	p.call(unix.SYS_SETHOSTNAME, p.text(cfg.Hostname), value(uintptr(len(cfg.Hostname))))
	if cfg.Root != nil {
		p.mkdir(stageDir)
	}
	for _, f := range OwnFiles(cfg.Identity()) {
		at := f.Path
		if cfg.Root != nil {
			at = f.Staged()
		}
		p.mkdir(path.Dir(at))
		p.call(unix.SYS_UNLINK, p.text(at)).allow(unix.ENOENT)
		p.write(at, unix.O_CREAT|unix.O_EXCL, f.Perm, f.Content)
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
func (p *program) workload(cfg wire.BootConfig) {
	w := cfg.Workload
	// struct clone_args of linux/sched.h; the group's descriptor is its last member.
	const signalAt, groupAt, size = 32, 80, 88
	clone := make([]byte, size)
	flags := uint64(unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_INTO_CGROUP)
	group := WorkloadCgroup
	p.mkdir(group)
	if cfg.Root != nil {
		flags |= unix.CLONE_NEWPID | unix.CLONE_NEWNS
		for _, dir := range []string{CgroupRoot, WorkloadCgroup} {
			p.call(opControllers, p.text(dir), p.text(strings.Join(Controllers(), " ")))
		}
		group = FirstCgroup
		p.mkdir(group)
	} else {
		p.write(CgroupRoot+"/cgroup.subtree_control", 0, 0, []byte("+memory +pids")).allow(unix.ENOENT)
	}
	binary.LittleEndian.PutUint64(clone, flags)
	binary.LittleEndian.PutUint64(clone[signalAt:], uint64(unix.SIGCHLD))
	args := p.data(clone)
	p.open(group, unix.O_RDONLY|unix.O_DIRECTORY, 0, args+groupAt)

	null, stdin := p.space(4), p.space(4)
	p.open("/dev/null", unix.O_RDONLY, 0, null)
	p.lift(null, stdin)
	var far [2]offset
	for i, near := range []offset{outAt, errAt} {
		ends := p.space(8)
		far[i] = p.space(4)
		p.call(unix.SYS_PIPE2, address(ends), value(unix.O_CLOEXEC))
		p.lift(ends, near)
		p.lift(ends+4, far[i])
	}
	fork := p.call(unix.SYS_CLONE3, address(args), value(size), value(0)).into(pidAt)
	at := len(p.calls)
	if cfg.Root != nil {
		p.enter(OwnFiles(cfg.Identity()))
	}
	p.call(unix.SYS_SETSID)
	vars := Env(w.Env, cfg.Hostname, "/", false)
	env := p.strings(vars)
	p.become(w, env, slices.Index(vars, "HOME=/"), far[:])
	dir := path.Join("/", w.Workdir)
	p.call(unix.SYS_CHDIR, p.text(dir))
	for to, from := range []offset{stdin, far[0], far[1]} {
		p.call(unix.SYS_DUP3, number(from), value(uintptr(to)), value(0))
	}
	p.execute(programs(w.Args[0], dir, vars), p.strings(w.Args), env)
	fork.args[2] = value(uintptr(len(p.calls) - at))

	// What kestrel goes on with stays open for it.
	p.call(unix.SYS_FCNTL, number(outAt), value(unix.F_SETFD), value(0))
	p.call(unix.SYS_FCNTL, number(errAt), value(unix.F_SETFD), value(0))
	p.call(unix.SYS_SETPRIORITY, value(unix.PRIO_PROCESS), value(0), value(aside))
}

// become is lookupUser of package guest, and what comes of it: the credentials, the
// owner of files that the user may have to open again, and HOME where nobody gave
// it, at an index of env.
func (p *program) become(w wire.WorkloadConfig, env arg, home int, files []offset) {
	const uidAt, gidAt, countAt, groupsAt = 0, 4, 8, 12
	user, group, grouped := strings.Cut(w.User, ":")
	if user == "" && !grouped {
		user = "0"
	}
	named := value(0)
	if grouped {
		named = p.text(group)
	}
	found := value(0)
	if home >= 0 && !slices.Contains(w.Env, "HOME=/") {
		const name = "HOME="
		at := p.data(append([]byte(name), make([]byte, homeSize)...))
		p.pointer(offset(env.value)+offset(8*home), at)
		found = address(at + offset(len(name)))
	}
	account := p.space(accountSize)
	p.call(opAccount, p.text(user), named, address(account), found)
	for _, fd := range files {
		p.call(unix.SYS_FCHOWN, number(fd), number(account+uidAt), number(account+gidAt))
	}
	p.call(unix.SYS_SETGROUPS, number(account+countAt), address(account+groupsAt))
	p.call(unix.SYS_SETGID, number(account+gidAt))
	p.call(unix.SYS_SETUID, number(account+uidAt))
}

// programs are the paths of which the first that is there is the program, as
// lookupProgram of package guest has it.
func programs(name, dir string, env []string) []string {
	if path.IsAbs(name) {
		return []string{name}
	}
	if strings.Contains(name, "/") {
		return []string{path.Join(dir, name)}
	}
	var paths []string
	for _, kv := range env {
		search, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for at := range strings.SplitSeq(search, ":") {
			if !path.IsAbs(at) {
				at = path.Join(dir, at)
			}
			paths = append(paths, path.Join(at, name))
		}
	}
	return paths
}

// execute runs the first program that is there.
func (p *program) execute(paths []string, argv, env arg) {
	for i, at := range paths {
		if i < len(paths)-1 {
			p.call(opSkip, p.text(at), value(1), value(0))
		}
		p.call(unix.SYS_EXECVE, p.text(at), argv, env)
	}
}

// lift gives a copy of a file a descriptor above those of the child.
func (p *program) lift(from, to offset) {
	p.call(unix.SYS_FCNTL, number(from), value(unix.F_DUPFD_CLOEXEC), value(high)).into(to)
}
