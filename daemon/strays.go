package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// A machine is known by its directory. When somebody has removed that, what is
// left of it is a process: the process table tells of it, and what it was started
// with proves whose it is.

// owns reports whether a machine was launched by a volantd with this daemon's two
// directories, by what its driver gave its process. One with the same runtime
// directory and another data directory is somebody else's.
func (d *Daemon) owns(rec hv.Record) bool {
	n, err := strconv.Atoi(filepath.Base(rec.Dir))
	if err != nil || !validID(rec.ID) || rec.Dir != d.runDir(rec.ID, n) {
		return false
	}
	data, ok := strings.CutSuffix(rec.ConsoleLog, filepath.Join("/vms", rec.ID, consoleLog))
	if !ok {
		return false
	}
	if data == d.cfg.DataDir {
		return true
	}
	theirs, err := os.Stat(data)
	if err != nil {
		return false
	}
	ours, err := os.Stat(d.cfg.DataDir)
	return err == nil && os.SameFile(theirs, ours)
}

// lookAtMachines returns the ids of machines that run without their directory, to
// be looked at by workers, which find them in d.strays; and those of machines
// below the runtime directory that are not this daemon's, to be left alone.
func (d *Daemon) lookAtMachines(ctx context.Context) (strays, foreign []string, err error) {
	found := make(map[string][]hv.Record)
	others := make(map[string]bool)
	for _, drv := range d.drivers() {
		recs, err := drv.Machines(ctx, filepath.Clean(d.runDirs("")))
		if err != nil {
			return nil, nil, fmt.Errorf("look for machines: %w", err)
		}
		for _, rec := range recs {
			switch {
			case !d.owns(rec):
				others[rec.ID] = true
				if !d.foreign[rec.ID] {
					d.log.Warn("a machine of another volantd is left alone: it shares the runtime directory, but not the data directory", keyVM, rec.ID, keyPID, rec.PID, keyPath, rec.Dir)
				}
			case gone(rec.Dir):
				found[rec.ID] = append(found[rec.ID], rec)
			}
		}
	}
	d.foreign = others
	strays, foreign = slices.Collect(maps.Keys(found)), slices.Collect(maps.Keys(others))
	d.mu.Lock()
	d.strays = found // the workers' from here on
	d.mu.Unlock()
	return strays, foreign, nil
}

// gone reports whether there is no such directory. One that cannot be looked at
// is not gone.
func gone(dir string) bool {
	_, err := os.Lstat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// endStrays ends the VM's machines that were found without their directory, but
// for that of the directory keep. A record that is out of date ends nothing.
func (w *worker) endStrays(ctx context.Context, keep string) error {
	w.d.mu.Lock()
	recs := w.d.strays[w.id]
	delete(w.d.strays, w.id) // the next look finds what is left
	w.d.mu.Unlock()
	for _, rec := range recs {
		if rec.Dir == keep {
			continue
		}
		if err := w.endMachine(ctx, rec); err != nil {
			return err
		}
		w.log.Warn("stray machine ended, whose directory was gone", keyPath, rec.Dir, keyPID, rec.PID)
	}
	return nil
}

// endMachine kills the machine of a record that nobody has taken up.
func (w *worker) endMachine(ctx context.Context, rec hv.Record) error {
	drv := w.d.driverFor(rec.Driver)
	if drv == nil {
		return fmt.Errorf("machine in %s belongs to driver %s, which is not here", rec.Dir, rec.Driver)
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.t.kill)
	defer cancel()
	if err := drv.End(ctx, rec); err != nil {
		return fmt.Errorf("end stray machine: %w", err)
	}
	return nil
}

// lookAtRunning looks for VMs that run and from which somebody has taken what only
// a start gives back.
func (d *Daemon) lookAtRunning(ctx context.Context, active []row.VM, taps map[string]string) error {
	for i := range active {
		vm := &active[i]
		if vm.Status != api.VMRunning {
			continue
		}
		var err error
		switch {
		case d.cfg.Network != nil && !vm.Vsock && taps[vm.ID] == "":
			err = d.impaired(ctx, vm, api.EventVMDisconnected, "its network device was removed, and with it its network")
		case gone(d.runDir(vm.ID, vm.Incarnation)):
			err = d.impaired(ctx, vm, api.EventVMImpaired, "its runtime directory was removed, so that the next volantd cannot take it up")
		}
		if err != nil && !errors.Is(err, row.ErrNotFound) {
			return err
		}
	}
	return nil
}

// impaired deals with a VM that runs, but not as it should: no hypervisor gives a
// machine another end of its network device, or other sockets. A VM that would be
// started again if it ended is restarted, its workload being asked to end first.
// Of another its row says what is wrong, and its operator decides.
func (d *Daemon) impaired(ctx context.Context, vm *row.VM, ev api.EventType, what string) error {
	m, err := d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return err
	}
	told := false
	_, err = d.update(ctx, vm.ID, func(now *row.VM) ([]api.Event, error) {
		if now.Incarnation != vm.Incarnation || now.Status != api.VMRunning || now.Desired != api.DesiredRunning || now.Replaced() || now.WantPaused {
			return nil, nil // it goes its own way
		}
		restart, _ := startsAgain(now, &m, false)
		if !restart && now.Reason != "" {
			return nil, nil // that is known
		}
		told = true
		if !restart {
			now.Reason = what + "; restart it: volar vms restart " + now.Name
			return []api.Event{{Type: ev, Message: now.Reason}}, nil
		}
		now.Stop, now.Replace = api.VMStop{}, now.Incarnation
		now.AcceptedAt, now.Tries.Auto = d.cfg.Now().UTC(), true
		now.RestartCount = min(now.RestartCount+1, maxRestarts)
		return []api.Event{{Type: ev, Message: what + "; it is restarted"}}, nil
	})
	if told && err == nil {
		d.log.Warn("a VM that runs lacks what only a restart gives back", keyVM, vm.ID, keyName, vm.Name, keyReason, what)
		d.kick(vm.ID)
	}
	return err
}
