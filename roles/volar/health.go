package volar

import (
	"time"

	"github.com/volantvm/volant/client/api"
)

// healthFlags say how the workload of a new VM shows that it works.
type healthFlags struct {
	HealthCmd         string `help:"Command that shows whether the workload works: a line for the guest's /bin/sh, healthy when its status is 0 (default: the image's or the plugin's check)." placeholder:"COMMAND"`
	HealthInterval    string `help:"Time between two probes: 30s, 1m30s (default: the check's; for images else 30s, for plugins 10s)." placeholder:"TIME"`
	HealthTimeout     string `help:"How long one may take before it has failed (default: the check's, else 30s)." placeholder:"TIME"`
	HealthRetries     int    `help:"Failures in a row that make it unhealthy (default: the check's, else 3)." placeholder:"N"`
	HealthStartPeriod string `help:"How long after its start failures do not count (default: the check's, else none)." placeholder:"TIME"`
	NoHealthcheck     bool   `help:"Do not probe it, whatever image or plugin say."`
}

// health puts what the flags say into req.
func (f *healthFlags) health(req *api.VMCreate) error {
	if *f == (healthFlags{}) {
		return nil
	}
	if f.NoHealthcheck {
		if *f != (healthFlags{NoHealthcheck: true}) {
			return usagef("--no-healthcheck and --health-… contradict each other; give one")
		}
		req.HealthCheck = &api.HealthCheck{Disable: true}
		return nil
	}
	h := &api.HealthCheck{}
	if f.HealthCmd != "" {
		h.Exec = []string{"/bin/sh", "-c", f.HealthCmd}
	}
	for _, t := range []struct {
		flag, value string
		to          *int
	}{
		{"--health-interval", f.HealthInterval, &h.IntervalMS},
		{"--health-timeout", f.HealthTimeout, &h.TimeoutMS},
		{"--health-start-period", f.HealthStartPeriod, &h.StartPeriodMS},
	} {
		if t.value == "" {
			continue
		}
		d, err := time.ParseDuration(t.value)
		if err != nil || d < time.Millisecond || d > 24*time.Hour {
			return usagef("%s %q: give a time such as 30s or 1m30s, from 1ms to 24h", t.flag, t.value)
		}
		*t.to = int(d.Milliseconds())
	}
	if f.HealthRetries < 0 || f.HealthRetries > 1000 {
		return usagef("--health-retries %d: give 1 to 1000", f.HealthRetries)
	}
	h.Retries = f.HealthRetries
	req.HealthCheck = h
	return nil
}
