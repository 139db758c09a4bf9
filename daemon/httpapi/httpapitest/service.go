// Package httpapitest has a Service of package httpapi that lives in memory, for
// tests of the server, the client and the command line. It keeps the contract
// that Service states, and a machine of it boots at once, unless the test holds
// it. Its clock stands still but for one second per event, so what it shows can
// be compared with golden files.
package httpapitest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// Service is a daemon without machines. The zero value is empty and usable. It
// is safe for concurrent use.
type Service struct {
	// Boot says what becomes of the VM of this name when it is started: "" or
	// "healthy", "running" (never healthy), "unhealthy", "loop" (a crash loop), "starting" (hangs), "waiting" (for another), or anything else,
	// which is the reason of its crash. Set once before use.
	Boot map[string]string
	// Err makes the method of this name return an error, in place of doing its
	// work. Set once before use.
	Err map[string]error
	// Hypervisors is what Doctor finds; nil is one that emulates, and one that
	// does not work. Set once before use.
	Hypervisors []api.HypervisorCheck
	// Workload serves the workload of every VM. Set once before use.
	Workload http.Handler
	// Session plays the guest's part of an exec, or of an attach, for which e is
	// nil. nil is DefaultSession. Set once before use.
	Session func(vm string, e *api.Exec, r *stdio.Reader, w *stdio.Writer)
	// Connect, if set, plays it in Session's place, whatever it says.
	Connect func(net.Conn)
	// Logs is what every VM has written. Set once before use.
	Logs []api.LogEntry
	// Files is a directory that is the root of every VM. Set once before use.
	Files string
	// CopyFrom, if set, is what a VM sends as the archive of a file. Set once
	// before use.
	CopyFrom func(f api.File) io.ReadCloser
	// ImageConfig is the configuration of every image that is pulled. Set once before
	// use.
	ImageConfig api.ImageConfig
	// Pulling, when set, is called in the middle of every pull, whose error it
	// returns. Set once before use.
	Pulling func(ctx context.Context) error

	// Answers are what is kept of requests with these idempotency keys, whatever
	// they were.
	Answers map[string]api.Answer

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change; guarded by mu, as is all below
	vms     map[string]*api.VM
	plugins map[string]api.Plugin
	kernels map[string]api.Kernel
	blobs   map[string]int64
	images  map[string]api.Image // by ID
	volumes map[string]api.Volume
	auth    *api.RegistryAuth // of the last pull
	journal []api.Event
	configs map[string][]api.VMConfigVersion // guarded by mu; by VM id, the newest first
	answers map[string]keptAnswer            // guarded by mu; by idempotency key
	created api.VMCreate
	serial  int
	puts    int // uploads of blobs that were begun
}

// epoch is when a Service's clock starts.
func epoch() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }

// lock takes the mutex and makes the maps of a zero Service.
func (s *Service) lock() {
	s.mu.Lock()
	if s.changed == nil {
		s.changed = make(chan struct{})
		s.vms, s.plugins = map[string]*api.VM{}, map[string]api.Plugin{}
		s.kernels, s.blobs = map[string]api.Kernel{}, map[string]int64{}
		s.images, s.volumes = map[string]api.Image{}, map[string]api.Volume{}
	}
}

func (s *Service) now() time.Time { return epoch().Add(time.Duration(len(s.journal)) * time.Second) }

// emit appends to the journal. The caller holds mu.
func (s *Service) emit(e api.Event) {
	e.Seq, e.Time = uint64(len(s.journal)+1), s.now()
	s.journal = append(s.journal, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Service) emitVM(t api.EventType, vm *api.VM) {
	s.emit(api.Event{Type: t, Name: vm.Name, VMID: vm.ID, Status: vm.Status, IPAddress: vm.IPAddress, PID: vm.PID, Message: vm.Reason})
}

// Puts returns how many uploads of blobs were begun.
func (s *Service) Puts() int {
	s.lock()
	defer s.mu.Unlock()
	return s.puts
}

// Advance takes a held VM on: its Boot becomes outcome, as in Service.Boot.
func (s *Service) Advance(name, outcome string) {
	s.lock()
	defer s.mu.Unlock()
	if vm := s.find(name); vm != nil {
		s.boot(vm, outcome)
	}
}

func (s *Service) find(name string) *api.VM {
	if vm := s.vms[name]; vm != nil {
		return vm
	}
	for _, vm := range s.vms {
		if vm.ID == name {
			return vm
		}
	}
	return nil
}

// vm returns the VM called name, or the error that there is none.
func (s *Service) vm(name string) (*api.VM, error) {
	if vm := s.find(name); vm != nil {
		return vm, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no VM %q", name)
}

func (s *Service) start(vm *api.VM) {
	vm.Desired, vm.Status, vm.Reason, vm.Exit = api.DesiredRunning, api.VMStarting, "", nil
	if vm.HealthCheck {
		vm.Health = api.VMHealth{Status: api.HealthStarting}
	}
	vm.Incarnation++
	vm.PID = 4000 + vm.Incarnation
	started := s.now()
	vm.StartedAt = &started
	s.emitVM(api.EventVMStarting, vm)
	s.boot(vm, s.Boot[vm.Name])
}

func (s *Service) boot(vm *api.VM, outcome string) {
	switch outcome {
	case "starting":
	case "waiting":
		vm.WaitingFor = "VM db to be healthy: it is starting"
		s.emitVM(api.EventVMWaiting, vm)
	case "", "healthy", "running", "unhealthy":
		vm.Status, vm.AgentUp = api.VMRunning, true
		s.emitVM(api.EventVMRunning, vm)
		switch {
		case !vm.HealthCheck || outcome == "running":
		case outcome == "unhealthy":
			vm.Health = api.VMHealth{Status: api.HealthUnhealthy, FailingStreak: 3, Output: "status 503: no database"}
			s.emitVM(api.EventVMUnhealthy, vm)
		default:
			vm.Healthy, vm.Health.Status = true, api.HealthHealthy
			s.emitVM(api.EventVMHealthy, vm)
		}
	case "loop":
		at := s.now().Add(time.Hour + 30*time.Second)
		vm.Status, vm.Reason, vm.CrashLoop, vm.RestartCount, vm.NextStartAt = api.VMCrashed, "the guest kernel panicked", true, 5, &at
		vm.Health = api.VMHealth{Status: api.HealthNone}
		s.emitVM(api.EventVMCrashLoop, vm)
	default:
		vm.Status, vm.Reason, vm.AgentUp, vm.PID = api.VMCrashed, outcome, false, 0
		vm.Healthy, vm.Health = false, api.VMHealth{Status: api.HealthNone}
		s.emitVM(api.EventVMCrashed, vm)
	}
	vm.UpdatedAt = s.now()
}

func (s *Service) stop(vm *api.VM) {
	vm.Desired = api.DesiredStopped
	if vm.Status == api.VMStopped {
		return
	}
	vm.Status = api.VMStopping
	s.emitVM(api.EventVMStopping, vm)
	vm.Status, vm.AgentUp, vm.PID = api.VMStopped, false, 0
	vm.Healthy, vm.Health = false, api.VMHealth{Status: api.HealthNone}
	s.emitVM(api.EventVMStopped, vm)
	vm.UpdatedAt = s.now()
}

// checked says whether a VM has a health check: those of plugins do, unless the
// request says otherwise.
func checked(req api.VMCreate) bool {
	if h := req.HealthCheck; h != nil {
		return !h.Disable
	}
	return req.Plugin != ""
}

func (s *Service) CreateVM(_ context.Context, req api.VMCreate) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["CreateVM"]; err != nil {
		return api.VM{}, err
	}
	p, img, err := s.origin(req)
	if err != nil {
		return api.VM{}, err
	}
	for i := 1; req.Name == ""; i++ {
		if name := fmt.Sprintf("%s-%d", p.Name, i); s.vms[name] == nil {
			req.Name = name
		}
	}
	if s.vms[req.Name] != nil {
		return api.VM{}, api.Errorf(api.CodeExists, "there is a VM %q already", req.Name)
	}
	s.serial++
	vm := &api.VM{
		ID: fmt.Sprintf("vm-%04d", s.serial), Name: req.Name, Plugin: req.Plugin, Image: p.Manifest.Image, ImageID: img.ID, Runtime: p.Runtime,
		Status: api.VMPending, Desired: api.DesiredRunning,
		IPAddress: cmp.Or(req.IPAddress, fmt.Sprintf("192.168.127.%d", s.serial+1)), MACAddress: fmt.Sprintf("52:54:00:00:00:%02x", s.serial),
		VsockCID: uint32(s.serial + 2), CPUCores: cmp.Or(req.CPUCores, p.Manifest.Resources.CPUCores), MemoryMB: cmp.Or(req.MemoryMB, p.Manifest.Resources.MemoryMB),
		KernelCmdline: req.KernelCmdline, Kernel: req.Kernel, Hypervisor: "qemu", Accel: "tcg", Labels: req.Labels, CreatedAt: s.now(), UpdatedAt: s.now(),
		HealthCheck: checked(req), Health: api.VMHealth{Status: api.HealthNone}, Restart: req.Restart, DependsOn: req.DependsOn, AutoRemove: req.AutoRemove, TTLSeconds: req.TTLSeconds, TTY: req.TTY, Stdin: req.Stdin, Ports: api.MergePorts(p.Manifest.Ports, req.Ports),
	}
	for i := range vm.Ports {
		if i >= len(vm.Ports)-len(req.Ports) && vm.Ports[i].HostPort == 0 {
			vm.Ports[i].HostPort = api.FirstHostPort + s.serial
		}
	}
	for _, m := range req.Volumes {
		v, ok := s.volumes[m.Name]
		if m.Name == "" {
			continue
		}
		if !ok {
			v = s.addVolume(api.VolumeCreate{Name: m.Name, SizeMB: m.SizeMB})
		}
		v.VMs = append(v.VMs, vm.Name)
		s.volumes[m.Name] = v
	}
	s.vms[vm.Name] = vm
	s.created = req
	s.emitVM(api.EventVMCreated, vm)
	accepted := *vm
	if req.Stopped {
		vm.Status, vm.Desired = api.VMStopped, api.DesiredStopped
		return *vm, nil
	}
	s.start(vm)
	return accepted, nil
}

// origin returns what a VM is made from: the plugin, or one that stands for the
// image. The caller holds mu.
func (s *Service) origin(req api.VMCreate) (api.Plugin, api.Image, error) {
	if req.Image != "" {
		img, err := s.image(req.Image)
		if err != nil {
			return api.Plugin{}, img, err
		}
		m, err := api.ImageManifest(api.ImageName(img.References[0]), img.Config)
		m.Image, m.Resources = img.References[0], api.Resources{CPUCores: 1, MemoryMB: 256}
		return api.Plugin{Name: m.Name, Runtime: m.Name, Manifest: m}, img, err
	}
	p, ok := s.plugins[req.Plugin]
	if !ok {
		return p, api.Image{}, api.Errorf(api.CodeNotFound, "there is no plugin %q", req.Plugin).WithHint("volar plugins list shows what is installed")
	}
	if !p.Enabled {
		return p, api.Image{}, api.Errorf(api.CodeConflict, "plugin %s is disabled", p.Name)
	}
	return p, api.Image{}, nil
}

// Created returns the last request that made a VM, its name filled in.
func (s *Service) Created() api.VMCreate {
	s.lock()
	defer s.mu.Unlock()
	return s.created
}

func (s *Service) VM(_ context.Context, name string) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	return *vm, s.Err["VM"]
}

func (s *Service) VMs(_ context.Context, f api.VMFilter) ([]api.VM, int, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["VMs"]; err != nil {
		return nil, 0, err
	}
	var out []api.VM
	for _, vm := range s.vms {
		if (f.Plugin == "" || vm.Plugin == f.Plugin) && strings.Contains(vm.Name, f.Query) && f.Selector.Matches(vm.Labels) && (f.Status == nil || slices.Contains(f.Status, vm.Status)) {
			out = append(out, *vm)
		}
	}
	slices.SortFunc(out, func(a, b api.VM) int {
		var n int
		switch f.Sort {
		case "created_at":
			n = a.CreatedAt.Compare(b.CreatedAt)
		case "updated_at":
			n = a.UpdatedAt.Compare(b.UpdatedAt)
		case "status":
			n = cmp.Compare(a.Status, b.Status)
		}
		n = cmp.Or(n, cmp.Compare(a.Name, b.Name))
		if f.Desc {
			n = -n
		}
		return n
	})
	total := len(out)
	out = out[min(f.Offset, len(out)):]
	if f.Limit > 0 {
		out = out[:min(f.Limit, len(out))]
	}
	return out, total, nil
}

// change runs do on the VM and returns how it is then.
func (s *Service) change(method, name string, do func(*api.VM) error) (api.VM, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err[method]; err != nil {
		return api.VM{}, err
	}
	vm, err := s.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	if err := do(vm); err != nil {
		return api.VM{}, err
	}
	return *vm, nil
}

func (s *Service) StartVM(_ context.Context, name string) (api.VM, error) {
	return s.change("StartVM", name, func(vm *api.VM) error {
		if vm.Status != api.VMRunning && vm.Status != api.VMStarting {
			s.start(vm)
		}
		return nil
	})
}

func (s *Service) StopVM(_ context.Context, name string, _ api.VMStop) (api.VM, error) {
	return s.change("StopVM", name, func(vm *api.VM) error { s.stop(vm); return nil })
}

func (s *Service) RestartVM(_ context.Context, name string, _ api.VMStop) (api.VM, error) {
	return s.change("RestartVM", name, func(vm *api.VM) error { s.stop(vm); s.start(vm); return nil })
}

func (s *Service) PauseVM(_ context.Context, name string) (api.VM, error) {
	return s.move("PauseVM", name, api.VMRunning, api.VMPaused, api.EventVMPaused)
}

func (s *Service) ResumeVM(_ context.Context, name string) (api.VM, error) {
	return s.move("ResumeVM", name, api.VMPaused, api.VMRunning, api.EventVMResumed)
}

func (s *Service) move(method, name string, from, to api.VMState, event api.EventType) (api.VM, error) {
	return s.change(method, name, func(vm *api.VM) error {
		switch vm.Status {
		case from:
			vm.Status = to
			s.emitVM(event, vm)
			return nil
		case to:
			return nil
		}
		return api.Errorf(api.CodeConflict, "VM %s is %s", vm.Name, vm.Status)
	})
}

// ScaleVM cannot change the memory of a VM that runs.
func (s *Service) ScaleVM(_ context.Context, name string, in api.VMScale) (api.VM, error) {
	return s.change("ScaleVM", name, func(vm *api.VM) error {
		if vm.Status == api.VMRunning && in.MemoryMB != 0 && in.MemoryMB != vm.MemoryMB {
			if !in.Restart {
				return api.Errorf(api.CodeConflict, "VM %s cannot be scaled while it runs", vm.Name).WithHint("restart it")
			}
			s.stop(vm)
			s.start(vm)
		}
		vm.CPUCores, vm.MemoryMB = cmp.Or(in.CPUCores, vm.CPUCores), cmp.Or(in.MemoryMB, vm.MemoryMB)
		s.emitVM(api.EventVMScaled, vm)
		return nil
	})
}

func (s *Service) DeleteVM(_ context.Context, name string, _ api.VMStop) error {
	_, err := s.change("DeleteVM", name, func(vm *api.VM) error {
		if vm.Status != api.VMStopped {
			s.stop(vm)
		}
		delete(s.vms, vm.Name)
		for name, v := range s.volumes {
			v.VMs = slices.DeleteFunc(v.VMs, func(n string) bool { return n == vm.Name })
			s.volumes[name] = v
		}
		s.emitVM(api.EventVMDeleted, vm)
		return nil
	})
	return err
}

func (s *Service) WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error) {
	for {
		s.lock()
		vm, changed := s.find(name), s.changed
		var now api.VM
		if vm != nil {
			now = *vm
		}
		s.mu.Unlock()
		switch {
		case vm == nil && what == api.WaitDeleted:
			return api.VM{}, nil
		case vm == nil:
			return api.VM{}, api.Errorf(api.CodeNotFound, "there is no VM %q", name)
		case what == api.WaitRunning && now.Status == api.VMRunning, what == api.WaitHealthy && now.Healthy:
			return now, nil
		case what == api.WaitPaused && now.Status == api.VMPaused:
			return now, nil
		case what == api.WaitStopped && (now.Status == api.VMStopped || now.Status == api.VMCrashed):
			return now, nil
		case what == api.WaitHealthy && !now.HealthCheck:
			return now, api.Errorf(api.CodeInvalid, "VM %s has no health check", now.Name)
		case what == api.WaitHealthy && now.Health.Status == api.HealthUnhealthy:
			return now, api.Errorf(api.CodeConflict, "VM %s is unhealthy: %s", now.Name, now.Health.Output)
		case what != api.WaitStopped && now.Status == api.VMCrashed:
			return now, api.Errorf(api.CodeConflict, "it crashed: %s", now.Reason)
		case (what == api.WaitRunning || what == api.WaitHealthy) && now.Desired == api.DesiredStopped:
			return now, api.Errorf(api.CodeConflict, "it is stopped")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return now, api.Errorf(api.CodeTimeout, "VM %s is %s", name, now.Status)
			}
			return now, ctx.Err()
		}
	}
}

// Stats has VMs use more with every sample.
func (s *Service) Stats(ctx context.Context, q api.StatsQuery, yield func(api.StatsSample) error) error {
	for n := int64(1); ; n++ {
		sample, err := s.stats(q, n)
		if err != nil {
			return err
		}
		if err := yield(sample); err != nil || !q.Follow {
			return err
		}
		select {
		case <-time.After(cmp.Or(q.Interval, api.DefaultStatsInterval)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) stats(q api.StatsQuery, n int64) (api.StatsSample, error) {
	s.lock()
	defer s.mu.Unlock()
	sample := api.StatsSample{Time: epoch().Add(time.Duration(n) * time.Second)}
	if err := s.Err["Stats"]; err != nil {
		return sample, err
	}
	for _, name := range q.VMs {
		if _, err := s.vm(name); err != nil {
			return sample, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.vms)) {
		vm := s.vms[name]
		if len(q.VMs) > 0 && !slices.Contains(q.VMs, name) || len(q.VMs) == 0 && vm.Status == api.VMStopped {
			continue
		}
		one := api.VMStats{VM: name, ID: vm.ID, Status: vm.Status, Time: sample.Time, VCPUs: vm.CPUCores, MemoryGiven: int64(vm.MemoryMB) << 20}
		if vm.Status != api.VMStopped {
			cpu, used, bytes, threads := n*500e6, int64(100<<20), n<<20, 7
			one.UptimeSeconds, one.CPUNanos, one.MemoryUsed, one.Threads = float64(60+n), &cpu, &used, &threads
			one.DiskRead, one.DiskWrite, one.NetReceived, one.NetSent = &bytes, &bytes, &bytes, &bytes
			one.Guest = &api.GuestMemory{Total: 120 << 20, Available: 90 << 20, Agent: 9 << 20, Kernel: 7 << 20, Workload: 12 << 20}
		}
		if name == "slow" {
			one.Guest, one.Missing = nil, []string{"guest: it did not answer in time"}
		}
		sample.VMs = append(sample.VMs, one)
	}
	return sample, nil
}

func (s *Service) VMTimeline(_ context.Context, name string) (api.Timeline, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return api.Timeline{}, err
	}
	return api.Timeline{VM: vm.Name, Incarnation: vm.Incarnation, Steps: []api.TimelineStep{
		{Where: "host", Name: "prepare", StartMS: 0, TookMS: 3.25},
		{Where: "host", Name: "launch", StartMS: 3.25, TookMS: 41.5},
		{Where: "guest", Name: "network", StartMS: 512.125, TookMS: 1.0625},
		{Where: "guest", Name: "workload", StartMS: 520, TookMS: 8.5, Error: "slow"},
	}}, nil
}

func (s *Service) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func([]api.LogEntry) error) error {
	if err := s.Err["VMLogs"]; err != nil && len(s.Logs) == 0 {
		return err
	}
	var out []api.LogEntry
	for _, e := range s.Logs {
		of := api.LogWorkload
		switch e.Stream {
		case api.StreamConsole:
			of = api.LogConsole
		case api.StreamVMM:
			of = api.LogVMM
		}
		in := (q.Since.IsZero() || !e.Time.Before(q.Since)) && (q.Until.IsZero() || e.Time.Before(q.Until))
		if e.Seq > q.After && in && (of == q.Log || q.Log == "" && of == api.LogWorkload) {
			out = append(out, e)
		}
	}
	if q.Tail != 0 {
		out = out[max(0, len(out)-max(q.Tail, 0)):]
	}
	if len(out) > 0 {
		if err := yield(out); err != nil {
			return err
		}
	}
	if err := s.Err["VMLogs"]; err != nil || !q.Follow {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *Service) VMWorkload(_ context.Context, name string) (http.Handler, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.vm(name)
	if err != nil {
		return nil, err
	}
	if vm.Status != api.VMRunning {
		return nil, api.Errorf(api.CodeConflict, "VM %s is %s; only a running VM's workload can be called", vm.Name, vm.Status)
	}
	return s.Workload, nil
}

func (s *Service) VMExec(_ context.Context, name string, e api.Exec) (io.ReadWriteCloser, error) {
	return s.session("VMExec", name, &e)
}

func (s *Service) VMAttach(_ context.Context, name string) (io.ReadWriteCloser, error) {
	return s.session("VMAttach", name, nil)
}

func (s *Service) session(method, name string, e *api.Exec) (io.ReadWriteCloser, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err[method]; err != nil {
		return nil, err
	}
	vm, err := s.vm(name)
	if err != nil {
		return nil, err
	}
	if vm.Status != api.VMRunning {
		return nil, api.Errorf(api.CodeConflict, "VM %s is %s; commands run in a VM that is running", vm.Name, vm.Status).WithHint("volar vms start %s", vm.Name)
	}
	play := s.Session
	if play == nil {
		play = DefaultSession
	}
	near, far := net.Pipe()
	go func(vm string) {
		defer far.Close()
		if s.Connect != nil {
			s.Connect(far)
			return
		}
		play(vm, e, stdio.NewReader(far), stdio.NewWriter(far))
	}(vm.Name)
	return near, nil
}

// DefaultSession is a program that prints its arguments, or for an attach that
// it is one, and then what it reads until the end. Its status is 0, or 128 and
// the signal's number for SIGINT and SIGTERM.
func DefaultSession(vm string, e *api.Exec, r *stdio.Reader, w *stdio.Writer) {
	hello := "attached to " + vm
	if e != nil {
		hello = strings.Join(e.Args, " ")
	}
	send := func(f stdio.Frame) { _ = w.Write(f) } // or the client has gone
	send(stdio.Frame{Type: stdio.Stdout, Data: []byte(hello + "\n")})
	if e != nil && !e.Stdin {
		send(stdio.Frame{Type: stdio.Exit})
		return
	}
	for {
		f, err := r.Next()
		if err != nil {
			return
		}
		switch {
		case f.Type == stdio.Stdin && len(f.Data) > 0:
			n := len(f.Data)
			send(stdio.Frame{Type: stdio.Stdout, Data: f.Data})
			send(stdio.Frame{Type: stdio.Taken, N: n})
		case f.Type == stdio.StdinClose:
			send(stdio.Frame{Type: stdio.Exit})
			return
		case f.Type == stdio.Signal && f.Name == "SIGINT":
			send(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 130, Signal: f.Name}})
			return
		case f.Type == stdio.Signal && f.Name == "SIGTERM":
			send(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 143, Signal: f.Name}})
			return
		}
	}
}

func (s *Service) InstallPlugin(_ context.Context, m api.Manifest) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	if err := s.Err["InstallPlugin"]; err != nil {
		return api.Plugin{}, err
	}
	for _, sum := range checksums(m) {
		if _, ok := s.blobs[sum]; !ok {
			return api.Plugin{}, api.Errorf(api.CodeInvalid, "the artifact %q was not uploaded", sum)
		}
	}
	p := api.Plugin{
		Name: m.Name, Version: m.Version, Runtime: cmp.Or(m.Runtime, m.Name), Enabled: m.Enabled == nil || *m.Enabled,
		Manifest: m, InstalledAt: s.now(), UpdatedAt: s.now(),
	}
	s.plugins[m.Name] = p
	s.emit(api.Event{Type: api.EventPluginInstalled, Name: m.Name})
	return p, nil
}

func checksums(m api.Manifest) []string {
	var out []string
	if m.Initramfs != nil {
		out = append(out, m.Initramfs.Checksum)
	}
	if m.Rootfs != nil {
		out = append(out, m.Rootfs.Checksum)
	}
	for _, d := range m.Disks {
		out = append(out, d.Checksum)
	}
	return out
}

func (s *Service) Plugins(context.Context) ([]api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.plugins), func(a, b api.Plugin) int { return cmp.Compare(a.Name, b.Name) }), s.Err["Plugins"]
}

func (s *Service) Plugin(_ context.Context, name string) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	p, ok := s.plugins[name]
	if !ok {
		return p, api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	return p, nil
}

func (s *Service) EnablePlugin(_ context.Context, name string, enabled bool) (api.Plugin, error) {
	s.lock()
	defer s.mu.Unlock()
	p, ok := s.plugins[name]
	if !ok {
		return p, api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	p.Enabled = enabled
	s.plugins[name] = p
	t := api.EventPluginDisabled
	if enabled {
		t = api.EventPluginEnabled
	}
	s.emit(api.Event{Type: t, Name: name})
	return p, nil
}

func (s *Service) RemovePlugin(_ context.Context, name string) error {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.plugins[name]; !ok {
		return api.Errorf(api.CodeNotFound, "there is no plugin %q", name)
	}
	for _, vm := range slices.Sorted(maps.Keys(s.vms)) {
		if s.vms[vm].Plugin == name {
			return api.Errorf(api.CodeConflict, "plugin %s is used by VM %s", name, vm).WithHint("delete its VMs first")
		}
	}
	delete(s.plugins, name)
	s.emit(api.Event{Type: api.EventPluginRemoved, Name: name})
	return nil
}

func (s *Service) Blob(_ context.Context, digest string) (api.Blob, error) {
	s.lock()
	defer s.mu.Unlock()
	size, ok := s.blobs[digest]
	if !ok {
		return api.Blob{}, api.Errorf(api.CodeNotFound, "there is no blob %s", digest)
	}
	return api.Blob{Digest: digest, Size: size}, nil
}

func (s *Service) PutBlob(_ context.Context, digest string, r io.Reader) (api.Blob, error) {
	s.lock()
	s.puts++
	err := s.Err["PutBlob"]
	s.mu.Unlock()
	if err != nil {
		return api.Blob{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return api.Blob{}, err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return api.Blob{}, api.Errorf(api.CodeInvalid, "the bytes have digest %s, not %s", got, digest)
	}
	s.lock()
	defer s.mu.Unlock()
	s.blobs[digest] = n
	return api.Blob{Digest: digest, Size: n}, nil
}

func (s *Service) Kernels(context.Context) ([]api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.kernels), func(a, b api.Kernel) int { return cmp.Compare(a.Name, b.Name) }), s.Err["Kernels"]
}

func (s *Service) ImportKernel(_ context.Context, in api.KernelImport) (api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	size, ok := s.blobs[in.Digest]
	if !ok {
		return api.Kernel{}, api.Errorf(api.CodeInvalid, "the kernel image %s was not uploaded", in.Digest)
	}
	k := api.Kernel{Name: in.Name, Version: in.Version, Digest: in.Digest, Size: size, Modules: in.Modules, CreatedAt: s.now()}
	first := len(s.kernels) == 0
	s.kernels[k.Name] = k
	s.emit(api.Event{Type: api.EventKernelImported, Name: k.Name})
	if in.Default || first {
		s.setDefault(k.Name)
	}
	return s.kernels[k.Name], nil
}

func (s *Service) setDefault(name string) {
	for n, k := range s.kernels {
		k.Default = n == name
		s.kernels[n] = k
	}
	s.emit(api.Event{Type: api.EventKernelDefault, Name: name})
}

func (s *Service) DefaultKernel(_ context.Context, name string) (api.Kernel, error) {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.kernels[name]; !ok {
		return api.Kernel{}, api.Errorf(api.CodeNotFound, "there is no kernel %q", name)
	}
	s.setDefault(name)
	return s.kernels[name], nil
}

func (s *Service) RemoveKernel(_ context.Context, name string) error {
	s.lock()
	defer s.mu.Unlock()
	if _, ok := s.kernels[name]; !ok {
		return api.Errorf(api.CodeNotFound, "there is no kernel %q", name)
	}
	delete(s.kernels, name)
	s.emit(api.Event{Type: api.EventKernelRemoved, Name: name})
	return nil
}

func (s *Service) Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error {
	if err := s.Err["Events"]; err != nil {
		return err
	}
	for after := f.After; ; {
		s.lock()
		todo, changed := slices.Clone(s.journal[min(after, uint64(len(s.journal))):]), s.changed
		s.mu.Unlock()
		for _, e := range todo {
			after = e.Seq
			if (f.VM != "" && (e.VMID == "" || e.Name != f.VM)) || (f.Name != "" && e.Name != f.Name) ||
				e.Time.Before(f.Since) || (!f.Until.IsZero() && !e.Time.Before(f.Until)) || (f.Types != nil && !slices.Contains(f.Types, e.Type)) {
				continue
			}
			if err := yield(e); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) SystemInfo(context.Context) (api.SystemInfo, error) {
	if err := s.Err["SystemInfo"]; err != nil {
		return api.SystemInfo{}, err
	}
	return api.SystemInfo{
		Status: "ok", Version: "1.2.3", Listen: "unix:/run/volant/volantd.sock", Bridge: "vbr0", Subnet: "192.168.127.0/24", HostIP: "192.168.127.1",
		DataDir: "/var/lib/volant", RuntimeDir: "/run/volant",
		Hypervisor: api.Hypervisor{Driver: "qemu", Version: "7.2.22", Binary: "/usr/bin/qemu-system-x86_64", Accel: "tcg", Channel: "serial", Notice: "VMs are emulated: isolation is not by hardware"},
	}, nil
}

func (s *Service) Doctor(context.Context) (api.Doctor, error) {
	if err := s.Err["Doctor"]; err != nil {
		return api.Doctor{}, err
	}
	if s.Hypervisors != nil {
		return api.Doctor{Hypervisors: s.Hypervisors, Limits: api.LimitsCheck{Cgroups: "v2 (cpu, io, memory, pids)"}}, nil
	}
	return api.Doctor{Limits: api.LimitsCheck{Cgroups: "v2 (cpu)", Problem: "VMs run without limits of memory, pids: ask the host for them"}, Hypervisors: []api.HypervisorCheck{
		{Name: "qemu", Chosen: true, Works: true, Version: "7.2.22", Binary: "/usr/bin/qemu-system-x86_64", Accel: "tcg", Notice: "VMs are emulated: isolation is not by hardware", Features: []api.Feature{
			{Name: "pause", Works: true}, {Name: "snapshot", Works: true}, {Name: "pmem", Needs: "another hypervisor"},
			{Name: "unprivileged", Needs: "root"}, {Name: "vfio", Needs: "another hypervisor"},
		}},
		{Name: "cloud-hypervisor", Problem: "it is not in PATH: put it there"},
	}}, nil
}

func (s *Service) SystemSummary(context.Context) (api.SystemSummary, error) {
	s.lock()
	defer s.mu.Unlock()
	sum := api.SystemSummary{TotalVMs: len(s.vms), ByStatus: map[api.VMState]int{}, ByRuntime: map[string]int{}, TotalPlugins: len(s.plugins)}
	for _, vm := range s.vms {
		sum.ByStatus[vm.Status]++
		sum.ByRuntime[vm.Runtime]++
	}
	for _, p := range s.plugins {
		if p.Enabled {
			sum.EnabledPlugins++
		}
	}
	return sum, nil
}
