package httpapitest

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) InstallPlugin(_ context.Context, m api.Manifest) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["InstallPlugin"]; err != nil {
		return api.Plugin{}, err
	}
	for _, sum := range checksums(m) {
		if _, ok := s.blobs[sum]; !ok {
			return api.Plugin{}, api.Errorf(api.CodeInvalid, "the artifact %q was not uploaded", sum)
		}
	}
	p := api.Plugin{
		Name: m.Name, Version: m.Version, Runtime: cmp.Or(m.Runtime, m.Name), Enabled: m.Enabled == nil || *m.Enabled,
		Manifest: m, InstalledAt: s.now(), UpdatedAt: s.now(),
	}
	s.plugins[m.Name] = p
	s.emit(api.Event{Type: api.EventPluginInstalled, Name: m.Name})
	return p, nil
}

func checksums(m api.Manifest) []string {
	var out []string
	if m.Initramfs != nil {
		out = append(out, m.Initramfs.Checksum)
	}
	if m.Rootfs != nil {
		out = append(out, m.Rootfs.Checksum)
	}
	for _, d := range m.Disks {
		out = append(out, d.Checksum)
	}
	return out
}

func (s *Service) Plugins(context.Context) ([]api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.plugins), func(a, b api.Plugin) int { return cmp.Compare(a.Name, b.Name) }), s.Err["Plugins"]
}

func (s *Service) Plugin(_ context.Context, name string) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	p, ok := s.plugins[name]
	if !ok {
		return p, api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	return p, nil
}

func (s *Service) EnablePlugin(_ context.Context, name string, enabled bool) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	p, ok := s.plugins[name]
	if !ok {
		return p, api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	p.Enabled = enabled
	s.plugins[name] = p
	t := api.EventPluginDisabled
	if enabled {
		t = api.EventPluginEnabled
	}
	s.emit(api.Event{Type: t, Name: name})
	return p, nil
}

func (s *Service) RemovePlugin(_ context.Context, name string) error {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.plugins[name]; !ok {
		return api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	for _, vm := range slices.Sorted(maps.Keys(s.vms)) {
		if s.vms[vm].Plugin == name {
			return api.Errorf(api.CodeConflict, "plugin %s is used by VM %s", name, vm).WithHint("delete its VMs first")
		}
	}
	delete(s.plugins, name)
	s.emit(api.Event{Type: api.EventPluginRemoved, Name: name})
	return nil
}
