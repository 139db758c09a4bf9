package hv

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of a Spec. What a driver can run may be less: see Capabilities.
const (
	// MaxIDLen is the longest Spec.ID, in bytes.
	MaxIDLen = 40
	// MaxSocketPath is the longest path of a Unix socket: sun_path of unix(7)
	// less its terminating zero byte.
	MaxSocketPath = 107
	// MaxDiskSerial is the longest Disk.Serial: VIRTIO_BLK_ID_BYTES of the
	// virtio specification, 5.2.6.
	MaxDiskSerial = 20
	// MaxTapName is the longest NIC.Tap: IFNAMSIZ of netdevice(7) less its
	// terminating zero byte.
	MaxTapName = 15
	// MaxShareTag is the longest Share.Tag: the field of the virtio
	// specification, 5.11.4, less a terminating zero byte that some guests want.
	MaxShareTag = 35
)

// Validate checks everything about a Spec that can be judged without looking
// at the host. Every driver calls it first; its errors wrap ErrInvalidSpec.
func (s *Spec) Validate() error {
	if !validID(s.ID) {
		return invalid("id %q: want 1 to %d of a-z, 0-9 and -, not beginning with -", s.ID, MaxIDLen)
	}
	if err := checkPath("directory", s.Dir); err != nil {
		return err
	}
	if s.VCPUs < 1 {
		return invalid("%d vCPUs: want at least 1", s.VCPUs)
	}
	if s.MemoryMiB < 1 {
		return invalid("%d MiB of memory: want at least 1", s.MemoryMiB)
	}
	if s.MaxVCPUs != 0 && s.MaxVCPUs < s.VCPUs {
		return invalid("at most %d vCPUs, but %d to start with", s.MaxVCPUs, s.VCPUs)
	}
	if s.MaxMemoryMiB != 0 && s.MaxMemoryMiB < s.MemoryMiB {
		return invalid("at most %d MiB of memory, but %d to start with", s.MaxMemoryMiB, s.MemoryMiB)
	}
	if s.MemoryFile != "" {
		if err := checkPath("memory file", s.MemoryFile); err != nil {
			return err
		}
		if len(s.Shares) > 0 {
			return invalid("memory file %s: a machine with shares can be no template: their server would not see the memory that its forks have of their own", s.MemoryFile)
		}
	}
	if err := checkPath("kernel", s.Kernel); err != nil {
		return err
	}
	if s.Initramfs != "" {
		if err := checkPath("initramfs", s.Initramfs); err != nil {
			return err
		}
	}
	for _, p := range s.Cmdline {
		if err := checkParameter(p); err != nil {
			return err
		}
	}
	for i, d := range s.Disks {
		if err := checkPath("disk", d.Path); err != nil {
			return err
		}
		if len(d.Serial) > MaxDiskSerial || !validSerial(d.Serial) {
			return invalid("disk %s: serial %q: want 1 to %d of a-z, A-Z, 0-9, -, _ and .", d.Path, d.Serial, MaxDiskSerial)
		}
		if d.Pmem && !d.ReadOnly {
			return invalid("disk %s: persistent memory must be read-only", d.Path)
		}
		for _, other := range s.Disks[:i] {
			if other.Serial == d.Serial {
				return invalid("disks %s and %s share the serial %q", other.Path, d.Path, d.Serial)
			}
		}
	}
	for i, n := range s.NICs {
		if !validTap(n.Tap) {
			return invalid("tap %q: want 1 to %d of a-z, A-Z, 0-9, -, _ and .", n.Tap, MaxTapName)
		}
		if len(n.MAC) != 6 || n.MAC[0]&1 != 0 {
			return invalid("tap %s: MAC address %q: want 6 bytes, not a group address", n.Tap, n.MAC)
		}
		for _, other := range s.NICs[:i] {
			if other.Tap == n.Tap {
				return invalid("tap %s is attached twice", n.Tap)
			}
		}
	}
	for i, sh := range s.Shares {
		if sh.Tag == "" || len(sh.Tag) > MaxShareTag || strings.ContainsFunc(sh.Tag, notWord) {
			return invalid("share tag %q: want 1 to %d of a-z, A-Z, 0-9, -, _ and .", sh.Tag, MaxShareTag)
		}
		if err := checkPath("share socket", sh.Socket); err != nil {
			return err
		}
		for _, other := range s.Shares[:i] {
			if other.Tag == sh.Tag {
				return invalid("two shares have the tag %q", sh.Tag)
			}
		}
	}
	for i, d := range s.Devices {
		if !validPCI(d) {
			return invalid("PCI device %q: want an address such as 0000:01:00.0", d)
		}
		if slices.Contains(s.Devices[:i], d) {
			return invalid("PCI device %s is given twice", d)
		}
	}
	for _, c := range s.Cgroups {
		if err := checkPath("cgroup", c); err != nil {
			return err
		}
	}
	for _, dir := range s.Reach {
		if err := checkPath("reach", dir); err != nil {
			return err
		}
	}
	if s.CID == 1 || s.CID == 2 || s.CID == 1<<32-1 {
		return invalid("vsock context id %d is reserved", s.CID)
	}
	if err := checkPath("console log", s.ConsoleLog); err != nil {
		return err
	}
	if s.VMMLog != "" {
		if err := checkPath("VMM log", s.VMMLog); err != nil {
			return err
		}
	}
	if s.ConsoleLimit < 0 {
		return invalid("console limit of %d bytes: want 0 or more", s.ConsoleLimit)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidSpec, fmt.Sprintf(format, args...))
}

// checkPath wants an absolute, clean path without the control characters that
// would mislead a reader of an error message or of a command line.
func checkPath(what, path string) error {
	if path == "" {
		return invalid("no %s given", what)
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return invalid("%s %q: want an absolute path without . or ..", what, path)
	}
	if strings.ContainsFunc(path, isControl) {
		return invalid("%s %q: control characters in the path", what, path)
	}
	return nil
}

// checkParameter wants one kernel parameter: the kernel splits its command
// line at white space, and takes everything after a lone "--" for init.
func checkParameter(p string) error {
	if p == "" || p == "--" || strings.ContainsFunc(p, func(r rune) bool { return r == ' ' || r == '"' || isControl(r) || r > '~' }) {
		return invalid("kernel parameter %q: want printable ASCII without spaces and quotes", p)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func validID(id string) bool {
	return id != "" && len(id) <= MaxIDLen && id[0] != '-' && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

func validSerial(s string) bool { return s != "" && !strings.ContainsFunc(s, notWord) }

func validTap(s string) bool {
	return s != "" && len(s) <= MaxTapName && s != "." && s != ".." && !strings.ContainsFunc(s, notWord)
}

// validPCI wants domain, bus, device and function in lower-case hex, as sysfs
// writes them.
func validPCI(s string) bool {
	const pattern = "xxxx:xx:xx.7"
	if len(s) != len(pattern) {
		return false
	}
	for i := range len(s) {
		c, p := s[i], pattern[i]
		switch {
		case p == 'x' && ('0' <= c && c <= '9' || 'a' <= c && c <= 'f'):
		case p == '7' && '0' <= c && c <= '7':
		case p != 'x' && p != '7' && c == p:
		default:
			return false
		}
	}
	return true
}

func notWord(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}
