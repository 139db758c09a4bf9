package httpapi

import (
	"io"
	"net/http"
	"time"

	"github.com/volantvm/volant/client/api"
)

// maxBlobSize bounds one upload, in bytes. The largest artifact is a root
// image; no one is known to come near it.
const maxBlobSize = 64 << 30

// maxDrain is how many bytes of an upload that is not wanted are thrown away.
const maxDrain = 1 << 30

func (s *Server) getBlob(w http.ResponseWriter, r *http.Request) error {
	digest := r.PathValue("digest")
	if _, err := api.ParseDigest(digest); err != nil {
		return err
	}
	b, err := s.svc.Blob(r.Context(), digest)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, b)
	return nil
}

func (s *Server) putBlob(w http.ResponseWriter, r *http.Request) error {
	digest := r.PathValue("digest")
	if _, err := api.ParseDigest(digest); err != nil {
		return err
	}
	if r.ContentLength > maxBlobSize {
		return api.Errorf(api.CodeTooLarge, "the blob has %d bytes; at most %d are allowed", r.ContentLength, int64(maxBlobSize))
	}
	rc := http.NewResponseController(w)
	body := &movingReader{r: http.MaxBytesReader(w, r.Body, maxBlobSize), rc: rc}
	b, err := s.svc.PutBlob(r.Context(), digest, body)
	if body.err == nil {
		// A client that is still sending does not look for an answer, and closing
		// the connection under it would lose the one we have: the upload was
		// refused, or the blob is there already.
		_, _ = io.CopyN(io.Discard, body, maxDrain)
	}
	_ = rc.SetReadDeadline(time.Time{})
	if body.err != nil && err != nil {
		return body.err // why the daemon got no more is more telling than that it got no more
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, b)
	return nil
}

// movingReader allows readTimeout for each read, so that an upload may take as
// long as it needs while it moves.
type movingReader struct {
	r   io.Reader
	rc  *http.ResponseController
	err error // the first error that is not io.EOF
}

func (m *movingReader) Read(p []byte) (int, error) {
	_ = m.rc.SetReadDeadline(time.Now().Add(readTimeout)) // not every connection has deadlines
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF && m.err == nil {
		m.err = err
		if _, tooLarge := err.(*http.MaxBytesError); !tooLarge {
			m.err = api.Errorf(api.CodeInvalid, "the upload ended early: %v", err)
		}
	}
	return n, err
}
