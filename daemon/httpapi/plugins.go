package httpapi

import (
	"net/http"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) listPlugins(w http.ResponseWriter, r *http.Request) error {
	return sendSelected(w, r, func() ([]api.Plugin, error) { return s.svc.Plugins(r.Context()) },
		func(p api.Plugin) map[string]string { return p.Manifest.Labels }, func(list []api.Plugin) any { return pluginList{Plugins: list} })
}

func (s *Server) installPlugin(w http.ResponseWriter, r *http.Request) error {
	var m api.Manifest
	if err := decode(w, r, &m); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return err
	}
	p, err := s.svc.InstallPlugin(r.Context(), m)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, p)
	return nil
}

// plugin returns the plugin that the path names.
func (s *Server) plugin(r *http.Request) (api.Plugin, error) {
	name, err := pathName("plugin", r)
	if err != nil {
		return api.Plugin{}, err
	}
	return s.svc.Plugin(r.Context(), name)
}

func (s *Server) getPlugin(w http.ResponseWriter, r *http.Request) error {
	p, err := s.plugin(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p)
	return nil
}

func (s *Server) getManifest(w http.ResponseWriter, r *http.Request) error {
	p, err := s.plugin(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p.Manifest)
	return nil
}

func (s *Server) removePlugin(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("plugin", r)
	if err != nil {
		return err
	}
	if err := s.svc.RemovePlugin(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) enablePlugin(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("plugin", r)
	if err != nil {
		return err
	}
	var in api.PluginEnable
	if err := decode(w, r, &in); err != nil {
		return err
	}
	p, err := s.svc.EnablePlugin(r.Context(), name, in.Enabled)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p)
	return nil
}

// notNil makes an empty list an empty JSON array instead of null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
