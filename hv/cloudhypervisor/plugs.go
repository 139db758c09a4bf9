package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// ejectTimeout bounds the wait for a guest to let go of a device, some 100 ms
	// for one that has a driver for it.
	ejectTimeout = 30 * time.Second
	// ejectInterval lies between two looks whether it has.
	ejectInterval = 20 * time.Millisecond
)

// ask returns what the API tells of the machine.
func (m *machine) ask(ctx context.Context) (*info, error) {
	var i info
	if err := m.api.get(ctx, opInfo, &i); err != nil {
		return nil, err
	}
	return &i, nil
}

// plug waits for its turn to change the machine; unplug ends it.
func (m *machine) plug(ctx context.Context) error {
	select {
	case m.plugging <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machine) unplug() { <-m.plugging }

// Resize implements hv.Resizer.
func (m *machine) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	return m.call(ctx, "resize", func() error {
		if err := m.plug(ctx); err != nil {
			return err
		}
		defer m.unplug()
		i, err := m.ask(ctx)
		if err != nil {
			return err
		}
		now := i.Config.shape()
		if vcpus < 0 || memoryMiB < 0 || vcpus > now.MaxVCPUs || memoryMiB > now.MaxMemoryMiB {
			return fmt.Errorf("%w: %d vCPUs and %d MiB of memory, at most %d and %d are possible", hv.ErrInvalidSpec, vcpus, memoryMiB, now.MaxVCPUs, now.MaxMemoryMiB)
		}
		boot := int(i.Config.bootBytes() >> 20)
		if memoryMiB != 0 && (memoryMiB < boot || (memoryMiB-boot)%blockMiB != 0) {
			return fmt.Errorf("%w: %d MiB of memory: want the %d that the machine has begun with, and a multiple of %d more", hv.ErrInvalidSpec, memoryMiB, boot, blockMiB)
		}
		var r resizeConfig
		if vcpus != 0 && vcpus != now.VCPUs {
			r.VCPUs = vcpus
		}
		if memoryMiB != 0 && memoryMiB != now.MemoryMiB {
			r.RAM = int64(memoryMiB) << 20
		}
		if r == (resizeConfig{}) {
			return nil
		}
		return m.api.put(ctx, opResize, r)
	})
}

// AddDisk implements hv.Plugger.
func (m *machine) AddDisk(ctx context.Context, d hv.Disk) error {
	return m.call(ctx, "add disk "+strconv.Quote(d.Serial)+" to", func() error {
		if d.Pmem {
			return fmt.Errorf("%w: persistent memory cannot be added", hv.ErrUnsupported)
		}
		probe := hv.Spec{
			ID: m.rec.ID, Dir: m.rec.Dir, VCPUs: 1, MemoryMiB: 1, Kernel: os.DevNull, ConsoleLog: m.rec.ConsoleLog, Disks: []hv.Disk{d},
		}
		if err := errors.Join(probe.Validate(), vmm.CheckDevices(&probe)); err != nil {
			return err
		}
		return m.add(ctx, diskID(d.Serial), func(i *info) error {
			if i.Config.disk(d.Serial) != nil {
				return errPlugged
			}
			if n := len(i.Config.Disks) + len(i.Config.Pmem); n >= maxDisks {
				return fmt.Errorf("%w: it has %d disks, and can have no more", hv.ErrInvalidSpec, n)
			}
			if !i.Config.reaches(d.Path) {
				return fmt.Errorf("%w: disk %s is in none of the directories that the VMM was given to reach at its launch", hv.ErrUnsupported, d.Path)
			}
			if err := checkLocks([]hv.Disk{d}); err != nil {
				return err
			}
			err := m.api.put(ctx, opAddDisk, newDisk(d))
			if locked := checkLocks([]hv.Disk{d}); err != nil && errors.Is(locked, hv.ErrDiskInUse) {
				err = fmt.Errorf("%w (%w)", locked, err) // somebody was faster
			}
			return err
		})
	})
}

// errPlugged says that a device to be added is there.
var errPlugged = errors.New("it is there")

// add adds a device with f, once the guest has let go of the one that had this id
// before.
func (m *machine) add(ctx context.Context, id string, f func(*info) error) error {
	if err := m.plug(ctx); err != nil {
		return err
	}
	defer m.unplug()
	i, err := m.ask(ctx)
	if err == nil && i.leaving(id) {
		if err = m.ejected(ctx, id); err == nil {
			i, err = m.ask(ctx)
		}
	}
	if err == nil {
		err = f(i)
	}
	if errors.Is(err, errPlugged) {
		return nil
	}
	return err
}

// leaving says that the guest has been asked to let go of a device, and has not
// yet: it is not configured any more.
func (i *info) leaving(id string) bool {
	if _, ok := i.Devices[id]; !ok {
		return false
	}
	for _, d := range i.Config.Disks {
		if d.ID == id {
			return false
		}
	}
	for _, n := range i.Config.Net {
		if n.ID == id {
			return false
		}
	}
	return true
}

// RemoveDisk implements hv.Plugger.
func (m *machine) RemoveDisk(ctx context.Context, serial string) error {
	return m.call(ctx, "remove disk "+strconv.Quote(serial)+" of", func() error {
		return m.remove(ctx, func(i *info) (string, bool) { return diskID(serial), i.Config.disk(serial) != nil })
	})
}

// remove asks the guest to let go of a device, unless it has been asked, and waits
// until it has. To ask twice ends version 52.
func (m *machine) remove(ctx context.Context, find func(*info) (id string, there bool)) error {
	if err := m.plug(ctx); err != nil {
		return err
	}
	defer m.unplug()
	i, err := m.ask(ctx)
	if err != nil {
		return err
	}
	id, there := find(i)
	switch {
	case there:
		if err := m.api.put(ctx, opRemove, removeConfig{ID: id}); err != nil {
			return err
		}
	case !i.leaving(id):
		return nil
	}
	return m.ejected(ctx, id)
}

// ejected waits until the guest has let go of a device, and with it the VMM of
// what the device is made of.
func (m *machine) ejected(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ejectTimeout, fmt.Errorf("the guest has not let go of %s in %v: it may have no driver that does, and keeps it until it ends", id, ejectTimeout))
	defer cancel()
	for {
		i, err := m.ask(ctx)
		if err == nil && i.Devices[id] == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-m.proc.Done():
			return hv.ErrGone
		case <-time.After(ejectInterval):
		}
	}
}

// AddNIC implements hv.Plugger.
func (m *machine) AddNIC(ctx context.Context, n hv.NIC) error {
	return m.call(ctx, "add NIC "+n.MAC.String()+" to", func() error {
		probe := hv.Spec{
			ID: m.rec.ID, Dir: m.rec.Dir, VCPUs: 1, MemoryMiB: 1, Kernel: os.DevNull, ConsoleLog: m.rec.ConsoleLog, NICs: []hv.NIC{n},
		}
		if err := probe.Validate(); err != nil {
			return err
		}
		return m.add(ctx, nicID(n.MAC), func(i *info) error {
			if _, there := i.Config.nic(n.MAC.String()); there {
				return errPlugged
			}
			if have := len(i.Config.Net); have >= maxNICs {
				return fmt.Errorf("%w: it has %d NICs, and can have no more", hv.ErrInvalidSpec, have)
			}
			// A NIC of a restored machine may have the id still, and another address.
			id := nicID(n.MAC)
			for k := 2; i.Devices[id] != nil; k++ {
				id = nicID(n.MAC) + "-" + strconv.Itoa(k)
			}
			return addNIC(ctx, m.api, m.openTap, id, n)
		})
	})
}

// RemoveNIC implements hv.Plugger.
func (m *machine) RemoveNIC(ctx context.Context, mac net.HardwareAddr) error {
	return m.call(ctx, "remove NIC "+mac.String()+" of", func() error {
		return m.remove(ctx, func(i *info) (string, bool) {
			if id, ok := i.Config.nic(mac.String()); ok {
				return id, true
			}
			return nicID(mac), false
		})
	})
}
