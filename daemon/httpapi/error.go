package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/volantvm/volant/client/api"
)

// httpStatus maps an error code to the HTTP status that carries it. A code
// that the table does not know is a fault of ours.
func httpStatus(code api.Code) int {
	for _, row := range []struct {
		code   api.Code
		status int
	}{
		{api.CodeInvalid, http.StatusBadRequest},
		{api.CodeDenied, http.StatusForbidden},
		{api.CodeNotFound, http.StatusNotFound},
		{api.CodeExists, http.StatusConflict},
		{api.CodeConflict, http.StatusConflict},
		{api.CodeExhausted, http.StatusConflict},
		{api.CodeTooLarge, http.StatusRequestEntityTooLarge},
		{api.CodeUnsupported, http.StatusNotImplemented},
		{api.CodeUnavailable, http.StatusServiceUnavailable},
		{api.CodeTimeout, http.StatusGatewayTimeout},
	} {
		if row.code == code {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// publicError turns any error into one that may cross the API. An error that
// is not an *api.Error is logged here and shown without detail.
func (s *Server) publicError(r *http.Request, id string, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		if e.Code == api.CodeInternal {
			s.log.Error("request failed", keyRequest, id, keyRoute, r.URL.Path, keyErr, err)
		}
		return e
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return api.Errorf(api.CodeTooLarge, "the request's body is larger than %d bytes", tooLarge.Limit)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeTimeout, "the daemon did not finish in time")
	}
	s.log.Error("request failed", keyRequest, id, keyRoute, r.URL.Path, keyErr, err)
	return api.Errorf(api.CodeInternal, "volantd failed unexpectedly").WithHint("its log says more under request %s", id)
}

// fail answers with err. It must be called before anything was written.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, id string, err error) {
	if r.Context().Err() != nil {
		s.log.Debug("client went away", keyRequest, id, keyErr, err)
		return
	}
	e := s.publicError(r, id, err)
	writeJSON(w, httpStatus(e.Code), api.ErrorBody{Error: *e})
}

// Keys of log records.
const (
	keyRequest = "request"
	keyMethod  = "method"
	keyRoute   = "route"
	keyStatus  = "status"
	keyDur     = "dur"
	keyErr     = "err"
)

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
