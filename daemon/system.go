package daemon

import (
	"context"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
)

// SystemInfo says what this daemon is and runs on.
func (d *Daemon) SystemInfo(ctx context.Context) (api.SystemInfo, error) {
	info := api.SystemInfo{
		Status: "ok", Version: d.cfg.Version, Listen: d.cfg.Listen,
		DataDir: d.cfg.DataDir, RuntimeDir: d.cfg.RuntimeDir,
	}
	if d.cfg.Network != nil {
		info.Bridge, info.Subnet, info.HostIP = d.cfg.Bridge, d.cfg.Pool.Prefix().String(), d.cfg.Pool.Gateway().String()
	}
	drv, caps, err := d.driver(ctx, api.HypervisorAuto)
	if err != nil {
		info.Hypervisor.Error = err.Error()
		return info, nil
	}
	info.Hypervisor = api.Hypervisor{
		Driver: drv.Name(), Version: caps.Version, Binary: caps.Binary,
		Accel: string(caps.Accel), Channel: string(caps.Channel), Notice: caps.Notice,
	}
	return info, nil
}

// Doctor looks what can run VMs here: each driver is probed.
func (d *Daemon) Doctor(ctx context.Context) (api.Doctor, error) {
	doc := api.Doctor{Hypervisors: []api.HypervisorCheck{}, Limits: d.limitsCheck()}
	for _, drv := range d.drivers() {
		c := api.HypervisorCheck{Name: drv.Name(), Chosen: drv == d.cfg.Driver}
		caps, err := d.probe(ctx, drv)
		if ctx.Err() != nil {
			return api.Doctor{}, ctx.Err()
		}
		if err != nil {
			c.Problem = err.Error()
		} else {
			c.Works, c.Version, c.Binary, c.Accel, c.Notice = true, caps.Version, caps.Binary, string(caps.Accel), caps.Notice
			c.Features = features(caps)
		}
		doc.Hypervisors = append(doc.Hypervisors, c)
	}
	return doc, nil
}

// probe bounds the time that a driver takes for it.
func (d *Daemon) probe(ctx context.Context, drv hv.Driver) (hv.Capabilities, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return drv.Probe(ctx)
}

// SystemSummary counts what there is.
func (d *Daemon) SystemSummary(ctx context.Context) (api.SystemSummary, error) {
	counts, err := d.store.VMCounts(ctx)
	if err != nil {
		return api.SystemSummary{}, d.publicError("count VMs", err)
	}
	plugins, err := d.store.Plugins(ctx)
	if err != nil {
		return api.SystemSummary{}, d.publicError("count plugins", err)
	}
	s := api.SystemSummary{ByStatus: counts.ByStatus, ByRuntime: counts.ByRuntime, TotalPlugins: len(plugins)}
	for _, n := range counts.ByStatus {
		s.TotalVMs += n
	}
	for i := range plugins {
		if plugins[i].Enabled {
			s.EnabledPlugins++
		}
	}
	return s, nil
}
