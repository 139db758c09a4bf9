package daemon

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// jumpyClock is a wall clock that is set by hand.
type jumpyClock struct{ off atomic.Int64 }

// now has no monotonic reading, as the time after a restart of the host.
func (c *jumpyClock) now() time.Time { return time.Now().Add(time.Duration(c.off.Load())).Round(0) }

func (c *jumpyClock) jump(d time.Duration) { c.off.Add(int64(d)) }

// The host's clock may jump, at any time and by years: what waits, waits as long
// as it was to, what runs runs on, and nothing that is in use is taken for old.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, tc := range []struct {
		name string
		jump time.Duration
	}{{"back", -10 * year}, {"a day back", -24 * time.Hour}, {"forth", 10 * year}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			var clock jumpyClock
			w := newWorld(t)
			opt := options{
				config: func(c *Config) { c.Now = clock.now },
				timing: func(t *timing) {
					t.restartMin, t.restartMax, t.tick = 100*time.Millisecond, 200*time.Millisecond, 20*time.Millisecond
				},
			}
			d := w.start(opt)
			d.equip()
			again := d.manifest("serve")
			again.Name, again.Restart = "again", &api.Restart{Policy: api.RestartAlways}
			if _, err := d.InstallPlugin(ctx, again); err != nil {
				t.Fatal(err)
			}
			d.pullOf("nginx")
			web := d.create("web", "again")
			d.create("steady", "serve")
			d.must("web", api.WaitHealthy)
			d.must("steady", api.WaitHealthy)
			d.settle()

			// In the middle of the pause before a restart, twice.
			for want := 2; want <= 3; want++ {
				w.hv.Machine(web.ID).Panic()
				begin := time.Now()
				for vm := mustVM(t, d, "web"); vm.NextStartAt == nil && vm.Incarnation < want; vm = mustVM(t, d, "web") {
					if time.Since(begin) > patience {
						t.Fatal("the panic is not seen")
					}
				}
				clock.jump(tc.jump)
				for vm := mustVM(t, d, "web"); vm.Incarnation < want || vm.Status != api.VMRunning; vm = mustVM(t, d, "web") {
					if time.Since(begin) > patience {
						t.Fatalf("VM web waits for %v: %s, incarnation %d", time.Since(begin), vm.Status, vm.Incarnation)
					}
					time.Sleep(5 * time.Millisecond)
				}
				clock.jump(-tc.jump)
			}
			clock.jump(tc.jump)

			// Streams that wait, and operations as ever.
			short, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			seen := make(chan error, 1)
			go func() {
				seen <- d.Events(short, api.EventFilter{VM: "late", Types: []api.EventType{api.EventVMHealthy}}, true, func(api.Event) error { return context.Canceled })
			}()
			d.create("late", "serve")
			d.must("late", api.WaitHealthy)
			if err := <-seen; err != context.Canceled {
				t.Errorf("Events = %v, want that of VM late", err)
			}
			time.Sleep(100 * time.Millisecond) // some ticks
			if _, err := d.Blob(ctx, mustPlugin(t, d, "again").Manifest.Initramfs.Checksum); err != nil {
				t.Errorf("a blob in use: %v", err)
			}
			if _, err := d.Image(ctx, "nginx"); err != nil {
				t.Errorf("an image: %v", err)
			}
			if vm := mustVM(t, d, "steady"); vm.Incarnation != 1 || vm.Status != api.VMRunning || !vm.AgentUp {
				t.Errorf("VM steady: %s, incarnation %d, agent up %v", vm.Status, vm.Incarnation, vm.AgentUp)
			}

			// The next daemon finds a wait that its clock says lasts for years.
			w.hv.Machine(web.ID).Panic()
			d.stop()
			clock.jump(-2 * tc.jump)
			d = w.start(opt)
			w.checkWorld(d.settle())
			if vm := mustVM(t, d, "web"); vm.Status != api.VMRunning {
				t.Errorf("VM web is %s", vm.Status)
			}
			if _, err := d.StopVM(ctx, "late", api.VMStop{}); err != nil {
				t.Fatal(err)
			}
			d.must("late", api.WaitStopped)
			w.checkWorld(d.settle())
		})
	}
}
