package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"
)

// The disk image of a boot configuration begins with a header of four lines of
// text, so that an operator can look at it:
//
//	volant boot config\n
//	1\n                       version of this layout
//	000000001234\n            length of the JSON in bytes, 12 digits
//	<64 hex digits>\n         SHA-256 of the JSON
//
// The JSON follows at once; zeros fill the image up to a multiple of 4096
// bytes, since a block device has no other length.
const (
	configMagic   = "volant boot config\n"
	configVersion = "1\n"
	configHeader  = len(configMagic) + len(configVersion) + 13 + 65
	configBlock   = 4096
	// maxConfig bounds the JSON on both sides, in bytes.
	maxConfig = 1 << 20
)

// Errors of DecodeBoot that callers may test for.
var (
	ErrNotBootConfig = errors.New("not a boot configuration")
	ErrProtocol      = errors.New("host and guest do not understand each other")
)

// EncodeBoot returns the disk image of a boot configuration: it checks cfg,
// sets its Protocol when that is zero, and pads to a multiple of 4096 bytes.
func EncodeBoot(cfg BootConfig) ([]byte, error) {
	if cfg.Protocol == 0 {
		cfg.Protocol = Protocol
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("boot configuration: %w", err)
	}
	if len(body) > maxConfig {
		return nil, fmt.Errorf("boot configuration of %d bytes exceeds the limit of %d: shorten the environment or the arguments", len(body), maxConfig)
	}
	image := make([]byte, 0, (configHeader+len(body)+configBlock-1)/configBlock*configBlock)
	image = fmt.Appendf(image, "%s%s%012d\n%x\n", configMagic, configVersion, len(body), sha256.Sum256(body))
	image = append(image, body...)
	return image[:cap(image)], nil
}

// DecodeBoot reads the disk image of a boot configuration. It reads no more
// than the image says, and never more than 1 MiB; what it returns has passed
// its digest and Validate. A field that this version does not know is ignored,
// since the host may be newer within the same Protocol.
func DecodeBoot(r io.Reader) (BootConfig, error) {
	var cfg BootConfig
	header := make([]byte, configHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		return cfg, fmt.Errorf("%w: header: %w", ErrNotBootConfig, err)
	}
	rest, ok := bytes.CutPrefix(header, []byte(configMagic))
	if !ok {
		return cfg, fmt.Errorf("%w: it begins with %q", ErrNotBootConfig, header[:len(configMagic)])
	}
	rest, ok = bytes.CutPrefix(rest, []byte(configVersion))
	if !ok {
		return cfg, fmt.Errorf("%w: layout %q, this guest reads %q", ErrProtocol, rest[:1], configVersion[:1])
	}
	size := 0
	for _, c := range rest[:12] {
		if c < '0' || c > '9' {
			return cfg, fmt.Errorf("%w: length %q", ErrNotBootConfig, rest[:12])
		}
		size = size*10 + int(c-'0')
	}
	var sum [sha256.Size]byte
	if _, err := hex.Decode(sum[:], rest[13:13+64]); err != nil || rest[12] != '\n' || rest[13+64] != '\n' {
		return cfg, fmt.Errorf("%w: malformed header", ErrNotBootConfig)
	}
	if size > maxConfig {
		return cfg, fmt.Errorf("%w: %d bytes exceed the limit of %d", ErrNotBootConfig, size, maxConfig)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return cfg, fmt.Errorf("%w: %d bytes announced: %w", ErrNotBootConfig, size, err)
	}
	if sha256.Sum256(body) != sum {
		return cfg, fmt.Errorf("%w: the digest does not match", ErrNotBootConfig)
	}
	read := jsonReader{b: body}
	cfg.read(&read)
	if err := read.end(); err != nil {
		return BootConfig{}, fmt.Errorf("%w: %w", ErrNotBootConfig, err)
	}
	if err := cfg.Validate(); err != nil {
		return BootConfig{}, err
	}
	return cfg, nil
}

// CheckProtocol says whether a peer that speaks protocol n, whose binary is
// version, is understood here.
func CheckProtocol(n int, version string) error {
	if n < MinProtocol || n > Protocol {
		return fmt.Errorf("%w: the other side (volant %q) speaks protocol %d, this side %d to %d; stop the VM and start it again with one version of volant",
			ErrProtocol, version, n, MinProtocol, Protocol)
	}
	return nil
}

// Validate reports the first thing that no guest could act on. Whether names
// such as the user exist is known in the guest only.
func (c *BootConfig) Validate() error {
	if err := CheckProtocol(c.Protocol, c.Version); err != nil {
		return err
	}
	bad := func(field string, format string, args ...any) error {
		return fmt.Errorf("boot configuration: %s: %w", field, fmt.Errorf(format, args...))
	}
	id := c.Identity()
	if err := id.validate(); err != nil {
		return fmt.Errorf("boot configuration: %w", err)
	}
	if err := validSeed(c.Seed); err != nil {
		return bad("seed", "%w", err)
	}
	if c.Time.IsZero() {
		return bad("time", "is not set")
	}
	if r := c.Root; r != nil {
		if err := r.validate(); err != nil {
			return bad("root", "%w", err)
		}
	}
	if len(c.Mounts) > maxMounts {
		return bad("mounts", "there are %d, the limit is %d", len(c.Mounts), maxMounts)
	}
	targets := make(map[string]bool, len(c.Mounts))
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if err := m.validate(); err != nil {
			return bad("mounts", "%d: %w", i, err)
		}
		t := path.Clean(m.Target)
		if targets[t] {
			return bad("mounts", "%d: target: there is another one at %q", i, t)
		}
		targets[t] = true
	}
	if err := c.Workload.validate(); err != nil {
		return bad("workload", "%w", err)
	}
	return nil
}

// maxMounts bounds the list on both sides; no hypervisor offers as many disks.
const maxMounts = 128

// maxPath is PATH_MAX without the final zero byte, in bytes.
const maxPath = 4095

func (r *RootConfig) validate() error {
	switch r.Upper {
	case UpperDisk, UpperMemory, UpperReadOnly:
	default:
		return fmt.Errorf("upper: %q is none of disk, memory, readonly", r.Upper)
	}
	if r.SizeMiB < 0 || r.SizeMiB > 0 && r.Upper != UpperMemory {
		return fmt.Errorf("size_mib: %d: only a root with its changes in memory has a size", r.SizeMiB)
	}
	return nil
}

func (m *MountConfig) validate() error {
	switch m.Type {
	case MountDisk, MountTmpfs:
	default:
		return fmt.Errorf("type: %q is neither disk nor tmpfs", m.Type)
	}
	switch {
	case !path.IsAbs(m.Target) || len(m.Target) > maxPath || strings.ContainsRune(m.Target, 0):
		return fmt.Errorf("target: %q is not an absolute path", m.Target)
	case path.Clean(m.Target) == "/":
		return errors.New("target: is the root itself")
	case m.SizeMiB < 0:
		return fmt.Errorf("size_mib: %d is negative", m.SizeMiB)
	case m.Mode > 0o7777:
		return fmt.Errorf("mode: %#o is more than permission bits", m.Mode)
	case m.Type == MountDisk && (m.SizeMiB != 0 || m.Mode != 0):
		return errors.New("size_mib and mode are for a tmpfs")
	case m.Type == MountTmpfs && m.Copy:
		return errors.New("copy is for a disk")
	}
	return nil
}

func (n *NetworkConfig) validate() error {
	switch {
	case !validMAC(n.MAC):
		return fmt.Errorf("mac: %q is not six lower-case hex bytes with colons", n.MAC)
	case !n.Address.IsValid():
		return errors.New("address: is missing")
	case n.Gateway.IsValid() && !n.Address.Contains(n.Gateway):
		return fmt.Errorf("gateway: %s is not in %s", n.Gateway, n.Address)
	case n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535):
		return fmt.Errorf("mtu: %d is not within 576 to 65535", n.MTU)
	}
	for _, a := range n.Nameservers {
		if !a.IsValid() {
			return errors.New("nameservers: an address is empty")
		}
	}
	for _, s := range n.Search {
		if !validHostname(s) {
			return fmt.Errorf("search: %q is not a domain", s)
		}
	}
	return nil
}

func (w *WorkloadConfig) validate() error {
	if len(w.Args) == 0 || w.Args[0] == "" {
		return errors.New("args: there is no command")
	}
	for _, s := range w.Args {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("args: %q holds a zero byte", s)
		}
	}
	for _, s := range w.Env {
		if i := strings.IndexByte(s, '='); i < 1 || strings.ContainsRune(s, 0) {
			// The value may be a secret.
			return fmt.Errorf("env: %q is not NAME=VALUE", s[:max(i, 0)])
		}
	}
	switch w.Restart {
	case "", RestartNever, RestartOnFailure, RestartAlways:
	default:
		return fmt.Errorf("restart: %q is none of never, on-failure, always", w.Restart)
	}
	if w.RestartMax < 0 {
		return fmt.Errorf("restart_max: %d is negative", w.RestartMax)
	}
	if w.Workdir != "" && (w.Workdir[0] != '/' || strings.ContainsRune(w.Workdir, 0)) {
		return fmt.Errorf("workdir: %q is not an absolute path", w.Workdir)
	}
	if w.StopTimeout < 0 {
		return fmt.Errorf("stop_timeout: %s is negative", w.StopTimeout)
	}
	if w.BaseURL != "" {
		if err := validHTTPURL(w.BaseURL); err != nil {
			return fmt.Errorf("base_url: %w", err)
		}
	}
	if h := w.Health; h != nil {
		if err := h.validate(); err != nil {
			return fmt.Errorf("health: %w", err)
		}
	}
	return nil
}

func (h *Health) validate() error {
	kinds := 0
	for _, set := range []bool{h.HTTP != "", h.TCP != "", len(h.Exec) > 0} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return errors.New("exactly one of http, tcp and exec is needed")
	case h.Timeout < 0 || h.Interval < 0 || h.Retries < 0 || h.StartPeriod < 0:
		return errors.New("timeout, interval, start_period and retries must not be negative")
	case h.HTTP != "":
		return validHTTPURL(h.HTTP)
	case len(h.Exec) > 0:
		for _, s := range h.Exec {
			if strings.ContainsRune(s, 0) {
				return fmt.Errorf("exec: %q holds a zero byte", s)
			}
		}
		if h.Exec[0] == "" {
			return errors.New("exec: there is no command")
		}
		return nil
	}
	if host, port, ok := cutLast(h.TCP, ':'); !ok || host == "" || port == "" {
		return fmt.Errorf("tcp: %q is not host:port", h.TCP)
	}
	return nil
}

func validHTTPURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return err
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q: the scheme is neither http nor https", s)
	case u.Host == "":
		return fmt.Errorf("%q: the host is missing", s)
	}
	return nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// validHostname accepts labels of letters, digits and inner hyphens, joined by
// dots, 253 bytes at most (RFC 1123, section 2.1).
func validHostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

func validMAC(s string) bool {
	if len(s) != 17 {
		return false
	}
	for i := range 6 {
		if !lowerHex(s[3*i:3*i+2], 2) || i < 5 && s[3*i+2] != ':' {
			return false
		}
	}
	return true
}

func lowerHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
