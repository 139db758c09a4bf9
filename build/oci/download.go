package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// download gets a layer's blob into its file, from whichever endpoint has it,
// and returns the path. It goes on from what an earlier run or another endpoint
// left, as far as ranges are served.
func (p *puller) download(ctx context.Context, d *v1.Descriptor, told func(int64)) (string, error) {
	b := &blob{puller: p, d: d, digest: d.Digest.String(), told: told}
	name := d.Digest.Hex + blobSuffix
	if fi, err := os.Stat(p.staging.path(name)); err == nil && fi.Size() == d.Size {
		// Complete but never unpacked. Its diff ID will be checked, its digest is not trusted.
		if err := os.Rename(p.staging.path(name), p.staging.path(name+partSuffix)); err != nil {
			return "", err
		}
	}
	f, err := os.OpenFile(p.staging.path(name+partSuffix), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", stagingError(p.staging.dir, err)
	}
	defer f.Close()
	b.f = f
	if err := b.rehash(ctx); err != nil {
		return "", err
	}
	if err := p.each(ctx, func(e *endpoint) error { return b.from(ctx, e) }); err != nil {
		if b.n == 0 || isLocal(err) {
			os.Remove(f.Name())
		} else {
			f.Sync() // what is there is worth keeping; the error at hand says more than this one's
		}
		return "", err
	}
	if err := p.staging.commit(f, name); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return p.staging.path(name), nil
}

// blob is a download: f holds its first n bytes, sum has seen them.
type blob struct {
	*puller
	d      *v1.Descriptor
	digest string
	f      *os.File
	n      int64
	most   int64 // the largest n so far: what comes again is no progress
	sum    hash.Hash
	told   func(int64)
}

// rehash takes up what the file already holds.
func (b *blob) rehash(ctx context.Context) error {
	fi, err := b.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > b.d.Size {
		return b.restart()
	}
	b.sum, b.n = sha256.New(), 0
	err = copyCtx(ctx, b.sum, b.f, func(n int64) error {
		b.n += n
		return nil
	})
	if err == nil && b.n > 0 {
		b.told(b.n)
	}
	return err
}

// restart throws away what is there.
func (b *blob) restart() error {
	b.sum, b.n = sha256.New(), 0
	if err := b.f.Truncate(0); err != nil {
		return stagingError(b.staging.dir, err)
	}
	_, err := b.f.Seek(0, io.SeekStart)
	return err
}

// from gets the rest of the blob from e and verifies the whole. If that fails
// and the beginning was not from e, the beginning may be what was wrong.
func (b *blob) from(ctx context.Context, e *endpoint) error {
	inherited := b.n > 0
	for {
		if err := retry(ctx, b.pause, func() (bool, error) { return b.more(ctx, e) }); err != nil {
			return err
		}
		got := "sha256:" + hex.EncodeToString(b.sum.Sum(nil))
		if got == b.digest {
			b.told(b.d.Size)
			return nil
		}
		if err := b.restart(); err != nil {
			return err
		}
		if !inherited {
			return errorf(ErrDigest, "%s: %s sent %s for layer %s: do not trust it", b.ref, e.host, got, b.digest)
		}
		inherited = false
	}
}

// more makes one request for what is missing, and reports whether it got any
// of it.
func (b *blob) more(ctx context.Context, e *endpoint) (progress bool, err error) {
	if b.n == b.d.Size {
		return false, nil
	}
	what := "layer " + b.digest
	header := http.Header{}
	if b.n > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.n))
	}
	resp, err := e.get(ctx, b.ref, "blobs/"+b.digest, what, header)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if n := resp.ContentLength; resp.StatusCode == http.StatusOK && n >= 0 && n != b.d.Size {
		kind := ErrTruncated
		if n > b.d.Size {
			kind = ErrDigest
		}
		return false, errors.Join(errorf(kind, "%s: %s has %d bytes for %s, which has %d by its manifest: it is damaged there", b.ref, e.host, n, what, b.d.Size), b.restart())
	}
	if b.n > 0 && !continues(resp, b.n, b.d.Size) {
		if err := b.restart(); err != nil {
			return false, err
		}
		if resp.StatusCode != http.StatusOK { // a range, but not ours
			resp.Body.Close()
			if resp, err = e.get(ctx, b.ref, "blobs/"+b.digest, what, nil); err != nil {
				return false, err
			}
			defer resp.Body.Close()
		}
	}
	err = copyCtx(ctx, io.MultiWriter(b.f, b.sum), resp.Body, func(n int64) error {
		if b.n+n > b.d.Size {
			return errorf(ErrDigest, "%s: %s sends more than the %d bytes that %s has by its manifest: do not trust it", b.ref, e.host, b.d.Size, what)
		}
		b.n += n
		b.told(b.n)
		return nil
	})
	progress, b.most = b.n > b.most, max(b.n, b.most)
	switch {
	case errors.Is(err, ErrDigest):
		return false, errors.Join(err, b.restart())
	case errors.Is(err, io.ErrUnexpectedEOF), err == nil && b.n < b.d.Size:
		return progress, &temporary{errorf(ErrTruncated, "%s: %s ended %s after %d of %d bytes: try again", b.ref, e.host, what, b.n, b.d.Size), 0}
	case isLocal(err):
		return false, stagingError(b.staging.dir, err)
	default:
		return progress, e.failure(b.ref, what, err)
	}
}

// continues reports whether resp holds the bytes from n on of a blob of size
// bytes.
func continues(resp *http.Response, n, size int64) bool {
	if resp.StatusCode != http.StatusPartialContent {
		return false
	}
	span, total, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
	from, _, _ := strings.Cut(span, "-")
	return ok && from == strconv.FormatInt(n, 10) && (total == "*" || total == strconv.FormatInt(size, 10))
}
