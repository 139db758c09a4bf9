package daemon

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// How long, and how many, answers of requests with an idempotency key are kept.
const (
	keepAnswersFor = 24 * time.Hour
	keepAnswers    = 10_000
)

// onces are the requests with an idempotency key that are being done. Safe for
// concurrent use; the zero value is empty.
type onces struct {
	mu   sync.Mutex
	busy map[string]*once // guarded by mu; by key
}

// once is one such request.
type once struct {
	digest string
	done   chan struct{} // closed when it was answered
}

// enter marks the key as being worked on, or returns the request that has it.
func (o *onces) enter(key, digest string) *once {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other := o.busy[key]; other != nil {
		return other
	}
	if o.busy == nil {
		o.busy = make(map[string]*once)
	}
	o.busy[key] = &once{digest: digest, done: make(chan struct{})}
	return nil
}

func (o *onces) leave(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.busy[key].done)
	delete(o.busy, key)
}

// BeginOnce begins a request with an idempotency key. If the very same request
// took effect before, it returns what is kept of that, and done. Otherwise the
// request is to be done with the context returned, which makes its first durable
// write keep the key too, and EndOnce must be called. A request that is being
// done is waited for. Codes: conflict (the key is another request's), timeout,
// unavailable.
func (d *Daemon) BeginOnce(ctx context.Context, key, digest string) (_ context.Context, a api.Answer, done bool, err error) {
	for {
		other := d.onces.enter(key, digest)
		if other == nil {
			break
		}
		if other.digest != digest {
			return ctx, a, false, keyReused()
		}
		select {
		case <-other.done: // it has left a result, or was refused and may be tried again
		case <-d.stopping:
			return ctx, a, false, api.Errorf(api.CodeUnavailable, "volantd is stopping").WithHint("ask again with the same idempotency key")
		case <-ctx.Done():
			return ctx, a, false, d.publicError("wait for the same request", ctx.Err())
		}
	}
	of, a, err := d.store.Answer(ctx, key)
	if errors.Is(err, row.ErrNotFound) {
		return row.WithClaim(ctx, &row.Claim{Key: key, Digest: digest}), api.Answer{}, false, nil
	}
	d.onces.leave(key)
	switch {
	case err != nil:
		return ctx, api.Answer{}, false, d.publicError("look for an earlier request", err)
	case of != digest:
		return ctx, api.Answer{}, false, keyReused()
	}
	return ctx, a, true, nil
}

func keyReused() error {
	return api.Errorf(api.CodeConflict, "the idempotency key was used by another request").WithHint("give each request a key of its own")
}

// EndOnce ends what BeginOnce began; ctx is the one that it returned. undone says
// that the request had no effect that stands: it may be tried again. Otherwise a,
// if it has a status, is kept unless it says no more than the effect's result.
func (d *Daemon) EndOnce(ctx context.Context, a api.Answer, undone bool) error {
	claim := row.ClaimOf(ctx)
	if claim == nil {
		return nil
	}
	defer d.onces.leave(claim.Key)
	ctx = context.WithoutCancel(ctx) // the client may have left: it will be back
	var err error
	switch {
	case undone && claim.Taken:
		err = d.store.DropAnswer(ctx, claim.Key)
	case !undone && a.Status != 0 && !bytes.Equal(bytes.TrimSpace(a.Body), claim.Result):
		err = d.store.KeepAnswer(ctx, claim.Key, claim.Digest, a)
	}
	return d.publicError("keep answer", err)
}
