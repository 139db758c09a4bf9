package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
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
	// A command costs the guest a process, which has to come up itself.
	execProbeMin = 100 * time.Millisecond
	execProbeMax = 2 * time.Second
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
		defer resp.Body.Close()
		if resp.StatusCode < 200 || resp.StatusCode > 399 {
			err := fmt.Errorf("status %d", resp.StatusCode)
			var said tail
			_, _ = io.Copy(&said, io.LimitReader(resp.Body, probeTail)) // the status alone says enough
			if text := said.text(); text != "" {
				err = fmt.Errorf("%w: %s", err, text)
			}
			return err
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

// pace is how often a workload is asked that comes up: first after the one, and
// less and less often, up to the other.
type pace struct{ first, last time.Duration }

// finding is what the probes of a workload have found.
type finding struct {
	healthy *bool // nil before the first verdict
	streak  int   // failures in a row that count
	err     error // of the latest probe
}

// failed counts one more failure, the retries-th of which is a verdict.
func (f finding) failed(err error, retries int) finding {
	f.streak++
	f.err = err
	if f.streak >= retries {
		f.healthy = new(bool)
	}
	return f
}

// succeeded is what is found by a probe that succeeds.
func succeeded() finding {
	yes := true
	return finding{healthy: &yes}
}

// healthCheck is wire.Health with its defaults filled in.
type healthCheck struct {
	ask         probe
	pace        pace
	startPeriod time.Duration
	interval    time.Duration
	retries     int
	// tell is called with every finding that differs from the one before, but
	// while a workload comes up only once in an interval. nil for a workload that is
	// asked for its readiness only.
	tell func(finding)
}

// newHealthCheck makes the health check of a workload, which must be prepared.
func (w *workload) newHealthCheck(h wire.Health, tell func(finding)) healthCheck {
	c := healthCheck{
		pace: pace{probeMin, probeMax}, tell: tell,
		startPeriod: h.StartPeriod, interval: h.Interval, retries: h.Retries,
	}
	if c.interval == 0 {
		c.interval = wire.DefaultHealthInterval
	}
	if c.retries == 0 {
		c.retries = healthRetries
	}
	if len(h.Exec) > 0 {
		c.ask, c.pace = w.newExecProbe(h), pace{execProbeMin, execProbeMax}
	} else {
		c.ask = newProbe(h)
	}
	return c
}

// awaitReady asks a workload that was just started until the first success. It
// reports false when ctx ended. A workload that does not come up is asked all
// the time, but a failure counts only once in an interval, and not in the start
// period: "unhealthy" comes no sooner than if it was asked as rarely as later.
// Failures are told as rarely: one that comes up at once costs the host nothing.
func (c healthCheck) awaitReady(ctx context.Context) bool {
	tells := time.Now().Add(c.interval)
	counts := tells.Add(c.startPeriod)
	var found finding
	for wait := c.pace.first; ; wait = min(wait*5/4, c.pace.last) {
		if !sleep(ctx, wait) {
			return false
		}
		err := c.ask(ctx)
		switch now := time.Now(); {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case c.tell == nil:
		case !now.Before(counts):
			counts = now.Add(c.interval)
			tells = counts
			found = found.failed(err, c.retries)
			c.tell(found)
		case !now.Before(tells):
			tells = now.Add(c.interval)
			found.err = err
			c.tell(found)
		}
	}
}

// watch asks a workload that was healthy once, until ctx is over.
func (c healthCheck) watch(ctx context.Context) {
	found := succeeded()
	for sleep(ctx, c.interval) {
		err := c.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			found = found.failed(err, c.retries)
			c.tell(found)
		case found.streak > 0:
			found = succeeded()
			c.tell(found)
		}
	}
}

// readiness returns what is to be done beside every process of the workload:
// see when it is ready, and from then on whether it is healthy; after a restore,
// all of it anew.
func (k *kestrel) readiness(w *workload) (func(context.Context), error) {
	check := healthCheck{pace: pace{probeMin, probeMax}}
	health := k.boot.Workload.Health
	switch base := k.boot.Workload.BaseURL; {
	case health != nil:
		check = w.newHealthCheck(*health, k.found)
	case base != "":
		var err error
		if check.ask, err = newAcceptProbe(base); err != nil {
			return nil, err
		}
	}
	start := k.timeline.now()
	once := sync.OnceFunc(func() { k.timeline.add("ready", start, nil) })
	answered := sync.OnceFunc(func() { close(k.answered) })
	lookAfter := func(ctx context.Context) {
		ready := true // without a question it is ready once started
		if check.ask != nil {
			ready = check.awaitReady(ctx)
			answered()
		}
		k.markBegun()
		if !ready {
			return
		}
		once()
		if health == nil {
			k.status.update(func(*wire.Status) {})
			return
		}
		k.found(succeeded())
		check.watch(ctx)
	}
	return func(ctx context.Context) {
		for again := true; again; again = health != nil && ctx.Err() == nil {
			k.inEra(ctx, lookAfter)
		}
	}, nil
}

// found notes how the workload is.
func (k *kestrel) found(f finding) {
	var failure *wire.ProbeFailure
	if f.err != nil {
		output := f.err.Error()
		output = strings.ToValidUTF8(output[:min(len(output), wire.MaxProbeOutput)], "?")
		failure = &wire.ProbeFailure{Streak: f.streak, Output: output, Time: time.Now()}
	}
	sick := func(healthy *bool) bool { return healthy != nil && !*healthy }
	if sick(f.healthy) && !sick(k.status.get().Healthy) {
		k.log.Warn("the workload is unhealthy", keyErr, f.err)
	}
	k.status.update(func(s *wire.Status) {
		if s.Epoch == k.probed.Load() { // else it was found out before the restore
			s.Healthy, s.Failure = f.healthy, failure
		}
	})
}
