package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// TestManyLeaveNothing creates, uses, stops, starts and deletes 50 VMs at once, each as
// fast as it can. Every call is answered as if it were alone, and in the end
// nothing is left: no row, lease, port, tap, rule, machine, directory, goroutine
// or open file.
func TestManyLeaveNothing(t *testing.T) {
	const many = 50
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("first", "serve")
	d.must("first", api.WaitHealthy)
	d.settle()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)

	var mu sync.Mutex
	addresses, ports := make(map[string]string), make(map[int]string)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			name := fmt.Sprintf("vm-%d", i)
			vm, err := d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve", Ports: []api.Port{{Port: 80}}, Volumes: []api.VolumeMount{{Name: name, Target: "/data", SizeMB: 16}}})
			if err != nil {
				t.Errorf("CreateVM %s: %v", name, err)
				return
			}
			mu.Lock()
			if other := addresses[vm.IPAddress]; other != "" {
				t.Errorf("%s and %s both have %s", name, other, vm.IPAddress)
			}
			if other := ports[vm.Ports[0].HostPort]; other != "" {
				t.Errorf("%s and %s both have port %d", name, other, vm.Ports[0].HostPort)
			}
			addresses[vm.IPAddress], ports[vm.Ports[0].HostPort] = name, name
			mu.Unlock()
			steps := []func() error{
				func() error { _, err := d.WaitVM(ctx, name, api.WaitHealthy); return err },
				func() error {
					conn, err := d.VMExec(ctx, name, api.Exec{Args: []string{"x"}})
					if err == nil {
						err = conn.Close()
					}
					return err
				},
				func() error { _, err := d.StopVM(ctx, name, api.VMStop{Force: i%2 == 0}); return err },
				func() error { _, err := d.WaitVM(ctx, name, api.WaitStopped); return err },
				func() error { _, err := d.StartVM(ctx, name); return err },
				func() error { return d.DeleteVM(ctx, name, api.VMStop{Force: i%3 == 0}) }, // in the middle of its start
				func() error { _, err := d.WaitVM(ctx, name, api.WaitDeleted); return err },
				func() error { return d.RemoveVolume(ctx, name) },
			}
			for n, step := range steps {
				if err := step(); err != nil {
					t.Errorf("%s, step %d: %v", name, n, err)
					return
				}
			}
		})
	}
	all.Wait()
	vms := d.settle()
	if len(vms) != 1 || vms[0].Incarnation != 1 || vms[0].Status != api.VMRunning {
		t.Errorf("left: %+v, want the first, which nobody touched", vms)
	}
	w.checkWorld(vms)
	d.checkVolumes(t)
	if left, err := os.ReadDir(filepath.Join(w.root, "data", "volumes")); err != nil || len(left) > 0 {
		t.Errorf("disks of volumes are left: %v, %v", left, err)
	}
	if vm := d.create("next", "serve"); vm.IPAddress != "10.9.0.3" {
		t.Errorf("the next VM gets %s, want the lowest that is free: 10.9.0.3", vm.IPAddress)
	}
	if err := d.DeleteVM(ctx, "next", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("next", api.WaitDeleted)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		g, f := runtime.NumGoroutine(), openFiles(t)
		if g <= goroutines+5 && f <= files+3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d open files, were %d and %d", g, f, goroutines, files)
		}
	}
}

// openFiles is how many files this process has open.
func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
