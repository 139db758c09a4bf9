package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/volantvm/volant/guest/wire"
)

// setIdentity gives the guest its clock and its names. A guest without them
// still serves its workload, so all errors come as errSurvived.
func setIdentity(sys Sys, cfg wire.BootConfig) error {
	// The configuration was written just before the machine was started, so
	// its age is about the uptime.
	errs := []error{
		sys.SetClock(cfg.Time.Add(sys.Uptime())),
		sys.SetHostname(cfg.Hostname),
	}
	if cfg.Root == nil { // else the initramfs is about to go
		errs = append(errs, writeOwn(sys, cfg.Identity()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errSurvived, err)
	}
	return nil
}

// writeOwn writes the machine's own files where the initramfs is the root.
func writeOwn(sys Sys, id wire.Identity) error {
	var errs []error
	for _, o := range ownFiles(id) {
		errs = append(errs, sys.WriteFile(o.path, o.content, o.perm))
	}
	return errors.Join(errs...)
}

// addEntropy credits the host's seed to the kernel's random pool, so that
// nothing waits for entropy that a small machine is slow to gather.
func addEntropy(sys Sys, seed []byte) error {
	if err := sys.AddEntropy(seed); err != nil {
		return fmt.Errorf("%w: %w", errSurvived, err)
	}
	return nil
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

// setNetwork brings the loopback up and, where the VM has a NIC, that.
func setNetwork(sys Sys, n *wire.NetworkConfig) error {
	if err := sys.Loopback(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if n == nil {
		return nil
	}
	return sys.Network(*n)
}
