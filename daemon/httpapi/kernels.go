package httpapi

import (
	"net/http"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) listKernels(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Kernels(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, notNil(list))
	return nil
}

func (s *Server) importKernel(w http.ResponseWriter, r *http.Request) error {
	var in api.KernelImport
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := api.ValidateName("kernel", in.Name); err != nil {
		return err
	}
	if _, err := api.ParseDigest(in.Digest); err != nil {
		return api.Errorf(api.CodeInvalid, "digest: %v", err)
	}
	if in.Modules != "" {
		if _, err := api.ParseDigest(in.Modules); err != nil {
			return api.Errorf(api.CodeInvalid, "modules: %v", err)
		}
	}
	k, err := s.svc.ImportKernel(r.Context(), in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, k)
	return nil
}

func (s *Server) defaultKernel(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("kernel", r)
	if err != nil {
		return err
	}
	k, err := s.svc.DefaultKernel(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, k)
	return nil
}

func (s *Server) removeKernel(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("kernel", r)
	if err != nil {
		return err
	}
	if err := s.svc.RemoveKernel(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
