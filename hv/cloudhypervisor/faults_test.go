package cloudhypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/transport"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/golden"
)

// brief is a budget for tests with VMMs that never answer.
func brief(string) time.Duration { return 300 * time.Millisecond }

// probed returns a driver that has probed a binary, which from now on behaves as
// s says.
func probed(t *testing.T, s script) (d *Driver, binary string) {
	t.Helper()
	binary = installScript(t, script{})
	d = scriptedDriver(binary)
	if _, err := d.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(binary), "requests.log")); err != nil {
		t.Fatal(err)
	}
	setScript(t, binary, s)
	return d, binary
}

// wantNothing wants neither processes nor, with files, anything in the machine's
// directory.
func wantNothing(t *testing.T, spec hv.Spec, files bool) {
	t.Helper()
	if left := alive(t, spec.Dir); len(left) > 0 {
		t.Errorf("processes left behind: %q", left)
	}
	var names []string
	err := filepath.WalkDir(spec.Dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != spec.Dir && (files || strings.HasSuffix(path, ".sock")) {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) > 0 {
		t.Errorf("files left behind: %q, %v", names, err)
	}
}

// TestLaunchFaults lets each call of a launch go wrong in each way.
func TestLaunchFaults(t *testing.T) {
	type fault struct {
		name   string
		script script
		want   string // in the error
	}
	faults := []fault{
		{"broken", script{Broken: "no such device"}, "no such device"},
		{"another process answers", script{PID: 1}, "is served by process 1"},
	}
	for _, op := range []string{opPing, opCreate, opBoot} {
		faults = append(faults,
			fault{op + " refused", script{Refuse: map[string]refusal{op: {500, `["Error from API","broken disk"]`}}}, "broken disk"},
			fault{op + " refused without JSON", script{Refuse: map[string]refusal{op: {503, "{\n too many\n"}}}, op + `: status 503: "{\n too many`},
			fault{op + " kills", script{Die: []string{op}}, "panicked"},
			fault{op + " is silent", script{Silent: []string{op}}, op + ": no answer in 300ms"},
		)
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			d, binary := probed(t, f.script)
			d.budget = brief
			spec := scriptedSpec(t)
			vm, err := d.Launch(t.Context(), spec)
			if err == nil {
				vm.Kill(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("Launch: %v, want %s in it", err, f.want)
			}
			wantNothing(t, spec, true)
			// A second boot would succeed, without what made the first one fail.
			if n := strings.Count(requests(t, binary), "PUT /api/v1/vm.boot"); n > 1 {
				t.Errorf("%d boots, want at most one", n)
			}
		})
	}
	t.Run("late", func(t *testing.T) {
		t.Parallel()
		d, _ := probed(t, script{Late: 500 * time.Millisecond})
		d.budget = brief // of a call: nobody listens yet
		vm, err := d.Launch(t.Context(), scriptedSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		d, _ := probed(t, script{Silent: []string{opBoot}})
		spec := scriptedSpec(t)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := d.Launch(ctx, spec); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Launch: %v, want DeadlineExceeded", err)
		}
		wantNothing(t, spec, true)
	})
}

// TestCallFaults lets each call to a running machine go wrong in each way, and
// wants the machine to be killed all the same.
func TestCallFaults(t *testing.T) {
	kept := t.TempDir()
	disk := hv.Disk{Serial: "data", Path: filepath.Join(kept, "disk"), ReadOnly: true}
	if err := os.WriteFile(disk.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(ctx context.Context, vm hv.VM) error{
		opInfo:     func(ctx context.Context, vm hv.VM) error { _, err := vm.State(ctx); return err },
		opPause:    func(ctx context.Context, vm hv.VM) error { return vm.Pause(ctx) },
		opButton:   func(ctx context.Context, vm hv.VM) error { return vm.PowerButton(ctx) },
		opCounters: func(ctx context.Context, vm hv.VM) error { _, err := vm.(hv.Meter).Counters(ctx); return err },
		opResume: func(ctx context.Context, vm hv.VM) error {
			if err := vm.Pause(ctx); err != nil {
				return fmt.Errorf("before: %w", err)
			}
			return vm.Resume(ctx)
		},
		opQuit:    func(ctx context.Context, vm hv.VM) error { return vm.Kill(ctx) },
		opResize:  func(ctx context.Context, vm hv.VM) error { return vm.(hv.Resizer).Resize(ctx, 2, 0) },
		opAddDisk: func(ctx context.Context, vm hv.VM) error { return vm.(hv.Plugger).AddDisk(ctx, disk) },
		opAddNet: func(ctx context.Context, vm hv.VM) error {
			return vm.(hv.Plugger).AddNIC(ctx, hv.NIC{Tap: testTap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
		},
		opRemove: func(ctx context.Context, vm hv.VM) error {
			if err := vm.(hv.Plugger).AddDisk(ctx, disk); err != nil {
				return fmt.Errorf("before: %w", err)
			}
			return vm.(hv.Plugger).RemoveDisk(ctx, disk.Serial)
		},
		opSnapshot: func(ctx context.Context, vm hv.VM) error {
			if err := vm.Pause(ctx); err != nil {
				return fmt.Errorf("before: %w", err)
			}
			dir, err := os.MkdirTemp(kept, "")
			if err != nil {
				return err
			}
			_, err = vm.(hv.Snapshotter).Snapshot(ctx, dir)
			return errors.Join(err, os.Remove(dir)) // it is empty again
		},
	}
	for op, call := range calls {
		for _, how := range []string{"refused", "dies", "silent"} {
			t.Run(op+" "+how, func(t *testing.T) {
				t.Parallel()
				var s script
				switch how {
				case "refused":
					s.Refuse = map[string]refusal{op: {http.StatusTeapot, "<html>no"}}
				case "dies":
					s.Die = []string{op}
				case "silent":
					s.Silent = []string{op}
				}
				d, _ := probed(t, s)
				d.budget = brief
				spec := scriptedSpec(t)
				spec.MaxVCPUs = 2
				vm, err := d.Launch(t.Context(), spec)
				if err != nil {
					t.Fatal(err)
				}
				err = call(t.Context(), vm)
				ok := false
				switch {
				case op == opQuit:
					ok = err == nil
				case how == "refused":
					var refused *apiError
					ok = errors.As(err, &refused) && refused.status == http.StatusTeapot && string(refused.raw) == "<html>no"
				case how == "silent": // busy, for all one knows
					ok = errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, hv.ErrGone)
				case op == opInfo: // of a machine that is gone
					ok = err == nil
				default:
					ok = errors.Is(err, hv.ErrGone)
				}
				if !ok {
					t.Errorf("the call: %v", err)
				}
				if err := vm.Kill(t.Context()); err != nil {
					t.Errorf("Kill: %v", err)
				}
				want := hv.ExitKilled
				if how == "dies" && op != opQuit {
					want = hv.ExitCrashed
				}
				exit, err := vm.Wait(t.Context())
				if err != nil || exit.Reason != want || want == hv.ExitCrashed && !strings.Contains(exit.Detail, "panicked") {
					t.Errorf("Wait() = %+v, %v, want %s", exit, err, want)
				}
				wantNothing(t, spec, false)
			})
		}
	}
}

// TestExits wants the end of a machine to be told rightly from what Cloud
// Hypervisor leaves, which is not always much.
func TestExits(t *testing.T) {
	button := func(t *testing.T, vm hv.VM) {
		if err := vm.PowerButton(t.Context()); err != nil {
			t.Error(err)
		}
	}
	agent := func(path string) func(*testing.T, hv.VM) {
		return func(t *testing.T, vm hv.VM) {
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer(vm)}}
			resp, err := c.Post("http://agent"+path, "", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		}
	}
	signal := func(sig unix.Signal) func(*testing.T, hv.VM) {
		return func(t *testing.T, vm hv.VM) {
			if err := unix.Kill(vm.Record().PID, sig); err != nil {
				t.Error(err)
			}
		}
	}
	tests := []struct {
		name   string
		script script
		act    func(*testing.T, hv.VM)
		want   hv.ExitReason
		detail string
	}{
		{"power-off", script{}, button, hv.ExitShutdown, "powered off"},
		{"power-off, events lost", script{Events: "lost"}, button, hv.ExitShutdown, "were lost"},
		{"power-off, events cut", script{Events: "cut"}, button, hv.ExitShutdown, "powered off"},
		{"reset, events cut", script{Events: "cut"}, agent("/reset"), hv.ExitReset, "reset"},
		{"panic, events cut", script{Events: "cut"}, agent("/panic"), hv.ExitPanic, "panicked"},
		{"killed from outside, events lost", script{Events: "lost"}, signal(unix.SIGKILL), hv.ExitCrashed, "signal: killed"},
		{"virtual CPU fails", script{VCPU: true}, button, hv.ExitCrashed, "VCPU generated error"},
		{"virtual CPU fails, events lost", script{VCPU: true, Events: "lost"}, button, hv.ExitCrashed, "VCPU generated error"},
		{"out of memory", script{}, signal(unix.SIGKILL), hv.ExitCrashed, "signal: killed"},
		{"seccomp", script{}, signal(unix.SIGSYS), hv.ExitCrashed, ""},
		{"kill is ignored", script{Stays: true}, func(t *testing.T, vm hv.VM) {
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		}, hv.ExitKilled, "on request"},
		{"button is ignored, then killed", script{Deaf: true}, func(t *testing.T, vm hv.VM) {
			button(t, vm)
			brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if exit, err := vm.Wait(brief); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Wait() = %+v, %v, want DeadlineExceeded", exit, err)
			}
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		}, hv.ExitKilled, "on request"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d, _ := probed(t, test.script)
			spec := scriptedSpec(t)
			vm, err := d.Launch(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			test.act(t, vm)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			exit, err := vm.Wait(ctx)
			if err != nil || exit.Reason != test.want || !strings.Contains(exit.Detail, test.detail) {
				t.Errorf("Wait() = %+v, %v, want %s, %q", exit, err, test.want, test.detail)
			}
			vm.Kill(ctx)
			wantNothing(t, spec, false)
			// Who comes later learns the same, also when nobody wrote it down.
			var gone *hv.GoneError
			if _, err := d.Attach(ctx, vm.Record()); !errors.As(err, &gone) || gone.Exit != exit {
				t.Errorf("Attach: %v, want a GoneError with %+v", err, exit)
			}
		})
	}
}

func dialer(vm hv.VM) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Agent().Dial(ctx) }
}

// TestEndUnseen: the machine powers off while no daemon is attached. Its process
// is no child of the next one, and what is left are the events.
func TestEndUnseen(t *testing.T) {
	for name, c := range map[string]struct {
		script script
		want   hv.ExitReason
	}{
		"powered off":              {script{}, hv.ExitShutdown},
		"broke down":               {script{VCPU: true}, hv.ExitCrashed},
		"powered off, events lost": {script{Events: "lost"}, hv.ExitShutdown},
	} {
		d, _ := probed(t, c.script)
		vm, err := d.Launch(t.Context(), scriptedSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		rec := vm.Record()
		proc, err := vmm.Open(rec.PID, rec.StartTime)
		if err != nil {
			t.Fatal(err)
		}
		api := newClient(filepath.Join(rec.Dir, apiSocket), budget)
		if err := vm.Detach(); err != nil {
			t.Fatal(err)
		}
		if err := api.put(t.Context(), opButton, nil); err != nil {
			t.Fatal(err)
		}
		api.close()
		<-proc.Done()
		proc.Close()
		var gone *hv.GoneError
		if _, err := d.Attach(t.Context(), rec); !errors.As(err, &gone) || gone.Exit.Reason != c.want {
			t.Errorf("%s: Attach: %v, want a GoneError with %s", name, err, c.want)
		}
		if _, err := d.Find(t.Context(), rec.Dir); !errors.As(err, &gone) || gone.Exit.Reason != c.want {
			t.Errorf("%s: Find: %v, want a GoneError with %s", name, err, c.want)
		}
	}
}

// TestUnfinishedLaunch: the daemon was killed between two calls of a launch. The
// machine can only be ended: nobody knows whether its boot was tried.
func TestUnfinishedLaunch(t *testing.T) {
	for name, created := range map[string]bool{"before vm.create": false, "before vm.boot": true} {
		t.Run(name, func(t *testing.T) {
			d, binary := probed(t, script{})
			f, err := d.probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			spec := scriptedSpec(t)
			boot, err := vmm.BootID()
			if err != nil {
				t.Fatal(err)
			}
			args := argv(&spec, f)
			rec := hv.Record{Driver: Name, ID: spec.ID, Dir: spec.Dir, BootID: boot, ArgvSHA256: vmm.HashArgv(args), Channel: hv.ChannelVsock, ConsoleLog: spec.ConsoleLog}
			env, err := vmm.Environment(rec)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(spec.Dir, ioDir), 0o700); err != nil {
				t.Fatal(err)
			}
			log, err := os.Create(filepath.Join(spec.Dir, logFile))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			proc, err := vmm.Start(args, vmm.Setting{Env: env, Log: log})
			if err != nil {
				t.Fatal(err)
			}
			defer proc.Kill()
			rec.PID, rec.StartTime = proc.PID(), proc.StartTime()
			api, err := d.reach(t.Context(), rec, proc)
			if err != nil {
				t.Fatal(err)
			}
			if created {
				if err := api.put(t.Context(), opCreate, newConfig(&spec, f)); err != nil {
					t.Fatal(err)
				}
			}
			api.close()

			found, err := d.Find(t.Context(), spec.Dir)
			if err != nil || found != rec {
				t.Fatalf("Find() = %+v, %v, want %+v", found, err, rec)
			}
			vm, err := d.Attach(t.Context(), found)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if exit, err := vm.Wait(ctx); err != nil || exit.Reason != hv.ExitCrashed || !strings.Contains(exit.Detail, "never finished") {
				t.Errorf("Wait() = %+v, %v, want crashed, for its launch was never finished", exit, err)
			}
			wantNothing(t, spec, false)
			if strings.Contains(requests(t, binary), "PUT /api/v1/vm.boot") {
				t.Error("it was booted")
			}
		})
	}
}

// TestStopped: a VMM that does not run for a while is alive.
func TestStopped(t *testing.T) {
	d, _ := probed(t, script{})
	vm, err := d.Launch(t.Context(), scriptedSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	pid := vm.Record().PID
	d.budget = brief // for what is attached from now on
	again := func() hv.VM {
		t.Helper()
		if err := vm.Detach(); err != nil {
			t.Fatal(err)
		}
		next, err := d.Attach(t.Context(), vm.Record())
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	vm = again()
	halt(t, pid)
	if _, err := vm.State(t.Context()); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hv.ErrGone) {
		t.Errorf("State of a stopped VMM: %v, want DeadlineExceeded", err)
	}
	if _, err := d.Attach(t.Context(), vm.Record()); err == nil || errors.Is(err, hv.ErrGone) {
		t.Errorf("Attach to a stopped VMM: %v, want an error that is not ErrGone", err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	vm = again()
	if state, err := vm.State(t.Context()); state != hv.StateRunning || err != nil {
		t.Errorf("State() = %s, %v, want running", state, err)
	}
	halt(t, pid)
	if err := vm.Kill(t.Context()); err != nil {
		t.Errorf("Kill of a stopped VMM: %v", err)
	}
}

// halt stops all threads of a process.
func halt(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		running := slices.ContainsFunc(stats, func(path string) bool {
			b, err := os.ReadFile(path)
			return err != nil || !bytes.Contains(b, []byte(") T "))
		})
		if !running {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

// TestConsoleTaken: the serial port serves one client at a time, the last one.
func TestConsoleTaken(t *testing.T) {
	d, _ := probed(t, script{})
	spec := scriptedSpec(t)
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	other, err := dialConsole(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer(vm)}}
	for deadline := time.Now().Add(20 * time.Second); !bytes.Contains(vmm.Tail(spec.ConsoleLog, 4096), []byte("hello")); {
		if time.Now().After(deadline) {
			t.Fatal("the console was not taken back")
		}
		resp, err := c.Post("http://agent/print?bytes=0&end=hello", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		time.Sleep(100 * time.Millisecond)
	}
	if state, err := vm.State(t.Context()); state != hv.StateRunning || err != nil {
		t.Errorf("State() = %s, %v, want running", state, err)
	}
}

// TestDiskInUse: a disk that another takes between the check and the boot.
func TestDiskInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		held, wanted, free bool // read-only
	}{{true, true, true}, {true, false, false}, {false, true, false}, {false, false, false}} {
		f, err := openDisk(path, c.held)
		if err != nil {
			t.Fatal(err)
		}
		err = checkLocks([]hv.Disk{{Serial: "a", Path: path, ReadOnly: c.wanted}})
		if (err == nil) != c.free || err != nil && (!errors.Is(err, hv.ErrDiskInUse) || !strings.Contains(err.Error(), path)) {
			t.Errorf("held read-only %v, wanted read-only %v: %v, want free %v", c.held, c.wanted, err, c.free)
		}
		f.Close()
	}
	if err := checkLocks([]hv.Disk{{Serial: "a", Path: path}}); err != nil {
		t.Errorf("held by nobody: %v", err)
	}
}

// TestCalls compares what a life asks of the API with a golden file, and with the
// API description.
func TestCalls(t *testing.T) {
	d, binary := probed(t, script{})
	spec, disk := scriptedSpec(t), filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Reach = []string{filepath.Dir(disk)}
	spec.Balloon, spec.MaxVCPUs, spec.MaxMemoryMiB = true, 2, spec.MemoryMiB+128
	spec.Disks = []hv.Disk{{Serial: "volant-upper", Path: disk}}
	spec.NICs = []hv.NIC{{Tap: testTap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	m, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	vm := m.(*machine)
	counters, err := vm.Counters(t.Context())
	if err != nil || counters["disk-volant-upper"]["read_latency_min"] != 1<<64-1 {
		t.Errorf("counters = %v, %v", counters, err)
	}
	kept := filepath.Join(filepath.Dir(disk), "snapshot")
	more, nic := hv.Disk{Serial: "more", Path: disk + "2"}, hv.NIC{Tap: testTap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	if err := errors.Join(os.Mkdir(kept, 0o700), os.WriteFile(more.Path, nil, 0o600),
		vm.Resize(t.Context(), 2, spec.MaxMemoryMiB), vm.AddDisk(t.Context(), more), vm.RemoveDisk(t.Context(), more.Serial),
		vm.AddNIC(t.Context(), nic), vm.RemoveNIC(t.Context(), nic.MAC), vm.Pause(t.Context()),
	); err != nil {
		t.Fatal(err)
	}
	s, err := vm.Snapshot(t.Context(), kept)
	if err := errors.Join(err, vm.Resume(t.Context()), vm.PowerButton(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := scriptedSpec(t)
	again.VCPUs, again.MaxVCPUs, again.MemoryMiB, again.MaxMemoryMiB = 2, 2, spec.MaxMemoryMiB, spec.MaxMemoryMiB
	again.Balloon, again.Disks, again.NICs = true, spec.Disks, spec.NICs
	restored, err := d.Restore(t.Context(), again, s, hv.RestoreOptions{OnDemand: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(restored.Resume(t.Context()), restored.Kill(t.Context())); err != nil {
		t.Error(err)
	}

	var did []string
	doc := describe(t, filepath.Join("testdata", "openapi.yaml"))
	for line := range strings.Lines(requests(t, binary)) {
		method, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		op, body, _ := strings.Cut(strings.TrimPrefix(rest, "/api/v1/"), " ")
		body, _, _ = strings.Cut(body, " with ")
		var sent any
		if body != "" {
			if err := json.Unmarshal([]byte(body), &sent); err != nil {
				t.Fatal(err)
			}
		}
		for _, fault := range checkRequest(doc, method, op, sent) {
			t.Error(fault)
		}
		if method == http.MethodPut { // how often it looks is a matter of time
			did = append(did, line)
		}
	}
	got := strings.NewReplacer(spec.Dir, "/DIR", again.Dir, "/DIR2", spec.Kernel, "/KERNEL", filepath.Dir(disk), "/DATA").Replace(strings.Join(did, ""))
	golden.Compare(t, "calls.txt", got)
}

// TestProcess looks at what a machine's process was given.
func TestProcess(t *testing.T) {
	d, binary := probed(t, script{})
	spec := scriptedSpec(t)
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	rec := vm.Record()
	want := []string{binary, "--api-socket", "path=" + spec.Dir + "/api.sock", "--event-monitor", "path=" + spec.Dir + "/events.json", "--seccomp", "true"}
	if got := vmm.Argv(rec.PID); !slices.Equal(got, want) {
		t.Errorf("arguments = %q, want %q", got, want)
	}
	if sid, err := unix.Getsid(rec.PID); sid != rec.PID || err != nil {
		t.Errorf("session of process %d = %d, %v, want its own", rec.PID, sid, err)
	}
	if env := vmm.Environ(rec.PID); len(env) != 1 || !strings.HasPrefix(env[0], "VOLANT_MACHINE=") {
		t.Errorf("environment = %q, want one variable", env)
	}
	for fd, want := range []string{os.DevNull, filepath.Join(spec.Dir, logFile), filepath.Join(spec.Dir, logFile)} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", rec.PID, fd)); got != want || err != nil {
			t.Errorf("file %d = %s, %v, want %s", fd, got, err, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(spec.Dir, ioDir)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", ioDir, fi, err)
	}
	if _, ok := vm.Agent().(*transport.HybridVsock); !ok {
		t.Errorf("Agent() is a %T", vm.Agent())
	}
}

// TestNoGoroutines wants machines that have ended, and that were let go of, to
// leave no goroutine behind.
func TestNoGoroutines(t *testing.T) {
	d, _ := probed(t, script{})
	before := runtime.NumGoroutine()
	for range 3 {
		vm, err := d.Launch(t.Context(), scriptedSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Detach(); err != nil {
			t.Fatal(err)
		}
		if vm, err = d.Attach(t.Context(), vm.Record()); err != nil {
			t.Fatal(err)
		}
		if err := vm.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if n = runtime.NumGoroutine(); n <= before {
			return
		}
	}
	b := make([]byte, 64<<10)
	t.Errorf("%d goroutines before, %d after:\n%s", before, n, b[:runtime.Stack(b, true)])
}
