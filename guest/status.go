package guest

import (
	"context"
	"sync"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// status is the guest's wire.Status and who waits for it to change. It is safe
// for concurrent use.
type status struct {
	timeline *timeline

	mu        sync.Mutex
	cur       wire.Status
	changed   chan struct{} // closed by the next change
	final     uint64        // sequence number of the last status that matters; 0 before
	delivered chan struct{} // closed when a response carried that
	once      sync.Once
}

func newStatus(t *timeline) *status {
	return &status{
		timeline: t, changed: make(chan struct{}), delivered: make(chan struct{}),
		cur: wire.Status{Seq: 1, Workload: wire.WorkloadStarting},
	}
}

// update changes the status and wakes those who wait.
func (s *status) update(change func(*wire.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cur)
	s.cur.Seq++
	close(s.changed)
	s.changed = make(chan struct{})
}

// finish changes the status for the last time that the host must hear of.
func (s *status) finish(change func(*wire.Status)) {
	s.update(func(cur *wire.Status) {
		change(cur)
		s.final = cur.Seq + 1
	})
}

// get returns the status as it is.
func (s *status) get() wire.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

// snapshot copies the status; mu is held.
func (s *status) snapshot() wire.Status {
	cur := s.cur
	cur.Timeline = s.timeline.snapshot()
	return cur
}

// wait returns the status once its sequence number exceeds after, the time is
// up, or ctx or quit is over.
func (s *status) wait(ctx context.Context, quit <-chan struct{}, after uint64, d time.Duration) wire.Status {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		s.mu.Lock()
		cur, changed := s.snapshot(), s.changed
		s.mu.Unlock()
		if cur.Seq > after {
			return cur
		}
		select {
		case <-changed:
		case <-t.C:
			return cur
		case <-quit:
			return cur
		case <-ctx.Done():
			return cur
		}
	}
}

// sent notes that the host was sent the status with that number.
func (s *status) sent(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final > 0 && seq >= s.final {
		s.once.Do(func() { close(s.delivered) })
	}
}
