package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/cgroup"
)

// memCgroups are control groups in memory.
type memCgroups struct {
	mu      sync.Mutex
	groups  map[string]cgroup.Limits // guarded by mu
	usage   cgroup.Usage             // guarded by mu; of every VM
	failing error                    // guarded by mu; of Make and Limit
}

func newMemCgroups() *memCgroups { return &memCgroups{groups: make(map[string]cgroup.Limits)} }

func (c *memCgroups) Make(id string, l cgroup.Limits) ([]string, error) {
	return []string{"/sys/fs/cgroup/volant/test/" + id}, c.Limit(id, l)
}

func (c *memCgroups) Limit(id string, l cgroup.Limits) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing == nil {
		c.groups[id] = l
	}
	return c.failing
}

func (c *memCgroups) Usage(id string) (cgroup.Usage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.groups[id]; !ok {
		return cgroup.Usage{CPU: -1, Memory: -1, ReadBytes: -1, WriteBytes: -1, Pids: -1}, nil
	}
	return c.usage, nil
}

func (c *memCgroups) Remove(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, id)
	return nil
}

func (c *memCgroups) IDs() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.groups)), nil
}

func (c *memCgroups) Problem() string { return "" }
func (c *memCgroups) Words() string   { return "test" }

func (c *memCgroups) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = err
}

func (c *memCgroups) reboot() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.groups)
}

// state lists the groups with their limits.
func (c *memCgroups) state() (groups []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.groups {
		groups = append(groups, fmt.Sprintf("%s %+v", id, l))
	}
	return groups
}

// gatedCgroups let nothing of a killed daemon pass.
type gatedCgroups struct {
	*memCgroups
	gate *gate
}

func (g *gatedCgroups) Make(id string, l cgroup.Limits) (paths []string, err error) {
	err = g.gate.do(func() error {
		paths, err = g.memCgroups.Make(id, l)
		return err
	})
	return paths, err
}

func (g *gatedCgroups) Limit(id string, l cgroup.Limits) error {
	return g.gate.do(func() error { return g.memCgroups.Limit(id, l) })
}

func (g *gatedCgroups) Remove(ctx context.Context, id string) error {
	return g.gate.do(func() error { return g.memCgroups.Remove(ctx, id) })
}

func TestCgroups(t *testing.T) {
	w := newWorld(t)
	if _, err := w.cgs.Make("zzzzzzzzzzzz", cgroup.Limits{}); err != nil { // of a VM that is no more
		t.Fatal(err)
	}
	if _, err := w.cgs.Make("somebodys", cgroup.Limits{}); err != nil { // no VM's: not ours
		t.Fatal(err)
	}
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	if got, want := w.hv.Machine(vm.ID).Spec().Cgroups, []string{"/sys/fs/cgroup/volant/test/" + vm.ID}; !slices.Equal(got, want) {
		t.Errorf("the VMM is in %v, want %v", got, want)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		ids, _ := w.cgs.IDs()
		slices.Sort(ids)
		if want := []string{vm.ID, "somebodys"}; len(ids) == 2 && slices.Contains(ids, want[0]) && slices.Contains(ids, want[1]) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("groups %v, want the VM's, and the one that is not ours", ids)
		}
	}
	doc, err := d.Doctor(context.Background())
	if err != nil || doc.Limits.Cgroups != "test" || doc.Limits.Problem != "" {
		t.Errorf("Doctor = %+v, %v", doc.Limits, err)
	}
	// A limit that cannot be set is not done without.
	w.cgs.fail(errors.New("no space left on device"))
	if _, err := d.RestartVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if got, err := d.wait("web", api.WaitRunning); api.CodeOf(err) != api.CodeConflict || got.Status != api.VMFailed || !strings.Contains(got.Reason, "cgroup: no space left") {
		t.Errorf("after a restart without limits: %s, %q, %v", got.Status, got.Reason, err)
	}
}
