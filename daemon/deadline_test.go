package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// TestBootDeadlineHolds wants a guest that never answers to be given up in time
// though its VM is looked at again and again.
func TestBootDeadlineHolds(t *testing.T) {
	const deadline = 400 * time.Millisecond
	w := newWorld(t)
	d := w.start(options{config: func(c *Config) { c.BootTimeout = deadline }})
	d.equip(d.manifest("silent"))
	d.create("web", "silent")
	looking, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		for looking.Err() == nil {
			d.StartVM(looking, "web") //nolint:errcheck // it is only to wake the worker
			time.Sleep(deadline / 10)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	begin := time.Now()
	for {
		vm, err := d.VM(ctx, "web")
		if err != nil {
			t.Fatal(err)
		}
		if vm.Status == api.VMFailed || vm.Incarnation > 1 {
			return
		}
		if time.Since(begin) > 20*deadline {
			t.Fatalf("still %s after %v, want failed after %v", vm.Status, time.Since(begin), deadline)
		}
		time.Sleep(deadline / 20)
	}
}
