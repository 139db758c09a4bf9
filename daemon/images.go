package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// Images is what the daemon needs of image building. It is safe for concurrent
// use. Errors that the asker can do something about are *api.Error: invalid
// (what was given is no image, or one that breaks a limit), not_found (no such
// image, none for the platform), denied (the registry wants other
// credentials), unavailable (the registry does not answer), too_large,
// exhausted (disk).
type Images interface {
	// ParseReference returns ref in its full form,
	// "docker.io/library/nginx:latest", with the digest if it has one. It asks
	// nobody.
	ParseReference(ref string) (string, error)
	// Resolve asks the registry which image pull means: the digest of the
	// manifest for its platform, and the reference in its full form.
	Resolve(ctx context.Context, pull api.ImagePull) (id, reference string, err error)
	// Pull fetches the image work.ID, which Resolve returned for pull, and
	// makes it into pull.Form. The result has one file.
	Pull(ctx context.Context, work ImageWork, pull api.ImagePull) (ImageResult, error)
	// Load reads images from archive, an OCI or docker-save archive, compressed
	// or not, and makes each into form. name, when it is not empty, is the
	// reference of an archive that holds one image and does not say its name.
	Load(ctx context.Context, work ImageWork, archive io.Reader, name string, form api.ImageForm) ([]ImageResult, error)
}

// ImageWork is where an image is made.
type ImageWork struct {
	// Dir is an existing directory for what is fetched. The daemon keeps it when
	// the work fails, gives it to the next try for the same image, and removes
	// it when the work is done, or nobody has tried for a while. What is found
	// in it may be cut short: whoever goes on from it verifies it.
	Dir string
	// Out begins the paths of result files. It is on the file system of Dir, and
	// files of that name that exist are left over and may be replaced. Result
	// files need not be synced.
	Out string
	// ID is the image to pull, as Resolve returned it; empty for a load.
	ID string
	// Progress is called as the work goes on, from any goroutine, and never
	// blocks. It is not nil.
	Progress func(api.ImageProgress)
	// Free returns how many bytes may still be written to the file system
	// before too little is left for the database.
	Free func() (int64, error)
}

// ImageResult is one image that was made.
type ImageResult struct {
	ID         string   // digest of the image's manifest
	References []string // in their full form; none for a pull, whose reference is known
	Platform   string   // "linux/amd64"
	Layers     int
	Config     api.ImageConfig
	CreatedAt  time.Time // as the image says; zero when it does not

	File   string // path of the disk or archive, which now is the daemon's
	Digest string // "sha256:…" of the file
	Size   int64  // bytes of the file, as its length says
}

// An image is a row, and a disk or archive that is a blob. Files come before the
// row, which is written when they are there whole and durably; a blob without a
// row is removed by the collector. What a pull has fetched stays in a staging
// directory of the image's own until the row is written, so that the next try
// goes on from it.

func (d *Daemon) stagingDir() string { return filepath.Join(d.cfg.DataDir, "images", "staging") }

// loadPrefix begins the names of the staging directories of loads, which nobody
// can go on from: the archive's stream is gone.
const loadPrefix = "load-"

// maxReference bounds what may be a reference, in bytes: that of a digest behind
// the longest name that registries take.
const maxReference = 512

// noImage is the error for an image that is not here.
func noImage(ref string) *api.Error {
	return api.Errorf(api.CodeNotFound, "there is no image %.200q", ref).WithHint("pull it first: volar images pull %.200s", ref)
}

// parseReference returns ref in its full form. Codes: invalid.
func (d *Daemon) parseReference(ref string) (string, error) {
	if ref == "" || len(ref) > maxReference {
		return "", api.Errorf(api.CodeInvalid, "reference: give the name of an image, such as nginx:alpine; %.80q is none", ref)
	}
	if d.cfg.Images == nil {
		return ref, nil
	}
	return d.cfg.Images.ParseReference(ref)
}

// image finds an image by reference, ID, or the first digits of its ID, and
// returns the reference, "" when it was found by ID. Codes: invalid, not_found.
func (d *Daemon) image(ctx context.Context, name string) (img row.Image, reference string, err error) {
	if id, ok := strings.CutPrefix(name, "sha256:"); ok || isHex(name) && len(name) == 64 {
		img, err = d.imageByID(ctx, id)
		return img, "", err
	}
	ref, err := d.parseReference(name)
	if err == nil {
		img, err = d.store.ImageByReference(ctx, ref)
		if err == nil {
			return img, ref, nil
		}
		if _, digest, pinned := strings.Cut(ref, "@"); pinned && errors.Is(err, row.ErrNotFound) {
			// Pulled under another name, or by its tag.
			if img, err = d.store.Image(ctx, digest); err == nil {
				return img, ref, nil
			}
		}
		if !errors.Is(err, row.ErrNotFound) {
			return row.Image{}, "", err
		}
		err = noImage(name)
	}
	if isHex(name) {
		if img, idErr := d.imageByID(ctx, name); api.CodeOf(idErr) != api.CodeNotFound {
			return img, "", idErr
		}
	}
	return row.Image{}, "", err
}

func isHex(s string) bool {
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return s != ""
}

// imageByID finds an image by the first digits of its ID.
func (d *Daemon) imageByID(ctx context.Context, digits string) (row.Image, error) {
	if !isHex(digits) || len(digits) > 64 {
		return row.Image{}, api.Errorf(api.CodeInvalid, "%.80q are not the first digits of an image's ID", digits)
	}
	ids, err := d.store.ImageIDs(ctx, "sha256:"+digits, 2)
	switch {
	case err != nil:
		return row.Image{}, err
	case len(ids) == 0:
		return row.Image{}, api.Errorf(api.CodeNotFound, "there is no image with the ID %.64s", digits).WithHint("volar images list shows what is here")
	case len(ids) > 1:
		return row.Image{}, api.Errorf(api.CodeInvalid, "more than one image has an ID that begins with %.64s", digits).WithHint("give more digits: %.19s, %.19s", ids[0], ids[1])
	}
	img, err := d.store.Image(ctx, ids[0])
	if errors.Is(err, row.ErrNotFound) {
		return row.Image{}, noImage(ids[0])
	}
	return img, err
}

// Images returns all images, the one used last first.
func (d *Daemon) Images(ctx context.Context) ([]api.Image, error) {
	rows, err := d.store.Images(ctx)
	if err != nil {
		return nil, d.publicError("list images", err)
	}
	out := make([]api.Image, len(rows))
	for i := range rows {
		out[i] = rows[i].Image
	}
	return out, nil
}

// Image returns one image by reference, ID, or the first digits of its ID.
// Codes: invalid, not_found.
func (d *Daemon) Image(ctx context.Context, name string) (api.Image, error) {
	img, _, err := d.image(ctx, name)
	return img.Image, d.publicError("get image", err)
}

// RemoveImage removes a reference, and the image with its last one. An image
// that is named by its ID goes with its only reference or, with force, with all.
// Codes: invalid, not_found, conflict (VMs were made from it; it has several
// references).
func (d *Daemon) RemoveImage(ctx context.Context, name string, force bool) (api.ImageRemoved, error) {
	img, ref, err := d.image(ctx, name)
	if err != nil {
		return api.ImageRemoved{}, d.publicError("remove image", err)
	}
	var refs []string // all
	switch {
	case slices.Contains(img.References, ref) && !force:
		refs = []string{ref}
	case len(img.References) > 1 && !force:
		return api.ImageRemoved{}, api.Errorf(api.CodeConflict, "image %.19s has several references: %s", img.ID, strings.Join(img.References, ", ")).
			WithHint("remove one of them, or all with --force")
	}
	out := newRemoved()
	err = d.removeImage(ctx, img, refs, &out)
	var used *row.InUseError
	if errors.As(err, &used) {
		return api.ImageRemoved{}, inUse("image "+name, used)
	}
	return out, d.publicError("remove image", err)
}

func newRemoved() api.ImageRemoved {
	return api.ImageRemoved{Untagged: []string{}, Removed: []string{}}
}

// removeImage takes references from an image, all with nil, and adds to out what
// that removed.
func (d *Daemon) removeImage(ctx context.Context, img row.Image, refs []string, out *api.ImageRemoved) error {
	was, removed, evs, err := d.store.RemoveImage(ctx, img.ID, refs, api.Event{Type: api.EventImageRemoved})
	if err != nil {
		return err
	}
	d.bus.notify("", len(evs) > 0)
	if refs == nil {
		refs = was.References
	}
	out.Untagged = append(out.Untagged, refs...)
	if !removed {
		return nil
	}
	out.Removed = append(out.Removed, img.ID)
	freed, err := d.dropBlobs(ctx, was.Disk, was.Initramfs)
	out.Freed += freed
	if err != nil {
		d.log.Warn("blobs of an image left to the collector", keyErr, err)
	}
	return nil
}

// PruneImages removes the images that no VM was made from and that in selects.
// Codes: invalid.
func (d *Daemon) PruneImages(ctx context.Context, in api.ImagePrune) (api.ImageRemoved, error) {
	if in.UnusedForSeconds < 0 {
		return api.ImageRemoved{}, api.Errorf(api.CodeInvalid, "unused_for_seconds: is negative")
	}
	imgs, err := d.store.Images(ctx)
	if err != nil {
		return api.ImageRemoved{}, d.publicError("prune images", err)
	}
	out := newRemoved()
	cutoff := d.cfg.Now().Add(-time.Duration(min(in.UnusedForSeconds, 1<<32)) * time.Second)
	for _, img := range imgs {
		if img.VMs > 0 || !in.All && len(img.References) > 0 || in.UnusedForSeconds > 0 && img.LastUsed.After(cutoff) {
			continue
		}
		err := d.removeImage(ctx, img, nil, &out)
		// It may have got a VM meanwhile, or have gone.
		if err != nil && !errors.Is(err, row.ErrInUse) && !errors.Is(err, row.ErrNotFound) {
			return out, d.publicError("prune images", err)
		}
	}
	return out, nil
}

// evictImages removes the images that were used longest ago until the rest fits
// under the cap. What a VM was made from stays, and so does what was used just
// now: its VM may be about to be created.
func (d *Daemon) evictImages(ctx context.Context) error {
	return d.evictUnused(ctx, d.cfg.Now().Add(-d.t.fresh))
}

// evictUnused is evictImages, of those that were not used since cutoff.
func (d *Daemon) evictUnused(ctx context.Context, cutoff time.Time) error {
	if d.cfg.ImageCap <= 0 {
		return nil
	}
	imgs, err := d.store.Images(ctx)
	if err != nil {
		return err
	}
	var total int64
	for _, img := range imgs {
		total += img.Size
	}
	for _, img := range slices.Backward(imgs) {
		if total <= d.cfg.ImageCap {
			return nil
		}
		if img.VMs > 0 || img.LastUsed.After(cutoff) {
			continue
		}
		out := newRemoved()
		err := d.removeImage(ctx, img, nil, &out)
		if errors.Is(err, row.ErrInUse) || errors.Is(err, row.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		total -= img.Size
		d.log.Info("image evicted", keyImage, img.ID, keyCount, out.Freed)
	}
	if total > d.cfg.ImageCap {
		d.log.Warn("images take more than their cap, and all that are left are in use", keyCount, total)
	}
	return nil
}

// adoptBlob makes a file that was made here a blob: synced, then renamed. The
// caller holds d.blobs for reading until something refers to it.
func (d *Daemon) adoptBlob(file, digest string, size int64) error {
	if _, err := api.ParseDigest(digest); err != nil {
		return fmt.Errorf("image build: %v", err)
	}
	fi, err := os.Lstat(file)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("image build: %s is %s of %d bytes, want a file of %d", file, fi.Mode(), fi.Size(), size)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return errors.Join(err, f.Close())
	}
	path := d.blobPath(digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := commitFile(f, path); err != nil {
		return errors.Join(err, ignoreClosed(f.Close()))
	}
	now := time.Now() // spares it from the collector until it is referred to
	return os.Chtimes(path, now, now)
}

// putImage writes the row of an image that was made, its file first.
func (d *Daemon) putImage(ctx context.Context, res ImageResult, form api.ImageForm, refs []string) (row.Image, error) {
	if _, err := api.ParseDigest(res.ID); err != nil {
		return row.Image{}, fmt.Errorf("image build: ID: %v", err)
	}
	img := row.Image{Image: api.Image{
		ID: res.ID, Platform: res.Platform, Layers: res.Layers, Config: res.Config, CreatedAt: res.CreatedAt,
	}}
	switch form {
	case api.FormInitramfs:
		img.Initramfs, img.InitramfsSize = res.Digest, res.Size
	default:
		img.Disk, img.DiskSize = res.Digest, res.Size
	}
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	if err := d.adoptBlob(res.File, res.Digest, res.Size); err != nil {
		return row.Image{}, err
	}
	out, evs, err := d.store.PutImage(ctx, img, refs, api.Event{Type: api.EventImagePulled})
	if err == nil {
		d.bus.notify("", len(evs) > 0)
	}
	return out, err
}

// LoadImage makes images of an archive that r delivers; see Images.Load. Codes:
// those of the interface Images, invalid (name, form), unavailable (no image
// building, the daemon ends). progress may be nil.
func (d *Daemon) LoadImage(ctx context.Context, r io.Reader, name string, form api.ImageForm, progress func(api.ImageProgress)) ([]api.Image, error) {
	if err := d.checkForm(form); err != nil {
		return nil, err
	}
	if name != "" {
		var err error
		if name, err = d.parseReference(name); err != nil {
			return nil, d.publicError("load image", err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-d.stopping:
			cancel(errStopping)
		case <-ended:
		}
	}()
	if progress == nil {
		progress = func(api.ImageProgress) {}
	}
	images, err := d.load(ctx, r, name, formOf(form), progress)
	if err != nil && errors.Is(context.Cause(ctx), errStopping) {
		err = errStopping
	}
	return images, d.publicError("load image", err)
}

// errStopping ends work on images because the daemon ends.
var errStopping = &api.Error{Code: api.CodeUnavailable, Message: "volantd is stopping", Hint: "ask again when it is back"}

func (d *Daemon) checkForm(form api.ImageForm) error {
	if d.cfg.Images == nil {
		return api.Errorf(api.CodeUnavailable, "this volantd builds no images")
	}
	if f := formOf(form); f != api.FormDisk && f != api.FormInitramfs {
		return api.Errorf(api.CodeInvalid, "form: %.40q is not known; give one of %s, %s", string(form), api.FormDisk, api.FormInitramfs)
	}
	return nil
}

func (d *Daemon) load(ctx context.Context, r io.Reader, name string, form api.ImageForm, progress func(api.ImageProgress)) (images []api.Image, err error) {
	dir, err := os.MkdirTemp(d.stagingDir(), loadPrefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	mail := newMailbox()
	done := make(chan struct{})
	var results []ImageResult
	var loadErr error
	work, err := d.imageWork(dir, "", mail.put)
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(done)
		release, err := d.jobs.slot(ctx)
		if err != nil {
			loadErr = err
			return
		}
		defer release()
		results, loadErr = d.cfg.Images.Load(ctx, work, ctxReader{ctx, r}, name, form)
	}()
	mail.deliver(done, progress)
	if loadErr != nil {
		return nil, loadErr
	}
	if len(results) == 0 {
		return nil, api.Errorf(api.CodeInvalid, "the archive holds no image")
	}
	for _, res := range results {
		img, err := d.putImage(ctx, res, form, res.References)
		if err != nil {
			return images, err
		}
		images = append(images, img.Image)
	}
	if err := d.evictImages(ctx); err != nil {
		d.log.Warn("evict images", keyErr, err)
	}
	return images, nil
}

// imageWork makes the directory of a piece of work below staging.
func (d *Daemon) imageWork(staging, id string, progress func(api.ImageProgress)) (ImageWork, error) {
	w := ImageWork{
		Dir: filepath.Join(staging, "work"), Out: filepath.Join(staging, "out"), ID: id, Progress: progress,
		Free: func() (int64, error) {
			free, err := freeBytes(d.cfg.DataDir)
			return int64(free) - int64(d.cfg.MinFree), err
		},
	}
	return w, os.MkdirAll(w.Dir, 0o700)
}

// sweepLoads removes what killed daemons were loading.
func (d *Daemon) sweepLoads() error {
	dirs, err := filepath.Glob(filepath.Join(d.stagingDir(), loadPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
