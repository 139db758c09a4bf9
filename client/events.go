package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Limits of following events.
const (
	// silence is after how long without a line a stream is taken for dead. The
	// daemon sends one every 15 s.
	silence    = time.Minute
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// yieldError marks an error as the caller's own.
type yieldError struct{ err error }

func (e yieldError) Error() string { return e.err.Error() }

// Events yields the journal after f.After, each event once and in order. With
// follow it goes on with what happens, through restarts of the daemon, until ctx
// ends; only the first connection must succeed. An error of yield ends it and is
// returned.
func (c *Client) Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error {
	backoff := minBackoff
	for connected := false; ; {
		last := f.After
		err := c.events(ctx, &f, follow, func(e api.Event) error {
			if e.Seq <= f.After {
				return nil
			}
			f.After = e.Seq
			if err := yield(e); err != nil {
				return yieldError{err}
			}
			return nil
		}, func() { connected = true })
		var own yieldError
		switch {
		case errors.As(err, &own):
			return own.err
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && (!follow || !f.Until.IsZero() && !time.Now().Before(f.Until)):
			return nil
		case err != nil && (!follow || !connected || api.CodeOf(err) != api.CodeUnavailable):
			return err
		}
		if f.After > last {
			backoff = minBackoff
		}
		if backoff, err = pause(ctx, backoff); err != nil {
			return err
		}
	}
}

// pause waits before the next connection and returns how long to wait before
// the one after it, or ctx's error.
func pause(ctx context.Context, backoff time.Duration) (time.Duration, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(backoff):
		return min(2*backoff, maxBackoff), nil
	}
}

// events reads one stream to its end.
func (c *Client) events(ctx context.Context, f *api.EventFilter, follow bool, yield func(api.Event) error, connected func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := url.Values{"follow": {strconv.FormatBool(follow)}}
	set(q, "vm", f.VM)
	set(q, "name", f.Name)
	set(q, "selector", f.Selector.String())
	setTime(q, "since", f.Since)
	setTime(q, "until", f.Until)
	for _, t := range f.Types {
		q.Add("type", string(t))
	}
	header := http.Header{"Accept": {"text/event-stream"}}
	if f.After != 0 {
		header.Set("Last-Event-ID", strconv.FormatUint(f.After, 10))
	}
	lost := api.Errorf(api.CodeUnavailable, "volantd sent nothing for %v", silence)
	watchdog := time.AfterFunc(silence, func() { cancel(lost) })
	defer watchdog.Stop()
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/events", query: q, header: header})
	if err != nil {
		return c.cause(ctx, err)
	}
	defer resp.Body.Close() // also ends the stream at the daemon's side
	connected()
	r := newSSEReader(resp.Body)
	for {
		m, err := r.next(func() { watchdog.Reset(silence) })
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.cause(ctx, err)
		}
		if m.event == "error" {
			e := &api.Error{}
			if err := json.Unmarshal([]byte(m.data), e); err != nil || e.Code == "" {
				return api.Errorf(api.CodeInternal, "volantd ended the events without saying why")
			}
			return e
		}
		var e api.Event
		if err := json.Unmarshal([]byte(m.data), &e); err != nil {
			return api.Errorf(api.CodeInternal, "volantd sent an event that does not parse: %v", err)
		}
		if err := yield(e); err != nil {
			return err
		}
	}
}

// cause is transportError, but says when it was the daemon's silence that ended
// ctx.
func (c *Client) cause(ctx context.Context, err error) error {
	var e *api.Error
	if errors.As(context.Cause(ctx), &e) {
		return e
	}
	return c.transportError(ctx, err)
}
