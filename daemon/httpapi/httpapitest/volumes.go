package httpapitest

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) Volumes(context.Context) ([]api.Volume, error) {
	s.lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.volumes), func(a, b api.Volume) int { return cmp.Compare(a.Name, b.Name) }), s.Err["Volumes"]
}

func (s *Service) Volume(_ context.Context, name string) (api.Volume, error) {
	s.lock()
	defer s.mu.Unlock()
	v, ok := s.volumes[name]
	if !ok {
		return v, api.Errorf(api.CodeNotFound, "there is no volume %q", name)
	}
	return v, nil
}

func (s *Service) CreateVolume(_ context.Context, in api.VolumeCreate) (api.Volume, error) {
	if err := api.ValidateName("volume", in.Name); err != nil {
		return api.Volume{}, err
	}
	if err := api.ValidateDiskSize("size_mb", in.SizeMB); err != nil {
		return api.Volume{}, err
	}
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.volumes[in.Name]; ok {
		return api.Volume{}, api.Errorf(api.CodeExists, "a volume of that name exists")
	}
	return s.addVolume(in), s.Err["CreateVolume"]
}

// addVolume adds a volume. The caller holds mu.
func (s *Service) addVolume(in api.VolumeCreate) api.Volume {
	v := api.Volume{Name: in.Name, SizeMB: cmp.Or(in.SizeMB, api.DefaultVolumeMB), Used: 136 << 10, Labels: in.Labels, CreatedAt: s.now()}
	s.volumes[v.Name] = v
	s.emit(api.Event{Type: api.EventVolumeCreated, Name: v.Name})
	return v
}

func (s *Service) LabelVolume(_ context.Context, name string, in api.VolumeChange) (api.Volume, error) {
	s.lock()
	defer s.mu.Unlock()
	v, ok := s.volumes[name]
	if !ok {
		return v, api.Errorf(api.CodeNotFound, "there is no volume %q", name)
	}
	v.Labels = maps.Clone(v.Labels)
	for key, value := range in.Labels {
		if value == nil {
			delete(v.Labels, key)
			continue
		}
		if v.Labels == nil {
			v.Labels = make(map[string]string)
		}
		v.Labels[key] = *value
	}
	s.volumes[name] = v
	s.emit(api.Event{Type: api.EventVolumeLabeled, Name: name, Labels: v.Labels})
	return v, nil
}

func (s *Service) RemoveVolume(_ context.Context, name string) error {
	s.lock()
	defer s.mu.Unlock()
	v, ok := s.volumes[name]
	if !ok {
		return api.Errorf(api.CodeNotFound, "there is no volume %q", name)
	}
	if len(v.VMs) > 0 {
		return api.Errorf(api.CodeConflict, "volume %s is in use by VMs: %s", name, v.VMs[0]).WithHint("delete them first")
	}
	delete(s.volumes, name)
	s.emit(api.Event{Type: api.EventVolumeRemoved, Name: name})
	return nil
}
