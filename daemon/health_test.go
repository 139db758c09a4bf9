package daemon

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// eventually waits until the VM is as ok says.
func (in *instance) eventually(name, what string, ok func(vm row.VM) bool) row.VM {
	in.w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		vm := mustVM(in.w.t, in, name)
		if ok(vm) {
			return vm
		}
		if time.Now().After(deadline) {
			in.w.t.Fatalf("VM %s is never %s: %+v", name, what, vm)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// journal returns the first n events of the VM of these types, as "TYPE message".
func (in *instance) journal(name string, n int, types ...api.EventType) []string {
	in.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var got []string
	err := in.Events(ctx, api.EventFilter{VM: name, Types: types}, true, func(ev api.Event) error {
		got = append(got, strings.TrimSpace(strings.TrimPrefix(string(ev.Type), "VM_")+" "+ev.Message))
		if len(got) == n {
			return io.EOF
		}
		return nil
	})
	if err != io.EOF {
		in.w.t.Fatalf("events of %s are %q (%v), want %d", name, got, err, n)
	}
	return got
}

// A guest that is taken up says who it is before it says how it is: until then
// what the row knows of its workload stands.
func TestHealthTakenUp(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.restarting("web", "serve", "always")
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	at := time.Now().Add(time.Minute).Round(0)
	g.set(func(s *wire.Status) { s.Workload, s.RetryAt, s.Streak, s.Restarts = wire.WorkloadBackoff, &at, 3, 3 })
	before := d.eventually("web", "in a crash loop", func(vm row.VM) bool { return vm.CrashLoop })
	d.stop()
	asked := make(chan struct{}, 16)
	g.hang(func(path string) bool {
		if path != wire.PathStatus {
			return false
		}
		asked <- struct{}{}
		return true
	})
	d = w.start(options{config: func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Hour) } }})
	<-asked
	time.Sleep(50 * time.Millisecond) // for the worker to see that it has answered
	if now := mustVM(t, d, "web"); !now.AgentUp || !now.Healthy || now.Health != before.Health || !now.CrashLoop || now.NextStartAt == nil {
		t.Errorf("taken up: agent %v, %+v, crash loop %v, next start %v; want it as it was", now.AgentUp, now.Health, now.CrashLoop, now.NextStartAt)
	}
	g.hang(nil)
}

// TestHealth follows a workload through its health, across a restart of the
// daemon.
func TestHealth(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("sick"))
	vm := d.create("web", "sick")
	if vm.Health.Status != api.HealthStarting || !vm.HealthCheck {
		t.Errorf("before its start: %+v", vm.Health)
	}
	if _, err := d.wait("web", api.WaitHealthy); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "VM web is unhealthy: status 503") {
		t.Errorf("waiting for a sick VM = %v, want conflict with what its probe says", err)
	}
	if got := d.must("web", api.WaitRunning); got.Health != (api.VMHealth{Status: api.HealthUnhealthy, FailingStreak: 3, Output: "status 503"}) || got.Healthy {
		t.Errorf("sick VM: %+v", got.Health)
	}

	g := w.guest(vm.ID)
	yes, no := true, false
	tell := func(healthy *bool, f *wire.ProbeFailure) {
		g.set(func(s *wire.Status) { s.Healthy, s.Failure = healthy, f })
	}
	is := func(want api.VMHealth) func(row.VM) bool {
		return func(vm row.VM) bool { return vm.Health == want && vm.Healthy == (want.Status == api.HealthHealthy) }
	}
	tell(&yes, nil)
	d.eventually("web", "healthy", is(api.VMHealth{Status: api.HealthHealthy}))
	d.must("web", api.WaitHealthy)
	tell(&yes, &wire.ProbeFailure{Streak: 1, Output: "refused"})
	one := api.VMHealth{Status: api.HealthHealthy, FailingStreak: 1, Output: "refused"}
	d.eventually("web", "healthy with one failure", is(one))
	d.stop()
	d = w.start(options{})
	if vm := d.eventually("web", "taken up", func(vm row.VM) bool { return vm.Health == one }); vm.Incarnation != 1 {
		t.Errorf("after a restart of the daemon: %+v", vm)
	}
	// A guest says what it likes.
	tell(&no, &wire.ProbeFailure{Streak: -5, Output: strings.Repeat("x", api.MaxHealthOutput-1) + "é" + strings.Repeat("y", 5000)})
	vm = d.eventually("web", "unhealthy", func(vm row.VM) bool { return vm.Health.Status == api.HealthUnhealthy }).VM
	if h := vm.Health; h.FailingStreak != 0 || len(h.Output) > api.MaxHealthOutput || !utf8.ValidString(h.Output) || !strings.HasPrefix(h.Output, "xxx") {
		t.Errorf("what a hostile guest says: %d bytes, %+v", len(h.Output), h)
	}
	tell(nil, nil) // its workload was started again
	d.eventually("web", "starting", is(api.VMHealth{Status: api.HealthStarting}))
	tell(&yes, nil)
	d.must("web", api.WaitHealthy)
	if _, err := d.StopVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitStopped); vm.Health != (api.VMHealth{Status: api.HealthNone}) || vm.Healthy {
		t.Errorf("stopped VM: %+v", vm.Health)
	}
	got := d.journal("web", 4, api.EventVMHealthy, api.EventVMUnhealthy)
	if got[0] != "UNHEALTHY status 503" || got[1] != "HEALTHY" || !strings.HasPrefix(got[2], "UNHEALTHY xxx") || got[3] != "HEALTHY" {
		t.Errorf("events are %.60q", got)
	}
}

// TestFlappingHealth has a guest that changes its mind all the time, which must
// not fill the journal.
func TestFlappingHealth(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	begin := time.Now()
	for n := range 600 {
		g.set(func(s *wire.Status) {
			healthy := n%2 == 0
			s.Healthy = &healthy
		})
		time.Sleep(time.Millisecond)
	}
	page, err := d.db.Events(context.Background(), api.EventFilter{VM: "web"}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if most := reportBurst + 10 + int(time.Since(begin).Seconds()*reportRate); len(page.Events) > most {
		t.Errorf("%d events in %v, want %d at most", len(page.Events), time.Since(begin), most)
	}
	// It is heard all the same.
	if _, err := d.StopVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitStopped); vm.Exit == nil {
		t.Errorf("stopped: %+v", vm)
	}
}

func TestHealthOfImage(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	w.imgs.set(func(f *fakeImages) {
		f.config.Healthcheck = &api.ImageHealthcheck{Test: []string{"CMD", "/check"}, Interval: 5 * time.Second, StartPeriod: time.Minute}
	})
	d.pullOf("nginx")
	for i, tc := range []struct {
		over *api.HealthCheck
		want *wire.Health
	}{
		{nil, &wire.Health{Exec: []string{"/check"}, Interval: 5 * time.Second, Timeout: 30 * time.Second, StartPeriod: time.Minute, Retries: 3}},
		{&api.HealthCheck{IntervalMS: 1000, Retries: 1}, &wire.Health{Exec: []string{"/check"}, Interval: time.Second, Timeout: 30 * time.Second, StartPeriod: time.Minute, Retries: 1}},
		{&api.HealthCheck{Disable: true}, nil},
	} {
		vm := d.createFrom(api.VMCreate{Name: fmt.Sprintf("vm%d", i), Image: "nginx", HealthCheck: tc.over})
		d.must(vm.Name, api.WaitRunning)
		if vm.HealthCheck != (tc.want != nil) || vm.HealthCheck != (vm.Health.Status == api.HealthStarting) {
			t.Errorf("VM of %+v: %v, %+v", tc.over, vm.HealthCheck, vm.Health)
		}
		got := w.guest(vm.ID).cfg.Workload.Health
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tc.want) {
			t.Errorf("%+v makes the guest's check %+v, want %+v", tc.over, got, tc.want)
		}
	}
}
