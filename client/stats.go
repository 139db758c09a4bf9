package client

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

// Stats yields samples of what VMs use: one, or with q.Follow one every
// q.Interval until ctx ends. An error of yield ends it and is returned.
func (c *Client) Stats(ctx context.Context, q api.StatsQuery, yield func(api.StatsSample) error) error {
	v := url.Values{"vm": q.VMs}
	if q.Follow {
		v.Set("follow", "true")
	}
	if q.Interval != 0 {
		v.Set("interval", q.Interval.String())
	}
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/stats", query: v})
	if err != nil {
		return err
	}
	defer resp.Body.Close() // also ends the stream at the daemon's side
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxStatsLine)
	for sc.Scan() {
		var line struct {
			api.StatsSample
			Error *api.Error `json:"error"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return api.Errorf(api.CodeInternal, "volantd sent a sample that does not parse: %v", err)
		}
		if line.Error != nil {
			return line.Error
		}
		if err := yield(line.StatsSample); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return c.transportError(ctx, err)
	}
	return nil
}

// maxStatsLine bounds a sample: a kilobyte a VM, for more VMs than a host runs.
const maxStatsLine = 64 << 20
