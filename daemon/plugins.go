package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// plugin returns the plugin of that name, or an *api.Error.
func (d *Daemon) plugin(ctx context.Context, name string) (row.Plugin, error) {
	p, err := d.store.Plugin(ctx, name)
	if !errors.Is(err, row.ErrNotFound) {
		return p, err
	}
	all, err := d.store.Plugins(ctx)
	if err != nil {
		return row.Plugin{}, err
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	e := notFound("plugin", name, names)
	if e.Hint == "" {
		e = e.WithHint("volar plugins list shows what is installed")
	}
	return row.Plugin{}, e
}

// InstallPlugin installs a manifest, or replaces the plugin of that name: VMs
// that exist keep the manifest that they were created with. Installing the same
// again changes nothing. Codes: invalid, unsupported (with the field's path),
// not_found (a blob was not uploaded, the kernel is not there).
func (d *Daemon) InstallPlugin(ctx context.Context, m api.Manifest) (api.Plugin, error) {
	if err := m.Validate(); err != nil {
		return api.Plugin{}, err
	}
	if err := checkSupported(&m); err != nil {
		return api.Plugin{}, err
	}
	if m.Runtime == "" {
		m.Runtime = m.Name
	}
	if m.Kernel != "" {
		if _, err := d.kernel(ctx, m.Kernel); err != nil {
			return api.Plugin{}, d.publicError("install plugin", at("kernel", err))
		}
	}
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	if err := d.checkBlobs(ctx, &m); err != nil {
		return api.Plugin{}, err
	}
	p, evs, err := d.store.PutPlugin(ctx, api.Plugin{
		Name: m.Name, Version: m.Version, Runtime: m.Runtime, Enabled: m.Enabled == nil || *m.Enabled, Manifest: m,
	}, manifestBlobs(&m), api.Event{Type: api.EventPluginInstalled, Message: m.Version})
	if err != nil {
		return api.Plugin{}, d.publicError("install plugin", err)
	}
	d.bus.notify("", len(evs) > 0)
	return p.Plugin, nil
}

// checkBlobs refuses a manifest that names a blob which is not there, by the
// field that does. The caller holds d.blobs for reading.
func (d *Daemon) checkBlobs(ctx context.Context, m *api.Manifest) error {
	fields := make(map[string]string)
	if m.Initramfs != nil {
		fields["initramfs.checksum"] = m.Initramfs.Checksum
	}
	if m.Rootfs != nil {
		fields["rootfs.checksum"] = m.Rootfs.Checksum
	}
	for i, v := range m.Volumes {
		if v.Blob != "" {
			fields[fmt.Sprintf("volumes[%d].blob", i)] = v.Blob
		}
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if _, err := d.Blob(ctx, fields[field]); err != nil {
			return at(field, err)
		}
	}
	return nil
}

// Plugins returns all plugins by name.
func (d *Daemon) Plugins(ctx context.Context) ([]api.Plugin, error) {
	rows, err := d.store.Plugins(ctx)
	if err != nil {
		return nil, d.publicError("list plugins", err)
	}
	out := make([]api.Plugin, len(rows))
	for i := range rows {
		out[i] = rows[i].Plugin
	}
	return out, nil
}

// Plugin returns one plugin. Codes: not_found.
func (d *Daemon) Plugin(ctx context.Context, name string) (api.Plugin, error) {
	p, err := d.plugin(ctx, name)
	return p.Plugin, d.publicError("get plugin", err)
}

// EnablePlugin switches a plugin on or off for new VMs. Codes: not_found.
func (d *Daemon) EnablePlugin(ctx context.Context, name string, enabled bool) (api.Plugin, error) {
	if _, err := d.plugin(ctx, name); err != nil {
		return api.Plugin{}, d.publicError("switch plugin", err)
	}
	ev := api.Event{Type: api.EventPluginEnabled}
	if !enabled {
		ev.Type = api.EventPluginDisabled
	}
	p, evs, err := d.store.EnablePlugin(ctx, name, enabled, ev)
	if err != nil {
		return api.Plugin{}, d.publicError("switch plugin", err)
	}
	d.bus.notify("", len(evs) > 0)
	return p.Plugin, nil
}

// RemovePlugin removes a plugin; its blobs go later. Codes: not_found, conflict
// (VMs were created from it).
func (d *Daemon) RemovePlugin(ctx context.Context, name string) error {
	if _, err := d.plugin(ctx, name); err != nil {
		return d.publicError("remove plugin", err)
	}
	_, err := d.store.RemovePlugin(ctx, name, api.Event{Type: api.EventPluginRemoved})
	if errors.Is(err, row.ErrInUse) {
		return api.Errorf(api.CodeConflict, "plugin %s is in use: VMs were created from it", name).WithHint("delete them first: volar vms list --plugin %s", name)
	}
	if err != nil {
		return d.publicError("remove plugin", err)
	}
	d.bus.notify("", true)
	return nil
}
