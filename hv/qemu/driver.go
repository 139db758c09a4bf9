package qemu

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
)

// Name is the driver's name as users write it.
const Name = "qemu"

// Choice says which accelerator to use.
type Choice string

// The choices. With Auto, KVM is used when it can run ordinary guests.
const (
	Auto Choice = "auto"
	KVM  Choice = "kvm"
	TCG  Choice = "tcg"
)

// Config configures a Driver. The zero value is useful.
type Config struct {
	// Binary is the path of qemu-system-x86_64; empty looks in PATH.
	Binary string
	// Accel is Auto when empty. With KVM the driver is unavailable where KVM
	// does not work.
	Accel Choice
}

// Driver starts machines with QEMU. It implements hv.Driver and is safe for
// concurrent use.
type Driver struct {
	config Config

	mu    sync.Mutex // held through a probe, so that there is one at a time
	found *findings  // guarded by mu; what the last probe found
}

var _ hv.Driver = (*Driver)(nil)

// New returns a Driver. It looks at nothing yet.
func New(config Config) *Driver { return &Driver{config: config} }

// Name implements hv.Driver.
func (d *Driver) Name() string { return Name }

// Limits of a machine. microvm has 24 virtio-mmio slots, all of which can be used.
// Two are the random number device and the agent's port or vsock device. Of the
// others 20 may be disks, which are agent, configuration, root, its upper layer,
// and 16 volumes: that leaves a NIC and a balloon.
const (
	maxVCPUs = 32
	maxDisks = 20
	maxNICs  = 1

	maxDevices = 22
)

// minMemoryMiB is the least that the smallest known kernel boots with.
const minMemoryMiB = 16

// Probe implements hv.Driver. The result is kept until the binary changes.
func (d *Driver) Probe(ctx context.Context) (hv.Capabilities, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return hv.Capabilities{}, err
	}
	return f.caps, nil
}

// probe returns what the host offers, looking again when the binary changed.
func (d *Driver) probe(ctx context.Context) (*findings, error) {
	switch d.config.Accel {
	case "", Auto, KVM, TCG:
	default:
		return nil, fmt.Errorf("qemu: accelerator %q: want auto, kvm or tcg", d.config.Accel)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	path, stamp, err := locate(d.config.Binary)
	if err != nil {
		return nil, err
	}
	if d.found != nil && d.found.caps.Binary == path && d.found.stamp == stamp {
		return d.found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	f, err := look(ctx, path, d.config.Accel)
	if err != nil {
		return nil, err
	}
	f.stamp = stamp
	d.found = f
	return f, nil
}

// probeTimeout bounds all of a probe. QEMU starts within 0.2 s on an idle
// machine and within seconds on a busy one.
const probeTimeout = time.Minute
