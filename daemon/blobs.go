package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Blobs are files below DataDir/blobs/sha256, named by their digest. The files
// are the truth: what refers to them is in the store, how many there are is
// nowhere. One that nothing refers to is removed after timing.grace, counted
// from its last upload.

func (d *Daemon) blobTemp() string { return filepath.Join(d.cfg.DataDir, "blobs", "tmp") }

// blobPath is where the blob of a digest is. The digest must have been checked
// by api.ParseDigest.
func (d *Daemon) blobPath(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(d.cfg.DataDir, "blobs", "sha256", hex[:2], hex)
}

// blobFile names a file and the digest that it must have.
type blobFile struct {
	digest string
	path   string
}

func (d *Daemon) blobRef(digest string) blobFile { return blobFile{digest, d.blobPath(digest)} }

func (d *Daemon) optionalBlob(digest string) blobFile {
	if digest == "" {
		return blobFile{}
	}
	return d.blobRef(digest)
}

// verify reads the file and compares its digest.
func (b blobFile) verify() error {
	got, _, err := fileDigest(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b.missing()
	}
	if err != nil {
		return err
	}
	if got != b.digest {
		return fmt.Errorf("artifact %s %w: its content has digest %s; upload or pull it again", b.digest, errDamaged, got)
	}
	return nil
}

// errDamaged says that a file does not hold what its digest says.
var errDamaged = errors.New("is damaged on disk")

func (b blobFile) missing() error {
	return &missingError{b.digest}
}

// missingError says that there is no file of a digest. It is an fs.ErrNotExist.
type missingError struct{ digest string }

func (e *missingError) Error() string {
	return fmt.Sprintf("artifact %s is missing from the data directory; upload or pull it again", e.digest)
}

func (*missingError) Is(target error) bool { return target == fs.ErrNotExist }

// Blob says whether a blob is there. Codes: invalid (malformed digest),
// not_found.
func (d *Daemon) Blob(ctx context.Context, digest string) (api.Blob, error) {
	if _, err := api.ParseDigest(digest); err != nil {
		return api.Blob{}, err
	}
	fi, err := os.Stat(d.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return api.Blob{}, api.Errorf(api.CodeNotFound, "there is no blob %s", digest).WithHint("upload it first")
	}
	if err != nil {
		return api.Blob{}, d.publicError("get blob", err)
	}
	return api.Blob{Digest: digest, Size: fi.Size()}, nil
}

// PutBlob keeps what r delivers under digest. It is there whole and verified,
// durably, when PutBlob returns nil; on error nothing is left. A blob that is
// there and undamaged is kept, and what r delivers goes nowhere. Codes: invalid (malformed
// digest, other content), too_large, exhausted (disk), unavailable (the request
// broke off).
func (d *Daemon) PutBlob(ctx context.Context, digest string, r io.Reader) (api.Blob, error) {
	if _, err := api.ParseDigest(digest); err != nil {
		return api.Blob{}, err
	}
	path := d.blobPath(digest)
	size, ok, err := d.refresh(digest, path)
	switch {
	case err == nil && !ok:
		size, err = d.receive(ctx, digest, path, r)
	case err == nil:
		// Read all the same: a client that still sends would not see the answer.
		if _, err := io.Copy(io.Discard, io.LimitReader(ctxReader{ctx, r}, d.cfg.MaxBlob)); err != nil {
			return api.Blob{}, api.Errorf(api.CodeUnavailable, "the upload broke off: %v", err)
		}
	}
	if err != nil {
		return api.Blob{}, d.publicError("put blob", err)
	}
	return api.Blob{Digest: digest, Size: size}, nil
}

// refresh makes a blob that is there and undamaged as good as newly uploaded.
func (d *Daemon) refresh(digest, path string) (size int64, ok bool, err error) {
	// The collector must not remove what is about to be answered as there.
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	got, size, err := fileDigest(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && got != digest {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	now := time.Now()
	return size, true, os.Chtimes(path, now, now)
}

// receive writes r to a temporary file and moves that to path.
func (d *Daemon) receive(ctx context.Context, digest, path string, r io.Reader) (size int64, err error) {
	f, err := os.CreateTemp(d.blobTemp(), tempPrefix)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(f.Close()), removeIfThere(f.Name()))
		}
	}()
	h := sha256.New()
	const piece = 16 << 20 // between two looks at the free space
	for {
		if err := d.checkSpace(piece, "the artifact"); err != nil {
			return size, err
		}
		n, err := io.CopyN(io.MultiWriter(f, h), ctxReader{ctx, r}, piece)
		size += n
		if size > d.cfg.MaxBlob {
			return size, api.Errorf(api.CodeTooLarge, "the artifact is larger than %d bytes", d.cfg.MaxBlob)
		}
		if err == io.EOF { //nolint:errorlint // CopyN returns it bare
			break
		}
		var pathErr *fs.PathError
		if err != nil && !errors.As(err, &pathErr) {
			return size, api.Errorf(api.CodeUnavailable, "the upload broke off after %d bytes: %v", size, err)
		}
		if err != nil {
			return size, err
		}
	}
	if got := digestOf(h.Sum(nil)); got != digest {
		return size, api.Errorf(api.CodeInvalid, "the content has digest %s, not %s", got, digest).WithHint("it was damaged on the way, or the checksum is that of another file")
	}
	if err := f.Chmod(0o600); err != nil {
		return size, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return size, err
	}
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	return size, commitFile(f, path)
}

// checkSpace refuses to write n further bytes when that would leave less free
// than is to stay free: the database lives on the same disk.
func (d *Daemon) checkSpace(n uint64, what string) error {
	free, err := freeBytes(d.cfg.DataDir)
	if err != nil {
		return err
	}
	if free < n+d.cfg.MinFree {
		return api.Errorf(api.CodeExhausted, "the disk that holds %s has %d MiB left, of which %d stay free for the database: that is too little for %s", d.cfg.DataDir, free>>20, d.cfg.MinFree>>20, what).
			WithHint("remove images and plugins that are not needed, or free some space")
	}
	return nil
}

// ctxReader ends a read loop when ctx does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropBlobs removes those of the digests that nothing refers to any more, at
// once if nobody is busy with blobs, else by the next collection. It returns how
// many bytes were freed at once. Empty digests are skipped.
func (d *Daemon) dropBlobs(ctx context.Context, digests ...string) (freed int64, err error) {
	free := func() error {
		refs, err := d.store.BlobRefs(ctx)
		if err != nil {
			return err
		}
		for _, digest := range digests {
			if digest == "" || slices.Contains(refs, digest) {
				continue
			}
			var st syscall.Stat_t
			path := d.blobPath(digest)
			if err := syscall.Stat(path, &st); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			freed += st.Blocks * 512
			d.log.Info("blob removed", keyDigest, digest)
		}
		return nil
	}
	if d.blobs.TryLock() {
		defer d.blobs.Unlock()
		err := free()
		return freed, err
	}
	// Older than any grace, for the collector.
	for _, digest := range digests {
		if digest == "" {
			continue
		}
		if err := os.Chtimes(d.blobPath(digest), time.Unix(0, 0), time.Unix(0, 0)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	return 0, nil
}

// collectBlobs removes blobs that nothing refers to.
func (d *Daemon) collectBlobs(ctx context.Context) error {
	root := filepath.Join(d.cfg.DataDir, "blobs", "sha256")
	cutoff := time.Now().Add(-d.t.grace)
	var old []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && fi.ModTime().Before(cutoff) {
			old = append(old, path)
		}
		return err
	})
	if err != nil || len(old) == 0 {
		return err
	}
	// Those who hold it hash a large file, perhaps; nobody is to queue up
	// behind them because of this.
	if !d.blobs.TryLock() {
		return nil
	}
	defer d.blobs.Unlock()
	refs, err := d.store.BlobRefs(ctx)
	if err != nil {
		return err
	}
	needed := make(map[string]bool, len(refs))
	for _, r := range refs {
		needed[r] = true
	}
	for _, path := range old {
		digest := "sha256:" + filepath.Base(path)
		if needed[digest] {
			continue
		}
		// It may have been uploaded again meanwhile.
		if fi, err := os.Stat(path); err != nil || !fi.ModTime().Before(cutoff) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		d.log.Info("blob removed", keyDigest, digest)
	}
	return nil
}
