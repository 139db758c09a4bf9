package guest

import (
	"errors"
	"fmt"

	"github.com/volantvm/volant/guest/plan"
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
	for _, f := range plan.OwnFiles(id) {
		errs = append(errs, sys.WriteFile(f.Path, f.Content, f.Perm))
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
