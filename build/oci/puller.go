package oci

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volantvm/volant/client/api"
)

// puller is one pull or resolution: the ends it asks, mirrors first.
type puller struct {
	reporter
	ref       Reference
	opts      *Options
	endpoints []*endpoint
	staging   *staging // nil for a resolution
	idle      interface{ CloseIdleConnections() }
	pause     time.Duration
}

func (r *Registry) puller(ref Reference, auth *api.RegistryAuth, opts *Options) (*puller, error) {
	if ref.Registry == "" || ref.wanted() == "" {
		return nil, errorf(ErrReference, "image reference is empty, write a name such as nginx:alpine")
	}
	p := &puller{ref: ref, opts: opts, pause: r.pause}
	if p.pause == 0 {
		p.pause = firstPause
	}
	p.tell = opts.Progress
	base := r.Transport
	if base == nil {
		t := newTransport(r.RootCAs)
		base, p.idle = t, t
	}
	for _, m := range r.Mirrors[ref.Registry] {
		host, path, err := parseMirror(m)
		if err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", ref.Registry, err)
		}
		repository := ref.Repository
		if path != "" {
			repository = path + "/" + repository
		}
		p.endpoints = append(p.endpoints, &endpoint{host: host, repository: repository, mirror: true})
	}
	p.endpoints = append(p.endpoints, &endpoint{host: ref.Registry, repository: ref.Repository, auth: auth})
	for _, e := range p.endpoints {
		e.guard = &guard{base: base, plain: r.PlainHTTP}
		e.userAgent = r.UserAgent
		e.pause = p.pause
		e.plain = e.guard.allowed(e.host)
	}
	return p, nil
}

func (p *puller) close() {
	if p.idle != nil {
		p.idle.CloseIdleConnections()
	}
}

// each asks one endpoint after the other until one serves. What fails on this
// machine fails at once. The error is that of the registry itself, the last to
// be asked, and tells of the mirrors before it.
func (p *puller) each(ctx context.Context, ask func(e *endpoint) error) error {
	var last error
	var before []string
	for _, e := range p.endpoints {
		err := ask(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if isLocal(err) {
			return err
		}
		if e.mirror {
			before = append(before, fmt.Sprintf("mirror %s: %v", e.host, err))
		}
		last = err
	}
	if len(before) > 0 {
		return fmt.Errorf("%w (asked before it: %s)", last, strings.Join(before, "; "))
	}
	return last
}

// top gets the manifest or index that the reference names, with its bytes.
func (p *puller) top(ctx context.Context) (*document, []byte, error) {
	var doc *document
	var data []byte
	err := p.each(ctx, func(e *endpoint) (err error) {
		if data, err = p.getManifest(ctx, e, p.ref.wanted(), p.ref.Digest); err != nil {
			return err
		}
		doc, err = parseDocument(p.ref.String(), data)
		return err
	})
	return doc, data, err
}

// manifest gets a manifest that an index names.
func (p *puller) manifest(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
	if d.Size > p.opts.Limits.ManifestBytes {
		return nil, errorf(ErrLimit, "%s: manifest %s has %d bytes, the limit is %d", p.ref, d.Digest, d.Size, p.opts.Limits.ManifestBytes)
	}
	var data []byte
	err := p.each(ctx, func(e *endpoint) (err error) {
		data, err = p.getManifest(ctx, e, d.Digest.String(), d.Digest.String())
		return err
	})
	return data, err
}

// getManifest gets a manifest by tag or digest; one that is to have a digest
// has it, or there is an error.
func (p *puller) getManifest(ctx context.Context, e *endpoint, wanted, digest string) ([]byte, error) {
	what := "manifest " + wanted
	if wanted == p.ref.wanted() {
		what = ""
	}
	data, err := p.small(ctx, e, "manifests/"+wanted, what, p.opts.Limits.ManifestBytes, manifestTypes())
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); digest != "" && got != digest {
		return nil, errorf(ErrDigest, "%s: %s sent a manifest whose digest is %s, not %s: do not trust it", p.ref, e.host, got, digest)
	}
	return data, nil
}

// config gets the configuration that a manifest names.
func (p *puller) config(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
	var data []byte
	err := p.each(ctx, func(e *endpoint) (err error) {
		if data, err = p.small(ctx, e, "blobs/"+d.Digest.String(), "configuration "+d.Digest.String(), d.Size, nil); err != nil {
			return err
		}
		if got := digestOf(data); got != d.Digest.String() {
			return errorf(ErrDigest, "%s: %s sent a configuration whose digest is %s, not %s: do not trust it", p.ref, e.host, got, d.Digest)
		}
		return nil
	})
	return data, err
}

// small gets a document of at most limit bytes. what names it in errors, where
// it is not the image itself.
func (p *puller) small(ctx context.Context, e *endpoint, path, what string, limit int64, accept []string) ([]byte, error) {
	var data []byte
	err := retry(ctx, p.pause, func() (bool, error) {
		resp, err := e.get(ctx, p.ref, path, what, http.Header{"Accept": accept})
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if data, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
			return false, e.failure(p.ref, what, err)
		}
		if int64(len(data)) > limit {
			return false, errorf(ErrLimit, "%s: %s sends more than %d bytes of %s", p.ref, e.host, limit, or(what, "manifest"))
		}
		return false, nil
	})
	return data, err
}

// layer gets one layer: from an earlier run, or from the registry.
func (p *puller) layer(ctx context.Context, d *v1.Descriptor, diffID string) (LayerFile, error) {
	digest := d.Digest.String()
	told := p.item("download", digest, d.Size)
	if f, ok, err := p.staging.finished(ctx, diffID); err != nil || ok {
		if ok {
			told(d.Size)
		}
		return f, err
	}
	path, err := p.download(ctx, d, told)
	if err != nil {
		return LayerFile{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return LayerFile{}, err
	}
	defer f.Close()
	if digest == diffID {
		return p.staging.adopt(path, diffID)
	}
	l, err := p.staging.spool(ctx, f, d.Size, diffID)
	if err != nil && ctx.Err() != nil {
		return LayerFile{}, err
	}
	// Unpacked, or never to be, or in the way on a full disk.
	if rmErr := os.Remove(path); err == nil && rmErr != nil {
		return LayerFile{}, rmErr
	}
	if err != nil {
		return LayerFile{}, fmt.Errorf("%s: %w", p.ref, err)
	}
	return l, nil
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
