package guest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// waker does what a guest has to when it goes on after it was not running: its
// clock, and where it was restored, what must not be as in the others that were
// restored from the same snapshot. It is safe for concurrent use.
//
// The new epoch begins when everything was done. Until then a Wake that failed,
// or whose guest was killed in the middle, can be repeated: every step may be
// done twice.
type waker struct {
	sys   Sys
	now   func() time.Duration // CLOCK_BOOTTIME
	conns *conns
	// who is the guest's identity, and rename writes another one to the machine's
	// files.
	who    *identity
	rename func(wire.Identity) error
	// begun is called when a new epoch has begun.
	begun func(epoch uint64)

	turn  chan struct{} // one place, taken by the Wake that is under way
	ready bool          // the guest has taken the steps that a Wake repeats; guarded by turn
	epoch uint64        // guarded by turn
}

// identity is who the guest is. It is safe for concurrent use.
type identity struct {
	mu  sync.Mutex
	cur wire.Identity
}

func (i *identity) get() wire.Identity {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cur
}

func (i *identity) set(id wire.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cur = id
}

// hostname is what the guest is called.
func (i *identity) hostname() string { return i.get().Hostname }

// conflictError is why a Wake was refused that is valid.
type conflictError struct{ text string }

func (e *conflictError) Error() string { return e.text }

// enable says that the boot has taken all steps that a Wake repeats.
func (w *waker) enable() {
	w.turn <- struct{}{}
	w.ready = true
	<-w.turn
}

// wake does what a valid Wake says, one at a time.
func (w *waker) wake(ctx context.Context, req wire.Wake) (wire.Woken, error) {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return wire.Woken{}, ctx.Err()
	}
	switch {
	case !w.ready:
		return wire.Woken{}, &conflictError{"the guest is not up yet, or could not come up"}
	case req.Epoch < w.epoch:
		return wire.Woken{}, &conflictError{fmt.Sprintf("epoch %d is over: this guest is in epoch %d", req.Epoch, w.epoch)}
	case req.Epoch > w.epoch && req.Seed == nil:
		return wire.Woken{}, &invalidError{"seed: a new epoch takes one"}
	}
	// The host wrote down its time just before it sent it.
	steps := []wakeStep{{"clock", func() error { return w.sys.SetClock(req.Time) }}}
	if req.Epoch > w.epoch {
		w.conns.endOthers(ctx) // before anything is different, so that none hears of both
		steps = append(steps, wakeStep{"entropy", func() error { return w.sys.AddEntropy(req.Seed) }})
		if id := req.Identity; id != nil {
			steps = append(steps,
				wakeStep{"identity", func() error { return w.rewrite(*id) }},
				wakeStep{"network", func() error { return w.rewire(*id) }})
		}
	}
	woken := wire.Woken{Epoch: req.Epoch}
	for _, s := range steps {
		start := w.now()
		err := s.do()
		done := wire.Step{Name: s.name, Start: start, Took: w.now() - start}
		if err != nil && !errors.Is(err, errSurvived) {
			return wire.Woken{}, fmt.Errorf("%s: %w", s.name, err)
		}
		if err != nil {
			done.Error = err.Error()
		}
		woken.Steps = append(woken.Steps, done)
	}
	if req.Epoch > w.epoch {
		w.epoch = req.Epoch
		if req.Identity != nil {
			w.who.set(*req.Identity)
		}
		w.begun(req.Epoch)
	}
	woken.Time = time.Now()
	return woken, nil
}

// wakeStep is one step of a Wake.
type wakeStep struct {
	name string
	do   func() error
}

// rewrite gives the guest the names of another identity. As at boot, a guest
// without its files still serves.
func (w *waker) rewrite(id wire.Identity) error {
	if err := w.sys.SetHostname(id.Hostname); err != nil {
		return err
	}
	if err := w.rename(id); err != nil {
		return fmt.Errorf("%w: %w", errSurvived, err)
	}
	return nil
}

// rewire gives the NIC that the guest had the network of another identity.
func (w *waker) rewire(id wire.Identity) error {
	from := ""
	if n := w.who.get().Network; n != nil {
		from = n.MAC
	}
	return w.sys.Rewire(from, id.Network)
}

// invalidError is why a Wake was refused that no guest in this epoch accepts.
type invalidError struct{ text string }

func (e *invalidError) Error() string { return e.text }

// postWake wakes the guest.
func (a *agent) postWake(w http.ResponseWriter, r *http.Request) {
	var req wire.Wake
	err := readJSON(r, &req)
	if err == nil {
		err = req.Validate()
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	woken, err := a.wake(r.Context(), req)
	var conflict *conflictError
	var invalid *invalidError
	switch {
	case err == nil:
		a.log.Info("woken", keyEpoch, woken.Epoch)
		_ = writeJSON(w, http.StatusOK, woken) // or nobody is left to be told
	case errors.As(err, &conflict):
		writeError(w, http.StatusConflict, err)
	case errors.As(err, &invalid):
		writeError(w, http.StatusBadRequest, err)
	default:
		a.log.Error("wake", keyErr, err)
		writeError(w, http.StatusInternalServerError, err)
	}
}
