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
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/store/row"
	"github.com/volantvm/volant/testdata/need"
)

// trigger kills a daemon at the n-th time that it is pulled after being armed.
type trigger struct {
	mu    sync.Mutex
	armed bool          // guarded by mu
	left  int           // guarded by mu
	fired chan struct{} // closed when it has killed
}

func newTrigger(n int) *trigger { return &trigger{left: n, fired: make(chan struct{})} }

func (tr *trigger) arm(on bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.armed = on
}

func (tr *trigger) pull(in *instance) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if !tr.armed {
		return
	}
	if tr.left--; tr.left == 0 {
		in.kill()
		close(tr.fired)
	}
}

// crashCase is an operation and what may be afterwards, wherever it was cut.
// TestEveryOperationHasACrashCase wants one for each method of httpapi.Service
// that changes anything, and for each write of the store.
type crashCase struct {
	name    string
	op      string // the method of httpapi.Service; "" for what nobody asks for
	prepare func(d *instance)
	act     func(d *instance)
	inGuest bool // act is the guest's doing: no daemon's death keeps it from happening
	writes  writes
	check   func(t *testing.T, d *instance, vms []row.VM)
}

// writes says whether an operation has durable writes to be killed after.
type writes int

const (
	writesRows writes = iota
	writesNone        // it acts on files, or in the guest
)

func crashCases() []crashCase {
	ctx := context.Background()
	running := func(d *instance) {
		d.create("web", "serve")
		d.settle()
	}
	one := func(t *testing.T, vms []row.VM, states ...api.VMState) {
		t.Helper()
		if len(vms) != 1 || !slices.Contains(states, vms[0].Status) {
			t.Errorf("VMs: %+v, want one that is %v", vms, states)
		}
	}
	sized := func(t *testing.T, d *instance, vm *row.VM) {
		t.Helper()
		d.checkSize(t, vm)
		v, err := d.VMConfig(ctx, "web", 0)
		if err != nil || v.Pending || v.Config.MemoryMB != vm.MemoryMB || (v.Version == 2) != (vm.MemoryMB != 64) {
			t.Errorf("configuration %+v, %v, of a VM of %d MiB", v, err, vm.MemoryMB)
		}
	}
	return append(artifactCrashCases(), []crashCase{
		{
			name: "create",
			op:   "CreateVM",
			act:  func(d *instance) { d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve"}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMRunning)
				}
			},
		},
		{
			name:    "configure",
			op:      "SetVMConfig",
			prepare: running,
			act: func(d *instance) {
				d.SetVMConfig(ctx, "web", api.VMConfigChange{Patch: []byte(`{"memory_mb": 333, "ports": [{"port": 80, "host_port": 8080}], "ttl_seconds": 9000}`), Restart: true})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				v, err := d.VMConfig(ctx, "web", 0)
				if err != nil || v.Pending || v.Config.MemoryMB != vms[0].MemoryMB || d.w.hv.Machine(vms[0].ID).Spec().MemoryMiB != vms[0].MemoryMB {
					t.Errorf("version %+v, %v, of VM %+v", v, err, vms[0])
				}
				times, err := d.store.Expiries(ctx)
				if (v.Version == 2) != (vms[0].MemoryMB == 333) || len(times) != v.Version-1 || len(vms[0].Ports) != v.Version-1 || err != nil {
					t.Errorf("version %d of VM %+v, which ends at %v", v.Version, vms[0], times)
				}
			},
		},
		{
			name:    "rename",
			op:      "RenameVM",
			prepare: running,
			act:     func(d *instance) { d.RenameVM(ctx, "web", "front") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				if name := vms[0].Name; name != "web" && name != "front" {
					t.Errorf("it is called %s", name)
				}
			},
		},
		{
			name: "expire",
			prepare: func(d *instance) {
				d.createFrom(api.VMCreate{Name: "web", Plugin: "serve", TTLSeconds: 9000})
				d.settle()
			},
			act: func(d *instance) {
				times, err := d.store.Expiries(ctx)
				if err == nil && len(times) == 1 {
					d.expireVM(ctx, times[0])
				}
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMRunning)
				}
				if times, err := d.store.Expiries(ctx); err != nil || len(times) != len(vms) {
					t.Errorf("%d VMs, and times %v, %v", len(vms), times, err)
				}
			},
		},
		{
			name: "create once",
			op:   "BeginOnce",
			act:  func(d *instance) { d.createOnce(ctx, "key") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				// Asked again, there is one, whatever was there before.
				id, replayed, err := d.createOnce(ctx, "key")
				if err != nil || replayed != (len(vms) == 1) {
					t.Errorf("asked again with %d VMs: replayed %v, %v", len(vms), replayed, err)
				}
				if now := d.settle(); len(now) != 1 || now[0].ID != id {
					t.Errorf("%d VMs, want %s alone", len(now), id)
				}
			},
		},
		{
			name: "end a request that was done once",
			op:   "EndOnce",
			act: func(d *instance) {
				for _, undone := range []bool{false, true} {
					once, _, _, err := d.BeginOnce(ctx, fmt.Sprint("undone: ", undone), "digest")
					if err != nil {
						return
					}
					d.CreateVolume(once, api.VolumeCreate{Name: fmt.Sprint("v-", undone), SizeMB: 16})
					d.EndOnce(once, api.Answer{Status: 200, Body: []byte("made")}, undone)
				}
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				d.checkVolumes(t)
				for _, undone := range []bool{false, true} {
					once, a, done, err := d.BeginOnce(ctx, fmt.Sprint("undone: ", undone), "digest")
					if err != nil || done && a.Kind != "Volume" {
						t.Errorf("BeginOnce = %+v, %v", a, err)
					}
					if _, err := d.Volume(ctx, fmt.Sprint("v-", undone)); !undone && done != (err == nil) {
						t.Errorf("the request is done: %v, its volume: %v", done, err)
					}
					if err := d.EndOnce(once, api.Answer{}, true); err != nil {
						t.Error(err)
					}
				}
			},
		},
		{
			name:    "start",
			op:      "StartVM",
			prepare: func(d *instance) { d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve", Stopped: true}) },
			act:     func(d *instance) { d.StartVM(ctx, "web") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning, api.VMStopped)
				if vms[0].Desired == api.DesiredRunning && vms[0].Status != api.VMRunning {
					t.Errorf("wanted to run, but is %s", vms[0].Status)
				}
			},
		},
		{
			name:    "stop",
			op:      "StopVM",
			prepare: running,
			act:     func(d *instance) { d.StopVM(ctx, "web", api.VMStop{}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning, api.VMStopped)
				if vms[0].Incarnation != 1 {
					t.Errorf("incarnation %d: it was started again", vms[0].Incarnation)
				}
			},
		},
		{
			name:    "restart",
			op:      "RestartVM",
			prepare: running,
			act:     func(d *instance) { d.RestartVM(ctx, "web", api.VMStop{}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				if vms[0].Replace == 1 && vms[0].Incarnation < 2 {
					t.Errorf("a restart was wished, but incarnation %d runs", vms[0].Incarnation)
				}
			},
		},
		{
			name:    "pause",
			op:      "PauseVM",
			prepare: running,
			act:     func(d *instance) { d.PauseVM(ctx, "web") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning, api.VMPaused)
				d.checkPaused(t, &vms[0])
				if _, err := d.ResumeVM(ctx, "web"); err != nil {
					t.Error(err)
				}
				d.must("web", api.WaitHealthy)
			},
		},
		{
			name: "resume",
			op:   "ResumeVM",
			prepare: func(d *instance) {
				running(d)
				d.PauseVM(ctx, "web")
			},
			act: func(d *instance) { d.ResumeVM(ctx, "web") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning, api.VMPaused)
				d.checkPaused(t, &vms[0])
				if vms[0].Status == api.VMRunning && len(d.w.guest(vms[0].ID).woken()) == 0 {
					t.Error("it runs again, and was not told what time it is")
				}
			},
		},
		{
			name: "stop a paused VM",
			prepare: func(d *instance) {
				running(d)
				d.PauseVM(ctx, "web")
			},
			act: func(d *instance) { d.StopVM(ctx, "web", api.VMStop{}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMStopped, api.VMPaused)
				if vms[0].Status == api.VMStopped && vms[0].WantPaused {
					t.Error("the wish to be paused has outlived the machine")
				}
			},
		},
		{
			name:    "scale while it runs",
			op:      "ScaleVM",
			prepare: running,
			act:     func(d *instance) { d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 192}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				sized(t, d, &vms[0])
				if vms[0].Incarnation != 1 {
					t.Errorf("incarnation %d: it was restarted", vms[0].Incarnation)
				}
			},
		},
		{
			name:    "scale by a restart",
			op:      "ScaleVM",
			prepare: running,
			act:     func(d *instance) { d.ScaleVM(ctx, "web", api.VMScale{MemoryMB: 1000, Restart: true}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				sized(t, d, &vms[0])
				if (vms[0].MemoryMB == 1000) != (vms[0].Incarnation > 1) {
					t.Errorf("%d MiB in incarnation %d", vms[0].MemoryMB, vms[0].Incarnation)
				}
			},
		},
		{
			name:    "delete",
			op:      "DeleteVM",
			prepare: running,
			act:     func(d *instance) { d.DeleteVM(ctx, "web", api.VMStop{}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMRunning)
				}
				next := d.create("next", "serve")
				if want := []string{"10.9.0.2", "10.9.0.3"}[len(vms)]; next.IPAddress != want {
					t.Errorf("the next VM gets %s, want %s", next.IPAddress, want)
				}
			},
		},
		{
			name: "restart after a crash",
			prepare: func(d *instance) {
				m := d.manifest("serve")
				m.Name, m.Restart = "again", &api.Restart{Policy: "always"}
				if _, err := d.InstallPlugin(ctx, m); err != nil {
					d.w.t.Fatal(err)
				}
				d.create("web", "again")
				d.settle()
			},
			inGuest: true,
			act:     func(d *instance) { d.w.hv.Running()[0].Panic() },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				one(t, vms, api.VMRunning)
				if vms[0].Incarnation < 2 {
					t.Errorf("incarnation %d after a panic", vms[0].Incarnation)
				}
			},
		},
		{
			name:    "start after another",
			prepare: func(d *instance) { d.create("db", "serve"); d.settle() },
			act: func(d *instance) {
				d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve", DependsOn: []api.Dependency{{VM: "db", Condition: api.DependHealthy}}})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				for _, vm := range vms {
					if vm.Status != api.VMRunning || vm.WaitingFor != "" || vm.Name == "db" && vm.Incarnation != 1 {
						t.Errorf("VM %+v", vm)
					}
				}
			},
		},
		{
			name: "crashes until it is given up",
			prepare: func(d *instance) {
				m := d.manifest("crash")
				m.Restart = &api.Restart{Policy: api.RestartOnFailure, MaxRetries: 1}
				if _, err := d.InstallPlugin(ctx, m); err != nil {
					d.w.t.Fatal(err)
				}
			},
			act: func(d *instance) { d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "crash"}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMCrashed, api.VMFailed)
					if vm := vms[0]; vm.RestartCount != 1 || vm.Incarnation < 2 || vm.NextStartAt != nil || !strings.Contains(vm.Reason, "started again 1 times") {
						t.Errorf("given up: %+v", vm)
					}
				}
			},
		},
		{
			name: "workload exits",
			act: func(d *instance) {
				d.InstallPlugin(ctx, d.manifest("exit", "3"))
				d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "exit"})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMCrashed, api.VMFailed)
					if vms[0].Reason == "" {
						t.Error("no reason is given")
					}
				}
			},
		},
		{
			name: "start that fails",
			act: func(d *instance) {
				d.w.hv.Fail(hvtest.OpLaunched, fmt.Errorf("no memory"))
				d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "serve"})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					one(t, vms, api.VMFailed)
				}
			},
		},
		{
			name: "pull",
			op:   "PullImage",
			act:  func(d *instance) { d.PullImage(ctx, api.ImagePull{Reference: "nginx"}, nil) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				left := len(d.w.staging())
				switch img, err := d.Image(ctx, "nginx"); {
				case err == nil:
					if err := d.blobRef(img.Disk).verify(); err != nil {
						t.Errorf("the image is there, but %v", err)
					}
				case api.CodeOf(err) != api.CodeNotFound:
					t.Error(err)
				case left > 1:
					t.Errorf("left of the pull: %v", d.w.staging())
				default:
					left = 0 // the next pull goes on from it, and removes it
				}
				d.pullOf("nginx")
				if fetched, _ := d.w.imgs.counts(); fetched != 1 {
					t.Errorf("fetched %d times, want what was there gone on from", fetched)
				}
				if got := d.w.staging(); len(got) != left {
					t.Errorf("left of the next pull: %v", got)
				}
			},
		},
		{
			name: "load",
			op:   "LoadImage",
			act:  func(d *instance) { d.LoadImage(ctx, strings.NewReader("one\ntwo"), "", "", nil) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				imgs, err := d.Images(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, img := range imgs {
					if err := d.blobRef(img.Disk).verify(); err != nil {
						t.Errorf("the image is there, but %v", err)
					}
				}
				if left := d.w.staging(); len(left) != 0 {
					t.Errorf("left of the load: %v", left)
				}
			},
		},
		{
			name:    "remove an image",
			op:      "RemoveImage",
			prepare: func(d *instance) { d.pullOf("nginx") },
			act:     func(d *instance) { d.RemoveImage(ctx, "nginx", false) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if img, err := d.Image(ctx, "nginx"); err == nil {
					if err := d.blobRef(img.Disk).verify(); err != nil {
						t.Errorf("the image is there, but %v", err)
					}
				}
				d.pullOf("nginx")
			},
		},
		{
			name:    "create from an image",
			op:      "CreateVM",
			prepare: func(d *instance) { d.pullOf("nginx") },
			act: func(d *instance) {
				d.CreateVM(ctx, api.VMCreate{
					Image: "nginx", Ports: []api.Port{{Port: 80}}, Volumes: []api.VolumeMount{{Name: "data", Target: "/data"}, {Target: "/own", SizeMB: 16}},
				})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				d.checkVolumes(t)
				if len(vms) == 0 {
					return
				}
				one(t, vms, api.VMRunning)
				if vms[0].Name != "nginx-1" || vms[0].Ports[0].HostPort != api.FirstHostPort {
					t.Errorf("VM %+v", vms[0].VM)
				}
				for _, disk := range d.w.hv.Machine(vms[0].ID).Spec().Disks[3:] {
					if !isExt4(t, disk.Path) {
						t.Errorf("disk %s is half made", disk.Serial)
					}
				}
				if _, err := d.RemoveImage(ctx, "nginx", true); api.CodeOf(err) != api.CodeConflict {
					t.Errorf("RemoveImage of one in use = %v, want conflict", err)
				}
			},
		},
		{
			name:    "delete with a volume",
			op:      "DeleteVM",
			prepare: func(d *instance) { d.createWithVolume("web") },
			act:     func(d *instance) { d.DeleteVM(ctx, "web", api.VMStop{}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				d.checkVolumes(t)
				if len(vms) > 0 {
					one(t, vms, api.VMRunning)
					return
				}
				d.createWithVolume("next") // which the first one does not hold any more
			},
		},
		{
			name: "auto-remove",
			act: func(d *instance) {
				d.InstallPlugin(ctx, d.manifest("exit", "3"))
				d.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "exit", AutoRemove: true})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				if len(vms) > 0 {
					t.Errorf("VMs: %+v, want none: it has ended", vms)
				}
			},
		},
		{
			name: "create a volume",
			op:   "CreateVolume",
			act:  func(d *instance) { d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16}) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				d.checkVolumes(t)
				d.createWithVolume("web")
			},
		},
		{
			name: "label a volume",
			op:   "LabelVolume",
			prepare: func(d *instance) {
				if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16}); err != nil {
					d.w.t.Fatal(err)
				}
			},
			act: func(d *instance) {
				db := "db"
				d.LabelVolume(ctx, "data", api.VolumeChange{Labels: map[string]*string{"tier": &db}})
			},
			check: func(t *testing.T, d *instance, vms []row.VM) {
				v, err := d.Volume(ctx, "data")
				if told := d.told(api.EventVolumeLabeled); err != nil || told != len(v.Labels) {
					t.Errorf("volume %+v, %v, and %d events", v, err, told)
				}
				d.checkVolumes(t)
			},
		},
		{
			name: "remove a volume",
			op:   "RemoveVolume",
			prepare: func(d *instance) {
				if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16}); err != nil {
					d.w.t.Fatal(err)
				}
			},
			act: func(d *instance) { d.RemoveVolume(ctx, "data") },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				d.checkVolumes(t)
				d.createWithVolume("web")
			},
		},
		{
			name: "install a plugin",
			op:   "InstallPlugin",
			act:  func(d *instance) { d.InstallPlugin(ctx, d.manifest("stubborn")) },
			check: func(t *testing.T, d *instance, vms []row.VM) {
				// Whether it is there or not, doing it again makes it so.
				p, err := d.InstallPlugin(ctx, d.manifest("stubborn"))
				if err != nil || p.Version != "1" {
					t.Errorf("InstallPlugin again = %+v, %v", p, err)
				}
			},
		},
	}...)
}

// The daemon is killed after every durable write of every operation, and before
// everything that it does to store, hypervisor and network. The next daemon must
// bring the VM to what was wished, or to what was before, and nothing may leak.
func TestKilledAnywhere(t *testing.T) {
	for _, c := range crashCases() {
		for _, when := range []string{"after write", "before action"} {
			if when == "after write" && c.writes == writesNone {
				continue
			}
			t.Run(c.name+"/"+when, func(t *testing.T) {
				t.Parallel() // most of it is waiting for the disk
				n := 1
				for ; killedOnce(t, c, when, n, 0); n++ {
					if n == 200 {
						t.Fatal("the operation does not end")
					}
				}
				if n == 1 {
					t.Fatal("there was nothing to kill it in")
				}
				t.Logf("killed at %d places", n-1)
			})
		}
	}
}

// What a daemon was writing when it was killed is written before its successor
// looks, or never: a process takes its transactions with it.
func TestKilledInAWrite(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.createFrom(api.VMCreate{Name: "web", Plugin: "serve", Stopped: true})
	vm := mustVM(t, d, "web")
	begun := make(chan struct{})
	go d.db.ChangeVM(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) { // does not return before the test is over
		close(begun)
		for deadline := time.Now().Add(patience); d.gate.open() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
		vm.Reason = "written"
		return nil, nil
	})
	<-begun
	d.kill()
	d = w.start(options{})
	if vm := mustVM(t, d, "web"); vm.Reason != "written" {
		t.Errorf("a killed daemon still writes: %+v", vm)
	}
	d.settle()
}

// Like TestKilledAnywhere, and the daemon that cleans up is killed too.
func TestKilledTwice(t *testing.T) {
	need.Long(t)
	for _, c := range crashCases() {
		if c.name != "restart" && c.name != "delete" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			places := 0
			for first := 1; killedOnce(t, c, "before action", first, 0); first += 2 {
				for second := 1; second <= 9; second += 2 {
					killedOnce(t, c, "before action", first, second)
					places++
				}
			}
			t.Logf("killed at %d pairs of places", places)
		})
	}
}

// killedOnce runs c in a world of its own and kills the daemon at the n-th
// write or action, and its successor at its second-th action unless that is 0.
// It reports whether there was an n-th.
func killedOnce(t *testing.T, c crashCase, when string, n, second int) bool {
	t.Helper()
	name := fmt.Sprintf("killed %s %d", when, n)
	if second > 0 {
		name += fmt.Sprintf(", the next before action %d", second)
	}
	fired := false
	t.Run(name, func(t *testing.T) {
		w := newWorld(t)
		tr := newTrigger(n)
		opt := options{afterCommit: tr.pull}
		if when == "before action" {
			opt = options{beforeAction: tr.pull}
		}
		d := w.start(opt)
		d.equip()
		if c.prepare != nil {
			c.prepare(d)
		}
		d.settle()
		tr.arm(true)
		acted := make(chan struct{})
		go func() { // may hang in a write that never returns
			defer close(acted)
			c.act(d)
		}()
		fired = tr.await(d, acted)
		tr.arm(false)
		select {
		case <-tr.fired: // by something late: a report of the guest, a worker's last look
			fired = true
		default:
		}
		if !fired {
			// The operation is through, and nobody was killed.
			d.checkAfter(t, c)
			return
		}
		if c.inGuest {
			// The daemon may have been killed in a write of its own, such as that of
			// the guest's health, before the guest did anything.
			select {
			case <-acted:
			case <-time.After(patience):
				t.Fatal("the guest did nothing")
			}
		}
		if second > 0 {
			tr := newTrigger(second)
			tr.arm(true)
			d := w.start(options{beforeAction: tr.pull})
			tr.await(d, nil)
			d.kill()
		}
		w.start(options{}).checkAfter(t, c)
	})
	return fired
}

// createWithVolume creates a VM that mounts the volume data, and waits until it
// runs.
func (in *instance) createWithVolume(name string) {
	in.w.t.Helper()
	in.createFrom(api.VMCreate{Name: name, Plugin: "serve", Volumes: []api.VolumeMount{{Name: "data", Target: "/data"}}})
	in.must(name, api.WaitHealthy)
}

func (in *instance) checkAfter(t *testing.T, c crashCase) {
	t.Helper()
	vms := in.settle()
	in.w.checkWorld(vms)
	c.check(t, in, vms)
	in.settle()
}

// await waits until the trigger has killed d, or d has nothing left to do.
func (tr *trigger) await(d *instance, acted <-chan struct{}) bool {
	deadline := time.Now().Add(patience)
	quiet := 0
	for time.Now().Before(deadline) {
		select {
		case <-tr.fired:
			return true
		case <-d.Ready():
		case <-time.After(time.Millisecond):
			continue
		}
		done := acted == nil
		select {
		case <-acted:
			done = true
		default:
		}
		// Twice in a row: an operation of the guest takes a moment to be seen.
		if _, ok := d.quiet(); ok && done {
			quiet++
		} else {
			quiet = 0
		}
		if quiet == 3 {
			return false
		}
		time.Sleep(3 * time.Millisecond)
	}
	d.w.t.Fatal("neither killed nor done")
	return false
}
