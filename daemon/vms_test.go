package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/ipam"
)

func TestLifecycle(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()

	vm, err := d.CreateVM(ctx, api.VMCreate{
		Name: "web", Plugin: "serve", CPUCores: 2, MemoryMB: 256, KernelCmdline: "quiet loglevel=3",
		Env: map[string]string{"B": "request", "C": "request"}, Labels: map[string]string{"tier": "web"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if vm.Status != api.VMPending || vm.Desired != api.DesiredRunning || vm.IPAddress != "10.9.0.2" || vm.MACAddress != ipam.MAC(vm.ID).String() {
		t.Errorf("created: %+v", vm)
	}
	vm = d.must("web", api.WaitHealthy)
	if vm.Status != api.VMRunning || !vm.AgentUp || !vm.Healthy || vm.PID == 0 || vm.Kernel != "generic" || vm.Hypervisor != "fake" || vm.Accel != "tcg" || vm.Incarnation != 1 || vm.StartedAt == nil {
		t.Errorf("healthy: %+v", vm)
	}
	w.checkWorld(d.settle())

	m := w.hv.Machine(vm.ID)
	spec := m.Spec()
	if spec.VCPUs != 2 || spec.MemoryMiB != 256 || len(spec.NICs) != 1 || spec.NICs[0].MAC.String() != vm.MACAddress || spec.CID != 0 {
		t.Errorf("spec: %+v", spec)
	}
	config := spec.Disks[1]
	if config.Serial != wire.ConfigSerial || !config.ReadOnly {
		t.Errorf("boot disk: %+v", config)
	} else if fi, err := os.Stat(config.Path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("boot disk: %v, %v", fi.Mode(), err)
	}
	image, err := os.ReadFile(config.Path)
	if err != nil {
		t.Fatal(err)
	}
	// The plan of the boot comes behind the configuration.
	offset := bytes.Index(image, []byte("volplan2"))
	if offset < 0 || len(image)%diskBlock != 0 {
		t.Fatalf("the boot disk has %d bytes, and a plan at %d", len(image), offset)
	}
	size := binary.LittleEndian.Uint32(image[offset+8:])
	want := fmt.Sprintf("volant.vm=%s volant.agent=%s volant.plan=%d,%d quiet loglevel=3", vm.ID, wire.AgentSerial, offset, size)
	if got := strings.Join(spec.Cmdline, " "); got != want {
		t.Errorf("command line = %q, want %q", got, want)
	}
	cfg := w.guest(vm.ID).cfg
	if cfg.VM != vm.ID || cfg.Name != "web" || cfg.Hostname != "web" || cfg.Incarnation != 1 || cfg.MachineID != ipam.MachineID(vm.ID) ||
		cfg.Network.Address.String() != "10.9.0.2/16" || cfg.Network.Gateway.String() != "10.9.0.1" || cfg.Network.MAC != vm.MACAddress {
		t.Errorf("boot configuration: %+v, %+v", cfg, cfg.Network)
	}
	if got := strings.Join(cfg.Workload.Env, " "); got != "A=manifest B=request C=request" {
		t.Errorf("environment = %q", got)
	}
	if h := cfg.Workload.Health; h == nil || h.TCP != "127.0.0.1:8080" {
		t.Errorf("health check = %+v, want a connection to the base URL", h)
	}

	if _, err := d.StopVM(ctx, "web", api.VMStop{GraceSeconds: 3}); err != nil {
		t.Fatal(err)
	}
	vm = d.must("web", api.WaitStopped)
	if vm.Status != api.VMStopped || vm.Reason != "" || vm.PID != 0 || vm.AgentUp || vm.Healthy || vm.Exit == nil || vm.Exit.Signal != "SIGTERM" || vm.IPAddress != "10.9.0.2" {
		t.Errorf("stopped: %+v, exit %+v", vm, vm.Exit)
	}
	if g := w.guest(vm.ID); len(g.asked) != 1 || g.asked[0].Grace != 3*time.Second {
		t.Errorf("the agent was asked to end: %+v", g.asked)
	}
	w.checkWorld(d.settle())

	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	again := d.must("web", api.WaitHealthy)
	if again.Incarnation != 2 || again.IPAddress != vm.IPAddress || again.MACAddress != vm.MACAddress || again.Exit != nil {
		t.Errorf("started again: %+v", again)
	}
	if _, err := d.RestartVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if again = d.must("web", api.WaitHealthy); again.Incarnation != 3 {
		t.Errorf("restarted: incarnation %d, want 3", again.Incarnation)
	}
	w.checkWorld(d.settle())

	if err := d.DeleteVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitDeleted)
	w.checkWorld(d.settle())
	if again := d.create("web", "serve"); again.IPAddress != vm.IPAddress {
		t.Errorf("address of the next VM = %s, want the freed %s", again.IPAddress, vm.IPAddress)
	}
	d.must("web", api.WaitHealthy)

	var story []string
	if err := d.Events(ctx, api.EventFilter{VM: "web"}, false, func(ev api.Event) error {
		story = append(story, strings.TrimPrefix(string(ev.Type), "VM_"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	life := "CREATED STARTING RUNNING HEALTHY STOPPING STOPPED STARTING RUNNING HEALTHY STOPPING STOPPED STARTING RUNNING HEALTHY STOPPING STOPPED DELETED CREATED STARTING RUNNING HEALTHY"
	// Healthy may be known when the VM becomes running; the order stays.
	if got := strings.Join(story, " "); got != life {
		t.Errorf("events = %s\nwant     %s", got, life)
	}
}

func TestIdempotence(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	before := d.must("web", api.WaitHealthy)
	if vm, err := d.StartVM(ctx, "web"); err != nil || vm.Incarnation != 1 || !vm.UpdatedAt.Equal(before.UpdatedAt) {
		t.Errorf("StartVM of a running VM = %+v, %v; want no change", vm, err)
	}
	for range 2 {
		if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must("web", api.WaitStopped)
	}
	for range 2 {
		if err := d.DeleteVM(ctx, "web", api.VMStop{}); err != nil && api.CodeOf(err) != api.CodeNotFound {
			t.Fatal(err)
		}
	}
	d.must("web", api.WaitDeleted)
	w.checkWorld(d.settle())
	for name, err := range map[string]error{
		"start":   second(d.StartVM(ctx, "web")),
		"stop":    second(d.StopVM(ctx, "web", api.VMStop{})),
		"restart": second(d.RestartVM(ctx, "web", api.VMStop{})),
		"delete":  d.DeleteVM(ctx, "web", api.VMStop{}),
		"get":     second(d.VM(ctx, "web")),
	} {
		if api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s of a deleted VM = %v, want not_found", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestCreateVMRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	vsock := d.manifest("serve")
	vsock.Name, vsock.Network = "lonely", &api.Network{Mode: api.NetworkVsock}
	d.equip(vsock, d.manifest("off"))
	if _, err := d.EnablePlugin(ctx, "off", false); err != nil {
		t.Fatal(err)
	}
	d.create("taken", "serve") // has 10.9.0.2
	for _, tc := range []struct {
		name string
		req  api.VMCreate
		code api.Code
		text string // in message or hint
	}{
		{"climbing name", api.VMCreate{Name: "../x", Plugin: "serve"}, api.CodeInvalid, "not valid"},
		{"name taken", api.VMCreate{Name: "taken", Plugin: "serve"}, api.CodeExists, "taken"},
		{"no plugin", api.VMCreate{Name: "a"}, api.CodeInvalid, "plugin"},
		{"unknown plugin", api.VMCreate{Name: "a", Plugin: "sevre"}, api.CodeNotFound, "did you mean serve?"},
		{"disabled plugin", api.VMCreate{Name: "a", Plugin: "off"}, api.CodeConflict, "volar plugins enable off"},
		{"wrong runtime", api.VMCreate{Name: "a", Plugin: "serve", Runtime: "x"}, api.CodeInvalid, "runtime"},
		{"unknown kernel", api.VMCreate{Name: "a", Plugin: "serve", Kernel: "genric"}, api.CodeNotFound, "did you mean generic?"},
		{"too many CPUs", api.VMCreate{Name: "a", Plugin: "serve", CPUCores: 65}, api.CodeInvalid, "cpu_cores"},
		{"too little memory", api.VMCreate{Name: "a", Plugin: "serve", MemoryMB: 8}, api.CodeInvalid, "memory_mb"},
		{"negative memory", api.VMCreate{Name: "a", Plugin: "serve", MemoryMB: -8}, api.CodeInvalid, "memory_mb"},
		{"address is none", api.VMCreate{Name: "a", Plugin: "serve", IPAddress: "ten"}, api.CodeInvalid, "not an IP address"},
		{"address outside", api.VMCreate{Name: "a", Plugin: "serve", IPAddress: "10.10.0.2"}, api.CodeInvalid, "outside"},
		{"address of the gateway", api.VMCreate{Name: "a", Plugin: "serve", IPAddress: "10.9.0.1"}, api.CodeInvalid, "gateway"},
		{"address of IPv6", api.VMCreate{Name: "a", Plugin: "serve", IPAddress: "fd00::2"}, api.CodeInvalid, "IPv4"},
		{"address taken", api.VMCreate{Name: "a", Plugin: "serve", IPAddress: "10.9.0.2"}, api.CodeExists, "choose another"},
		{"address without NIC", api.VMCreate{Name: "a", Plugin: "lonely", IPAddress: "10.9.0.9"}, api.CodeInvalid, "vsock"},
		{"odd variable", api.VMCreate{Name: "a", Plugin: "serve", Env: map[string]string{"A=B": ""}}, api.CodeInvalid, "env"},
		{"odd label", api.VMCreate{Name: "a", Plugin: "serve", Labels: map[string]string{"": "x"}}, api.CodeInvalid, "labels"},
		{"our parameters", api.VMCreate{Name: "a", Plugin: "serve", KernelCmdline: "volant.vm=other"}, api.CodeInvalid, "kernel_cmdline"},
		{"another init", api.VMCreate{Name: "a", Plugin: "serve", KernelCmdline: "rdinit=/bin/sh"}, api.CodeInvalid, "kernel_cmdline"},
		{"end of parameters", api.VMCreate{Name: "a", Plugin: "serve", KernelCmdline: "quiet -- x"}, api.CodeInvalid, "kernel_cmdline"},
		{"long command line", api.VMCreate{Name: "a", Plugin: "serve", KernelCmdline: strings.Repeat("a", 1025)}, api.CodeInvalid, "kernel_cmdline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := d.CreateVM(ctx, tc.req)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message+" "+e.Hint, tc.text) {
				t.Errorf("CreateVM = %+v, want %s with %q", err, tc.code, tc.text)
			}
		})
	}
	d.must("taken", api.WaitHealthy)
	if _, total, err := d.VMs(ctx, api.VMFilter{}); err != nil || total != 1 {
		t.Errorf("%d VMs after refused requests, %v; want 1", total, err)
	}
	w.checkWorld(d.settle())
}

func TestCreateVMWithoutMeans(t *testing.T) {
	ctx := context.Background()
	t.Run("kernel", func(t *testing.T) {
		d := newWorld(t).start(options{})
		if _, err := d.InstallPlugin(ctx, d.manifest("serve")); err != nil {
			t.Fatal(err)
		}
		_, err := d.CreateVM(ctx, api.VMCreate{Name: "a", Plugin: "serve"})
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Hint, "volar kernels import") {
			t.Errorf("CreateVM without a kernel = %v", err)
		}
		if _, err := d.CreateVM(ctx, api.VMCreate{Name: "a", Plugin: "serve", Stopped: true}); err != nil {
			t.Errorf("CreateVM stopped, without a kernel = %v, want ok", err)
		}
		if _, err := d.StartVM(ctx, "a"); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("StartVM without a kernel = %v, want conflict", err)
		}
	})
	t.Run("addresses", func(t *testing.T) {
		d := newWorld(t).start(options{config: func(c *Config) {
			pool, err := ipam.NewPool(c.Pool.Prefix(), c.Pool.Gateway(), ipam.Range{First: c.Pool.Gateway().Next().Next(), Last: netip.MustParseAddr("10.9.255.254")})
			if err != nil {
				t.Fatal(err)
			}
			c.Pool = pool
		}})
		d.equip()
		d.create("a", "serve")
		_, err := d.CreateVM(ctx, api.VMCreate{Name: "b", Plugin: "serve"})
		if api.CodeOf(err) != api.CodeExhausted {
			t.Errorf("CreateVM without an address left = %v, want exhausted", err)
		}
		if _, err := d.VM(ctx, "b"); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("the refused VM: %v, want not_found", err)
		}
	})
	t.Run("network", func(t *testing.T) {
		d := newWorld(t).start(options{config: func(c *Config) { c.Network = nil }})
		lonely := d.manifest("serve")
		lonely.Name, lonely.Network = "lonely", &api.Network{Mode: api.NetworkVsock}
		d.equip(lonely)
		if _, err := d.CreateVM(ctx, api.VMCreate{Name: "a", Plugin: "serve"}); api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("CreateVM without a network = %v, want unavailable", err)
		}
		vm := d.create("b", "lonely")
		if vm = d.must(vm.Name, api.WaitHealthy); vm.IPAddress != "" || vm.MACAddress != "" {
			t.Errorf("VM without a NIC: %+v", vm)
		}
	})
	t.Run("hypervisor", func(t *testing.T) {
		why := fmt.Errorf("%w: qemu-system-x86_64 is not installed", hv.ErrUnavailable)
		d := newWorld(t).start(options{config: func(c *Config) { c.Driver, c.DriverError = nil, why }})
		d.equip()
		d.create("a", "serve")
		vm, err := d.wait("a", api.WaitRunning)
		if api.CodeOf(err) != api.CodeConflict || vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "qemu-system-x86_64 is not installed") {
			t.Errorf("started without a hypervisor: %s, %q, %v", vm.Status, vm.Reason, err)
		}
		_, err = d.StartVM(ctx, "a")
		if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "not installed") {
			t.Errorf("StartVM = %v, want unavailable", err)
		}
		info, err := d.SystemInfo(ctx)
		if err != nil || !strings.Contains(info.Hypervisor.Error, "not installed") {
			t.Errorf("SystemInfo = %+v, %v", info.Hypervisor, err)
		}
		if doc, err := d.Doctor(ctx); err != nil || len(doc.Hypervisors) != 0 {
			t.Errorf("Doctor = %+v, %v, want none", doc, err)
		}
	})
}

func TestDoctor(t *testing.T) {
	why := fmt.Errorf("%w: it is not in PATH", hv.ErrUnavailable)
	other := hvtest.NewFake()
	other.Fail(hvtest.OpProbe, why)
	w := newWorld(t)
	caps, err := w.hv.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	caps.Snapshot, caps.Pmem, caps.ResizeMemory = true, false, false
	w.hv.SetCapabilities(caps)
	d := w.start(options{config: func(c *Config) { c.Others = []hv.Driver{other} }})
	doc, err := d.Doctor(t.Context())
	want := []api.HypervisorCheck{
		{Name: hvtest.FakeName, Chosen: true, Works: true, Version: "1.0", Binary: "/nonexistent/fake", Accel: "tcg"},
		{Name: hvtest.FakeName, Problem: why.Error()},
	}
	var lacks []string
	for i := range doc.Hypervisors {
		for _, f := range doc.Hypervisors[i].Features {
			if !f.Works {
				lacks = append(lacks, f.Name)
			}
			if f.Works != (f.Needs == "") {
				t.Errorf("feature %+v: it works, or it is said what that takes", f)
			}
		}
		doc.Hypervisors[i].Features = nil
	}
	if err != nil || !reflect.DeepEqual(doc.Hypervisors, want) {
		t.Errorf("Doctor = %+v, %v, want %+v", doc.Hypervisors, err, want)
	}
	if want := []string{"resize-memory", "pmem"}; !slices.Equal(lacks, want) {
		t.Errorf("it lacks %q, want %q", lacks, want)
	}
	// What hangs is not waited for by one who has gone.
	_, release := other.Hang(hvtest.OpProbe)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Doctor(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Doctor = %v, want DeadlineExceeded", err)
	}
}

func TestVsockVMs(t *testing.T) {
	w := newWorld(t)
	w.hv.SetCapabilities(hv.Capabilities{Driver: hvtest.FakeName, Channel: hv.ChannelVsock, MaxVCPUs: 4, MaxDisks: 4, MaxNICs: 1})
	d := w.start(options{})
	m := d.manifest("serve")
	m.Name, m.Network = "lonely", &api.Network{Mode: api.NetworkVsock}
	d.equip(m)
	for _, name := range []string{"a", "b", "c"} {
		d.create(name, "lonely")
	}
	cids := map[uint32]bool{}
	for _, name := range []string{"a", "b", "c"} {
		vm := d.must(name, api.WaitHealthy)
		spec := w.hv.Machine(vm.ID).Spec()
		if vm.IPAddress != "" || len(spec.NICs) != 0 || spec.CID != vm.VsockCID || spec.CID < ipam.MinCID || cids[spec.CID] {
			t.Errorf("%s: %+v, spec %+v", name, vm, spec)
		}
		cids[spec.CID] = true
		if w.guest(vm.ID).cfg.Network != nil {
			t.Errorf("%s was told of a network", name)
		}
	}
	w.checkWorld(d.settle())
}

func TestAgentless(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	m := d.manifest("bare")
	m.Initramfs.Agent, m.Workload = api.AgentNone, nil
	d.equip(m)
	d.create("bare", "bare")
	vm := d.must("bare", api.WaitRunning)
	if _, err := d.wait("bare", api.WaitHealthy); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "no health check") {
		t.Errorf("waiting for the health of one without a check = %v, want invalid", err)
	}
	if vm.Status != api.VMRunning || vm.AgentUp || vm.Healthy || vm.Health.Status != api.HealthNone {
		t.Errorf("VM without an agent: %+v", vm)
	}
	// Refused before anything is made or restarted.
	for what, err := range map[string]error{
		"creating one": func() error {
			_, err := d.CreateVM(ctx, api.VMCreate{Plugin: "bare", Wait: api.WaitHealthy})
			return err
		}(),
		"restarting one": d.CheckWait(ctx, "bare", api.WaitHealthy),
	} {
		if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "no health check") {
			t.Errorf("%s, to wait for its health = %v, want invalid", what, err)
		}
	}
	if _, n, err := d.VMs(ctx, api.VMFilter{}); n != 1 || err != nil {
		t.Errorf("%d VMs, %v, want the first alone", n, err)
	}
	if err := errors.Join(d.CheckWait(ctx, "bare", api.WaitRunning), d.CheckWait(ctx, "none", api.WaitRunning)); err != nil {
		t.Errorf("CheckWait for what is no question of health: %v", err)
	}
	spec := w.hv.Machine(vm.ID).Spec()
	if got := strings.Join(spec.Cmdline, " "); len(spec.Disks) != 0 || got != "volant.vm="+vm.ID+" ip=10.9.0.2::10.9.0.1:255.255.0.0:bare:eth0:off" {
		t.Errorf("spec = %+v", spec)
	}
	if image, err := os.ReadFile(spec.Initramfs); err != nil || strings.Contains(string(image), "the agent") || !strings.Contains(string(image), "content of bare") {
		t.Errorf("its initramfs: %v", err)
	}
	if _, err := d.VMWorkload(ctx, "bare"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("VMWorkload = %v, want conflict", err)
	}
	if _, err := d.StopVM(ctx, "bare", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if vm = d.must("bare", api.WaitStopped); vm.Status != api.VMStopped {
		t.Errorf("stopped by the power button: %+v", vm)
	}
	if w.hv.Calls(hvtest.OpPowerButton) != 1 || w.hv.Calls(hvtest.OpKill) != 1 {
		// Kill after the end succeeds and does nothing.
		t.Errorf("button %d, kill %d", w.hv.Calls(hvtest.OpPowerButton), w.hv.Calls(hvtest.OpKill))
	}
}

// How a VM ends by itself, and what is said of it.
func TestEnds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		end    func(w *world, id string) // after it is healthy; nil: it ends by itself
		status api.VMState
		reason string
		exit   int // -1: none
	}{
		{"workload exits with 0", []string{"exit", "0"}, nil, api.VMStopped, "", 0},
		{"workload exits with 3", []string{"exit", "3"}, nil, api.VMCrashed, "the workload exited with status 3", 3},
		{"workload cannot start", []string{"nostart"}, nil, api.VMFailed, "the workload could not be started: exec /nostart: no such file or directory", -1},
		{"guest panics at boot", []string{"panic"}, nil, api.VMFailed, "the guest kernel panicked before it was up; its console ends with: Kernel panic - not syncing", -1},
		{"guest finds no configuration", []string{"lost"}, nil, api.VMFailed, "the workload could not be started: config: no such disk", -1},
		{"guest is another", []string{"stranger"}, nil, api.VMFailed, `the guest says that it is VM "another", incarnation 1`, -1},
		{"guest never answers", []string{"silent"}, nil, api.VMFailed, "the guest did not answer within 200ms; its console ends with: early words | last words[31m", -1},
		{"guest powers off", []string{"serve"}, func(w *world, id string) { w.hv.Machine(id).PowerOff() }, api.VMStopped, "", -1},
		{"guest panics", []string{"serve"}, func(w *world, id string) { w.hv.Machine(id).Panic() }, api.VMCrashed, "the guest kernel panicked", -1},
		{"guest resets", []string{"serve"}, func(w *world, id string) { w.hv.Machine(id).Reset() }, api.VMCrashed, "the guest reset itself", -1},
		{"VMM is killed", []string{"serve"}, func(w *world, id string) { w.hv.Machine(id).Crash() }, api.VMCrashed, "the VMM ended unexpectedly: signal: killed", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{config: func(c *Config) {
				if tc.args[0] == "silent" {
					c.BootTimeout = 200 * time.Millisecond
				}
			}})
			d.equip(d.manifest(tc.args[0], tc.args[1:]...))
			vm := d.create("web", tc.args[0])
			if tc.end != nil {
				d.must("web", api.WaitHealthy)
				tc.end(w, vm.ID)
			}
			vm = d.must("web", api.WaitStopped)
			if vm.Status != tc.status || vm.Reason != tc.reason || vm.Desired != api.DesiredStopped {
				t.Errorf("VM is %s because %q, desired %s; want %s because %q", vm.Status, vm.Reason, vm.Desired, tc.status, tc.reason)
			}
			if tc.exit < 0 && vm.Exit != nil || tc.exit >= 0 && (vm.Exit == nil || vm.Exit.Code != tc.exit) {
				t.Errorf("exit = %+v, want code %d", vm.Exit, tc.exit)
			}
			if _, err := d.wait("web", api.WaitHealthy); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), tc.reason) {
				t.Errorf("waiting for healthy = %v, want conflict with the reason", err)
			}
			w.checkWorld(d.settle())
			// Nothing stands in the way of another start.
			if _, err := d.StartVM(context.Background(), "web"); err != nil {
				t.Fatal(err)
			}
			if tc.end != nil {
				d.must("web", api.WaitHealthy)
			} else {
				for deadline := time.Now().Add(patience); vm.Incarnation < 2 || vm.Status != tc.status; {
					if time.Now().After(deadline) {
						t.Fatalf("the second start ended %s because %q, want %s", vm.Status, vm.Reason, tc.status)
					}
					vm = d.must("web", api.WaitStopped)
				}
			}
			w.checkWorld(d.settle())
		})
	}
}

// However often a worker is woken, a guest that never answers has its time and
// no more.
func TestBootTimeoutIsNotExtended(t *testing.T) {
	d := newWorld(t).start(options{
		config: func(c *Config) { c.BootTimeout = 300 * time.Millisecond },
		timing: func(t *timing) { t.tick = 20 * time.Millisecond },
	})
	d.equip(d.manifest("silent"))
	begin := time.Now()
	d.create("web", "silent")
	if vm := d.must("web", api.WaitStopped); vm.Status != api.VMFailed || time.Since(begin) > patience/2 {
		t.Errorf("VM is %s after %s", vm.Status, time.Since(begin))
	}
}

func TestRestartPolicy(t *testing.T) {
	for _, tc := range []struct {
		policy string
		end    func(m *hvtest.Machine)
		again  bool
	}{
		{"never", (*hvtest.Machine).Crash, false},
		{"on-failure", (*hvtest.Machine).Crash, true},
		{"on-failure", (*hvtest.Machine).PowerOff, false},
		{"always", (*hvtest.Machine).PowerOff, true},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{})
			m := d.manifest("serve")
			m.Name, m.Restart = "policy", &api.Restart{Policy: tc.policy}
			d.equip(m)
			d.create("web", "policy")
			for n := range 3 {
				vm := d.must("web", api.WaitHealthy)
				if vm.Incarnation != n+1 {
					t.Fatalf("incarnation %d, want %d", vm.Incarnation, n+1)
				}
				tc.end(w.hv.Machine(vm.ID))
				if !tc.again {
					d.must("web", api.WaitStopped)
					break
				}
				for vm.Incarnation == n+1 {
					time.Sleep(time.Millisecond)
					vm, _ = d.VM(context.Background(), "web")
				}
			}
			w.checkWorld(d.settle())
		})
	}
	t.Run("stopped in the pause", func(t *testing.T) {
		w := newWorld(t)
		d := w.start(options{timing: func(t *timing) { t.restartMin, t.restartMax = time.Hour, time.Hour }})
		m := d.manifest("serve")
		m.Restart = &api.Restart{Policy: "always"}
		d.equip(m)
		vm := d.create("web", "serve")
		d.must("web", api.WaitHealthy)
		w.hv.Machine(vm.ID).Crash()
		for vm.Status != api.VMCrashed {
			time.Sleep(time.Millisecond)
			vm, _ = d.VM(context.Background(), "web")
		}
		if _, err := d.StopVM(context.Background(), "web", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		if vm = d.must("web", api.WaitStopped); vm.Incarnation != 1 {
			t.Errorf("%+v", vm)
		}
		w.checkWorld(d.settle())
	})
}

func TestStopLadder(t *testing.T) {
	ctx := context.Background()
	short := func(t *timing) { t.powerOff, t.call = 50*time.Millisecond, 50*time.Millisecond }
	for _, tc := range []struct {
		name   string
		plugin string
		how    api.VMStop
		spoil  func(w *world) // after it is healthy
		asked  int            // times the agent was
		button int
	}{
		{name: "asked", plugin: "serve", asked: 1},
		{name: "forced", plugin: "serve", how: api.VMStop{Force: true}},
		{name: "stubborn", plugin: "stubborn", asked: 1},
		{name: "agent cut off", plugin: "serve", spoil: func(w *world) { w.hv.Fail(hvtest.OpDial, errors.New("cut")) }, button: 1, asked: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{timing: short})
			d.equip(d.manifest("stubborn"))
			vm := d.create("web", tc.plugin)
			d.must("web", api.WaitRunning)
			d.must("web", api.WaitHealthy)
			if tc.spoil != nil {
				tc.spoil(w)
				w.hv.Machine(vm.ID) // still runs
				d.worker(vm.ID).agent.Load().rt.CloseIdleConnections()
			}
			m := w.hv.Machine(vm.ID)
			if _, err := d.StopVM(ctx, "web", tc.how); err != nil {
				t.Fatal(err)
			}
			if vm = d.must("web", api.WaitStopped); vm.Status != api.VMStopped || vm.Reason != "" {
				t.Errorf("%+v", vm)
			}
			if g := w.guest(vm.ID); len(g.asked) != tc.asked || m.Buttons() != tc.button {
				t.Errorf("agent asked %d times, button pressed %d times; want %d and %d", len(g.asked), m.Buttons(), tc.asked, tc.button)
			}
			w.checkWorld(d.settle())
		})
	}
	t.Run("patience lost", func(t *testing.T) {
		w := newWorld(t)
		d := w.start(options{})
		d.equip(d.manifest("stubborn"))
		vm := d.create("web", "stubborn")
		d.must("web", api.WaitHealthy)
		if _, err := d.StopVM(ctx, "web", api.VMStop{GraceSeconds: 3600}); err != nil {
			t.Fatal(err)
		}
		for vm.Status != api.VMStopping {
			time.Sleep(time.Millisecond)
			vm, _ = d.VM(ctx, "web")
		}
		if err := d.DeleteVM(ctx, "web", api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.StartVM(ctx, "web"); api.CodeOf(err) != api.CodeConflict && api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("StartVM of a VM that is being deleted = %v, want conflict", err)
		}
		d.must("web", api.WaitDeleted)
		w.checkWorld(d.settle())
	})
}

// A wish that changes while the VM is being started takes effect at once.
func TestChangeOfMind(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name string
		op   hvtest.Op
	}{{"before the VMM is there", hvtest.OpLaunch}, {"when the VMM is there", hvtest.OpLaunched}} {
		for what, change := range map[string]func(d *instance) error{
			"stop":    func(d *instance) error { return second(d.StopVM(ctx, "web", api.VMStop{})) },
			"delete":  func(d *instance) error { return d.DeleteVM(ctx, "web", api.VMStop{}) },
			"restart": func(d *instance) error { return second(d.RestartVM(ctx, "web", api.VMStop{})) },
		} {
			t.Run(what+" "+tc.name, func(t *testing.T) {
				w := newWorld(t)
				d := w.start(options{})
				d.equip()
				entered, release := w.hv.Hang(tc.op)
				defer release()
				d.create("web", "serve")
				<-entered
				if err := change(d); err != nil {
					t.Fatal(err)
				}
				if what == "restart" {
					<-entered // the second incarnation
					release()
					if vm := d.must("web", api.WaitHealthy); vm.Incarnation != 2 {
						t.Errorf("incarnation %d, want 2", vm.Incarnation)
					}
				} else {
					d.must("web", map[string]api.VMWait{"stop": api.WaitStopped, "delete": api.WaitDeleted}[what])
				}
				w.checkWorld(d.settle())
			})
		}
	}
	t.Run("stop while the guest boots", func(t *testing.T) {
		w := newWorld(t)
		d := w.start(options{})
		d.equip(d.manifest("silent"))
		vm := d.create("web", "silent")
		for vm.PID == 0 {
			time.Sleep(time.Millisecond)
			vm, _ = d.VM(ctx, "web")
		}
		if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must("web", api.WaitStopped)
		w.checkWorld(d.settle())
	})
}

// What goes wrong on the host fails the start with a reason, and leaves nothing.
func TestStartFails(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name   string
		spoil  func(t *testing.T, d *instance, w *world)
		reason string
	}{
		{"launch fails", func(t *testing.T, d *instance, w *world) { w.hv.Fail(hvtest.OpLaunch, errors.New("no memory")) }, "no memory"},
		{"launch undone", func(t *testing.T, d *instance, w *world) { w.hv.Fail(hvtest.OpLaunched, errors.New("late trouble")) }, "late trouble"},
		{"launch hangs", func(t *testing.T, d *instance, w *world) {
			_, release := w.hv.Hang(hvtest.OpLaunch)
			t.Cleanup(release)
		}, "deadline exceeded"},
		{"no tap", func(t *testing.T, d *instance, w *world) { w.net.fail(errors.New("tap: no such device")) }, "no such device"},
		{"kernel missing", func(t *testing.T, d *instance, w *world) {
			k, err := d.kernel(ctx, "generic")
			if err == nil {
				err = os.Remove(d.blobPath(k.Digest))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "missing from the data directory"},
		{"kernel damaged", func(t *testing.T, d *instance, w *world) {
			k, err := d.kernel(ctx, "generic")
			if err != nil {
				t.Fatal(err)
			}
			damage(t, d.blobPath(k.Digest))
		}, "is damaged on disk"},
		{"artifact damaged", func(t *testing.T, d *instance, w *world) {
			p, err := d.plugin(ctx, "serve")
			if err != nil {
				t.Fatal(err)
			}
			damage(t, d.blobPath(p.Manifest.Initramfs.Checksum))
		}, "is damaged on disk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{timing: func(t *timing) { t.launch = 300 * time.Millisecond }})
			d.equip()
			tc.spoil(t, d, w)
			d.create("web", "serve")
			vm := d.must("web", api.WaitStopped)
			if vm.Status != api.VMFailed || !strings.Contains(vm.Reason, tc.reason) {
				t.Errorf("VM is %s because %q, want failed because of %q", vm.Status, vm.Reason, tc.reason)
			}
			w.checkWorld(d.settle())
		})
	}
}

// Likewise where the program is not there that becomes the agent.
func TestStartFailsWithoutAgent(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{config: func(c *Config) { c.AgentBinary = "/nonexistent" }})
	d.equip()
	d.create("web", "serve")
	if vm := d.must("web", api.WaitStopped); vm.Status != api.VMFailed || !strings.Contains(vm.Reason, "agent binary") {
		t.Errorf("VM is %s because %q, want failed for want of an agent", vm.Status, vm.Reason)
	}
	w.checkWorld(d.settle())
}

// damage changes one byte in the middle, so that size and head stay.
func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	const n = 50
	each := func(fn func(name string) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if err := fn(fmt.Sprintf("vm%d", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(name string) error { return second(d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve"})) })
	each(func(name string) error { return second(d.wait(name, api.WaitHealthy)) })
	vms := d.settle()
	w.checkWorld(vms)
	seen := map[string]bool{}
	for _, vm := range vms {
		if seen[vm.IPAddress] {
			t.Errorf("address %s is there twice", vm.IPAddress)
		}
		seen[vm.IPAddress] = true
	}
	each(func(name string) error { return second(d.StopVM(ctx, name, api.VMStop{Force: name > "vm3"})) })
	each(func(name string) error { return second(d.wait(name, api.WaitStopped)) })
	w.checkWorld(d.settle())
	// Opposite wishes at the same time: any order is right, but all must end.
	each(func(name string) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { d.StartVM(ctx, name) })
		wg.Go(func() { d.RestartVM(ctx, name, api.VMStop{Force: true}) })
		return second(d.StopVM(ctx, name, api.VMStop{Force: true}))
	})
	each(func(name string) error { return d.DeleteVM(ctx, name, api.VMStop{Force: true}) })
	each(func(name string) error { return second(d.wait(name, api.WaitDeleted)) })
	w.checkWorld(d.settle())
	if images, _ := filepath.Glob(filepath.Join(w.root, "data", "cache", "*.img")); len(images) != 2 {
		t.Errorf("%d cached files, want one initramfs and the agent's disk", len(images))
	}
}

func TestWorkloadProxy(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	h, err := d.VMWorkload(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	get := func() (int, string) {
		resp, err := http.Post(srv.URL+"/a/b", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get(); code != 200 || body != "POST /a/b" {
		t.Errorf("workload answered %d %q", code, body)
	}
	w.hv.Machine(vm.ID).Crash()
	d.must("web", api.WaitStopped)
	if code, body := get(); code != http.StatusBadGateway || !strings.Contains(body, "does not answer") {
		t.Errorf("workload of a crashed VM answered %d %q", code, body)
	}
	if _, err := d.VMWorkload(ctx, "web"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("VMWorkload of a crashed VM = %v, want conflict", err)
	}
}

func TestTimeline(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.settle()
	check := func(in *instance) {
		t.Helper()
		tl, err := in.VMTimeline(ctx, "web")
		if err != nil || tl.Incarnation != 1 || tl.VM != "web" {
			t.Fatalf("VMTimeline = %+v, %v", tl, err)
		}
		at := map[string]float64{}
		for i, s := range tl.Steps {
			at[s.Where+" "+s.Name] = s.StartMS
			if s.TookMS < 0 || i > 0 && s.StartMS < tl.Steps[i-1].StartMS {
				t.Errorf("step %d is out of order: %+v", i, tl.Steps)
			}
		}
		for _, name := range []string{"queue", "intent", "resolve", "kernel", "initramfs", "directory", "config", "tap", "rules", "launch", "record", "guest", "running"} {
			if _, ok := at["host "+name]; !ok {
				t.Errorf("host step %q is missing in %+v", name, tl.Steps)
			}
		}
		if !(at["guest kernel"] >= at["host launch"] && at["guest mounts"] > at["guest kernel"] && at["guest ready"] > at["guest mounts"]) {
			t.Errorf("guest steps are not after the launch: %+v", tl.Steps)
		}
	}
	check(d)
	d.stop() // and from the file, by another daemon
	check(w.start(options{notRunning: true}))
}
