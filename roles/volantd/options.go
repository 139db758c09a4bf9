package volantd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/hv"
)

// Options is what Run needs. Main makes them of flags and environment; tests
// make their own.
type Options struct {
	DataDir    string       // absolute
	RuntimeDir string       // absolute
	Listen     string       // "unix:///path" or a path; empty: volantd.sock in RuntimeDir
	Bridge     string       // interface name
	Subnet     netip.Prefix // of the bridge; IPv4
	HostIP     netip.Addr   // the host's address in Subnet
	DNS        []netip.Addr // of guests; nil: those of the host that a guest can reach
	Hypervisor string       // "auto", "cloud-hypervisor" or "qemu"; empty: auto
	QEMU       string       // path of the binary; empty: looked up in PATH
	Registry   oci.Registry // how registries of images are spoken to
	ImageCap   int64        // bytes that images may take; 0 for any amount
	VMMUser    *hv.User     // who VMMs run as; nil: root
	// MemoryOvercommit and MemoryReserveMiB are daemon.Config's.
	MemoryOvercommit float64
	MemoryReserveMiB int
	// KeepFreePages and MergeMemory are daemon.Config's too.
	KeepFreePages bool
	MergeMemory   bool
	Cgroup        string // below the top of each hierarchy; "none" and empty: no groups
	Version       string
	// KeepEvents is how many events the journal keeps, 0 for the daemon's default;
	// KeepEventsFor is how old they may be, 0 for any age.
	KeepEvents    int
	KeepEventsFor time.Duration
	Log           *slog.Logger // nil discards

	// CloudHypervisor is the path of its binary; empty: looked up in PATH.
	CloudHypervisor string

	// AgentBinary is what becomes the agent of guests; empty: this executable.
	// Tests of a test binary set it.
	AgentBinary string
	// BootTimeout is how long a guest may take to start its workload; 0: the
	// daemon's default, which the flag's is too.
	BootTimeout time.Duration
	// AfterCommit is called after each durable write of the store, with how many
	// there were. Crash tests kill the process in it.
	AfterCommit func(n int)
	// Ready is called once when the API answers and every VM is taken up.
	Ready func()
}

// parseUser reads an account by its numbers, the group's being the user's unless
// it is given. Root is refused: that is what there is without.
func parseUser(s string) (*hv.User, error) {
	uid, gid, ok := strings.Cut(s, ":")
	if !ok {
		gid = uid
	}
	u, uerr := strconv.ParseUint(uid, 10, 31)
	g, gerr := strconv.ParseUint(gid, 10, 31)
	if uerr != nil || gerr != nil || u == 0 || g == 0 {
		return nil, fmt.Errorf("--vmm-user: %q is not a user by its number, or user and group, such as 990:36; root is not one", s)
	}
	return &hv.User{UID: uint32(u), GID: uint32(g)}, nil
}

// setNetwork parses the text form of the network's options.
func (o *Options) setNetwork(subnet, hostIP string, dns []string) error {
	p, err := netip.ParsePrefix(subnet)
	if err != nil || !p.Addr().Is4() {
		return fmt.Errorf("--subnet: %q is not an IPv4 network such as 192.168.127.0/24", subnet)
	}
	o.Subnet, o.HostIP = p.Masked(), p.Masked().Addr().Next()
	if hostIP != "" {
		if o.HostIP, err = netip.ParseAddr(hostIP); err != nil || !o.Subnet.Contains(o.HostIP) {
			return fmt.Errorf("--host-ip: %q is not an address in %s", hostIP, o.Subnet)
		}
	}
	for _, s := range dns {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return fmt.Errorf("--dns: %q is not an IPv4 address", s)
		}
		o.DNS = append(o.DNS, a)
	}
	return nil
}

// check refuses what cannot work, and fills in what follows from the rest.
func (o *Options) check() error {
	if !filepath.IsAbs(o.DataDir) || !filepath.IsAbs(o.RuntimeDir) {
		return fmt.Errorf("data folder %q and runtime folder %q must be absolute paths", o.DataDir, o.RuntimeDir)
	}
	if o.Listen == "" {
		o.Listen = "unix://" + filepath.Join(o.RuntimeDir, "volantd.sock")
	}
	if err := checkHypervisor(o.Hypervisor); err != nil {
		return err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.DNS == nil {
		o.DNS = hostNameservers()
	}
	return nil
}

// maxNameservers is how many resolv.conf(5) allows.
const maxNameservers = 3

// hostNameservers returns the host's nameservers that a guest can reach, which
// a loopback address is not. Where the host resolves by systemd-resolved the
// true ones are in its own file.
func hostNameservers() []netip.Addr {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // no resolver is no fault: guests go without
		}
		if list := parseNameservers(string(data)); len(list) > 0 {
			return list
		}
	}
	return nil
}

// parseNameservers reads resolv.conf(5).
func parseNameservers(conf string) []netip.Addr {
	var list []netip.Addr
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxNameservers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Is4() && !a.IsLoopback() && !a.IsUnspecified() {
			list = append(list, a)
		}
	}
	return list
}
