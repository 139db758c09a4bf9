package oci

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volantvm/volant/client/api"
)

// Registry pulls images from registries. The zero value speaks TLS to the
// registry that a reference names, and to nothing else. It may be used from
// several goroutines; its fields are set before.
type Registry struct {
	// Mirrors names, for a registry, those asked before it, in order: HOST,
	// HOST:PORT or either with a /PATH that comes before the repository. They
	// are asked without credentials.
	Mirrors map[string][]string
	// PlainHTTP names the registries and mirrors, HOST or HOST:PORT, that are
	// spoken to without TLS. No other is, localhost included.
	PlainHTTP []string
	UserAgent string
	// RootCAs verify registries; nil means the system's.
	RootCAs *x509.CertPool
	// Transport replaces the one made for each pull; RootCAs is then its
	// maker's business.
	Transport http.RoundTripper

	pause time.Duration // in place of firstPause; for tests
}

// Descriptor is what a reference stands for right now.
type Descriptor struct {
	Digest    string // of the manifest for the platform: the ID of the image that Pull would return
	MediaType string
	Size      int64 // bytes of the manifest
}

// Check says whether the names in Mirrors and PlainHTTP are usable.
func (r *Registry) Check() error {
	for _, host := range r.PlainHTTP {
		if !validRegistry(host) {
			return fmt.Errorf("plain-HTTP registry %s: write HOST or HOST:PORT", clip(host))
		}
	}
	for registry, mirrors := range r.Mirrors {
		if !validRegistry(registry) {
			return fmt.Errorf("mirrored registry %s: write HOST or HOST:PORT", clip(registry))
		}
		for _, m := range mirrors {
			if _, _, err := parseMirror(m); err != nil {
				return fmt.Errorf("mirror of %s: %w", registry, err)
			}
		}
	}
	return nil
}

// parseMirror splits "https://host:port/path" into host and path.
func parseMirror(s string) (host, path string, err error) {
	if strings.HasPrefix(s, "http://") {
		return "", "", fmt.Errorf("%s: write it without http://, and name its host among the plain-HTTP registries", clip(s))
	}
	host, path, _ = strings.Cut(strings.TrimPrefix(s, "https://"), "/")
	path = strings.TrimSuffix(path, "/")
	if !validRegistry(host) || path != "" && !validRepository(path) {
		return "", "", fmt.Errorf("%s: write HOST, HOST:PORT or HOST/PATH", clip(s))
	}
	return strings.ToLower(host), path, nil
}

// Resolve asks which image ref stands for on a platform; the zero Platform is
// this machine's. auth may be nil. Errors are as Pull's.
func (r *Registry) Resolve(ctx context.Context, ref Reference, platform Platform, auth *api.RegistryAuth) (Descriptor, error) {
	opts := Options{Platform: platform}.withDefaults()
	p, err := r.puller(ref, auth, &opts)
	if err != nil {
		return Descriptor{}, err
	}
	defer p.close()
	doc, data, err := p.top(ctx)
	if err != nil {
		return Descriptor{}, err
	}
	var mediaType string
	digest, size := digestOf(data), int64(len(data))
	_, digest, err = descend(ctx, ref.String(), doc, digest, opts.Platform, func(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
		mediaType = string(d.MediaType)
		data, err := p.manifest(ctx, d)
		size = int64(len(data))
		return data, err
	})
	if mediaType == "" {
		mediaType = string(doc.MediaType)
	}
	return Descriptor{Digest: digest, MediaType: mediaType, Size: size}, err
}

// Pull gets the image that ref names. auth, which may be nil, is how to log in
// to its registry.
//
// What was downloaded stays in opts.Staging when a pull fails, so that the next
// one goes on from it; what cannot be gone on with is removed. Errors are
// ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrDigest, ErrTruncated,
// ErrPlatform, ErrLimit, ErrInvalid, ErrNoSpace, ErrBusy, ctx's, or the file
// system's.
func (r *Registry) Pull(ctx context.Context, ref Reference, auth *api.RegistryAuth, opts Options) (_ *Image, err error) {
	opts = opts.withDefaults()
	p, err := r.puller(ref, auth, &opts)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.staging, err = openStaging(opts.Staging, opts.Limits); err != nil {
		return nil, err
	}
	defer p.staging.close()
	p.staging.removeParts(tarSuffix)
	defer func() {
		if isLocal(err) {
			p.staging.removeParts("") // make room, and trust nothing that may be half written
		}
	}()

	where := ref.String()
	p.report(api.ImageProgress{Step: "resolve", Item: where})
	doc, data, err := p.top(ctx)
	if err != nil {
		return nil, err
	}
	doc, digest, err := descend(ctx, where, doc, digestOf(data), opts.Platform, p.manifest)
	if err != nil {
		return nil, err
	}
	if err := doc.check(where, opts.Limits); err != nil {
		return nil, err
	}
	config, err := p.config(ctx, doc.Config)
	if err != nil {
		return nil, err
	}
	img, err := assemble(ctx, where, &opts, doc.Layers, config, func(ctx context.Context, n int, diffID string) (LayerFile, error) {
		return p.layer(ctx, &doc.Layers[n], diffID)
	})
	if err != nil {
		return nil, err
	}
	img.ManifestDigest = digest
	img.References = []string{where}
	return img, nil
}
