package daemon

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// expiries deletes VMs whose time is over (api.VMCreate.TTLSeconds). The store
// has when, by the wall clock, the only one that survives a restart of daemon and
// host. From when this daemon has first seen such a time, what is left of it is
// measured by the clock that nobody sets and that goes on while the host sleeps
// (CLOCK_BOOTTIME of clock_gettime(2)), so that a wall clock that jumps neither
// ends a VM early nor keeps it. A jump while no daemon runs cannot be told from
// time that passes.
type expiries struct {
	news chan struct{} // one place: look again
	// uptime is the time since some moment; tests set it.
	uptime func() time.Duration
	armed  map[string]alarm // by VM id; of the goroutine that watches
}

type alarm struct {
	at  time.Time     // as the store has it
	due time.Duration // by uptime
}

func newExpiries() expiries {
	return expiries{news: make(chan struct{}, 1), uptime: bootTime, armed: make(map[string]alarm)}
}

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// look has the times of VMs looked at again, since some have changed.
func (e *expiries) look() {
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// watchExpiries deletes VMs whose time is over until ctx ends.
func (d *Daemon) watchExpiries(ctx context.Context) {
	for ctx.Err() == nil {
		wait, err := d.expire(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("look for VMs whose time is over", keyErr, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-d.expiries.news:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// expire deletes the VMs whose time is over, and returns how long to wait before
// the next look.
func (d *Daemon) expire(ctx context.Context) (time.Duration, error) {
	e := &d.expiries
	wait := d.t.tick
	list, err := d.store.Expiries(ctx)
	if err != nil {
		return wait, err
	}
	now, up := d.cfg.Now(), e.uptime()
	old := e.armed
	e.armed = make(map[string]alarm, len(list))
	var errs []error
	for _, x := range list {
		a, ok := old[x.VM]
		if !ok || !a.at.Equal(x.At) {
			a = alarm{at: x.At, due: up + x.At.Sub(now)}
		}
		e.armed[x.VM] = a
		if left := a.due - up; left > 0 {
			wait = min(wait, left)
			continue
		}
		if err := d.expireVM(ctx, x); err != nil {
			errs = append(errs, err)
		}
	}
	return wait, errors.Join(errs...)
}

// expireVM wishes a VM gone, unless it was given more time meanwhile.
func (d *Daemon) expireVM(ctx context.Context, x row.Expiry) error {
	vm, err := d.update(ctx, x.VM, func(vm *row.VM) ([]api.Event, error) {
		if vm.Desired == api.DesiredAbsent || vm.ExpiresAt == nil || !vm.ExpiresAt.Equal(x.At) {
			return nil, nil
		}
		vm.Desired, vm.Stop = api.DesiredAbsent, api.VMStop{}
		return []api.Event{{Type: api.EventVMExpired, Message: "its time is over: " + (time.Duration(vm.TTLSeconds) * time.Second).String()}}, nil
	})
	if errors.Is(err, row.ErrNotFound) {
		return nil
	}
	if err == nil {
		d.kick(vm.ID)
	}
	return err
}
