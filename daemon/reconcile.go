package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/volantvm/volant/store/row"
)

// begin is the first thing that Run does: network, and a worker for everything
// that is not settled or left over.
func (d *Daemon) begin(ctx context.Context) error {
	if d.cfg.Network != nil {
		if err := d.openNetwork(ctx); err != nil {
			return err
		}
	}
	close(d.network)
	if d.cfg.Cgroups != nil && d.cfg.Cgroups.Problem() != "" {
		d.log.Warn("VMs are not limited as they should be", keyReason, d.cfg.Cgroups.Problem())
	}
	if d.cfg.Driver == nil {
		d.log.Warn("no hypervisor", keyErr, d.cfg.DriverError)
	} else if _, caps, err := d.driver(ctx, ""); err != nil {
		d.log.Warn("no hypervisor", keyErr, err)
	} else {
		d.log.Info("hypervisor found", keyDriver, caps.Driver, keyAccel, caps.Accel)
	}
	if err := d.finishRemovals(ctx); err != nil {
		return fmt.Errorf("daemon: volumes: %w", err)
	}
	if err := d.wishAfterReboot(ctx); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	n := 0
	active, taps, err := d.look(ctx)
	if err == nil {
		n, err = len(active), d.lookAtAll(ctx, active, taps)
	}
	if err == nil {
		err = d.sweepData(ctx)
	}
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	d.log.Info("reconciled", keyCount, n)
	return nil
}

// openNetwork makes the network, with rules for the VMs that run before anything
// else: what has a tap and no row is cut off at once. It replaces the whole set
// of ports, so no worker may have changed that yet.
func (d *Daemon) openNetwork(ctx context.Context) error {
	active, err := d.store.ActiveVMs(ctx)
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	if err := d.cfg.Network.Ensure(ctx); err != nil {
		return fmt.Errorf("daemon: network: %w", err)
	}
	taps, err := d.cfg.Network.Taps(ctx)
	if err != nil {
		return fmt.Errorf("daemon: network: %w", err)
	}
	open := make(map[string]Port, len(active))
	for i := range active {
		tap, ok := taps[active[i].ID]
		if !ok || active[i].Ended() {
			continue
		}
		port, err := portOf(&active[i])
		if err != nil {
			return fmt.Errorf("daemon: VM %s: %w", active[i].ID, err)
		}
		port.Tap = tap
		open[active[i].ID] = port
	}
	taken, err := d.ports.reset(ctx, open)
	if err != nil {
		return fmt.Errorf("daemon: network: %w", err)
	}
	for vm, err := range taken {
		d.log.Warn("a published port is not kept from other programs", keyVM, vm, keyErr, err)
	}
	return nil
}

// look returns the VMs that are not settled, and the taps of VMs by id. The rows
// are read first: a tap goes only after a VM's row says that it ends.
func (d *Daemon) look(ctx context.Context) (active []row.VM, taps map[string]string, err error) {
	active, err = d.store.ActiveVMs(ctx)
	if err == nil && d.cfg.Network != nil {
		taps, err = d.cfg.Network.Taps(ctx)
	}
	return active, taps, err
}

// lookAtAll wakes a worker for every VM that is not settled, and for every id
// that has a tap, a runtime directory, a cgroup, or a machine without its directory:
// a worker that finds these unexplained removes them.
func (d *Daemon) lookAtAll(ctx context.Context, active []row.VM, taps map[string]string) error {
	ids := make(map[string]bool)
	for id := range taps {
		ids[id] = true
	}
	dirs, err := idsIn(d.runDirs(""))
	if err != nil {
		return err
	}
	groups, err := d.groups()
	if err != nil {
		return err
	}
	dirs = append(dirs, groups...)
	for _, id := range dirs {
		ids[id] = true
	}
	strays, foreign, err := d.lookAtMachines(ctx)
	if err != nil && ctx.Err() == nil {
		d.log.Warn("machines without a directory are not found", keyErr, err)
	}
	for _, id := range strays {
		ids[id] = true
	}
	for _, id := range foreign {
		delete(ids, id)
	}
	for i := range active {
		ids[active[i].ID] = true
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		d.kick(id)
	}
	return nil
}

// sweepData wakes a worker for every data directory whose VM is gone. The row
// goes after the directory, but only the row is synced to disk: when the host
// loses power the directory can come back.
func (d *Daemon) sweepData(ctx context.Context) error {
	ids, err := idsIn(d.dataDir(""))
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := d.store.VMByID(ctx, id); errors.Is(err, row.ErrNotFound) {
			d.kick(id)
		}
	}
	return ctx.Err()
}

// idsIn lists the entries of a directory that are named by a VM's id.
func idsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// validID reports whether a directory's name can be an id that newID made.
func validID(s string) bool {
	if len(s) != 12 {
		return false
	}
	for i := range len(s) {
		if (s[i] < 'a' || s[i] > 'z') && (s[i] < '2' || s[i] > '7') {
			return false
		}
	}
	return true
}

// tick does what is done again and again while the daemon runs. Nothing of it
// is urgent, and a failure is tried again by the next.
func (d *Daemon) tick(ctx context.Context) {
	active, taps, err := d.look(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.log.Warn("look at all VMs", keyErr, err)
		}
	} else {
		if err := d.lookAtRunning(ctx, active, taps); err != nil && ctx.Err() == nil {
			d.log.Warn("look at VMs that run", keyErr, err)
		}
		if err := d.lookAtAll(ctx, active, taps); err != nil && ctx.Err() == nil {
			d.log.Warn("look at all VMs", keyErr, err)
		}
		if err := d.collectCache(active); err != nil {
			d.log.Warn("collect cached files", keyErr, err)
		}
	}
	if err := d.collectBlobs(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("collect blobs", keyErr, err)
	}
	if err := d.sweepStaging(); err != nil {
		d.log.Warn("sweep staging of images", keyErr, err)
	}
	if err := d.evictImages(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("evict images", keyErr, err)
	}
	if _, err := d.store.PruneAnswers(ctx, keepAnswers, d.cfg.Now().Add(-keepAnswersFor)); err != nil && ctx.Err() == nil {
		d.log.Warn("prune answers", keyErr, err)
	}
	var before time.Time
	if d.cfg.KeepEventsFor > 0 {
		before = d.cfg.Now().Add(-d.cfg.KeepEventsFor)
	}
	if _, err := d.store.PruneEvents(ctx, d.cfg.KeepEvents, before); err != nil && ctx.Err() == nil {
		d.log.Warn("prune events", keyErr, err)
	}
}

// sweepTemp removes files that a killed daemon was writing. Only New may call
// it: from then on such files are being written.
func (d *Daemon) sweepTemp() error {
	for _, dir := range []string{d.blobTemp(), d.cache.dir, d.volumesDir()} {
		if err := removeTemps(dir); err != nil {
			return err
		}
	}
	return d.sweepLoads()
}

// removeTemps removes the temporary files in dir. Nobody else may be writing
// there.
func removeTemps(dir string) error {
	temps, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range temps {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}
