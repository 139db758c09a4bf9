package daemon

import (
	"crypto/rand"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store/row"
)

// checkSupported refuses what a valid manifest may ask for but this version
// does not run. Nothing is ever ignored in silence: a VM that runs without
// something its author asked for is worse than one that does not run.
func checkSupported(m *api.Manifest) error {
	unsupported := func(field, why string) error {
		return api.Errorf(api.CodeUnsupported, "%s: %s", field, why)
	}
	switch {
	case m.Rootfs != nil && m.Rootfs.Format == "qcow2":
		return unsupported("rootfs.format", "qcow2 images are not attached by this version; convert it: qemu-img convert -O raw")
	case m.Rootfs != nil && m.Rootfs.Checksum == "":
		return api.Errorf(api.CodeInvalid, "rootfs.checksum: is missing").WithHint("give the sha256 of the image, as sha256sum prints it: \"sha256:<64 hex digits>\"")
	case len(m.Disks) > 0:
		return unsupported("disks", "further disks are not attached by this version; volumes are")
	case m.CloudInit != nil:
		return unsupported("cloud_init", "cloud-init seeds are not made by this version; use workload.env")
	case m.Devices != nil && (len(m.Devices.PCIPassthrough) > 0 || len(m.Devices.Allowlist) > 0):
		return unsupported("devices", "host devices are not passed through by this version")
	case m.Network != nil && m.Network.Mode == api.NetworkDHCP:
		return unsupported("network.mode", "dhcp is not done by this version; bridged gives a static address")
	case m.Network != nil && m.Network.Subnet != "":
		return unsupported("network.subnet", "all VMs share volantd's subnet in this version")
	case m.Network != nil && m.Network.Gateway != "":
		return unsupported("network.gateway", "the gateway is volantd's own address in this version")
	case m.Initramfs != nil && m.Initramfs.Checksum == "":
		return api.Errorf(api.CodeInvalid, "initramfs.checksum: is missing").WithHint("give the sha256 of the archive, as sha256sum prints it: \"sha256:<64 hex digits>\"")
	}
	return nil
}

// agentKind says how the agent gets into a VM of this manifest.
func agentKind(m *api.Manifest) string {
	if m.Initramfs != nil && m.Initramfs.Agent != "" {
		return m.Initramfs.Agent
	}
	return api.AgentHost
}

// manifestBlobs lists the digests that a manifest names.
func manifestBlobs(m *api.Manifest) []string {
	var out []string
	if m.Initramfs != nil && m.Initramfs.Checksum != "" {
		out = append(out, m.Initramfs.Checksum)
	}
	if m.Rootfs != nil && m.Rootfs.Checksum != "" {
		out = append(out, m.Rootfs.Checksum)
	}
	for _, v := range m.Volumes {
		if v.Blob != "" && !slices.Contains(out, v.Blob) {
			out = append(out, v.Blob)
		}
	}
	return out
}

// stopTimeout is the grace that a manifest gives its workload.
func stopTimeout(m *api.Manifest) time.Duration {
	if m.Workload != nil && m.Workload.StopTimeout > 0 {
		return time.Duration(m.Workload.StopTimeout) * time.Millisecond
	}
	return wire.DefaultStopTimeout
}

// bootConfig is what the guest of one incarnation is told. Seed and time are
// new each time; all else follows from the row.
func (d *Daemon) bootConfig(vm *row.VM, m *api.Manifest) (wire.BootConfig, error) {
	seed := make([]byte, 32)
	rand.Read(seed) // never fails: crypto/rand
	cfg := wire.BootConfig{
		Protocol: wire.Protocol, Version: d.cfg.Version, VM: vm.ID, Name: vm.Name, Incarnation: vm.Incarnation,
		Hostname: vm.Name, MachineID: ipam.MachineID(vm.ID), Time: d.cfg.Now(), Seed: seed,
		Root: rootConfig(m), Workload: workloadConfig(vm, m),
	}
	if m.Hostname != "" {
		cfg.Hostname = m.Hostname
	}
	mounts, err := guestMounts(m)
	if err != nil {
		return wire.BootConfig{}, err
	}
	for _, g := range mounts {
		cfg.Mounts = append(cfg.Mounts, g.MountConfig)
	}
	if vm.IPAddress != "" {
		addr, err := netip.ParseAddr(vm.IPAddress)
		if err != nil {
			return wire.BootConfig{}, err
		}
		cfg.Network = &wire.NetworkConfig{
			MAC: vm.MACAddress, Address: netip.PrefixFrom(addr, d.cfg.Pool.Prefix().Bits()),
			Gateway: d.cfg.Pool.Gateway(), Nameservers: d.cfg.Nameservers,
		}
	}
	return cfg, nil
}

func workloadConfig(vm *row.VM, m *api.Manifest) wire.WorkloadConfig {
	w := m.Workload
	if w == nil {
		return wire.WorkloadConfig{}
	}
	env := maps.Clone(w.Env)
	if env == nil {
		env = make(map[string]string, len(vm.Env))
	}
	maps.Copy(env, vm.Env)
	policy, most := guestPolicy(vm, m)
	out := wire.WorkloadConfig{
		Args: w.Entrypoint, Workdir: w.Workdir, User: w.User, Restart: policy, RestartMax: most,
		StopSignal: w.StopSignal, StopTimeout: stopTimeout(m), BaseURL: w.BaseURL, Health: healthConfig(m),
		TTY: w.TTY, Stdin: w.Stdin, Init: w.Init, Attach: vm.Attach && vm.Incarnation == 1,
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out.Env = append(out.Env, k+"="+env[k])
	}
	return out
}

// kernelParameters splits what a user adds to the kernel command line and
// refuses what would change who the guest believes to be.
func kernelParameters(cmdline string) ([]string, error) {
	const maxCmdline = 1024 // bytes; the kernel's limit is 2047, shared with the machine's own parameters
	if len(cmdline) > maxCmdline {
		return nil, api.Errorf(api.CodeInvalid, "kernel_cmdline: has %d bytes; at most %d are allowed", len(cmdline), maxCmdline)
	}
	fields := strings.Fields(cmdline)
	for _, f := range fields {
		switch {
		case strings.HasPrefix(f, wire.ParamPrefix) && !strings.HasPrefix(f, wire.ParamLog+"="):
			return nil, api.Errorf(api.CodeInvalid, "kernel_cmdline: %q: parameters that begin with %s are Volant's own", f, wire.ParamPrefix)
		case strings.HasPrefix(f, "init=") || strings.HasPrefix(f, "rdinit="):
			return nil, api.Errorf(api.CodeInvalid, "kernel_cmdline: %q: what runs first is said by the manifest (initramfs.agent)", f)
		case f == "--" || f == "---":
			return nil, api.Errorf(api.CodeInvalid, "kernel_cmdline: %q would end the parameters", f)
		}
		for i := range len(f) {
			if f[i] <= ' ' || f[i] > '~' || f[i] == '"' {
				return nil, api.Errorf(api.CodeInvalid, "kernel_cmdline: %q: only printable ASCII without quotes is understood", f)
			}
		}
	}
	return fields, nil
}

// cmdline is what Volant puts on the kernel command line. A guest without an
// agent has nobody to read the boot configuration, so it gets its address the
// kernel's way (Documentation/admin-guide/nfs/nfsroot.rst, "ip=").
func (d *Daemon) cmdline(vm *row.VM, m *api.Manifest) ([]string, error) {
	params, err := kernelParameters(vm.KernelCmdline)
	if err != nil {
		return nil, err
	}
	out := []string{wire.ParamVM + "=" + vm.ID}
	if vm.ImageID != "" && m.Initramfs != nil {
		out = append(out, "rdinit=/"+imageInit)
	}
	if agentKind(m) == api.AgentNone && vm.IPAddress != "" {
		out = append(out, "ip="+vm.IPAddress+"::"+d.cfg.Pool.Gateway().String()+":"+netmask(d.cfg.Pool.Prefix())+":"+vm.Name+":eth0:off")
	}
	return append(out, params...), nil
}

func netmask(p netip.Prefix) string {
	var m [4]byte
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(m).String()
}
