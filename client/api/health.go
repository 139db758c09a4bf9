package api

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// HealthCheck is how the workload shows that it works: one of Endpoint, TCP and
// Exec. A workload with a base_url and without a check is asked whether its port
// accepts.
type HealthCheck struct {
	Endpoint string `json:"endpoint,omitempty"` // path below BaseURL, for HTTP
	TCP      string `json:"tcp,omitempty"`      // host:port, for anything else
	// Exec is a command in the guest; healthy when it exits with status 0.
	Exec       []string `json:"exec,omitempty"`
	TimeoutMS  int      `json:"timeout_ms,omitempty"`  // of one probe; default 1 s, for Exec 30 s
	IntervalMS int      `json:"interval_ms,omitempty"` // between two probes; default 10 s
	Retries    int      `json:"retries,omitempty"`     // failures in a row until it is unhealthy; default 3
	// StartPeriodMS is how long failures do not count after the start.
	StartPeriodMS int `json:"start_period_ms,omitempty"`
	// Disable is set in the place of all else: nobody asks how the workload is.
	Disable bool `json:"disable,omitempty"`
}

// HealthStatus is how a workload is.
type HealthStatus string

const (
	HealthNone      HealthStatus = "none"     // nobody asks, or the VM does not run
	HealthStarting  HealthStatus = "starting" // no verdict yet
	HealthHealthy   HealthStatus = "healthy"
	HealthUnhealthy HealthStatus = "unhealthy"
)

// HealthStatuses returns every value, in the order of their declaration.
func HealthStatuses() []HealthStatus {
	return []HealthStatus{HealthNone, HealthStarting, HealthHealthy, HealthUnhealthy}
}

// VMHealth is what the health check of a VM has found.
type VMHealth struct {
	Status HealthStatus `json:"status"`
	// FailingStreak is how many probes have failed in a row, of those that count.
	FailingStreak int `json:"failing_streak,omitempty"`
	// Output says why the latest probe failed and what it said, in at most
	// MaxHealthOutput bytes; empty after one that succeeded.
	Output string `json:"output,omitempty"`
}

// MaxHealthOutput bounds VMHealth.Output, in bytes.
const MaxHealthOutput = 1024

// validateHealth checks a check; baseURL is the workload's. With part set it may
// lack what to ask, and say only how often.
func validateHealth(field string, h HealthCheck, baseURL string, part bool) error {
	ways := 0
	for _, given := range []bool{h.Endpoint != "", h.TCP != "", len(h.Exec) > 0} {
		if given {
			ways++
		}
	}
	switch {
	case h.Disable && (ways > 0 || h.TimeoutMS != 0 || h.IntervalMS != 0 || h.Retries != 0 || h.StartPeriodMS != 0):
		return fieldErr(field+".disable", "stands beside a check; give one of them")
	case h.Disable:
		return nil
	case ways > 1:
		return fieldErr(field, "has more than one of endpoint, tcp and exec; give one")
	case ways == 0 && !part:
		return fieldErr(field, "has none of endpoint, tcp and exec; give one")
	case len(h.Exec) > maxListLength:
		return fieldErr(field+".exec", "has %d elements; at most %d are allowed", len(h.Exec), maxListLength)
	case len(h.Exec) > 0 && h.Exec[0] == "":
		return fieldErr(field+".exec", "names no command")
	case h.Endpoint != "" && !strings.HasPrefix(h.Endpoint, "/"):
		return fieldErr(field+".endpoint", "%.80q does not begin with /", h.Endpoint)
	case h.Endpoint != "" && baseURL == "" && !part:
		return fieldErr(field+".endpoint", "needs workload.base_url")
	}
	for _, n := range []struct {
		field string
		value int
		max   int
	}{
		{"timeout_ms", h.TimeoutMS, maxHealthMS}, {"interval_ms", h.IntervalMS, maxHealthMS},
		{"start_period_ms", h.StartPeriodMS, maxHealthMS}, {"retries", h.Retries, maxHealthRetries},
	} {
		if n.value < 0 || n.value > n.max {
			return fieldErr(field+"."+n.field, "is %d; give 0 (the default) to %d", n.value, n.max)
		}
	}
	if h.TCP != "" {
		if host, port, err := net.SplitHostPort(h.TCP); err != nil || host == "" || port == "" {
			return fieldErr(field+".tcp", "%.80q is not host:port, such as 127.0.0.1:5432", h.TCP)
		}
	}
	for i, s := range h.Exec {
		if err := checkString(fmt.Sprintf("%s.exec[%d]", field, i), s); err != nil {
			return err
		}
	}
	return checkString(field+".endpoint", h.Endpoint)
}

const (
	maxHealthMS      = 24 * 60 * 60 * 1000 // a day
	maxHealthRetries = 1000
)

// composeHealth lays a check over that of a manifest: what to ask replaces what
// was asked, and so does every number that is not 0. A manifest without one that
// says where it serves has the check that is implied.
func composeHealth(base *HealthCheck, baseURL string, over *HealthCheck) *HealthCheck {
	if over == nil || over.Disable {
		if over != nil {
			return &HealthCheck{Disable: true}
		}
		return base
	}
	var h HealthCheck
	switch {
	case base != nil && !base.Disable:
		h = *base
	case baseURL != "":
		h.TCP = hostPort(baseURL)
	}
	if over.Endpoint != "" || over.TCP != "" || len(over.Exec) > 0 {
		h.Endpoint, h.TCP, h.Exec = over.Endpoint, over.TCP, slices.Clone(over.Exec)
	}
	for _, n := range []struct {
		to   *int
		from int
	}{{&h.TimeoutMS, over.TimeoutMS}, {&h.IntervalMS, over.IntervalMS}, {&h.Retries, over.Retries}, {&h.StartPeriodMS, over.StartPeriodMS}} {
		if n.from != 0 {
			*n.to = n.from
		}
	}
	return &h
}

// Check returns the check of the manifest's workload, or the one that its
// base_url implies; nil when nobody is to ask.
func (m *Manifest) Check() *HealthCheck {
	switch {
	case m.HealthCheck != nil && m.HealthCheck.Disable:
		return nil
	case m.HealthCheck != nil:
		return m.HealthCheck
	case m.Workload == nil || m.Workload.BaseURL == "":
		return nil
	}
	return &HealthCheck{TCP: hostPort(m.Workload.BaseURL)}
}

// hostPort is the address that a URL names; "" for what is none.
func hostPort(base string) string {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return ""
	}
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "80")
	}
	return u.Host
}
