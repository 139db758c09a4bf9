package guest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// A workload that comes up is asked often, so that readiness is seen soon,
	// and less and less often, so that a slow one is not disturbed. No earlier
	// and no more often than this: on one emulated processor the workload was
	// ready 0.1 s later when the first probes came 2 ms apart.
	probeMin = 10 * time.Millisecond
	probeMax = 250 * time.Millisecond
	// probeTimeout is the timeout of a probe that names none.
	probeTimeout = time.Second
	// healthRetries is wire.Health.Retries where that is zero.
	healthRetries = 3
)

// probe asks a workload once.
type probe func(ctx context.Context) error

// newProbe makes the probe of a health check.
func newProbe(h wire.Health) probe {
	timeout := h.Timeout
	if timeout == 0 {
		timeout = probeTimeout
	}
	if h.TCP != "" {
		return func(ctx context.Context) error { return dialOnce(ctx, h.TCP, timeout) }
	}
	client := &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: new(net.Dialer).DialContext},
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.HTTP, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode < 200 || resp.StatusCode > 399 {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
}

// newAcceptProbe makes a probe that a server at base accepts connections.
func newAcceptProbe(base string) (probe, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context) error { return dialOnce(ctx, addr, probeTimeout) }, nil
}

func dialOnce(ctx context.Context, addr string, timeout time.Duration) error {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// awaitReady asks a workload that was just started until the first success. It
// reports false when ctx ended.
func awaitReady(ctx context.Context, ask probe) bool {
	for wait := probeMin; ; wait = min(wait*5/4, probeMax) {
		if !sleep(ctx, wait) {
			return false
		}
		if ask(ctx) == nil {
			return true
		}
	}
}

// watchHealth asks a workload that was healthy once, and calls verdict with
// every change, until ctx is over.
func watchHealth(ctx context.Context, h wire.Health, ask probe, verdict func(healthy bool, err error)) {
	interval, retries := h.Interval, h.Retries
	if interval == 0 {
		interval = wire.DefaultHealthInterval
	}
	if retries == 0 {
		retries = healthRetries
	}
	healthy, failures := true, 0
	for sleep(ctx, interval) {
		err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failures++
			if healthy && failures >= retries {
				healthy = false
				verdict(false, err)
			}
		default:
			failures = 0
			if !healthy {
				healthy = true
				verdict(true, nil)
			}
		}
	}
}
