package client

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

// VMLogs yields a VM's log lines until there are no more, or, with q.Follow,
// until ctx ends. An error of yield ends it and is returned.
func (c *Client) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func(api.LogEntry) error) error {
	v := url.Values{}
	setInt(v, "after", q.After)
	setInt(v, "tail", uint64(q.Tail))
	if q.Follow {
		v.Set("follow", "true")
	}
	if q.Console {
		v.Set("console", "true")
	}
	resp, err := c.send(ctx, request{method: http.MethodGet, path: vmPath(name, "/logs"), query: v})
	if err != nil {
		return err
	}
	defer resp.Body.Close() // also ends the stream at the daemon's side
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
	return ctx.Err()
}
