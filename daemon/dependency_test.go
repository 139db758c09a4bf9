package daemon

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store/row"
)

// after creates a VM of the plugin that depends on others: "db:healthy".
func (in *instance) after(name, plugin string, others ...string) (api.VM, error) {
	req := api.VMCreate{Name: name, Plugin: plugin}
	for _, o := range others {
		vm, condition, _ := strings.Cut(o, ":")
		req.DependsOn = append(req.DependsOn, api.Dependency{VM: vm, Condition: condition})
	}
	return in.CreateVM(context.Background(), req)
}

func TestStartsInTurn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("sick"))
	d.createFrom(api.VMCreate{Name: "db", Plugin: "sick", Stopped: true})
	if _, err := d.after("web", "serve", "db:healthy"); err != nil {
		t.Fatal(err)
	}
	waits := func(want string) func(row.VM) bool { return func(vm row.VM) bool { return vm.WaitingFor == want } }
	d.eventually("web", "waiting for one that is stopped", waits("VM db to be healthy: it is stopped"))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := d.WaitVM(short, "web", api.WaitRunning)
	if e, ok := err.(*api.Error); !ok || e.Code != api.CodeTimeout || e.Hint != "it waits for VM db to be healthy: it is stopped" {
		t.Errorf("waiting for one that waits = %#v", err)
	}
	if _, err := d.StartVM(ctx, "db"); err != nil {
		t.Fatal(err)
	}
	d.eventually("web", "waiting for one that is unhealthy", waits("VM db to be healthy: it is unhealthy"))
	// Another daemon waits on.
	d.stop()
	d = w.start(options{})
	<-d.Ready()
	if vm := mustVM(t, d, "web"); vm.Status != api.VMPending || vm.Incarnation != 0 {
		t.Errorf("after a restart of the daemon: %+v", vm)
	}
	yes := true
	w.guest(mustVM(t, d, "db").ID).set(func(s *wire.Status) { s.Healthy = &yes })
	if vm := d.must("web", api.WaitHealthy); vm.WaitingFor != "" || len(vm.DependsOn) != 1 {
		t.Errorf("started in turn: %+v", vm)
	}
	if got := d.journal("web", 2, api.EventVMWaiting); got[0] != "WAITING waits for VM db to be healthy: it is stopped" {
		t.Errorf("events: %q", got)
	}

	// One that is waited for may go; who waits can be stopped, and deleted.
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	if err := d.DeleteVM(ctx, "db", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("db", api.WaitDeleted)
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.eventually("web", "waiting for nobody", waits("VM db to be healthy: there is no such VM"))
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitStopped); vm.WaitingFor != "" {
		t.Errorf("stopped while it waited: %+v", vm)
	}
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	d.eventually("web", "waiting again", waits("VM db to be healthy: there is no such VM"))
	d.create("db", "serve")
	d.must("web", api.WaitHealthy)
	w.checkWorld(d.settle())
}

// swappedStore lets another VM take the name db right after it was read.
type swappedStore struct {
	Store
	swap atomic.Pointer[func()]
}

func (s *swappedStore) VM(ctx context.Context, name string) (row.VM, error) {
	vm, err := s.Store.VM(ctx, name)
	if name == "db" {
		if swap := s.swap.Swap(nil); swap != nil {
			(*swap)()
		}
	}
	return vm, err
}

// Who waits for a name hears of the VM that has it now, also when it went to
// another while the waiter was looking.
func TestWaitsForTheNewOne(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	var s swappedStore
	d := w.start(options{
		config: func(c *Config) { s.Store, c.Store = c.Store, &s },
		timing: func(t *timing) { t.tick = time.Hour }, // which would find out too
	})
	d.equip()
	d.createFrom(api.VMCreate{Name: "db", Plugin: "serve", Stopped: true})
	if _, err := d.after("web", "serve", "db"); err != nil {
		t.Fatal(err)
	}
	d.eventually("web", "waiting", func(vm row.VM) bool { return vm.WaitingFor != "" })
	entered, release := w.hv.Hang(hvtest.OpLaunch)
	defer release()
	swap := func() {
		if err := d.DeleteVM(ctx, "db", api.VMStop{}); err != nil {
			t.Error(err)
		}
		d.must("db", api.WaitDeleted)
		d.create("db", "serve")
		<-entered
	}
	s.swap.Store(&swap)
	d.kick(mustVM(t, d, "web").ID)
	d.eventually("web", "waiting for the other", func(vm row.VM) bool { return vm.WaitingFor == "VM db to be running: it is starting" })
	release()
	d.must("web", api.WaitHealthy)
	w.checkWorld(d.settle())
}

func TestDependenciesAreRefused(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	bare := d.manifest("bare")
	bare.Initramfs.Agent, bare.Workload = api.AgentNone, nil
	d.equip(bare)
	must := func(name string, others ...string) {
		t.Helper()
		if _, err := d.after(name, "serve", others...); err != nil {
			t.Fatal(err)
		}
	}
	must("a")
	must("b", "a")
	must("c", "a", "b:healthy")
	d.create("mute", "bare")
	if err := d.DeleteVM(context.Background(), "a", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("a", api.WaitDeleted)
	for _, tc := range []struct {
		name   string
		others []string
		code   api.Code
		want   string
	}{
		{"a", []string{"c"}, api.CodeInvalid, "each would wait for the next: a → c → a"},
		{"a", []string{"mute", "b"}, api.CodeInvalid, "a → b → a"},
		{"self", []string{"self"}, api.CodeInvalid, "cannot wait for itself"},
		{"d", []string{"nobody"}, api.CodeNotFound, "depends_on[0].vm: there is no VM"},
		{"d", []string{"b", "b"}, api.CodeInvalid, "depends_on[1].vm: b is there twice"},
		{"d", []string{"b:there"}, api.CodeInvalid, "depends_on[0].condition"},
		{"d", []string{"Not A Name"}, api.CodeInvalid, "depends_on[0].vm"},
		{"d", []string{"mute:healthy"}, api.CodeInvalid, "VM mute has no health check"},
	} {
		if _, err := d.after(tc.name, "serve", tc.others...); api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s after %v: %v, want %s with %q", tc.name, tc.others, err, tc.code, tc.want)
		}
	}
}

// TestRebootInTurn reboots the host under VMs that depend on each other and have
// each policy, stopped or not.
func TestRebootInTurn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	create := func(name, policy string, others ...string) {
		t.Helper()
		req := api.VMCreate{Name: name, Plugin: "serve", Restart: &api.Restart{Policy: policy}}
		for _, o := range others {
			req.DependsOn = append(req.DependsOn, api.Dependency{VM: o, Condition: api.DependHealthy})
		}
		d.createFrom(req)
	}
	// The first that is made is the last that may start.
	create("db", api.RestartOnFailure)
	create("app", api.RestartNever, "db")
	create("web", api.RestartUnlessStopped, "app", "db")
	create("stays", api.RestartUnlessStopped)
	create("returns", api.RestartAlways)
	d.createFrom(api.VMCreate{Name: "unborn", Plugin: "serve", Stopped: true, Restart: &api.Restart{Policy: api.RestartAlways}})
	for _, name := range []string{"web", "stays", "returns"} {
		d.must(name, api.WaitHealthy)
	}
	for _, name := range []string{"stays", "returns"} {
		if _, err := d.StopVM(ctx, name, api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitStopped)
	}
	before := d.settle()
	// A restart of the daemon starts nothing.
	d.stop()
	d = w.start(options{})
	if vm := mustVM(t, d, "returns"); vm.Status != api.VMStopped || vm.Desired != api.DesiredStopped {
		t.Errorf("after a restart of the daemon: %+v", vm)
	}
	w.checkWorld(d.settle())

	d.kill()
	w.reboot()
	d = w.start(options{})
	<-d.Ready()
	for _, name := range []string{"web", "returns"} {
		d.must(name, api.WaitHealthy)
	}
	after := d.settle()
	w.checkWorld(after)
	for i, vm := range after {
		want, starts := api.VMRunning, 2
		switch vm.Name {
		case "stays":
			want, starts = api.VMStopped, 1
		case "unborn":
			want, starts = api.VMStopped, 0
		}
		if vm.Status != want || vm.Incarnation != starts || vm.IPAddress != before[i].IPAddress || vm.RestartCount != 0 {
			t.Errorf("after the reboot: %s is %s, incarnation %d, %s; want %s, %d, %s", vm.Name, vm.Status, vm.Incarnation, vm.IPAddress, want, starts, before[i].IPAddress)
		}
	}
	// Each was healthy before the next was begun.
	var order []string
	evs, err := d.db.Events(ctx, api.EventFilter{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range evs.Events {
		if ev.Type == api.EventVMStarting || ev.Type == api.EventVMHealthy {
			switch ev.Name {
			case "db", "app", "web":
				order = append(order, ev.Name+" "+strings.ToLower(strings.TrimPrefix(string(ev.Type), "VM_")))
			}
		}
	}
	want := "db starting, db healthy, app starting, app healthy, web starting, web healthy"
	if got := strings.Join(order, ", "); got != want+", "+want {
		t.Errorf("order is %s, want twice %s", got, want)
	}

	// What was dealt with once is not again: stopped, it stays so until the next reboot.
	if _, err := d.StopVM(ctx, "returns", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("returns", api.WaitStopped)
	d.settle()
	d.stop()
	d = w.start(options{})
	d.settle()
	if vm := mustVM(t, d, "returns"); vm.Status != api.VMStopped {
		t.Errorf("stopped after the reboot: %+v", vm)
	}
}

// TestKilledAfterReboot kills the daemon that comes after a reboot at every write.
func TestKilledAfterReboot(t *testing.T) {
	for n := 1; ; n++ {
		w := newWorld(t)
		d := w.start(options{})
		d.equip()
		d.createFrom(api.VMCreate{Name: "db", Plugin: "serve", Restart: &api.Restart{Policy: api.RestartAlways}})
		d.must("db", api.WaitHealthy)
		if _, err := d.after("web", "serve", "db:healthy"); err != nil {
			t.Fatal(err)
		}
		d.must("web", api.WaitHealthy)
		if _, err := d.StopVM(context.Background(), "db", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must("db", api.WaitStopped)
		d.settle()
		d.kill()
		w.reboot()
		tr := newTrigger(n)
		tr.arm(true)
		d = w.start(options{afterCommit: tr.pull})
		fired := tr.await(d, nil)
		if fired {
			d = w.start(options{})
		}
		d.must("web", api.WaitHealthy)
		vms := d.settle()
		w.checkWorld(vms)
		for _, vm := range vms {
			if vm.Status != api.VMRunning || vm.Incarnation < 2 || vm.WaitingFor != "" {
				t.Errorf("killed after write %d: %+v", n, vm)
			}
		}
		d.stop()
		if !fired {
			if n < 5 {
				t.Fatalf("there were %d places", n-1)
			}
			t.Logf("killed at %d places", n-1)
			return
		}
	}
}
