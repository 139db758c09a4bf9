package httpapi

import "net/http"

func (s *Server) health(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, status{Status: "ok"})
	return nil
}

func (s *Server) systemInfo(w http.ResponseWriter, r *http.Request) error {
	info, err := s.svc.SystemInfo(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, info)
	return nil
}

func (s *Server) doctor(w http.ResponseWriter, r *http.Request) error {
	doc, err := s.svc.Doctor(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, doc)
	return nil
}

func (s *Server) systemSummary(w http.ResponseWriter, r *http.Request) error {
	sum, err := s.svc.SystemSummary(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sum)
	return nil
}
