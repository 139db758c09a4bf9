package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store"
	"github.com/volantvm/volant/store/row"
)

func TestVMsOutliveTheDaemon(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	d.stop()
	if n := len(w.hv.Running()); n != 1 {
		t.Fatalf("%d machines run after the daemon ended, want 1", n)
	}
	d = w.start(options{})
	w.checkWorld(d.settle())
	again, err := d.VM(ctx, "web")
	if err != nil || again.Incarnation != 1 || again.PID != vm.PID && vm.PID != 0 {
		t.Errorf("adopted: %+v, %v", again, err)
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	seen := errors.New("seen")
	if err := d.Events(short, api.EventFilter{Types: []api.EventType{api.EventVMAdopted}}, true, func(api.Event) error { return seen }); err != seen {
		t.Errorf("Events = %v, want an adoption", err)
	}
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if vm := d.must("web", api.WaitStopped); vm.Exit == nil || vm.Exit.Signal != "SIGTERM" {
		t.Errorf("stopped after adoption: %+v", vm)
	}
	w.checkWorld(d.settle())
}

// heldNetwork answers Taps for the first time when it is released: a daemon that
// begins has read by then which VMs there are.
type heldNetwork struct {
	Network
	held, release chan struct{}
	once          sync.Once
}

func (n *heldNetwork) Taps(ctx context.Context) (map[string]string, error) {
	n.once.Do(func() {
		close(n.held)
		<-n.release
	})
	return n.Network.Taps(ctx)
}

// A VM that is created while the daemon makes the network, for the API is open by
// then, keeps its rules.
func TestCreatedBeforeTheNetwork(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("before", "serve")
	d.must("before", api.WaitHealthy)
	d.stop()
	n := heldNetwork{held: make(chan struct{}), release: make(chan struct{})}
	d = w.start(options{config: func(c *Config) { n.Network, c.Network = c.Network, &n }})
	<-n.held
	d.create("early", "serve")
	time.Sleep(50 * time.Millisecond) // a worker would have added its tap long since
	if taps, _ := w.net.state(); len(taps) != 1 {
		t.Errorf("taps %v before the network was open, want only that of the first VM", taps)
	}
	close(n.release)
	d.must("early", api.WaitHealthy)
	w.checkWorld(d.settle())
}

// What happened while no daemon ran is found out by the next.
func TestEndsUnwatched(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    func(m *hvtest.Machine)
		status api.VMState
		reason string
	}{
		{"power off", (*hvtest.Machine).PowerOff, api.VMStopped, unheard},
		{"panic", (*hvtest.Machine).Panic, api.VMCrashed, "the guest kernel panicked"},
		{"crash", (*hvtest.Machine).Crash, api.VMCrashed, "the VMM ended unexpectedly: signal: killed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{})
			d.equip()
			vm := d.create("web", "serve")
			d.must("web", api.WaitHealthy)
			d.settle()
			d.stop()
			tc.end(w.hv.Machine(vm.ID))
			d = w.start(options{})
			vm = d.must("web", api.WaitStopped)
			if vm.Status != tc.status || vm.Reason != tc.reason {
				t.Errorf("VM is %s because %q, want %s because %q", vm.Status, vm.Reason, tc.status, tc.reason)
			}
			w.checkWorld(d.settle())
		})
	}
}

func TestHostReboot(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	for _, name := range []string{"up", "down", "leaving"} {
		d.create(name, "serve")
		d.must(name, api.WaitHealthy)
	}
	if _, err := d.StopVM(ctx, "down", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("down", api.WaitStopped)
	d.settle()
	d.kill()
	w.reboot()
	// As if the wish had been written just before the power went.
	db, err := store.Open(ctx, filepath.Join(w.root, "state.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, _, err := db.ChangeVM(ctx, mustVM(t, d, "leaving").ID, func(vm *row.VM) ([]api.Event, error) {
		vm.Desired = api.DesiredAbsent
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}

	d = w.start(options{})
	vms := d.settle()
	w.checkWorld(vms)
	if len(vms) != 2 {
		t.Fatalf("%d VMs after the reboot, want 2", len(vms))
	}
	if vm := mustVM(t, d, "up"); vm.Status != api.VMRunning || vm.Incarnation != 2 || vm.IPAddress != "10.9.0.2" {
		t.Errorf("what ran: %+v", vm)
	}
	if vm := mustVM(t, d, "down"); vm.Status != api.VMStopped || vm.Incarnation != 1 {
		t.Errorf("what was stopped: %+v", vm)
	}
}

func mustVM(t testing.TB, d *instance, name string) row.VM {
	t.Helper()
	vm, err := d.db.VM(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// Taps, directories and machines that no row explains are removed; what does not
// look like Volant's is left.
func TestLeftovers(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	d.kill()

	const ghost = "ghostghost22"
	if _, err := w.net.AddTap(ctx, ghost); err != nil {
		t.Fatal(err)
	}
	w.haunt(ghost, filepath.Join(w.root, "data"))
	if err := os.MkdirAll(filepath.Join(w.root, "run", "vms", "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"data/blobs/tmp/" + tempPrefix + "1", "data/cache/" + tempPrefix + "2"} {
		if err := os.WriteFile(filepath.Join(w.root, path), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	d = w.start(options{})
	vms := d.settle()
	if err := os.Remove(filepath.Join(w.root, "run", "vms", "lost+found")); err != nil {
		t.Errorf("what is not ours: %v", err)
	}
	w.checkWorld(vms)
}

func TestSecondDaemonIsRefused(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	_, err := New(d.cfg)
	if err == nil || !strings.Contains(err.Error(), "in use by another volantd") {
		t.Errorf("New on a directory in use = %v", err)
	}
	cfg := d.cfg
	cfg.RuntimeDir = "/run/" + strings.Repeat("long/", 20)
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "sockets") {
		t.Errorf("New with a long runtime directory = %v", err)
	}
}

// A full disk makes every write fail for a while, at any place. The daemon says
// so to who asks, does not lose what runs, and goes on when there is room again.
func TestDiskFullForAWhile(t *testing.T) {
	ctx := context.Background()
	for skip := range 7 {
		t.Run(fmt.Sprintf("after %d writes", skip), func(t *testing.T) {
			w := newWorld(t)
			var mu sync.Mutex
			left, full := -1, false
			d := w.start(options{writeError: func() error {
				mu.Lock()
				defer mu.Unlock()
				if left == 0 {
					full = true
				} else if left > 0 {
					left--
				}
				if full {
					return fmt.Errorf("write: %w", row.ErrFull)
				}
				return nil
			}})
			d.equip()
			mu.Lock()
			left = skip
			mu.Unlock()
			_, err := d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve"})
			if skip == 0 {
				if api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "disk") {
					t.Errorf("CreateVM on a full disk = %v, want exhausted", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // some failures
			mu.Lock()
			left, full = -1, false
			mu.Unlock()
			vms := d.settle()
			w.checkWorld(vms)
			if len(vms) != min(skip, 1) || skip > 0 && vms[0].Status != api.VMRunning {
				t.Errorf("VMs: %+v", vms)
			}
		})
	}
}

// A driver that fails to attach is asked again; the machine is not lost.
func TestAttachFailsForAWhile(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	d.stop()
	w.hv.FailNext(hvtest.OpAttach, 3, errors.New("QMP is busy"))
	d = w.start(options{})
	vms := d.settle()
	w.checkWorld(vms)
	if vms[0].Incarnation != 1 {
		t.Errorf("incarnation %d, want the first", vms[0].Incarnation)
	}
}

// Without the driver of its record a VM is left alone.
func TestDriverOfRecordIsMissing(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	d.stop()
	d = w.start(options{config: func(c *Config) { c.Driver = nil }})
	<-d.Ready()
	time.Sleep(30 * time.Millisecond)
	if vm := mustVM(t, d, "web"); vm.Status != api.VMRunning || len(w.hv.Running()) != 1 {
		t.Errorf("VM is %s, %d machines", vm.Status, len(w.hv.Running()))
	}
	d.stop()
	d = w.start(options{config: func(c *Config) { c.Others, c.Driver = []hv.Driver{c.Driver}, nil }})
	w.checkWorld(d.settle())
}

func TestTick(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{timing: func(t *timing) { t.tick, t.grace = 20*time.Millisecond, 100*time.Millisecond }, config: func(c *Config) { c.KeepEvents = 5 }})
	d.equip()
	loose := d.put([]byte("nobody wants this"))
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	kept := mustPlugin(t, d, "serve").Manifest.Initramfs.Checksum
	stale := filepath.Join(w.root, "data", "cache", strings.Repeat("0", 32)+"-"+strings.Repeat("0", 64)+".img")
	if err := os.WriteFile(stale, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for gone := 0; gone < 3; time.Sleep(5 * time.Millisecond) {
		gone = 0
		if _, err := d.Blob(ctx, loose); api.CodeOf(err) == api.CodeNotFound {
			gone++
		}
		if _, err := os.Stat(stale); errors.Is(err, os.ErrNotExist) {
			gone++
		}
		if page, err := d.db.Events(ctx, api.EventFilter{}, 100); err == nil && len(page.Events) <= 5 {
			gone++
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of blob, image and old events are gone, want 3", gone)
		}
	}
	time.Sleep(250 * time.Millisecond) // past the grace of what is in use
	if _, err := d.Blob(ctx, kept); err != nil {
		t.Errorf("blob of an installed plugin: %v", err)
	}
	if images, _ := filepath.Glob(filepath.Join(w.root, "data", "cache", "*.img")); len(images) != 2 {
		t.Errorf("cached files: %v, want the two that a VM booted", images)
	}
	w.checkWorld(d.settle())
}

func mustPlugin(t *testing.T, d *instance, name string) api.Plugin {
	t.Helper()
	p, err := d.Plugin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
