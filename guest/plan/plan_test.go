package plan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/golden"
)

func sample() wire.BootConfig {
	return wire.BootConfig{
		Protocol: wire.Protocol, Version: "1.2.3", VM: "01k2v3", Name: "web", Incarnation: 4,
		Hostname: "web.example", MachineID: "0123456789abcdef0123456789abcdef",
		Time: time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC), Seed: bytes.Repeat([]byte{0xa5}, 32),
		Network: &wire.NetworkConfig{
			MAC: "02:56:c0:a8:7f:0a", Address: netip.MustParsePrefix("192.168.127.10/24"), Gateway: netip.MustParseAddr("192.168.127.1"),
			MTU: 1400, Nameservers: []netip.Addr{netip.MustParseAddr("192.168.127.1")}, Search: []string{"example"},
		},
		Workload: wire.WorkloadConfig{Args: []string{"/server", "--listen", ":8080"}, Env: []string{"A=b=c", "EMPTY="}, Workdir: "srv"},
	}
}

// names are those of system calls and operations in a listing.
var names = map[op]string{
	opEqual: "equal", opFlags: "flags", opClock: "clock", opPoint: "point",
	opSkip: "skip", opDisk: "disk", opControllers: "controllers", opAccount: "account",
	unix.SYS_MKDIR: "mkdir", unix.SYS_MOUNT: "mount", unix.SYS_SYMLINK: "symlink", unix.SYS_SETHOSTNAME: "sethostname",
	unix.SYS_UNLINK: "unlink", unix.SYS_OPEN: "open", unix.SYS_WRITE: "write", unix.SYS_CLOSE: "close", unix.SYS_IOCTL: "ioctl",
	unix.SYS_SOCKET: "socket", unix.SYS_FCNTL: "fcntl", unix.SYS_PIPE2: "pipe2", unix.SYS_FCHOWN: "fchown", unix.SYS_CLONE3: "clone3",
	unix.SYS_SETSID: "setsid", unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETGID: "setgid", unix.SYS_SETUID: "setuid",
	unix.SYS_CHDIR: "chdir", unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_SETPRIORITY: "setpriority",
	unix.SYS_STAT: "stat", unix.SYS_FSTAT: "fstat", unix.SYS_FSTATFS: "fstatfs", unix.SYS_CHOWN: "chown", unix.SYS_CHMOD: "chmod", unix.SYS_RENAME: "rename",
	unix.SYS_OPEN_TREE: "open_tree", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_CHROOT: "chroot", unix.SYS_UMOUNT2: "umount2", unix.SYS_PRLIMIT64: "prlimit64",
}

// list reads a plan by its description, and shows what it does.
func list(t *testing.T, image []byte) string {
	t.Helper()
	le := binary.LittleEndian
	if string(image[:8]) != magic || int(le.Uint32(image[8:])) != len(image) {
		t.Fatalf("the head is % x, of %d bytes", image[:headSize], len(image))
	}
	sum := fnv.New64a()
	sum.Write(image[headSize:])
	if le.Uint64(image[16:]) != sum.Sum64() {
		t.Error("the sum is wrong")
	}
	count := int(le.Uint32(image[12:]))
	data := image[headSize+opSize*count:]
	base := len(image) - len(data)
	var b strings.Builder
	// Addresses are shown as what is there, if that is text, else as a number in
	// the order in which they come, with what is there at first.
	known := map[uint64]int{}
	show := func(at uint64) string {
		if at < uint64(base) && at != pidAt && at != outAt && at != errAt || at >= uint64(len(image)) {
			t.Errorf("an address is %d, of %d bytes with the data from %d", at, len(image), base)
			return "?"
		}
		rest := image[at:]
		if text, _, ok := bytes.Cut(rest, []byte{0}); at >= uint64(base) && ok && len(text) > 1 && bytes.IndexFunc(text, func(r rune) bool { return (r < ' ' && r != '\n' && r != '\t') || r > '~' }) < 0 {
			return fmt.Sprintf("%q", text)
		}
		if _, ok := known[at]; !ok {
			known[at] = len(known) + 1
		}
		return fmt.Sprintf("#%d", known[at])
	}
	for i := range count {
		o := image[headSize+opSize*i:]
		nr := op(le.Uint16(o))
		name, ok := names[nr]
		if !ok {
			t.Errorf("operation %d is %d", i, nr)
		}
		var args []string
		for j := range 5 {
			switch v := le.Uint64(o[16+8*j:]); o[2+j] {
			case kindAddress:
				args = append(args, show(v))
			case kindNumber:
				args = append(args, "*"+show(v))
			default:
				args = append(args, fmt.Sprintf("%#x", v))
			}
		}
		fmt.Fprintf(&b, "%s(%s)", name, strings.Join(args, ", "))
		if errno := le.Uint32(o[8:]); errno != 0 {
			fmt.Fprintf(&b, " allow %d", errno)
		}
		if at := le.Uint32(o[12:]); at != 0 {
			fmt.Fprintf(&b, " -> %s", show(uint64(at)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestCompile compares listings with golden files.
func TestCompile(t *testing.T) {
	for name, edit := range map[string]func(*wire.BootConfig){
		"plan": func(*wire.BootConfig) {},
		"root": func(c *wire.BootConfig) {
			c.Root = &wire.RootConfig{Upper: wire.UpperDisk}
			c.Workload = wire.WorkloadConfig{Args: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PATH=/sbin:bin"}, User: "www:data", Workdir: "/srv"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sample()
			edit(&cfg)
			got := list(t, Compile(cfg))
			golden.Compare(t, name+".golden", got)
		})
	}
}

// TestCompileLeaves wants no plan where the guest must look something up.
func TestCompileLeaves(t *testing.T) {
	for name, edit := range map[string]func(*wire.BootConfig){
		"a root that is read-only": func(c *wire.BootConfig) { c.Root = &wire.RootConfig{Upper: wire.UpperReadOnly} },
		"an init": func(c *wire.BootConfig) {
			c.Root, c.Workload.Init = &wire.RootConfig{Upper: wire.UpperMemory}, true
		},
		"a mount":             func(c *wire.BootConfig) { c.Mounts = []wire.MountConfig{{Type: wire.MountTmpfs, Target: "/x"}} },
		"a terminal":          func(c *wire.BootConfig) { c.Workload.TTY = true },
		"open input":          func(c *wire.BootConfig) { c.Workload.Stdin = true },
		"a large environment": func(c *wire.BootConfig) { c.Workload.Env = []string{"A=" + strings.Repeat("x", MaxSize)} },
		"an address of IPv6": func(c *wire.BootConfig) {
			c.Network.Address, c.Network.Gateway = netip.MustParsePrefix("2001:db8::2/64"), netip.Addr{}
		},
		"a gateway of IPv6 only": func(c *wire.BootConfig) { c.Network.Gateway = netip.MustParseAddr("fe80::1") },
	} {
		cfg := sample()
		edit(&cfg)
		if Compile(cfg) != nil {
			t.Errorf("%s: there is a plan", name)
		}
	}
	for name, edit := range map[string]func(*wire.BootConfig){
		"no NIC":         func(c *wire.BootConfig) { c.Network = nil },
		"a home":         func(c *wire.BootConfig) { c.Workload.Env = []string{"HOME=/"} },
		"a memory":       func(c *wire.BootConfig) { c.Root = &wire.RootConfig{Upper: wire.UpperMemory, SizeMiB: 64} },
		"a path":         func(c *wire.BootConfig) { c.Workload.Args[0] = "./server" },
		"an own gateway": func(c *wire.BootConfig) { c.Network.Gateway = netip.Addr{} },
	} {
		cfg := sample()
		edit(&cfg)
		image := Compile(cfg)
		if image == nil {
			t.Errorf("%s: there is no plan", name)
			continue
		}
		if got := list(t, image); name == "a home" && strings.Contains(got, "HOME=\"") {
			t.Errorf("%s: it may be changed:\n%s", name, got)
		}
	}
}
