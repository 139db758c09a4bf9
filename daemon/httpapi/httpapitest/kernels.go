package httpapitest

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) Kernels(context.Context) ([]api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.kernels), func(a, b api.Kernel) int { return cmp.Compare(a.Name, b.Name) }), s.Err["Kernels"]
}

func (s *Service) ImportKernel(_ context.Context, in api.KernelImport) (api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	size, ok := s.blobs[in.Digest]
	if !ok {
		return api.Kernel{}, api.Errorf(api.CodeInvalid, "the kernel image %s was not uploaded", in.Digest)
	}
	k := api.Kernel{Name: in.Name, Version: in.Version, Digest: in.Digest, Size: size, Modules: in.Modules, CreatedAt: s.now()}
	first := len(s.kernels) == 0
	s.kernels[k.Name] = k
	s.emit(api.Event{Type: api.EventKernelImported, Name: k.Name})
	if in.Default || first {
		s.setDefault(k.Name)
	}
	return s.kernels[k.Name], nil
}

func (s *Service) setDefault(name string) {
	for n, k := range s.kernels {
		k.Default = n == name
		s.kernels[n] = k
	}
	s.emit(api.Event{Type: api.EventKernelDefault, Name: name})
}

func (s *Service) DefaultKernel(_ context.Context, name string) (api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.kernels[name]; !ok {
		return api.Kernel{}, api.Errorf(api.CodeNotFound, "there is no kernel %q", name)
	}
	s.setDefault(name)
	return s.kernels[name], nil
}

func (s *Service) RemoveKernel(_ context.Context, name string) error {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.kernels[name]; !ok {
		return api.Errorf(api.CodeNotFound, "there is no kernel %q", name)
	}
	delete(s.kernels, name)
	s.emit(api.Event{Type: api.EventKernelRemoved, Name: name})
	return nil
}
