package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// imageSlots is how many images are made at once: each takes tens of MiB of
// memory, and they compete for the disk.
const imageSlots = 2

// imageJobs are the pulls under way, one for each image and form however many
// ask for it. Safe for concurrent use.
type imageJobs struct {
	slots chan struct{}

	mu   sync.Mutex
	jobs map[string]*imageJob // guarded by mu; by staging directory
}

// imageJob is one pull. It ends when its last caller has left.
type imageJob struct {
	id     string
	form   api.ImageForm
	cancel context.CancelFunc
	done   chan struct{} // closed when img and err are set

	// Guarded by imageJobs.mu.
	callers map[*mailbox]string // their references
	left    bool                // by all: it is on its way out, and nobody may join

	// Set before done is closed.
	img row.Image
	err error
}

func newImageJobs() imageJobs {
	return imageJobs{slots: make(chan struct{}, imageSlots), jobs: make(map[string]*imageJob)}
}

// slot waits until another image may be made.
func (j *imageJobs) slot(ctx context.Context) (release func(), err error) {
	select {
	case j.slots <- struct{}{}:
		return func() { <-j.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// PullImage has the image that pull names here, in the form that it asks for,
// and returns it. progress, which may be nil, is called meanwhile, never after
// the return. However many ask for one image, it is fetched once; when the last
// of them leaves, that ends, and what was fetched is kept for a while. Codes:
// those of Images, invalid, unavailable (no image building, the daemon ends).
func (d *Daemon) PullImage(ctx context.Context, pull api.ImagePull, progress func(api.ImageProgress)) (api.Image, error) {
	if err := d.checkForm(pull.Form); err != nil {
		return api.Image{}, err
	}
	if _, err := d.parseReference(pull.Reference); err != nil {
		return api.Image{}, at("reference", d.publicError("pull image", err))
	}
	pull.Form = formOf(pull.Form)
	if progress == nil {
		progress = func(api.ImageProgress) {}
	}
	progress(api.ImageProgress{Step: "resolve", Item: pull.Reference})
	img, err := d.pull(ctx, pull, progress)
	return img.Image, d.publicError("pull image", err)
}

func (d *Daemon) pull(ctx context.Context, pull api.ImagePull, progress func(api.ImageProgress)) (row.Image, error) {
	// Each caller asks the registry for itself: its answer depends on who asks.
	id, ref, err := d.cfg.Images.Resolve(ctx, pull)
	if err != nil {
		return row.Image{}, err
	}
	if _, err := api.ParseDigest(id); err != nil {
		return row.Image{}, fmt.Errorf("image build: ID: %v", err)
	}
	for {
		img, err := d.store.Image(ctx, id)
		if err == nil && (pull.Form == api.FormDisk && img.Disk != "" || pull.Form == api.FormInitramfs && img.Initramfs != "") {
			img, err = d.tagImage(ctx, id, ref)
			if !errors.Is(err, row.ErrNotFound) { // removed just now
				return img, err
			}
		}
		if err != nil && !errors.Is(err, row.ErrNotFound) {
			return row.Image{}, err
		}
		mail := newMailbox()
		job, err := d.joinPull(ctx, id, ref, pull, mail)
		if err != nil {
			return row.Image{}, err
		}
		if job == nil {
			continue // one was on its way out: look again
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			select {
			case <-job.done:
			case <-ctx.Done():
			}
		}()
		mail.deliver(over, progress)
		d.jobs.leave(job, mail)
		select {
		case <-job.done:
			if job.err != nil {
				return row.Image{}, job.err
			}
			// Its references are those of its callers at the time that it ended.
			return d.tagImage(ctx, id, ref)
		default:
			return row.Image{}, ctx.Err()
		}
	}
}

// tagImage makes sure that the image has the reference, and is not the next to
// be evicted.
func (d *Daemon) tagImage(ctx context.Context, id, ref string) (row.Image, error) {
	img, evs, err := d.store.TagImage(ctx, id, ref, api.Event{Type: api.EventImagePulled})
	if err == nil {
		d.bus.notify("", len(evs) > 0)
	}
	return img, err
}

// joinPull joins the pull of the image that is under way, or begins it. It
// returns nil when it had to wait for one that nobody wanted any more.
func (d *Daemon) joinPull(ctx context.Context, id, ref string, pull api.ImagePull, mail *mailbox) (*imageJob, error) {
	dir := filepath.Join(d.stagingDir(), strings.TrimPrefix(id, "sha256:")+"-"+string(pull.Form))
	d.jobs.mu.Lock()
	if job := d.jobs.jobs[dir]; job != nil {
		if !job.left {
			job.callers[mail] = ref
			d.jobs.mu.Unlock()
			return job, nil
		}
		d.jobs.mu.Unlock()
		select {
		case <-job.done:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	job := &imageJob{id: id, form: pull.Form, done: make(chan struct{}), callers: map[*mailbox]string{mail: ref}}
	// Daemon.mu below imageJobs.mu: nobody takes them the other way round.
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.jobs.mu.Unlock()
	if d.base == nil {
		return nil, errStopping
	}
	var jobCtx context.Context
	jobCtx, job.cancel = context.WithCancel(d.base)
	d.jobs.jobs[dir] = job
	d.wg.Go(func() { d.runPull(jobCtx, job, dir, pull) })
	return job, nil
}

// leave takes a caller off a job, and ends the job that has none left.
func (j *imageJobs) leave(job *imageJob, mail *mailbox) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(job.callers, mail)
	if len(job.callers) == 0 {
		job.left = true
		job.cancel()
	}
}

// tell passes progress on to all callers.
func (j *imageJobs) tell(job *imageJob, p api.ImageProgress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for m := range job.callers {
		m.put(p)
	}
}

// references returns those of the callers.
func (j *imageJobs) references(job *imageJob) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, ref := range job.callers {
		out = append(out, ref)
	}
	return out
}

// runPull does the work of a job and takes it off the table.
func (d *Daemon) runPull(ctx context.Context, job *imageJob, dir string, pull api.ImagePull) {
	defer job.cancel()
	job.img, job.err = d.fetchImage(ctx, job, dir, pull)
	if job.err != nil && ctx.Err() != nil {
		// By whom it was ended; whoever left does not look.
		job.err = errStopping
	}
	d.jobs.mu.Lock()
	delete(d.jobs.jobs, dir)
	d.jobs.mu.Unlock()
	close(job.done)
	if job.err != nil {
		return
	}
	if err := d.evictImages(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("evict images", keyErr, err)
	}
}

func (d *Daemon) fetchImage(ctx context.Context, job *imageJob, dir string, pull api.ImagePull) (row.Image, error) {
	release, err := d.jobs.slot(ctx)
	if err != nil {
		return row.Image{}, err
	}
	defer release()
	work, err := d.imageWork(dir, job.id, func(p api.ImageProgress) { d.jobs.tell(job, p) })
	if err != nil {
		return row.Image{}, err
	}
	touch := func() { // counts as the last try; see sweepStaging
		now := time.Now()
		if err := os.Chtimes(dir, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("touch staging of an image", keyErr, err)
		}
	}
	touch()
	defer touch()
	res, err := d.cfg.Images.Pull(ctx, work, pull)
	if err != nil {
		return row.Image{}, err
	}
	if res.ID != job.id {
		return row.Image{}, fmt.Errorf("image build: pulled %q, asked for %s", res.ID, job.id)
	}
	// What was made is kept, even if nobody waits for it any more.
	img, err := d.putImage(context.WithoutCancel(ctx), res, job.form, d.jobs.references(job))
	if err != nil {
		return row.Image{}, err
	}
	d.log.Info("image pulled", keyImage, img.ID, keyCount, img.Size)
	if err := os.RemoveAll(dir); err != nil {
		d.log.Warn("staging of an image left for the sweep", keyErr, err)
	}
	return img, nil
}

// sweepStaging removes what pulls have fetched that nobody has tried again for
// timing.grace.
func (d *Daemon) sweepStaging() error {
	entries, err := os.ReadDir(d.stagingDir())
	if err != nil {
		return err
	}
	cutoff := time.Now().Add(-d.t.grace)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || strings.HasPrefix(e.Name(), loadPrefix) || !fi.ModTime().Before(cutoff) {
			continue
		}
		// Under a name that no pull takes, so that one which begins now makes its
		// own.
		dir := filepath.Join(d.stagingDir(), e.Name())
		trash := dir
		if !strings.HasSuffix(dir, trashSuffix) {
			trash += trashSuffix
			d.jobs.mu.Lock()
			if d.jobs.jobs[dir] == nil {
				err = os.Rename(dir, trash)
			} else {
				trash = ""
			}
			d.jobs.mu.Unlock()
		}
		if err != nil {
			return err
		}
		if trash == "" {
			continue
		}
		if err := os.RemoveAll(trash); err != nil {
			return err
		}
		d.log.Info("staging of an image removed", keyPath, e.Name())
	}
	return nil
}

// trashSuffix ends the names of staging directories that are being removed.
const trashSuffix = ".trash"

// mailbox takes progress from those who must not wait to one who may be slow:
// what finds it full is lost. What is put last for a step counts most, so there
// is room for what comes between two deliveries.
type mailbox struct {
	c chan api.ImageProgress
}

func newMailbox() *mailbox { return &mailbox{c: make(chan api.ImageProgress, 64)} }

func (m *mailbox) put(p api.ImageProgress) {
	select {
	case m.c <- p:
	default:
	}
}

// deliver calls progress with what is put, until over is closed and nothing is
// left.
func (m *mailbox) deliver(over <-chan struct{}, progress func(api.ImageProgress)) {
	for {
		select {
		case p := <-m.c:
			progress(p)
			continue
		case <-over:
		}
		for {
			select {
			case p := <-m.c:
				progress(p)
				continue
			default:
			}
			return
		}
	}
}
