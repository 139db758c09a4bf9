package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

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

func (b *bus) subscribe(vm string) *subscription { return b.join(vm, make(chan struct{}, 1)) }

// join is subscribe for who is woken by several VMs: wake has one place.
func (b *bus) join(vm string, wake chan struct{}) *subscription {
	s := &subscription{vm: vm, wake: wake}
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
// follow is set, goes on with what happens until ctx ends or f.Until is over
// (which are no errors), yield fails (its error is returned) or the daemon stops.
// An event is yielded once, and none is left out, however slow yield is: where
// the journal has dropped what was to be read next, an api.EventsLost says so.
// Without f.After that is nothing that is missing, but the journal's beginning.
func (d *Daemon) Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error {
	sub := d.bus.subscribe("")
	defer d.bus.unsubscribe(sub)
	var over <-chan time.Time
	if follow && !f.Until.IsZero() {
		t := time.NewTimer(f.Until.Sub(d.cfg.Now()))
		defer t.Stop()
		over = t.C
	}
	for first := true; ; first = false {
		page, err := d.store.Events(ctx, f, eventBatch)
		if err != nil {
			if ctx.Err() != nil && follow {
				return nil
			}
			return d.publicError("read events", err)
		}
		if page.Oldest > f.After+1 {
			if f.After > 0 || !first {
				if err := yield(d.eventsLost(f.After, page.Oldest)); err != nil {
					return err
				}
			}
			f.After = page.Oldest - 1
		}
		for _, ev := range page.Events {
			f.After = ev.Seq
			if !f.Selector.Matches(ev.Labels) {
				continue
			}
			if err := yield(ev); err != nil {
				return err
			}
		}
		if len(page.Events) == eventBatch {
			continue
		}
		f.After = max(f.After, page.Newest) // what was not selected was seen too
		if !follow {
			return nil
		}
		select {
		case <-sub.wake:
		case <-over:
			follow = false // one more look
		case <-ctx.Done():
			return nil
		case <-d.stopping:
			return api.Errorf(api.CodeUnavailable, "volantd is stopping").WithHint("connect again and go on after event %d", f.After)
		}
	}
}

// eventsLost stands for the events after one and before the oldest that is kept.
func (d *Daemon) eventsLost(after, oldest uint64) api.Event {
	n := oldest - after - 1
	return api.Event{
		Seq: oldest - 1, Time: d.cfg.Now().UTC(), Type: api.EventsLost, Lost: n,
		Message: fmt.Sprintf("%d events after %d are not kept any more; what was selected of them is missing", n, after),
	}
}
