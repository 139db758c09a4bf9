package daemon

import (
	"context"
	"sync"

	"github.com/volantvm/volant/client/api"
)

// eventBatch is how many events are read from the journal at once.
const eventBatch = 256

// bus tells those who wait that something has happened. It carries no events:
// who is told reads the journal, or the row, from where it stands. So nobody is
// too slow to hear of everything, in order, and nothing is queued.
type bus struct {
	mu   sync.Mutex
	subs map[*subscription]struct{} // guarded by mu
}

// subscription is woken by what happens to one VM, or by all events.
type subscription struct {
	vm   string        // id; "" for all events
	wake chan struct{} // one place: a waiter that is already told need not be told again
}

func (b *bus) subscribe(vm string) *subscription {
	s := &subscription{vm: vm, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[*subscription]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

func (b *bus) unsubscribe(s *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.subs, s)
}

// notify wakes who listens to the VM and, when the journal has grown, who
// listens to all.
func (b *bus) notify(vm string, grown bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		if s.vm == "" && grown || s.vm != "" && s.vm == vm {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
}

// Events yields the events that f selects from the journal in order and, when
// follow is set, goes on with what happens until ctx ends (which is no error),
// yield fails (its error is returned) or the daemon stops. An event is yielded
// once, and none is left out, however slow yield is.
func (d *Daemon) Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error {
	sub := d.bus.subscribe("")
	defer d.bus.unsubscribe(sub)
	for {
		evs, err := d.store.Events(ctx, f, eventBatch)
		if err != nil {
			if ctx.Err() != nil && follow {
				return nil
			}
			return d.publicError("read events", err)
		}
		for _, ev := range evs {
			if err := yield(ev); err != nil {
				return err
			}
			f.After = ev.Seq
		}
		if len(evs) == eventBatch {
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
			return nil
		case <-d.stopping:
			return api.Errorf(api.CodeUnavailable, "volantd is stopping").WithHint("connect again and go on after event %d", f.After)
		}
	}
}
