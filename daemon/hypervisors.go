package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
)

// capabilities remembers what each driver said on its first successful Probe.
// The zero value is ready for use.
type capabilities struct {
	mu    sync.Mutex
	known map[string]hv.Capabilities // by the driver's name; guarded by mu
}

// get returns what is known of a driver.
func (c *capabilities) get(name string) (hv.Capabilities, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	caps, ok := c.known[name]
	return caps, ok
}

func (c *capabilities) put(name string, caps hv.Capabilities) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[string]hv.Capabilities)
	}
	c.known[name] = caps
}

// probeTimeout bounds a Probe, which may have to run a trial machine.
const probeTimeout = 30 * time.Second

// chosen is the driver of a VM whose manifest asks for want (api.HypervisorAuto
// and "" for no one in particular). The error is an *api.Error with
// CodeUnavailable.
func (d *Daemon) chosen(want string) (hv.Driver, error) {
	if want == "" || want == api.HypervisorAuto {
		if d.cfg.Driver == nil {
			return nil, unavailable(want, d.cfg.DriverError)
		}
		return d.cfg.Driver, nil
	}
	drv := d.driverFor(want)
	if drv == nil {
		return nil, unavailable(want, errors.New("this volantd does not know it"))
	}
	return drv, nil
}

// driver is chosen, and what it can do here.
func (d *Daemon) driver(ctx context.Context, want string) (hv.Driver, hv.Capabilities, error) {
	drv, err := d.chosen(want)
	if err != nil {
		return nil, hv.Capabilities{}, err
	}
	if caps, ok := d.caps.get(drv.Name()); ok {
		return drv, caps, nil
	}
	caps, err := d.probe(ctx, drv)
	if err != nil {
		return nil, hv.Capabilities{}, unavailable(want, err)
	}
	d.caps.put(drv.Name(), caps)
	return drv, caps, nil
}

func unavailable(want string, err error) error {
	if want == "" || want == api.HypervisorAuto {
		return api.Errorf(api.CodeUnavailable, "no hypervisor can run here: %v", err).WithHint("volar doctor says what was found; VMs can be created and listed meanwhile")
	}
	return api.Errorf(api.CodeUnavailable, "the VM is to run with %s, which cannot run here: %v", want, err).
		WithHint("volar doctor says what it lacks; with hypervisor auto the VM runs with whatever does work")
}

// driverFor returns the driver that made a record, nil when it is not here.
func (d *Daemon) driverFor(name string) hv.Driver {
	for _, drv := range d.drivers() {
		if drv.Name() == name {
			return drv
		}
	}
	return nil
}

// drivers are all that there are, the one for new VMs first.
func (d *Daemon) drivers() []hv.Driver {
	if d.cfg.Driver == nil {
		return d.cfg.Others
	}
	return append([]hv.Driver{d.cfg.Driver}, d.cfg.Others...)
}
