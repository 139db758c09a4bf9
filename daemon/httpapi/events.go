package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) allEvents(w http.ResponseWriter, r *http.Request) error {
	return s.events(w, r, func(api.Event) bool { return true })
}

func (s *Server) vmEvents(w http.ResponseWriter, r *http.Request) error {
	return s.events(w, r, func(e api.Event) bool { return e.VMID != "" || e.Type == api.EventsLost })
}

func (s *Server) events(w http.ResponseWriter, r *http.Request, keep func(api.Event) bool) error {
	q := newQuery(r)
	f := api.EventFilter{After: q.uint("after", math.MaxInt64), VM: q.str("vm"), Name: q.str("name"), Since: q.time("since"), Until: q.time("until"), Selector: q.selector()}
	follow := q.bool("follow", true)
	var types []string
	for _, t := range api.EventTypes() {
		types = append(types, string(t))
	}
	for _, t := range q.list("type", types) {
		f.Types = append(f.Types, api.EventType(t))
	}
	if q.err != nil {
		return q.err
	}
	if f.VM != "" {
		if err := api.ValidateName("VM", f.VM); err != nil {
			return err
		}
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		n, err := strconv.ParseUint(id, 10, 63)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "header Last-Event-ID: %.60q is not the id of an event", id)
		}
		f.After = n
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	out := &eventStream{out: newStream(w, mediaSSE)}
	if err := out.out.flush(); err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		return nil
	}
	beat := out.beat(ctx, s.heartbeat)
	err := s.svc.Events(ctx, f, follow, func(e api.Event) error {
		if !keep(e) {
			return nil
		}
		return out.send(strconv.FormatUint(e.Seq, 10), string(e.Type), e)
	})
	cancelled := ctx.Err() != nil
	stop()
	<-beat
	switch {
	case r.Context().Err() != nil:
		return nil // the client left
	case cancelled:
		err = errClosing
	case err == nil:
		return nil
	}
	// No id: the client goes on after the last event that it got.
	e := s.publicError(r, w.Header().Get(api.HeaderRequestID), err)
	return out.send("", "error", e)
}

// eventStream writes server-sent events, as the HTML standard section 9.2
// describes them. It is safe for concurrent use.
type eventStream struct {
	mu  sync.Mutex
	out *stream // guarded by mu
}

func (s *eventStream) send(id, typ string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != "" {
		id = "id: " + id + "\n"
	}
	if _, err := fmt.Fprintf(s.out, "%sevent: %s\ndata: %s\n\n", id, typ, data); err != nil {
		return err
	}
	return s.out.flush()
}

// beat sends a comment every interval until ctx ends, so that both ends notice
// a connection that died. The channel is closed when it sends no more.
func (s *eventStream) beat(ctx context.Context, interval time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			s.mu.Lock()
			_, err := s.out.Write([]byte(": alive\n\n"))
			err = errors.Join(err, s.out.flush())
			s.mu.Unlock()
			if err != nil {
				return // the next event meets the same error
			}
		}
	}()
	return done
}
