package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
)

const (
	partSuffix = ".part"
	blobSuffix = ".blob" // a layer as it came, named by digest
	tarSuffix  = ".tar"  // a layer uncompressed, named by diff ID
	copyBuffer = 256 << 10
)

// staging is the folder an image is put together in, locked.
type staging struct {
	dir    string
	lock   *os.File
	limits Limits
	total  atomic.Int64 // uncompressed bytes written in this run
}

func openStaging(dir string, limits Limits) (*staging, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stagingError(dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errorf(ErrBusy, "staging folder %s is in use by another pull or load: wait for it", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &staging{dir: dir, lock: f, limits: limits}, nil
}

func (s *staging) close() { s.lock.Close() }

func (s *staging) path(name string) string { return filepath.Join(s.dir, name) }

// removeParts removes what an earlier or a failed run left half done.
func (s *staging) removeParts(suffix string) {
	names, _ := filepath.Glob(filepath.Join(s.dir, "*"+suffix+partSuffix))
	for _, name := range names {
		os.Remove(name)
	}
}

// commit gives a written file its final name, durably.
func (s *staging) commit(f *os.File, name string) error {
	if err := f.Sync(); err != nil {
		return stagingError(s.dir, err)
	}
	if err := os.Rename(f.Name(), s.path(name)); err != nil {
		return stagingError(s.dir, err)
	}
	return s.lock.Sync()
}

// grow counts n uncompressed bytes of an item that then has size of them.
func (s *staging) grow(item string, n, size int64) error {
	if size > s.limits.LayerBytes {
		return errorf(ErrLimit, "%s has more than %d bytes uncompressed, the limit of a layer", item, s.limits.LayerBytes)
	}
	if s.total.Add(n) > s.limits.TotalBytes {
		return errorf(ErrLimit, "%s: the image has more than %d bytes uncompressed, the limit of an image", item, s.limits.TotalBytes)
	}
	return nil
}

// finished returns the layer of a diff ID if an earlier run left it complete.
// Its bytes are read again: nothing but its name says what it is.
func (s *staging) finished(ctx context.Context, diffID string) (LayerFile, bool, error) {
	path := s.path(hexOf(diffID) + tarSuffix)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return LayerFile{}, false, nil
	}
	if err != nil {
		return LayerFile{}, false, err
	}
	defer f.Close()
	sum := sha256.New()
	var size int64
	err = copyCtx(ctx, sum, f, func(n int64) error {
		size += n
		return s.grow("layer "+diffID, n, size)
	})
	if err != nil {
		return LayerFile{}, false, err
	}
	if "sha256:"+hex.EncodeToString(sum.Sum(nil)) != diffID {
		s.total.Add(-size)
		return LayerFile{}, false, os.Remove(path)
	}
	return LayerFile{DiffID: diffID, Path: path, Size: size}, true, nil
}

// spool writes the uncompressed form of src, a layer of size bytes as it came,
// to its file, and verifies its diff ID. Nothing is left of it on failure.
func (s *staging) spool(ctx context.Context, src io.Reader, size int64, diffID string) (_ LayerFile, err error) {
	item := "layer " + diffID
	name := hexOf(diffID) + tarSuffix
	dec, err := decompress(src)
	if err != nil {
		return LayerFile{}, layerError(item, err)
	}
	defer dec.Close()
	f, err := os.OpenFile(s.path(name+partSuffix), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return LayerFile{}, stagingError(s.dir, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	sum := sha256.New()
	var n int64
	err = copyCtx(ctx, io.MultiWriter(f, sum), dec, func(more int64) error {
		n += more
		if n > ratioFrom && size > 0 && n/s.limits.Ratio > size {
			return errorf(ErrLimit, "%s: %d compressed bytes make more than %d: over %d to 1 is taken for a bomb", item, size, n, s.limits.Ratio)
		}
		return s.grow(item, more, n)
	})
	if err != nil {
		return LayerFile{}, stagingError(s.dir, layerError(item, err))
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return LayerFile{}, errorf(ErrDigest, "%s: uncompressed it is %s: the image is damaged or was tampered with", item, got)
	}
	if err := s.commit(f, name); err != nil {
		return LayerFile{}, err
	}
	return LayerFile{DiffID: diffID, Path: s.path(name), Size: n}, nil
}

// adopt makes a blob that proved to be an uncompressed layer that layer's file.
func (s *staging) adopt(blob, diffID string) (LayerFile, error) {
	to := s.path(hexOf(diffID) + tarSuffix)
	fi, err := os.Stat(blob)
	if err != nil {
		return LayerFile{}, err
	}
	if err := s.grow("layer "+diffID, fi.Size(), fi.Size()); err != nil {
		return LayerFile{}, err
	}
	if err := os.Rename(blob, to); err != nil {
		return LayerFile{}, stagingError(s.dir, err)
	}
	return LayerFile{DiffID: diffID, Path: to, Size: fi.Size()}, s.lock.Sync()
}

// layerError gives an error of a decompressor its kind; others keep theirs.
func layerError(item string, err error) error {
	var de *decodeError
	switch {
	case !errors.As(err, &de):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errorf(ErrTruncated, "%s: the %s data ends too early: get or make the image again", item, de.format)
	default:
		return errorf(ErrInvalid, "%s: the %s data cannot be unpacked: %w", item, de.format, de.err)
	}
}

// copyCtx copies src to dst, tells grew of each piece before it is written, and
// stops when ctx is done.
func copyCtx(ctx context.Context, dst io.Writer, src io.Reader, grew func(n int64) error) error {
	buf := make([]byte, copyBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := src.Read(buf)
		if n > 0 {
			if err := grew(int64(n)); err != nil {
				return err
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hexOf is the digits of a digest that was checked.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }
