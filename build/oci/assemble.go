package oci

import (
	"context"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/volantvm/volant/client/api"
)

// parallel is how many layers are got at once: enough to hide a registry's
// latency, few enough for its patience and our memory.
const parallel = 3

// assemble makes an Image of a manifest and its verified configuration: layer
// gets layers[n], several at a time, each diff ID once. Layers of unknown digest
// have none.
func assemble(ctx context.Context, where string, opts *Options, layers []v1.Descriptor, config []byte,
	layer func(ctx context.Context, n int, diffID string) (LayerFile, error)) (*Image, error) {
	c, err := parseConfig(where, config)
	if err != nil {
		return nil, err
	}
	have := c.platform(opts.Platform)
	if opts.Platform.rank(have) == 0 {
		return nil, platformError(where, opts.Platform, []string{have.String()})
	}
	diffIDs := c.RootFS.DiffIDs
	if len(layers) != len(diffIDs) {
		return nil, errorf(ErrInvalid, "%s: the manifest has %d layers, the configuration %d diff IDs", where, len(layers), len(diffIDs))
	}
	if len(layers) > opts.Limits.Layers {
		return nil, errorf(ErrLimit, "%s: has %d layers, the limit is %d", where, len(layers), opts.Limits.Layers)
	}
	first := map[v1.Hash]int{}       // diff ID to the first layer that has it
	content := map[v1.Hash]v1.Hash{} // digest to diff ID
	var compressed int64
	for i := range layers {
		d, id := &layers[i], diffIDs[i]
		if d.Digest != (v1.Hash{}) {
			if was, ok := content[d.Digest]; ok && was != id {
				return nil, errorf(ErrInvalid, "%s: layer %s is said to have two diff IDs", where, d.Digest)
			}
			content[d.Digest] = id
		}
		if _, ok := first[id]; !ok {
			first[id] = i
			// Sizes are a stranger's: compare without adding past the limit.
			if d.Size > opts.Limits.TotalBytes-compressed || d.Size > opts.Limits.LayerBytes {
				return nil, errorf(ErrLimit, "%s: its layers have more than %d bytes, the limit", where, min(opts.Limits.TotalBytes, opts.Limits.LayerBytes))
			}
			compressed += d.Size
		}
	}
	img := c.image()
	img.ConfigDigest = digestOf(config)
	img.Platform = have
	img.Layers = make([]LayerFile, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, id := range diffIDs {
		if first[id] != i {
			continue
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			f, err := layer(gctx, i, id.String())
			img.Layers[i] = f
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	for i, id := range diffIDs {
		img.Layers[i] = img.Layers[first[id]]
	}
	return img, nil
}

// reporter hands progress on, one call at a time and not too often.
type reporter struct {
	mu   sync.Mutex
	tell func(api.ImageProgress)
}

// reportEvery is the time between two reports of one item.
const reportEvery = 200 * time.Millisecond

func (r *reporter) report(p api.ImageProgress) {
	if r.tell == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(p)
}

// item returns a function that reports what of an item is done.
func (r *reporter) item(step, item string, total int64) func(done int64) {
	var last time.Time
	return func(done int64) {
		if now := time.Now(); done == total || now.Sub(last) >= reportEvery {
			last = now
			r.report(api.ImageProgress{Step: step, Item: item, Done: done, Total: total})
		}
	}
}
