package daemon

import (
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// probed reports whether anybody asks how a workload is.
func probed(m *api.Manifest) bool { return agentKind(m) != api.AgentNone && m.Check() != nil }

// healthConfig is the check of a manifest for its guest, nil when there is
// nothing to ask.
func healthConfig(m *api.Manifest) *wire.Health {
	h := m.Check()
	if h == nil {
		return nil
	}
	out := &wire.Health{
		TCP: h.TCP, Exec: h.Exec, Retries: h.Retries, StartPeriod: time.Duration(h.StartPeriodMS) * time.Millisecond,
		Timeout: time.Duration(h.TimeoutMS) * time.Millisecond, Interval: time.Duration(h.IntervalMS) * time.Millisecond,
	}
	if h.Endpoint != "" {
		out.HTTP = strings.TrimSuffix(m.Workload.BaseURL, "/") + h.Endpoint
	}
	return out
}

// maxStreak bounds what a guest can say of its failures.
const maxStreak = 1 << 20

// healthOf is what a guest's report says of the workload of vm.
func healthOf(vm *row.VM, s *wire.Status) api.VMHealth {
	if !vm.HealthCheck || vm.Ended() {
		return api.VMHealth{Status: api.HealthNone}
	}
	h := api.VMHealth{Status: api.HealthStarting}
	if s.Healthy != nil && *s.Healthy {
		h.Status = api.HealthHealthy
	} else if s.Healthy != nil {
		h.Status = api.HealthUnhealthy
	}
	if f := s.Failure; f != nil {
		h.FailingStreak, h.Output = min(max(f.Streak, 0), maxStreak), clip(f.Output, api.MaxHealthOutput-2) // what is cut within a character ends with one of 3 bytes
	}
	return h
}

// setHealth writes h into the row and returns the event of a verdict, which is
// an entry into healthy or unhealthy. Not running is told by other events.
func setHealth(vm *row.VM, h api.VMHealth) []api.Event {
	before := vm.Health.Status
	vm.Health, vm.Healthy = h, h.Status == api.HealthHealthy
	if h.Status == before {
		return nil
	}
	switch h.Status {
	case api.HealthHealthy:
		return []api.Event{{Type: api.EventVMHealthy}}
	case api.HealthUnhealthy:
		return []api.Event{{Type: api.EventVMUnhealthy, Message: h.Output}}
	}
	return nil
}

// resetHealth forgets what is known of the workload: it is about to be started,
// or has ended.
func resetHealth(vm *row.VM) {
	vm.Healthy, vm.Health = false, api.VMHealth{Status: api.HealthNone}
	if vm.HealthCheck && !vm.Ended() {
		vm.Health.Status = api.HealthStarting
	}
}
