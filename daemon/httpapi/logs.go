package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"time"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) vmLogs(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	lq := api.LogQuery{
		After:  q.uint("after", math.MaxUint64),
		Tail:   q.tail("tail"),
		Since:  q.time("since"),
		Until:  q.time("until"),
		Follow: q.bool("follow", false),
	}
	names := make([]string, 0, len(api.LogNames()))
	for _, n := range api.LogNames() {
		names = append(names, string(n))
	}
	lq.Log = api.LogName(q.oneOf("log", names...))
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	if _, err := s.svc.VM(r.Context(), name); err != nil {
		return err
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	out := newStream(w, mediaNDJSON)
	if lq.Follow {
		// The client must learn that it is connected before the first line.
		if err := out.flush(); err != nil {
			return err
		}
	}
	if r.Method == http.MethodHead {
		return nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err = s.svc.VMLogs(ctx, name, lq, func(entries []api.LogEntry) error {
		buf.Reset()
		for i := range entries {
			if err := enc.Encode(&entries[i]); err != nil {
				return err
			}
		}
		if _, err := out.Write(buf.Bytes()); err != nil {
			return err
		}
		return out.flush()
	})
	return s.endLines(ctx, out, r, err)
}

// endLines ends a reply of JSON objects, one a line, that was sent until err came,
// or ctx ended. The error is a line too, unless nothing was sent yet.
func (s *Server) endLines(ctx context.Context, out *stream, r *http.Request, err error) error {
	switch {
	case r.Context().Err() != nil:
		return nil // the client left
	case ctx.Err() != nil:
		err = errClosing
	case err == nil:
		return out.flush()
	case !out.begun:
		return err
	}
	e := s.publicError(r, out.w.Header().Get(api.HeaderRequestID), err)
	if encErr := json.NewEncoder(out).Encode(api.ErrorBody{Error: *e}); encErr != nil {
		return encErr
	}
	return out.flush()
}

// stream is a reply that is sent piece by piece. The header is sent with the
// first piece. It is not safe for concurrent use.
type stream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	media string
	begun bool
}

func newStream(w http.ResponseWriter, media string) *stream {
	return &stream{w: w, rc: http.NewResponseController(w), media: media}
}

func (s *stream) begin() {
	if s.begun {
		return
	}
	s.begun = true
	s.w.Header().Set("Content-Type", s.media)
	s.w.Header().Set("Cache-Control", "no-store")
	s.w.Header().Set("X-Accel-Buffering", "no") // proxies that know it pass pieces on at once
	s.w.WriteHeader(http.StatusOK)
}

func (s *stream) Write(p []byte) (int, error) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	s.begin()
	return s.w.Write(p)
}

// flush sends what was written, and the header if nothing was.
func (s *stream) flush() error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	s.begin()
	if err := s.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
