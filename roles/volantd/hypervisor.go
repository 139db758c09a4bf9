package volantd

import (
	"context"
	"fmt"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/cloudhypervisor"
	"github.com/volantvm/volant/hv/qemu"
)

// Values of --hypervisor.
const (
	hypervisorAuto = "auto"
	hypervisorCH   = cloudhypervisor.Name
	hypervisorQEMU = qemu.Name
)

// checkHypervisor refuses what --hypervisor cannot be; empty is auto.
func checkHypervisor(name string) error {
	switch name {
	case "", hypervisorAuto, hypervisorCH, hypervisorQEMU:
		return nil
	}
	return fmt.Errorf("hypervisor %q is not known; use %s, %s or %s", name, hypervisorAuto, hypervisorCH, hypervisorQEMU)
}

// chooseDriver returns the driver of new VMs, and those that look after what
// another volantd may have started with them. With auto it is Cloud Hypervisor
// where that works, else QEMU, which the log tells with the reason. Whoever names a
// driver gets it, and learns from volar system info if it cannot run.
func chooseDriver(ctx context.Context, opt Options) (chosen hv.Driver, others []hv.Driver) {
	q := qemu.New(qemu.Config{Binary: opt.QEMU})
	c := cloudhypervisor.New(cloudhypervisor.Config{Binary: opt.CloudHypervisor, AnyKVM: opt.Hypervisor == hypervisorCH})
	switch opt.Hypervisor {
	case hypervisorCH:
		return c, []hv.Driver{q}
	case hypervisorQEMU:
		return q, []hv.Driver{c}
	}
	if _, err := c.Probe(ctx); err != nil {
		opt.Log.Info("QEMU runs new VMs, for Cloud Hypervisor, which goes before it, does not work here", "err", err)
		return q, []hv.Driver{c}
	}
	return c, []hv.Driver{q}
}
