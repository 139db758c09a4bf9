package httpapi

import (
	"net/http"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) listVolumes(w http.ResponseWriter, r *http.Request) error {
	return sendSelected(w, r, func() ([]api.Volume, error) { return s.svc.Volumes(r.Context()) },
		func(v api.Volume) map[string]string { return v.Labels }, func(list []api.Volume) any { return list })
}

func (s *Server) createVolume(w http.ResponseWriter, r *http.Request) error {
	var in api.VolumeCreate
	if err := decode(w, r, &in); err != nil {
		return err
	}
	v, err := s.svc.CreateVolume(r.Context(), in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, v)
	return nil
}

func (s *Server) getVolume(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("volume", r)
	if err != nil {
		return err
	}
	v, err := s.svc.Volume(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

func (s *Server) labelVolume(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("volume", r)
	if err != nil {
		return err
	}
	var in api.VolumeChange
	if err := decode(w, r, &in); err != nil {
		return err
	}
	v, err := s.svc.LabelVolume(r.Context(), name, in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

func (s *Server) removeVolume(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("volume", r)
	if err != nil {
		return err
	}
	if err := s.svc.RemoveVolume(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
