package daemon

import (
	"context"

	"github.com/volantvm/volant/client/api"
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
	drv, caps, err := d.driver(ctx)
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
