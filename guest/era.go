package guest

import (
	"context"

	"github.com/volantvm/volant/guest/wire"
)

// era is the time between two restores.
type era struct {
	epoch uint64
	over  chan struct{} // closed when the next has begun
}

// inEra calls f with a context that is over when ctx is, or the era.
func (k *kestrel) inEra(ctx context.Context, f func(context.Context)) {
	now := k.era.Load()
	k.probed.Store(now.epoch)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-now.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	f(ctx)
}

// beginEra notes that the guest was restored, and that nobody knows yet how its
// workload took it.
func (k *kestrel) beginEra(epoch uint64) {
	k.status.update(func(s *wire.Status) { s.Epoch, s.Healthy, s.Failure = epoch, nil, nil })
	close(k.era.Swap(&era{epoch: epoch, over: make(chan struct{})}).over)
}

// rename writes another identity to the machine's files.
func (k *kestrel) rename(id wire.Identity) error {
	if k.root != nil {
		return k.root.rename(id)
	}
	return writeOwn(k.sys, id)
}
