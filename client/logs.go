package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
)

// VMLogs yields a VM's log lines until there are no more, or, with q.Follow,
// until the VM has ended for good or ctx ends. A daemon that restarts meanwhile
// is waited for, once the first connection succeeded, and no line is yielded
// twice or left out; but for the logs of console and VMM, whose lines have no
// lasting numbers. An error of yield ends it and is returned.
func (c *Client) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func(api.LogEntry) error) error {
	backoff := minBackoff
	begun := time.Now()
	for connected := false; ; {
		last := q.After
		err := c.vmLogs(ctx, name, q, func(e api.LogEntry) error {
			q.After, q.Tail = e.Seq, 0
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
		case err == nil, !connected, !q.Follow, q.Log != "" && q.Log != api.LogWorkload, api.CodeOf(err) != api.CodeUnavailable:
			return err
		}
		if q.Tail == api.TailNone {
			// Nothing came before the daemon left: what came meanwhile is new.
			q.Tail, q.Since = 0, begun
		}
		if q.After > last {
			backoff = minBackoff
		}
		if backoff, err = pause(ctx, backoff); err != nil {
			return err
		}
	}
}

// vmLogs reads one stream to its end.
func (c *Client) vmLogs(ctx context.Context, name string, q api.LogQuery, yield func(api.LogEntry) error, connected func()) error {
	v := url.Values{}
	setInt(v, "after", q.After)
	if q.Tail != 0 {
		v.Set("tail", strconv.Itoa(max(q.Tail, 0)))
	}
	setTime(v, "since", q.Since)
	setTime(v, "until", q.Until)
	if q.Follow {
		v.Set("follow", "true")
	}
	if q.Log != "" {
		v.Set("log", string(q.Log))
	}
	resp, err := c.send(ctx, request{method: http.MethodGet, path: vmPath(name, "/logs"), query: v})
	if err != nil {
		return err
	}
	defer resp.Body.Close() // also ends the stream at the daemon's side
	connected()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var line struct {
			api.LogEntry
			Error *api.Error `json:"error"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return api.Errorf(api.CodeInternal, "volantd sent a log line that does not parse: %v", err)
		}
		if line.Error != nil {
			return line.Error
		}
		if err := yield(line.LogEntry); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return c.transportError(ctx, err)
	}
	return nil
}
