package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/volantvm/volant/client/api"
)

// archiveIdle is how long a client may take for the next piece of an archive: it
// may be a pipe between two programs, which wait for others in turn.
const archiveIdle = 2 * time.Minute

// archiveBuffer is how much of an archive is copied at once, in bytes.
const archiveBuffer = 64 << 10

// drainIdle is how long a client that was refused may go on to send.
const drainIdle = 10 * time.Second

// fileRequest reads a request about a file of a VM; flag is its switch.
func fileRequest(r *http.Request, flag string) (name, path string, set bool, err error) {
	q := newQuery(r)
	path, set = q.str("path"), q.bool(flag, false)
	name, err = pathName("VM", r)
	if err == nil {
		err = q.err
	}
	if err == nil {
		err = api.ValidatePath(path)
	}
	return name, path, set, err
}

func (s *Server) statFile(w http.ResponseWriter, r *http.Request) error {
	name, path, follow, err := fileRequest(r, "follow")
	if err != nil {
		return err
	}
	f, err := s.svc.VMStat(r.Context(), name, path, follow)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, f)
	return nil
}

func (s *Server) getArchive(w http.ResponseWriter, r *http.Request) error {
	name, path, follow, err := fileRequest(r, "follow")
	if err != nil {
		return err
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	if r.Method == http.MethodHead {
		if _, err := s.svc.VMStat(ctx, name, path, follow); err != nil {
			return s.orClosing(ctx, err)
		}
		w.Header().Set("Content-Type", mediaTar)
		return nil
	}
	from, err := s.svc.VMCopyFrom(ctx, name, path, follow)
	if err != nil {
		return s.orClosing(ctx, err)
	}
	defer from.Close()
	w.Header().Set("Content-Type", mediaTar)
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	to := &movingWriter{w: w, rc: rc}
	if err := to.flush(); err != nil { // who waits learns that it has begun
		return nil
	}
	_, err = io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, archiveBuffer))
	var said *api.Error
	switch {
	case err == nil, to.err != nil:
		return nil // it was all, or the client has gone
	case errors.As(err, &said):
		if text, jsonErr := json.Marshal(said); jsonErr == nil {
			w.Header().Set(http.TrailerPrefix+api.TrailerError, string(text))
			return nil
		}
	}
	s.log.Debug("archive cut short", keyRequest, w.Header().Get(api.HeaderRequestID), keyErr, errors.Join(err, context.Cause(ctx)))
	panic(http.ErrAbortHandler) // so that it does not look whole
}

// movingWriter allows archiveIdle for each write.
type movingWriter struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	err error
}

func (m *movingWriter) Write(p []byte) (int, error) {
	_ = m.rc.SetWriteDeadline(time.Now().Add(archiveIdle)) // not every writer has deadlines
	n, err := m.w.Write(p)
	m.err = err
	return n, err
}

func (m *movingWriter) flush() error {
	_ = m.rc.SetWriteDeadline(time.Now().Add(archiveIdle))
	if err := m.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (s *Server) putArchive(w http.ResponseWriter, r *http.Request) error {
	name, path, keep, err := fileRequest(r, "keep")
	if err != nil {
		return s.refuseUpload(w, r, err)
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // HTTP/2 has it anyway
	body := &archiveReader{r: r.Body, rc: rc, failed: make(chan error, 1)}
	if err := s.svc.VMCopyTo(ctx, name, path, keep, body); err != nil {
		select {
		case early := <-body.failed:
			err = api.Errorf(api.CodeInvalid, "the upload ended early: %v", early) // is more telling than that it did
		default:
		}
		return s.refuseUpload(w, r, s.orClosing(ctx, err))
	}
	_ = rc.SetReadDeadline(time.Time{})
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// archiveReader allows archiveIdle for each read. It may still be read from when
// it is of no use any more.
type archiveReader struct {
	r      io.Reader
	rc     *http.ResponseController
	failed chan error // one place: the first error that is not io.EOF
}

func (a *archiveReader) Read(p []byte) (int, error) {
	_ = a.rc.SetReadDeadline(time.Now().Add(archiveIdle)) // not every connection has deadlines
	n, err := a.r.Read(p)
	if err != nil && err != io.EOF {
		select {
		case a.failed <- err:
		default:
		}
	}
	return n, err
}

// refuseUpload answers a client that may still be sending. That would not look
// for an answer on a connection that was closed under it, and what it has to send
// can take hours: so the answer goes first, and then the connection is read until
// the client has closed it.
func (s *Server) refuseUpload(w http.ResponseWriter, r *http.Request, err error) error {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	w.Header().Set("Connection", "close")
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	s.fail(w, r, w.Header().Get(api.HeaderRequestID), err)
	if rc.Flush() != nil {
		return nil // the client has gone
	}
	// It stands until the connection is closed: the server reads on, too.
	_ = rc.SetReadDeadline(time.Now().Add(drainIdle))
	_, _ = io.Copy(io.Discard, r.Body)
	return nil
}
