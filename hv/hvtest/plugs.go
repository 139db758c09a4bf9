package hvtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"

	"github.com/volantvm/volant/hv"
)

var (
	_ hv.Resizer = (*fakeVM)(nil)
	_ hv.Plugger = (*fakeVM)(nil)
)

// change is what every call does that changes the machine: f gets its Spec, and
// what the host can do.
func (v *fakeVM) change(ctx context.Context, op Op, f func(spec *hv.Spec, caps *hv.Capabilities) error) error {
	if err := v.enter(ctx, op); err != nil {
		return err
	}
	v.changing.Lock()
	defer v.changing.Unlock()
	host := v.m.host
	host.mu.Lock()
	caps := host.caps
	host.mu.Unlock()
	spec := v.m.Spec()
	spec.Disks, spec.NICs = slices.Clone(spec.Disks), slices.Clone(spec.NICs)
	err := f(&spec, &caps)
	if v.m.gone() {
		err = hv.ErrGone
	}
	if err == nil {
		err = host.checkSpec(&spec)
	}
	host.mu.Lock()
	defer host.mu.Unlock()
	if err == nil {
		err = host.inUse(v.m, spec.Disks)
	}
	if err != nil {
		return fmt.Errorf("fake: %s %s: %w", op, v.m.rec.ID, err)
	}
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	v.m.spec = spec
	return nil
}

// Resize implements hv.Resizer. The guest follows at once.
func (v *fakeVM) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	return v.change(ctx, OpResize, func(spec *hv.Spec, caps *hv.Capabilities) error {
		switch {
		case vcpus != 0 && !caps.ResizeCPU || memoryMiB != 0 && !caps.ResizeMemory:
			return hv.ErrUnsupported
		case vcpus < 0 || memoryMiB < 0 || vcpus > max(spec.VCPUs, spec.MaxVCPUs) || memoryMiB > max(spec.MemoryMiB, spec.MaxMemoryMiB):
			return fmt.Errorf("%w: %d vCPUs and %d MiB, at most %d and %d are possible", hv.ErrInvalidSpec, vcpus, memoryMiB, spec.MaxVCPUs, spec.MaxMemoryMiB)
		}
		// The limits are those of the launch, which may have named none.
		spec.MaxVCPUs, spec.MaxMemoryMiB = max(spec.VCPUs, spec.MaxVCPUs), max(spec.MemoryMiB, spec.MaxMemoryMiB)
		if vcpus != 0 {
			spec.VCPUs = vcpus
		}
		if memoryMiB != 0 {
			spec.MemoryMiB = memoryMiB
		}
		return nil
	})
}

// AddDisk implements hv.Plugger.
func (v *fakeVM) AddDisk(ctx context.Context, d hv.Disk) error {
	return v.change(ctx, OpAddDisk, func(spec *hv.Spec, caps *hv.Capabilities) error {
		if !caps.PlugDisk || d.Pmem {
			return hv.ErrUnsupported
		}
		if slices.ContainsFunc(spec.Disks, func(o hv.Disk) bool { return o.Serial == d.Serial }) {
			return nil
		}
		spec.Disks = append(spec.Disks, d)
		return nil
	})
}

// RemoveDisk implements hv.Plugger.
func (v *fakeVM) RemoveDisk(ctx context.Context, serial string) error {
	return v.change(ctx, OpRemoveDisk, func(spec *hv.Spec, caps *hv.Capabilities) error {
		if !caps.PlugDisk {
			return hv.ErrUnsupported
		}
		spec.Disks = slices.DeleteFunc(spec.Disks, func(d hv.Disk) bool { return d.Serial == serial })
		return nil
	})
}

// AddNIC implements hv.Plugger.
func (v *fakeVM) AddNIC(ctx context.Context, n hv.NIC) error {
	return v.change(ctx, OpAddNIC, func(spec *hv.Spec, caps *hv.Capabilities) error {
		if !caps.PlugNIC {
			return hv.ErrUnsupported
		}
		if slices.ContainsFunc(spec.NICs, func(o hv.NIC) bool { return bytes.Equal(o.MAC, n.MAC) }) {
			return nil
		}
		spec.NICs = append(spec.NICs, n)
		return nil
	})
}

// RemoveNIC implements hv.Plugger.
func (v *fakeVM) RemoveNIC(ctx context.Context, mac net.HardwareAddr) error {
	return v.change(ctx, OpRemoveNIC, func(spec *hv.Spec, caps *hv.Capabilities) error {
		if !caps.PlugNIC {
			return hv.ErrUnsupported
		}
		spec.NICs = slices.DeleteFunc(spec.NICs, func(n hv.NIC) bool { return bytes.Equal(n.MAC, mac) })
		return nil
	})
}
