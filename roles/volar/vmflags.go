package volar

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

// maxStopTimeout is more than any workload needs, and far from where numbers
// end.
const maxStopTimeout = 24 * time.Hour

// vmFlags are the flags that say what a new VM is like, of run and of create.
type vmFlags struct {
	CPUs          string   `name:"cpus" aliases:"cpu" help:"Virtual CPUs, whole ones (default: the plugin's, or the daemon's for images)." placeholder:"N"`
	Memory        string   `short:"m" help:"Memory: 512m, 1g; a plain number is MiB (default: the plugin's, or the daemon's for images)." placeholder:"SIZE"`
	Kernel        string   `help:"Kernel that it boots (default: the plugin's; for images volant, if it is imported; else the default one)." placeholder:"NAME" complete:"kernels"`
	Hypervisor    string   `help:"What runs it: auto, cloud-hypervisor or qemu (default: the plugin's, else auto, which is what volantd chose; volar doctor shows it)." placeholder:"NAME"`
	KernelCmdline string   `help:"Further kernel parameters." placeholder:"TEXT"`
	Hostname      string   `help:"Host name in the VM (default: the VM's name)." placeholder:"NAME"`
	IP            string   `name:"ip" help:"Address to pin (default: the lowest free one)." placeholder:"ADDR"`
	Network       string   `aliases:"net" help:"bridged (default): an address on the bridge; none or vsock: no network but the way to the agent." placeholder:"MODE"`
	Publish       []string `short:"p" help:"Publish a port of the VM on the host: [IP:]HOST:GUEST[/udp], ranges of one length such as 8000-8003:80-83, or GUEST alone for a free host port; may be repeated." sep:"none" placeholder:"PORT"`
	Env           []string `short:"e" help:"Environment variable of the workload; NAME alone passes on this one's; may be repeated." sep:"none" placeholder:"NAME=VALUE"`
	EnvFile       []string `help:"File with such variables, one a line; may be repeated." sep:"none" placeholder:"FILE"`
	Workdir       string   `short:"w" help:"Working directory of the workload." placeholder:"DIR"`
	User          string   `short:"u" help:"User of the workload: a name or id, with a group behind a colon." placeholder:"USER"`
	Entrypoint    *string  `help:"Program in place of the image's entrypoint, whose arguments are dropped too; empty for none." placeholder:"PROGRAM"`
	Interactive   bool     `short:"i" help:"Keep the workload's standard input open."`
	TTY           bool     `short:"t" name:"tty" help:"Run the workload on a terminal."`
	Init          bool     `help:"Run the workload below a small init that reaps orphans and passes signals on, instead of as process 1."`
	StopSignal    string   `help:"Signal that asks the workload to end (default: the image's, else SIGTERM)." placeholder:"SIGNAL"`
	StopTimeout   string   `help:"How long it may take to end then, in seconds or as 1m30s (default: the plugin's, or the daemon's for images)." placeholder:"TIME"`
	Restart       string   `help:"When what ended by itself is started again, the workload or the VM: no (default), on-failure, on-failure:N for N times at most, always (after a reboot of the host also when it was stopped), or unless-stopped." placeholder:"POLICY"`
	DependsOn     []string `help:"VM that has to be up before this one is started, whoever starts it: NAME waits for it to be running, NAME:healthy to be healthy; may be repeated." sep:"none" placeholder:"NAME" complete:"vms"`
	healthFlags
	Volume    []string `short:"v" help:"NAME:/path[:ro|:nocopy|:size=1g] mounts a volume, which is made if need be; /path alone one that goes with the VM; /folder:/path a read-only copy of a folder of the host; may be repeated." sep:"none" placeholder:"MOUNT"`
	Tmpfs     []string `help:"File system in memory: PATH[:size=64m,mode=1777]; may be repeated." sep:"none" placeholder:"PATH"`
	ReadOnly  bool     `help:"Nothing in the root file system can be changed."`
	Ephemeral bool     `help:"Changes to the root file system are kept in memory, and lost when the VM stops."`
	Disk      string   `help:"Size of the disk that takes changes to the root file system: 20g; a plain number is MiB." placeholder:"SIZE"`
	TTL       string   `name:"ttl" help:"Delete the VM, running or not, so long after its creation: 90s, 24h." placeholder:"TIME"`
	Label     []string `short:"l" help:"Label; may be repeated." sep:"none" placeholder:"NAME=VALUE"`
}

// imageFlags say how a VM gets its image.
type imageFlags struct {
	Pull string `help:"When to get the image from its registry: missing (default), always or never." enum:"missing,always,never" default:"missing" placeholder:"WHEN"`
	formFlags
	PublishAll bool `short:"P" help:"Publish every port that the image exposes on a free port of the host."`
}

// request makes the request for a VM called name. Plugin or image, and the
// digests of the folders in mounts, are the caller's to fill in.
func (f *vmFlags) request(c *cli, name string, command []string) (req api.VMCreate, m mounts, err error) {
	req = api.VMCreate{
		Name: name, Kernel: f.Kernel, Hypervisor: f.Hypervisor, KernelCmdline: f.KernelCmdline, Hostname: f.Hostname,
		Workdir: f.Workdir, User: f.User, TTY: f.TTY, Stdin: f.Interactive, Init: f.Init,
	}
	if name != "" {
		if err := api.ValidateName("VM", name); err != nil {
			return req, m, err
		}
	}
	if f.Kernel != "" {
		if err := api.ValidateName("kernel", f.Kernel); err != nil {
			return req, m, err
		}
	}
	if err := api.ValidateHypervisor("--hypervisor", f.Hypervisor); err != nil {
		return req, m, err
	}
	if f.Workdir != "" && !path.IsAbs(f.Workdir) {
		return req, m, usagef("--workdir %q is not an absolute path in the VM", f.Workdir)
	}
	if f.Entrypoint != nil {
		entrypoint := []string{}
		if *f.Entrypoint != "" {
			entrypoint = append(entrypoint, *f.Entrypoint)
		}
		req.Entrypoint = &entrypoint
	}
	if len(command) > 0 {
		req.Command = &command
	}
	for _, step := range []func(*api.VMCreate) error{f.resources, f.network, f.lifecycle, f.health, f.root} {
		if err := step(&req); err != nil {
			return req, m, err
		}
	}
	if req.Env, err = c.environment(f.EnvFile, f.Env); err != nil {
		return req, m, err
	}
	if req.Labels, err = labels(f.Label); err != nil {
		return req, m, err
	}
	if m, err = parseMounts(f.Volume, f.Tmpfs); err != nil {
		return req, m, err
	}
	req.Volumes, req.Tmpfs = m.volumes, m.tmpfs
	return req, m, nil
}

func (f *vmFlags) resources(req *api.VMCreate) error {
	if f.CPUs != "" {
		n, err := strconv.Atoi(f.CPUs)
		if err != nil || n < 1 || n > api.MaxCPUCores {
			return usagef("--cpus %q: a microVM has whole CPUs; give 1 to %d", f.CPUs, api.MaxCPUCores)
		}
		req.CPUCores = n
	}
	if f.Memory != "" {
		mib, err := parseMiB("--memory", f.Memory, api.MaxMemoryMB)
		if err != nil {
			return err
		}
		if mib < api.MinMemoryMB {
			return usagef("--memory %q: a microVM has at least %d MiB", f.Memory, api.MinMemoryMB)
		}
		req.MemoryMB = mib
	}
	return nil
}

func (f *vmFlags) network(req *api.VMCreate) (err error) {
	switch f.Network {
	case "", api.NetworkBridged, api.NetworkVsock:
		req.NetworkMode = f.Network
	case "bridge":
		req.NetworkMode = api.NetworkBridged
	case "none":
		req.NetworkMode = api.NetworkVsock
	case "host":
		return usagef("--network host: a microVM has a network of its own; publish its ports with -p")
	default:
		return usagef("--network %q: give bridged, or none", f.Network)
	}
	if req.Ports, err = parsePorts(f.Publish); err != nil {
		return err
	}
	if f.IP != "" {
		if addr, err := netip.ParseAddr(f.IP); err != nil || !addr.Is4() {
			return usagef("--ip %q is not an IPv4 address", f.IP)
		}
		req.IPAddress = f.IP
	}
	if req.NetworkMode == api.NetworkVsock {
		switch {
		case len(req.Ports) > 0:
			return usagef("--publish needs a network; leave out --network %s", f.Network)
		case f.IP != "":
			return usagef("--ip needs a network; leave out --network %s", f.Network)
		}
	}
	return nil
}

func (f *vmFlags) lifecycle(req *api.VMCreate) error {
	var err error
	if req.Restart, err = parseRestart("--restart", f.Restart); err != nil {
		return err
	}
	if req.DependsOn, err = parseDependencies(f.DependsOn); err != nil {
		return err
	}
	if f.TTL != "" {
		if req.TTLSeconds, err = parseTTL("--ttl", f.TTL); err != nil {
			return err
		}
	}
	if f.StopSignal != "" {
		s := strings.ToUpper(f.StopSignal)
		if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-") != "" {
			return usagef("--stop-signal %q is not a signal; give a name such as SIGQUIT", f.StopSignal)
		}
		if _, err := strconv.Atoi(s); err != nil && !strings.HasPrefix(s, "SIG") {
			s = "SIG" + s
		}
		req.StopSignal = s
	}
	if f.StopTimeout != "" {
		d, err := time.ParseDuration(f.StopTimeout)
		if seconds, atoiErr := strconv.Atoi(f.StopTimeout); atoiErr == nil { // as docker has it
			d, err = time.Duration(seconds)*time.Second, nil
		}
		if err != nil || d < time.Millisecond || d > maxStopTimeout {
			return usagef("--stop-timeout %q: give a number of seconds, or a time such as 1m30s, up to %v", f.StopTimeout, maxStopTimeout)
		}
		req.StopTimeout = int(d.Milliseconds())
	}
	return nil
}

func parseDependencies(names []string) ([]api.Dependency, error) {
	var out []api.Dependency
	for _, s := range names {
		name, condition, given := strings.Cut(s, ":")
		if api.ValidateName("VM", name) != nil || given && condition != api.DependRunning && condition != api.DependHealthy {
			return nil, usagef("--depends-on %q: give the name of a VM, with :healthy behind it to wait for its health", s)
		}
		out = append(out, api.Dependency{VM: name, Condition: condition})
	}
	return out, nil
}

// parseRestart reads docker's words for a policy; nil for none. flag is the name
// that it was given by.
func parseRestart(flag, s string) (*api.Restart, error) {
	kind, count, counted := strings.Cut(s, ":")
	if counted && kind == api.RestartOnFailure {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 || n > 1_000_000 {
			return nil, usagef("%s %q: give a number of times from 1 on, such as on-failure:3", flag, s)
		}
		return &api.Restart{Policy: kind, MaxRetries: n}, nil
	}
	switch s {
	case "":
		return nil, nil
	case "no", api.RestartNever:
		return &api.Restart{Policy: api.RestartNever}, nil
	case api.RestartOnFailure, api.RestartAlways, api.RestartUnlessStopped:
		return &api.Restart{Policy: s}, nil
	}
	return nil, usagef("%s %q: give no, on-failure, on-failure:N, always or unless-stopped", flag, s)
}

func (f *vmFlags) root(req *api.VMCreate) error {
	modes := []string{}
	for _, m := range []struct {
		name string
		set  bool
	}{{"--read-only", f.ReadOnly}, {"--ephemeral", f.Ephemeral}, {"--disk", f.Disk != ""}} {
		if m.set {
			modes = append(modes, m.name)
		}
	}
	if len(modes) > 1 {
		return usagef("%s contradict each other; give one", strings.Join(modes, " and "))
	}
	switch {
	case f.ReadOnly:
		req.Root = &api.Root{Mode: api.RootReadOnly}
	case f.Ephemeral:
		req.Root = &api.Root{Mode: api.RootMemory}
	case f.Disk != "":
		mib, err := parseMiB("--disk", f.Disk, api.MaxDiskMB)
		if err != nil {
			return err
		}
		if mib < api.MinDiskMB {
			return usagef("--disk %q: a disk has at least %d MiB", f.Disk, api.MinDiskMB)
		}
		req.Root = &api.Root{Mode: api.RootDisk, SizeMB: mib}
	}
	return nil
}
