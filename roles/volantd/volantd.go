// Package volantd is the daemon's command line and its composition root: it
// parses flags and environment, assembles store, network, hypervisor, daemon and
// API, and runs them until a signal comes. It decides nothing.
//
// When volantd ends, its VMs run on; the next one takes them up. "volar vms stop
// --all" is how one stops them.
package volantd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/roles/cmdline"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// grammar is the whole command line.
type grammar struct {
	DataDir    string        `help:"Folder of what is kept: database, artifacts, logs (default: ${default})." env:"VOLANT_DATA_DIR" default:"/var/lib/volant" placeholder:"DIR"`
	RuntimeDir string        `help:"Folder of sockets and boot files; need not outlive a reboot (default: ${default})." env:"VOLANT_RUNTIME_DIR" default:"/run/volant" placeholder:"DIR"`
	Listen     string        `help:"Where the API listens: unix:///path (default: volantd.sock in the runtime folder)." aliases:"socket" env:"VOLANT_SOCKET,VOLANT_API_LISTEN" placeholder:"ADDR"`
	Bridge     string        `help:"Bridge that VMs are connected to; it is made if it is not there (default: ${default})." env:"VOLANT_BRIDGE" default:"vbr0" placeholder:"NAME"`
	Subnet     string        `help:"IPv4 network of the bridge (default: ${default})." env:"VOLANT_SUBNET" default:"192.168.127.0/24" placeholder:"CIDR"`
	HostIP     string        `name:"host-ip" help:"The host's address in it (default: the first one)." env:"VOLANT_HOST_IP" placeholder:"ADDR"`
	DNS        []string      `name:"dns" help:"Nameservers of VMs (default: those of the host's resolv.conf that a VM can reach)." env:"VOLANT_DNS" placeholder:"ADDR"`
	Hypervisor string        `help:"What runs new VMs: ${enum} (default: ${default}, which is cloud-hypervisor where it works, else qemu)." env:"VOLANT_HYPERVISOR" enum:"auto,cloud-hypervisor,qemu" default:"auto" placeholder:"NAME"`
	QEMU       string        `name:"qemu" help:"Path of qemu-system-x86_64 (default: looked up in PATH)." env:"VOLANT_QEMU" placeholder:"PATH"`
	CH         string        `name:"cloud-hypervisor" help:"Path of cloud-hypervisor (default: looked up in PATH)." env:"VOLANT_CLOUD_HYPERVISOR" placeholder:"PATH"`
	Boot       time.Duration `name:"boot-timeout" help:"How long a guest may take to start its workload before its start has failed (default: ${default})." env:"VOLANT_BOOT_TIMEOUT" default:"90s" placeholder:"TIME"`
	Mirrors    []string      `name:"registry-mirror" help:"Ask MIRROR (HOST[:PORT][/PATH]) for images before REGISTRY; may be given several times." env:"VOLANT_REGISTRY_MIRRORS" placeholder:"REGISTRY=MIRROR"`
	PlainHTTP  []string      `name:"plain-http" help:"Speak to REGISTRY (HOST[:PORT]), which may be a mirror, without TLS; may be given several times." env:"VOLANT_PLAIN_HTTP" placeholder:"REGISTRY"`
	ImageCap   int64         `name:"image-cap-mb" help:"How much disk space images may take, in MiB, before those used longest ago go, of those that no VM uses; 0 for any amount (default: ${default})." env:"VOLANT_IMAGE_CAP_MB" default:"0" placeholder:"MIB"`
	VMMUser    string        `name:"vmm-user" help:"Who VMMs run as, as UID or UID:GID, in place of root; /dev/kvm must be open to that group." env:"VOLANT_VMM_USER" placeholder:"UID[:GID]"`
	Overcommit float64       `name:"memory-overcommit" help:"How many times the memory of this host VMs may be promised, of which the reserve is taken off; 0 for any amount (default: ${default})." env:"VOLANT_MEMORY_OVERCOMMIT" default:"1" placeholder:"FACTOR"`
	Reserve    int           `name:"memory-reserve-mb" help:"How much memory of this host is never promised to VMs, in MiB (default: ${default})." env:"VOLANT_MEMORY_RESERVE_MB" default:"512" placeholder:"MIB"`
	Reporting  bool          `name:"free-page-reporting" help:"Give guests a balloon by which they return to this host what memory they have freed (default: yes)." env:"VOLANT_FREE_PAGE_REPORTING" default:"true" negatable:""`
	Merge      bool          `name:"merge-memory" help:"Let this host's kernel merge equal memory of VMs (KSM), by which a VM can find out what is in the memory of others." env:"VOLANT_MERGE_MEMORY"`
	Cgroup     string        `help:"Control group below which VMs have theirs, in every hierarchy; none for no groups, and no limits (default: ${default})." env:"VOLANT_CGROUP" default:"volant" placeholder:"NAME"`
	LogLevel   string        `help:"What is logged: ${enum} (default: ${default})." env:"VOLANT_LOG_LEVEL" enum:"debug,info,warn,error" default:"info" placeholder:"LEVEL"`
	LogFormat  string        `help:"How it is logged: ${enum} (default: ${default})." env:"VOLANT_LOG_FORMAT" enum:"text,json" default:"text" placeholder:"FORM"`

	KeepEvents    int           `help:"How many events the journal keeps (default: ${default})." env:"VOLANT_KEEP_EVENTS" default:"100000" placeholder:"N"`
	KeepEventsFor time.Duration `help:"How old they may be; 0 for any age (default: ${default})." env:"VOLANT_KEEP_EVENTS_FOR" default:"720h" placeholder:"TIME"`

	Recover bool             `help:"Instead of running: recover a damaged or lost database from what can still be read of it and from the VMs that run, keep the damaged file, and exit."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// Main runs volantd with args, which do not include the program's name, until
// ctx ends, and returns its exit status: 0 ended as told, 1 failed, 2 wrong
// usage.
func Main(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer, version string) (status int) {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Fprintf(stdout, "volantd %s\n", version) // without building the grammar
		return exitOK
	}
	defer cmdline.Exit(&status)
	var g grammar
	parser, err := g.parser(stdout, stderr, version)
	if err != nil {
		fmt.Fprintf(stderr, "volantd: %v\n", err)
		return exitFailed
	}
	if _, err := parser.Parse(args); err != nil {
		fmt.Fprintf(stderr, "volantd: %v\nhint: volantd --help shows what it takes\n", err)
		return exitUsage
	}
	opt, err := g.options(version, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "volantd: %v\n", err)
		return exitUsage
	}
	run := Run
	if g.Recover {
		run = func(ctx context.Context, opt Options) error { return Recover(ctx, opt, stdout) }
	}
	if err := run(ctx, opt); err != nil {
		fmt.Fprintf(stderr, "volantd: %v\n", err)
		var hinted interface{ Hint() string }
		if errors.As(err, &hinted) {
			fmt.Fprintf(stderr, "hint: %s\n", hinted.Hint())
		}
		return exitFailed
	}
	return exitOK
}

// parser returns the parser that fills in g.
func (g *grammar) parser(stdout, stderr io.Writer, version string) (*kong.Kong, error) {
	return cmdline.New("volantd", "volantd runs VMs. It must be root. VMs outlive it: volar vms stop --all stops them.",
		version, g, stdout, stderr,
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
}

func (g *grammar) options(version string, stderr io.Writer) (Options, error) {
	opt := Options{
		DataDir: g.DataDir, RuntimeDir: g.RuntimeDir, Listen: g.Listen, Bridge: g.Bridge,
		Hypervisor: g.Hypervisor, QEMU: g.QEMU, CloudHypervisor: g.CH, BootTimeout: g.Boot, Version: version,
		Cgroup: g.Cgroup, MemoryOvercommit: g.Overcommit, MemoryReserveMiB: g.Reserve,
		KeepFreePages: !g.Reporting, MergeMemory: g.Merge,
	}
	if g.Boot <= 0 {
		return opt, fmt.Errorf("--boot-timeout: %v is not a duration above 0s", g.Boot)
	}
	if g.KeepEvents < 1 {
		return opt, fmt.Errorf("--keep-events: %d is not a number of events from 1 on", g.KeepEvents)
	}
	if g.KeepEventsFor < 0 {
		return opt, fmt.Errorf("--keep-events-for: %v is negative", g.KeepEventsFor)
	}
	opt.KeepEvents, opt.KeepEventsFor = g.KeepEvents, g.KeepEventsFor
	if !(g.Overcommit >= 0 && g.Overcommit <= 100) { // NaN is neither
		return opt, fmt.Errorf("--memory-overcommit: %v is not a factor from 0 to 100", g.Overcommit)
	}
	if g.Reserve < 0 || g.Reserve > 1<<30 {
		return opt, fmt.Errorf("--memory-reserve-mb: %d is not a number of MiB", g.Reserve)
	}
	if g.VMMUser != "" {
		user, err := parseUser(g.VMMUser)
		if err != nil {
			return opt, err
		}
		opt.VMMUser = user
	}
	if g.ImageCap < 0 || g.ImageCap > 1<<40 {
		return opt, fmt.Errorf("--image-cap-mb: %d is not a number of MiB", g.ImageCap)
	}
	opt.ImageCap = g.ImageCap << 20
	if err := opt.setNetwork(g.Subnet, g.HostIP, g.DNS); err != nil {
		return opt, err
	}
	registry, err := build.ParseRegistry(g.Mirrors, g.PlainHTTP)
	if err != nil {
		return opt, err
	}
	registry.UserAgent = "volantd/" + version
	opt.Registry = registry
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(g.LogLevel))); err != nil {
		return opt, err
	}
	handler := &slog.HandlerOptions{Level: level}
	if g.LogFormat == "json" {
		opt.Log = slog.New(slog.NewJSONHandler(stderr, handler))
	} else {
		opt.Log = slog.New(slog.NewTextHandler(stderr, handler))
	}
	return opt, nil
}

// rootError says that the process lacks rights.
type rootError struct{}

func (rootError) Error() string { return "it must run as root: it makes network devices and machines" }
func (rootError) Hint() string  { return "sudo volantd" }

func checkRoot(euid int) error {
	if euid != 0 {
		return rootError{}
	}
	return nil
}
