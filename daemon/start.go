package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// bootDisk is the file of the boot configuration in the incarnation's directory.
const bootDisk = "config.img"

// errUnwished cancels a start whose wish was withdrawn.
var errUnwished = errors.New("no longer wanted")

// start begins the next incarnation: intent, then everything the VMM needs at
// the same time, then the VMM. It returns nil when the machine is held and
// recorded, and also when the start has failed and the row says so.
func (w *worker) start(ctx context.Context, vm *row.VM) error {
	tl := newTimeline(vm.Incarnation+1, vm.AcceptedAt)
	w.timeline.Store(tl)
	queued := tl.step("queue")
	select {
	case w.d.boots <- struct{}{}:
		defer func() { <-w.d.boots }()
	case <-w.wake:
		return nil // the wish may have changed: look again
	case <-ctx.Done():
		return ctx.Err()
	}
	queued(nil)

	intent := tl.step("intent")
	now, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		if vm.Desired != api.DesiredRunning {
			return nil, errUnwished
		}
		ev, err := enter(vm, api.VMStarting, "")
		if err != nil {
			return nil, err
		}
		if vm.Tries.Auto && vm.RestartCount > 0 {
			ev.Message = fmt.Sprintf("restart %d", vm.RestartCount)
		}
		vm.Incarnation++
		vm.TakeNext()
		vm.NextStartAt, vm.WaitingFor, vm.Tries.Guest = nil, "", 0
		vm.BootID, vm.Record, vm.PID, vm.Exit, vm.StartedAt = w.d.cfg.BootID, nil, 0, nil, nil
		vm.AgentUp, vm.Hypervisor, vm.Accel, vm.Initramfs, vm.AgentImage = false, "", "", "", ""
		return []api.Event{ev}, nil
	})
	intent(err)
	if errors.Is(err, errUnwished) {
		return nil
	}
	if err != nil {
		return err
	}
	vm = &now

	// A wish that changes while files are hashed or the VMM comes up takes
	// effect at once.
	startCtx, stop := w.whileWished(ctx, vm)
	m, err := w.launch(startCtx, vm, tl)
	stop()
	if ctx.Err() != nil {
		// The daemon ends in the middle of a start. What was made is found by
		// the next one, or undone.
		if m != nil {
			m.close()
		}
		return ctx.Err()
	}
	switch {
	case errors.Is(context.Cause(startCtx), errUnwished):
		if m != nil {
			w.hold(m)
		}
		return w.abandon(ctx, vm)
	case err != nil:
		return w.failed(ctx, vm, startReason(err))
	}
	w.hold(m)
	record := tl.step("record")
	err = w.recordLaunch(ctx, vm, false)
	record(err)
	if err != nil {
		// Without its record the VMM is found by its directory, but only by a
		// daemon that looks; this one goes on as if it had been restarted.
		w.release()
	}
	return err
}

// whileWished returns a context that ends, with errUnwished as its cause, when
// the incarnation of vm is no longer wanted. stop must be called.
func (w *worker) whileWished(ctx context.Context, vm *row.VM) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
			now, err := w.d.store.VMByID(ctx, w.id)
			if err == nil && (now.Desired != api.DesiredRunning || now.Replace >= vm.Incarnation) {
				cancel(errUnwished)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// launch prepares and starts the incarnation of vm. On error there is no
// machine; what else was made is for cleanup to remove.
func (w *worker) launch(ctx context.Context, vm *row.VM, tl *timeline) (*machine, error) {
	d := w.d
	timed := func(name string, fn func() error) error {
		end := tl.step(name)
		err := fn()
		end(err)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}

	var m api.Manifest
	var kernel api.Kernel
	var drv hv.Driver
	var caps hv.Capabilities
	var mounts []guestMount
	if err := timed("resolve", func() (err error) {
		if m, err = d.store.Manifest(ctx, vm.Manifest); err != nil {
			return err
		}
		if kernel, err = d.bootKernel(ctx, vm.WantKernel, &m); err != nil {
			return err
		}
		if mounts, err = guestMounts(&m); err != nil {
			return err
		}
		if drv, caps, err = d.driver(ctx, m.Hypervisor); err != nil {
			return err
		}
		able, err := d.able.of(kernel.Digest, d.blobPath(kernel.Digest))
		if err != nil {
			return err
		}
		caps = able.limit(caps)
		return checkDisks(&m, caps)
	}); err != nil {
		return nil, err
	}

	dir := d.runDir(vm.ID, vm.Incarnation)
	spec := hv.Spec{
		ID: vm.ID, Dir: dir, VCPUs: vm.CPUCores, MemoryMiB: vm.MemoryMB,
		Reach:  []string{d.volumesDir(), d.snapshotsDir()},
		Kernel: d.blobPath(kernel.Digest), ConsoleLog: filepath.Join(d.dataDir(vm.ID), consoleLog), ConsoleLimit: consoleLimit,
		VMMLog: vmmLog(d.dataDir(vm.ID), vm.Incarnation),
	}
	spec.MaxVCPUs, spec.MaxMemoryMiB = room(vm, caps, d.cfg.HostMemoryMiB)
	// Also under emulation: of 24 boots in turn, with the balloon and without, none
	// could be told from the other by their processor time (1011 ms and 1012, the
	// medians, as of 2026-11), and the guest returns its first pages 2 s later.
	spec.Balloon = caps.Balloon && !d.cfg.KeepFreePages
	spec.MergeMemory = caps.Merge && d.cfg.MergeMemory
	if caps.Channel == hv.ChannelVsock {
		spec.CID = vm.VsockCID
	}
	var err error
	if spec.Cmdline, err = d.cmdline(vm, &m); err != nil {
		return nil, err
	}
	agentKind := agentKind(&m)
	parts := initramfsParts{modules: d.optionalBlob(kernel.Modules), shim: d.agentOnDisk(&m)}
	if agentKind == api.AgentHost {
		parts.init = defaultInit
	}
	if m.Initramfs != nil {
		parts.archive = d.blobRef(m.Initramfs.Checksum)
		if vm.ImageID != "" {
			parts.init = imageInit
		}
	}
	var agent, config, root, volumes []hv.Disk // in this order
	var planned []string                       // the kernel parameter for it

	if err := timed("directory", func() error { return makeDirs(dir, d.dataDir(vm.ID)) }); err != nil {
		return nil, err
	}
	if d.cfg.Cgroups != nil {
		if err := timed("cgroup", func() (err error) {
			spec.Cgroups, err = d.cfg.Cgroups.Make(vm.ID, limitsOf(vm.CPUCores, vm.MemoryMB))
			return err
		}); err != nil {
			return nil, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.writeOrigin(gctx, vm, &m, kernel) })
	g.Go(func() error {
		return timed("kernel", func() error { return d.disks.verify(gctx, d.blobRef(kernel.Digest)) })
	})
	g.Go(func() error {
		return timed("initramfs", func() (err error) {
			spec.Initramfs, err = d.initramfs(gctx, parts)
			return err
		})
	})
	if parts.shim {
		g.Go(func() error {
			return timed("agent", func() error {
				disk, param, err := d.agentDisk(gctx, caps)
				agent, spec.Cmdline = []hv.Disk{disk}, slices.Insert(spec.Cmdline, 1, param) // behind the VM's id
				return err
			})
		})
	}
	g.Go(func() error {
		if err := timed("logs", func() error { return d.beginLogs(vm.ID, vm.Incarnation) }); err != nil {
			return err
		}
		if agentKind == api.AgentNone {
			return nil
		}
		return timed("config", func() (err error) {
			path := filepath.Join(dir, bootDisk)
			config = []hv.Disk{{Serial: wire.ConfigSerial, Path: path, ReadOnly: true}}
			planned, err = d.writeBootDisk(path, vm, &m, parts.shim)
			return err
		})
	})
	if m.Rootfs != nil {
		g.Go(func() error {
			return timed("root", func() (err error) {
				root, err = d.rootDisks(gctx, vm, &m)
				return err
			})
		})
	}
	if len(m.Volumes) > 0 {
		g.Go(func() error {
			return timed("volumes", func() (err error) {
				volumes, err = d.volumeDisks(gctx, vm, mounts)
				return err
			})
		})
	}
	if !vm.Vsock {
		g.Go(func() error {
			nic, err := w.connect(gctx, vm, timed)
			spec.NICs = []hv.NIC{nic}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}

	spec.Disks = slices.Concat(agent, config, root, volumes)
	spec.Cmdline = slices.Insert(spec.Cmdline, 1+len(agent), planned...) // behind the VM's id and the agent
	if err := timed("user", func() error { return d.employ(ctx, &spec, caps) }); err != nil {
		return nil, err
	}

	var mach hv.VM
	if err := timed("launch", func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, d.t.launch)
		defer cancel()
		mach, err = drv.Launch(ctx, spec)
		return err
	}); err != nil {
		return nil, err
	}
	tl.launch()
	vm.Has = row.Size{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, MaxVCPUs: max(spec.VCPUs, spec.MaxVCPUs), MaxMemoryMiB: max(spec.MemoryMiB, spec.MaxMemoryMiB)}
	vm.Kernel, vm.Hypervisor, vm.Accel, vm.Initramfs = kernel.Name, caps.Driver, string(mach.Record().Accel), filepath.Base(spec.Initramfs)
	if len(agent) > 0 {
		vm.AgentImage = filepath.Base(agent[0].Path)
	}
	held, err := d.newMachine(vm, mach, agentKind != api.AgentNone, false, w.log)
	if err != nil {
		killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.t.kill)
		defer cancel()
		return nil, errors.Join(err, mach.Kill(killCtx), mach.Detach())
	}
	return held, nil
}

// makeDirs makes the incarnation's own directory, which must be new, and the
// one that the VM keeps, and removes what a killed daemon was writing there.
func makeDirs(dir, data string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	return removeTemps(data)
}

// writeBootDisk writes the disk of the boot configuration. Behind that comes its
// plan, for a guest whose shim can follow one, and the kernel parameter that says
// where, if there is one.
func (d *Daemon) writeBootDisk(path string, vm *row.VM, m *api.Manifest, shim bool) (params []string, err error) {
	cfg, err := d.bootConfig(vm, m)
	if err != nil {
		return nil, err
	}
	image, err := wire.EncodeBoot(cfg)
	if err != nil {
		return nil, err
	}
	if shim {
		if p := plan.Compile(cfg); p != nil {
			params = []string{fmt.Sprintf("%s=%d,%d", wire.ParamPlan, len(image), len(p))}
			image = append(append(image, p...), make([]byte, -len(p)&(diskBlock-1))...)
		}
	}
	// Not synced: it dies with the incarnation, and that with the host.
	return params, os.WriteFile(path, image, 0o600)
}

// diskBlock is what the length of a disk is a multiple of, in bytes.
const diskBlock = 4096

// connect makes the VM's tap and opens its port.
func (w *worker) connect(ctx context.Context, vm *row.VM, timed func(string, func() error) error) (hv.NIC, error) {
	if w.d.cfg.Network == nil {
		return hv.NIC{}, errors.New("this volantd has no network")
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.t.network)
	defer cancel()
	port, err := portOf(vm)
	if err != nil {
		return hv.NIC{}, err
	}
	if err := timed("tap", func() (err error) {
		port.Tap, err = w.d.cfg.Network.AddTap(ctx, vm.ID)
		return err
	}); err != nil {
		return hv.NIC{}, err
	}
	return hv.NIC{Tap: port.Tap, MAC: port.MAC}, timed("rules", func() error { return w.d.ports.put(ctx, vm.ID, port) })
}

// portOf is what the VM may put into its frames, and what of it is published;
// the tap is for the caller.
func portOf(vm *row.VM) (Port, error) {
	mac, err := net.ParseMAC(vm.MACAddress)
	if err != nil {
		return Port{}, err
	}
	ip, err := netip.ParseAddr(vm.IPAddress)
	if err != nil {
		return Port{}, err
	}
	port := Port{MAC: mac, IP: ip}
	for _, p := range vm.Ports {
		if p.HostPort == 0 {
			continue
		}
		pub, err := publishOf(p)
		if err != nil {
			return Port{}, err
		}
		port.Publish = append(port.Publish, pub)
	}
	return port, nil
}

// publishOf is a published port as the network has it.
func publishOf(p api.Port) (Publish, error) {
	out := Publish{HostPort: uint16(p.HostPort), GuestPort: uint16(p.Port), Protocol: p.Protocol}
	if p.HostIP == "" {
		return out, nil
	}
	var err error
	out.HostIP, err = netip.ParseAddr(p.HostIP)
	return out, err
}

// recordLaunch writes the driver's record of the machine that the worker holds
// into the row, if it is not there yet. adopted tells of a machine that was
// found rather than launched.
func (w *worker) recordLaunch(ctx context.Context, vm *row.VM, adopted bool) error {
	rec := w.live.vm.Record()
	b, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	_, err = w.d.update(ctx, vm.ID, func(now *row.VM) ([]api.Event, error) {
		if now.Record == nil {
			now.Record, now.Has = b, vm.Has
			if vm.Has == (row.Size{}) { // found: its size is the row's, its room nobody knows
				now.Has = row.Size{VCPUs: now.CPUCores, MemoryMiB: now.MemoryMB, MaxVCPUs: now.CPUCores, MaxMemoryMiB: now.MemoryMB}
			}
			now.Kernel, now.Initramfs, now.AgentImage = vm.Kernel, vm.Initramfs, vm.AgentImage
		}
		now.PID, now.Hypervisor, now.Accel = rec.PID, rec.Driver, string(rec.Accel)
		if !adopted {
			return nil, nil
		}
		return []api.Event{{Type: api.EventVMAdopted}}, nil
	})
	return err
}

// startReason is the sentence for a start that did not work.
func startReason(err error) string {
	if e := translate(err); e != nil && !errors.Is(err, context.DeadlineExceeded) {
		if e.Hint != "" {
			return e.Message + "; " + e.Hint
		}
		return e.Message
	}
	return err.Error()
}

// abandon ends an incarnation that is no longer wanted before it was recorded.
func (w *worker) abandon(ctx context.Context, vm *row.VM) error {
	if w.live != nil {
		return w.stop(ctx, vm)
	}
	if err := w.cleanup(ctx, false); err != nil {
		return err
	}
	return w.settle(ctx, vm, api.VMStopped, "")
}

// failed ends an incarnation that did not come up. The wish of an operator ends
// with it: what failed once for a reason of the host or the image fails again. An
// automatic start, which nobody looks at and which worked once, is tried again
// as the restart policy says.
func (w *worker) failed(ctx context.Context, vm *row.VM, reason string) error {
	m, err := w.d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return err
	}
	if w.live != nil {
		if err := w.kill(ctx); err != nil {
			return err
		}
	}
	w.saveTimeline()
	w.release()
	if err := w.disconnect(ctx); err != nil {
		return err
	}
	_, err = w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		why, more := reason, []api.Event(nil)
		switch {
		case vm.Desired != api.DesiredRunning || vm.Replaced():
		case vm.Tries.Auto:
			why, more = w.d.again(vm, &m, false, reason)
		default:
			vm.Desired = api.DesiredStopped
		}
		ev, err := enter(vm, api.VMFailed, why)
		return append([]api.Event{ev}, more...), err
	})
	if err == nil {
		w.log.Error("VM could not be started", keyName, vm.Name, keyIncarnation, vm.Incarnation, keyReason, reason)
	}
	return err
}

// awaitGuest waits until the guest's agent has answered and its workload was
// started, and moves the VM to running.
func (w *worker) awaitGuest(ctx context.Context, vm *row.VM) error {
	m := w.live
	if m.agent == nil {
		return w.running(ctx, vm, report{})
	}
	tl := w.timeline.Load()
	wait := tl.step("guest")
	// Counted from when the machine was taken hold of, not from now: each look at the
	// wish comes by here. A guest that was taken up by a restarted daemon gets the
	// whole time again, which is better than to kill one that is nearly there.
	deadline := time.NewTimer(time.Until(m.held.Add(w.d.cfg.BootTimeout)))
	defer deadline.Stop()
	for {
		r := m.get()
		if r.hello != nil {
			tl.setGuest(r.hello.Timeline)
		}
		if r.status.Seq > 0 {
			tl.setGuest(r.status.Timeline)
		}
		switch {
		case r.alien != nil:
			wait(r.alien)
			return w.failed(ctx, vm, r.alien.Error())
		case r.status.Workload == wire.WorkloadFailed:
			wait(errors.New(clip(r.status.Error, maxStepText)))
			if err := w.dismiss(ctx); err != nil {
				return err
			}
			return w.failed(ctx, vm, "the workload could not be started: "+clip(r.status.Error, 1000))
		case r.status.Seq > 0 && r.status.Workload != wire.WorkloadStarting:
			wait(nil)
			return w.running(ctx, vm, r)
		}
		select {
		case <-m.news:
		case <-m.exited:
			wait(errors.New("the machine ended"))
			return w.over(ctx, vm, m.exit)
		case <-m.lost:
			w.release()
			return nil
		case <-w.wake:
			return nil // look at the wish
		case <-deadline.C:
			why := fmt.Sprintf("the guest did not answer within %s", w.d.cfg.BootTimeout)
			wait(errors.New(why))
			if words := w.d.lastWords(vm.ID); words != "" {
				why += "; its console ends with: " + words
			} else {
				why += " and printed nothing on its console"
			}
			return w.failed(ctx, vm, why)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// running moves the VM to running.
func (w *worker) running(ctx context.Context, vm *row.VM, r report) error {
	tl := w.timeline.Load()
	took := tl.summary()
	end := tl.step("running")
	now := w.d.cfg.Now().UTC()
	_, err := w.d.update(ctx, vm.ID, func(vm *row.VM) ([]api.Event, error) {
		ev, err := enter(vm, api.VMRunning, "")
		if err != nil {
			return nil, err
		}
		ev.Message = took
		vm.StartedAt, vm.AgentUp = &now, r.up
		return append([]api.Event{ev}, applyStatus(vm, r)...), nil
	})
	end(err)
	if err != nil {
		return err
	}
	w.saveTimeline()
	w.log.Info("VM running", keyName, vm.Name, keyIncarnation, vm.Incarnation, keyDur, now.Sub(vm.AcceptedAt))
	return nil
}

// applyStatus writes what the guest reports into the row and returns the events
// of it. A guest that has said no more than who it is changes nothing of what is
// known of its workload.
func applyStatus(vm *row.VM, r report) []api.Event {
	vm.AgentUp = r.up
	if e := r.status.Exit; e != nil {
		vm.Exit = &api.VMExit{Code: e.Code, Signal: clip(e.Signal, 32), OOMKilled: e.OOMKilled, Time: guestTime(e.Time)}
	}
	if r.status.Seq == 0 {
		return nil
	}
	return append(applyRestarts(vm, &r.status), setHealth(vm, healthOf(vm, &r.status))...)
}

// saveTimeline keeps the timeline for later; it is a record of measurements,
// and not worth failing for.
func (w *worker) saveTimeline() {
	if tl := w.timeline.Load(); tl != nil {
		if err := tl.save(w.d.dataDir(w.id)); err != nil {
			w.log.Warn("timeline not saved", keyErr, err)
		}
	}
}
