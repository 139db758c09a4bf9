package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// patch sets a VM's configuration by a JSON merge patch.
func (in *instance) patch(name, patch string) api.VMConfigVersion {
	in.w.t.Helper()
	v, err := in.SetVMConfig(context.Background(), name, api.VMConfigChange{Patch: []byte(patch), By: "uid 7"})
	if err != nil {
		in.w.t.Fatalf("SetVMConfig %s: %v", patch, err)
	}
	return v
}

func TestConfigTakesEffectAtTheNextStart(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	created := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	first, err := d.VMConfig(ctx, "web", 0)
	if err != nil || first.Version != 1 || first.Config.MemoryMB != created.MemoryMB || len(first.Config.Command) == 0 {
		t.Fatalf("VMConfig = %+v, %v", first, err)
	}

	v := d.patch("web", `{"memory_mb": 333, "env": {"MODE": "x"}, "labels": {"tier": "front"}, "ports": [{"port": 80, "host_port": 8080}]}`)
	if want := []string{"env.MODE", "labels.tier", "memory_mb", "ports"}; v.Version != 2 || !v.Pending || v.By != "uid 7" || !slices.Equal(v.Changed, want) {
		t.Errorf("version %+v, want the second one, pending, with %q changed", v, want)
	}
	vm, err := d.VM(ctx, "web")
	if err != nil || vm.MemoryMB != created.MemoryMB || vm.Labels["tier"] != "front" || !vm.ConfigPending || vm.ConfigVersion != 2 || len(vm.Ports) != len(created.Ports) {
		t.Errorf("VM = %+v, %v; want labels in effect, and the rest waiting", vm, err)
	}
	// The host port that it is to have is nobody else's from now on.
	_, err = d.CreateVM(ctx, api.VMCreate{Name: "other", Plugin: "serve", Ports: []api.Port{{Port: 80, HostPort: 8080}}})
	if api.CodeOf(err) != api.CodeExists {
		t.Errorf("CreateVM with the port: %v, want exists", err)
	}
	if same := d.patch("web", `{"memory_mb": 333}`); same.Version != 2 {
		t.Errorf("the same again is version %d", same.Version)
	}

	d.stop()
	d = w.start(options{}) // what waits survives
	if _, err := d.RestartVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	vm = d.must("web", api.WaitHealthy)
	spec := w.hv.Machine(vm.ID).Spec()
	if vm.MemoryMB != 333 || spec.MemoryMiB != 333 || vm.ConfigPending || vm.Ports[0].HostPort != 8080 {
		t.Errorf("VM has %d MiB, its machine %d, pending %v, ports %+v; want 333", vm.MemoryMB, spec.MemoryMiB, vm.ConfigPending, vm.Ports)
	}
	w.checkWorld(d.settle())

	// Back to the first version, at once.
	v, err = d.SetVMConfig(ctx, "web", api.VMConfigChange{Version: 1, Expect: 2, Restart: true})
	if err != nil || v.Version != 3 || v.From != 1 || !v.Pending {
		t.Fatalf("rollback = %+v, %v", v, err)
	}
	vm = d.must("web", api.WaitHealthy)
	if vm.MemoryMB != created.MemoryMB || vm.Labels["tier"] != "" || vm.Incarnation != 3 || len(vm.Ports) != 0 {
		t.Errorf("after rollback and restart: %+v", vm)
	}
	w.checkWorld(d.settle())
	history, err := d.VMConfigHistory(ctx, "web", 0)
	if err != nil || len(history) != 3 || history[0].Version != 3 || history[2].Version != 1 || len(history[2].Config.Changes(first.Config)) != 0 {
		t.Errorf("history = %+v, %v", history, err)
	}
	if last, err := d.VMConfigHistory(ctx, "web", 1); err != nil || len(last) != 1 || last[0].Version != 3 {
		t.Errorf("history of one = %+v, %v", last, err)
	}

	// A VM that has ended has it at once.
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	if v := d.patch("web", `{"cpu_cores": 2, "restart": {"policy": "always"}, "health_check": null}`); v.Pending {
		t.Error("a stopped VM's configuration waits")
	}
	if vm, _ := d.VM(ctx, "web"); vm.CPUCores != 2 || vm.Restart == nil || vm.Restart.Policy != "always" {
		t.Errorf("VM = %+v", vm)
	}
	if err := d.DeleteVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitDeleted)
	if _, err := d.db.Manifest(ctx, history[1].Config.Kernel); err == nil {
		t.Error("a manifest without a digest")
	}
	w.checkWorld(d.settle())
}

// What is in effect at once waits for nothing, unless something else does.
func TestConfigAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	for i, step := range []struct {
		patch   string
		pending bool
	}{
		{`{"labels": {"tier": "front"}}`, false},
		{`{"labels": {"tier": null}, "ttl_seconds": 9000, "auto_remove": true}`, false},
		{`{"labels": {"a": "b"}, "memory_mb": 333}`, true},
		{`{"labels": {"a": "c"}}`, true},
	} {
		v := d.patch("web", step.patch)
		vm, err := d.VM(ctx, "web")
		if err != nil || v.Version != i+2 || v.Pending != step.pending || vm.ConfigPending != step.pending {
			t.Errorf("%s: version %+v of VM %+v, %v; want version %d, pending %v", step.patch, v, vm, err, i+2, step.pending)
		}
	}
	if _, err := d.RestartVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitHealthy)
	if v, err := d.VMConfig(ctx, "web", 0); err != nil || v.Pending || v.Config.MemoryMB != 333 || v.Config.Labels["a"] != "c" || v.Config.TTLSeconds != 9000 || mustVM(t, d, "web").MemoryMB != 333 {
		t.Errorf("after the restart: %+v, %v", v, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "other", Plugin: "serve", Ports: []api.Port{{Port: 80, HostPort: 9090}}}); err != nil {
		t.Fatal(err)
	}
	d.settle()
	for _, tc := range []struct {
		name  string
		vm    string
		in    api.VMConfigChange
		patch string
		code  api.Code
		want  string
	}{
		{"unknown VM", "wbe", api.VMConfigChange{}, `{}`, api.CodeNotFound, "there is no VM"},
		{"unknown field", "web", api.VMConfigChange{}, `{"memroy_mb": 1}`, api.CodeInvalid, "did you mean memory_mb?"},
		{"wrong type", "web", api.VMConfigChange{}, `{"memory_mb": "1g"}`, api.CodeInvalid, "memory_mb: is a string"},
		{"no object", "web", api.VMConfigChange{}, `[1]`, api.CodeInvalid, "a JSON object"},
		{"no JSON", "web", api.VMConfigChange{}, `{"a"`, api.CodeInvalid, "ends too early"},
		{"too little memory", "web", api.VMConfigChange{}, `{"memory_mb": 1}`, api.CodeInvalid, "memory_mb"},
		{"no CPU", "web", api.VMConfigChange{}, `{"cpu_cores": null}`, api.CodeInvalid, "cpu_cores"},
		{"unknown kernel", "web", api.VMConfigChange{}, `{"kernel": "nope"}`, api.CodeNotFound, "nope"},
		{"kernel parameter", "web", api.VMConfigChange{}, `{"kernel_cmdline": "volant.vm=x"}`, api.CodeInvalid, "kernel_cmdline"},
		{"no command", "web", api.VMConfigChange{}, `{"command": null}`, api.CodeInvalid, "entrypoint"},
		{"host port taken", "web", api.VMConfigChange{}, `{"ports": [{"port": 80, "host_port": 9090}]}`, api.CodeExists, "published by VM other"},
		{"restart and removal", "web", api.VMConfigChange{}, `{"auto_remove": true, "restart": {"policy": "always"}}`, api.CodeInvalid, "auto_remove"},
		{"another version", "web", api.VMConfigChange{Expect: 2}, `{"memory_mb": 512}`, api.CodeConflict, "is version 1, not 2"},
		{"a version that is not there", "web", api.VMConfigChange{Version: 9}, `{}`, api.CodeNotFound, "no version 9"},
		{"life that is over", "web", api.VMConfigChange{}, `{"ttl_seconds": -1}`, api.CodeInvalid, "ttl_seconds"},
	} {
		tc.in.Patch = []byte(tc.patch)
		_, err := d.SetVMConfig(ctx, tc.vm, tc.in)
		if api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s with %q", tc.name, err, tc.code, tc.want)
		}
	}
	if v, err := d.VMConfig(ctx, "web", 0); err != nil || v.Version != 1 {
		t.Errorf("after refusals: version %d, %v", v.Version, err)
	}
}

// Changes that meet are all made, one after the other.
func TestConfigsAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{notRunning: true})
	d.equip()
	if _, err := d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve", Stopped: true}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			if _, err := d.SetVMConfig(ctx, "web", api.VMConfigChange{Patch: fmt.Appendf(nil, `{"labels": {"n%d": "x"}}`, n)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v, err := d.VMConfig(ctx, "web", 0); err != nil || v.Version != 7 || len(v.Config.Labels) != 6 {
		t.Errorf("after 6 changes: %+v, %v", v, err)
	}
}

func TestRename(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	id := d.create("web", "serve").ID
	d.create("db", "serve")
	d.must("web", api.WaitHealthy)
	for _, tc := range []struct {
		from, to string
		code     api.Code
	}{{"web", "db", api.CodeExists}, {"none", "x", api.CodeNotFound}, {"web", "../x", api.CodeInvalid}} {
		if _, err := d.RenameVM(ctx, tc.from, tc.to); api.CodeOf(err) != tc.code {
			t.Errorf("RenameVM(%s, %s) = %v, want %s", tc.from, tc.to, err, tc.code)
		}
	}
	vm, err := d.RenameVM(ctx, "web", "front")
	if err != nil || vm.Name != "front" || vm.ID != id || vm.Status != api.VMRunning {
		t.Fatalf("RenameVM = %+v, %v", vm, err)
	}
	if _, err := d.VM(ctx, "web"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("the old name: %v, want not found", err)
	}
	d.create("web", "serve") // it is free
	var got []string
	if err := d.Events(ctx, api.EventFilter{VM: "front"}, false, func(ev api.Event) error {
		got = append(got, fmt.Sprintf("%s %s<%s", ev.Type, ev.Name, ev.OldName))
		return nil
	}); err != nil || !slices.Equal(got, []string{"VM_RENAMED front<web"}) {
		t.Errorf("events %q, %v", got, err)
	}
	// The host name follows at the next start.
	if _, err := d.RestartVM(ctx, "front", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("front", api.WaitHealthy)
	w.checkWorld(d.settle())
}

// A VM lives as long as it was given, by the clock that nobody sets.
func TestTTL(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	var mu sync.Mutex
	up, jump := time.Duration(0), time.Duration(0)
	move := func(u, j time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		up, jump = up+u, jump+j
	}
	clocks := options{
		config: func(c *Config) {
			c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(up + jump) }
		},
		timing: func(t *timing) { t.tick = 10 * time.Millisecond },
	}
	start := func() *instance {
		opt := clocks
		opt.notRunning = true
		d := w.start(opt)
		d.expiries.uptime = func() time.Duration { mu.Lock(); defer mu.Unlock(); return up }
		return d
	}
	d := start()
	d.equip()
	create := func(name string, ttl int64) {
		if _, err := d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve", Stopped: true, TTLSeconds: ttl}); err != nil {
			t.Fatal(err)
		}
	}
	create("short", 60)
	create("long", 3600)
	create("ever", 0)
	create("extended", 60)
	state := func() (out []string) {
		t.Helper()
		if _, err := d.expire(ctx); err != nil {
			t.Fatal(err)
		}
		vms, _, err := d.store.VMs(ctx, api.VMFilter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, vm := range vms {
			if vm.Desired == api.DesiredAbsent {
				out = append(out, vm.Name)
			}
		}
		return out
	}
	if got := state(); len(got) != 0 {
		t.Errorf("at once %q are over", got)
	}
	move(30*time.Second, 2*time.Hour) // somebody sets the clock
	if got := state(); len(got) != 0 {
		t.Errorf("when the wall clock jumps ahead, %q are over", got)
	}
	move(0, -2*time.Hour)
	if _, err := d.SetVMConfig(ctx, "extended", api.VMConfigChange{Patch: []byte(`{"ttl_seconds": 600}`)}); err != nil {
		t.Fatal(err)
	}
	state()
	move(31*time.Second, -24*time.Hour)
	if got := state(); !slices.Equal(got, []string{"short"}) {
		t.Errorf("after 61 s by the clock that nobody sets, %q are over, want short", got)
	}
	move(0, 24*time.Hour)
	d.stop()
	d = start() // another daemon goes by the wall clock
	move(10*time.Minute, 0)
	state()
	if got := state(); !slices.Equal(got, []string{"extended", "short"}) {
		t.Errorf("after ten minutes %q are over, want extended and short", got)
	}
	if vm, err := d.VM(ctx, "long"); err != nil || vm.ExpiresAt == nil || vm.ExpiresAt.Sub(vm.CreatedAt) != time.Hour {
		t.Errorf("long: %+v, %v", vm, err)
	}
	n := 0
	if err := d.Events(ctx, api.EventFilter{Types: []api.EventType{api.EventVMExpired}}, false, func(api.Event) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("%d events, %v; want 2", n, err)
	}
}

// A VM that runs is stopped and deleted when its time is over.
func TestTTLOfARunningVM(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.createFrom(api.VMCreate{Name: "web", Plugin: "serve", TTLSeconds: 1})
	d.must("web", api.WaitDeleted)
	if end, err := d.wait(vm.ID, api.WaitStopped); err != nil || !end.ExpiresAt.Equal(*vm.ExpiresAt) {
		t.Errorf("how it ended: %+v, %v", end, err)
	}
	w.checkWorld(d.settle())
}
