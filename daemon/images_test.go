package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// fakeImages is a registry and a builder of images. An image's tree is its
// reference, and an archive the references of its images, one a line.
type fakeImages struct {
	mu      sync.Mutex
	fetched int             // guarded by mu; layers that were fetched rather than found
	built   int             // guarded by mu; results made
	missing map[string]bool // guarded by mu; references that no registry has
	config  api.ImageConfig // guarded by mu; of all images
	// Called in the middle of a pull, after the layer was fetched; nil does
	// nothing. Guarded by mu.
	middle func(ctx context.Context, work ImageWork) error
	// What result has of a pull, to be altered; nil does nothing. Guarded by mu.
	alter func(r *ImageResult)
}

func newFakeImages() *fakeImages {
	return &fakeImages{missing: make(map[string]bool), config: api.ImageConfig{Entrypoint: []string{"/serve"}}}
}

func (f *fakeImages) set(change func(f *fakeImages)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeImages) counts() (fetched, built int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetched, f.built
}

func (f *fakeImages) ParseReference(ref string) (string, error) {
	if strings.ContainsAny(ref, " \n") || ref != strings.ToLower(ref) {
		return "", api.Errorf(api.CodeInvalid, "%q is not a reference", ref)
	}
	ref = strings.TrimPrefix(ref, "docker://")
	if !strings.Contains(ref, "/") {
		ref = "docker.io/library/" + ref
	}
	if !strings.Contains(ref[strings.LastIndexByte(ref, '/'):], ":") {
		ref += ":latest"
	}
	return ref, nil
}

// idOf is the ID of the image that a reference names: aliases name the same.
func idOf(ref string) string {
	sum := sha256.Sum256([]byte(strings.TrimSuffix(ref, "-alias")))
	return digestOf(sum[:])
}

func (f *fakeImages) Resolve(_ context.Context, pull api.ImagePull) (id, reference string, err error) {
	ref, err := f.ParseReference(pull.Reference)
	if err != nil {
		return "", "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.missing[ref] {
		return "", "", api.Errorf(api.CodeNotFound, "no registry has %s", ref)
	}
	return idOf(ref), ref, nil
}

func (f *fakeImages) Pull(ctx context.Context, work ImageWork, pull api.ImagePull) (ImageResult, error) {
	layer := filepath.Join(work.Dir, "layer")
	if _, err := os.Stat(layer); err != nil {
		f.set(func(f *fakeImages) { f.fetched++ })
		if err := os.WriteFile(layer, []byte("layer of "+work.ID), 0o600); err != nil {
			return ImageResult{}, err
		}
	}
	work.Progress(api.ImageProgress{Step: "download", Item: work.ID, Done: 5, Total: 5})
	f.mu.Lock()
	middle, alter := f.middle, f.alter
	f.mu.Unlock()
	if middle != nil {
		if err := middle(ctx, work); err != nil {
			return ImageResult{}, err
		}
	}
	work.Progress(api.ImageProgress{Step: "write", Item: work.ID})
	r, err := f.result(work.Out, work.ID, pull.Form)
	if err == nil && alter != nil {
		alter(&r)
	}
	return r, err
}

func (f *fakeImages) result(file, id string, form api.ImageForm) (ImageResult, error) {
	content := []byte(string(form) + " of " + id)
	if form == api.FormInitramfs {
		var a initramfs.Archive
		if err := a.Add(initramfs.Entry{Name: "etc/image", Mode: 0o644, Data: []byte(id)}); err != nil {
			return ImageResult{}, err
		}
		var buf bytes.Buffer
		if _, err := a.WriteTo(&buf); err != nil {
			return ImageResult{}, err
		}
		content = buf.Bytes()
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		return ImageResult{}, err
	}
	sum := sha256.Sum256(content)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.built++
	return ImageResult{
		ID: id, Platform: "linux/amd64", Layers: 1, Config: f.config, CreatedAt: time.Unix(7, 0).UTC(),
		File: file, Digest: digestOf(sum[:]), Size: int64(len(content)),
	}, nil
}

func (f *fakeImages) Load(ctx context.Context, work ImageWork, r io.Reader, name string, form api.ImageForm) ([]ImageResult, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "the archive ends early: %v", err)
	}
	work.Progress(api.ImageProgress{Step: "flatten", Done: int64(len(data))})
	var out []ImageResult
	for i, line := range strings.Fields(string(data)) {
		ref, err := f.ParseReference(line)
		if err != nil {
			return nil, err
		}
		res, err := f.result(fmt.Sprintf("%s-%d", work.Out, i), idOf(ref), form)
		if err != nil {
			return nil, err
		}
		res.References = []string{ref}
		if name != "" {
			res.References = []string{name}
		}
		out = append(out, res)
	}
	return out, nil
}

// gatedImages lets nothing of a killed daemon pass.
type gatedImages struct {
	*fakeImages
	gate *gate
}

func (g *gatedImages) Pull(ctx context.Context, work ImageWork, pull api.ImagePull) (ImageResult, error) {
	if err := g.gate.act(); err != nil {
		return ImageResult{}, err
	}
	res, err := g.fakeImages.Pull(ctx, work, pull)
	if gerr := g.gate.act(); gerr != nil {
		return ImageResult{}, gerr
	}
	return res, err
}

func (g *gatedImages) Load(ctx context.Context, work ImageWork, r io.Reader, name string, form api.ImageForm) ([]ImageResult, error) {
	if err := g.gate.act(); err != nil {
		return nil, err
	}
	res, err := g.fakeImages.Load(ctx, work, r, name, form)
	if gerr := g.gate.act(); gerr != nil {
		return nil, gerr
	}
	return res, err
}

// pullOf pulls an image as a disk.
func (in *instance) pullOf(ref string) api.Image {
	in.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	<-in.Ready()
	img, err := in.PullImage(ctx, api.ImagePull{Reference: ref}, nil)
	if err != nil {
		in.w.t.Fatalf("PullImage %s: %v", ref, err)
	}
	return img
}

// staging lists what pulls and loads have left.
func (w *world) staging() []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.root, "data", "images", "staging"))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (in *instance) hasBlob(digest string) bool {
	_, err := in.Blob(context.Background(), digest)
	return err == nil
}

func TestPullImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	var steps []string
	img, err := d.PullImage(ctx, api.ImagePull{Reference: "docker://nginx"}, func(p api.ImageProgress) { steps = append(steps, p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(steps) != "[resolve download write]" {
		t.Errorf("progress %v", steps)
	}
	if !slices.Equal(img.References, []string{"docker.io/library/nginx:latest"}) || img.ID != idOf(img.References[0]) || img.Config.Entrypoint[0] != "/serve" || img.Size == 0 {
		t.Errorf("image %+v", img)
	}
	if b, err := os.ReadFile(d.blobPath(img.Disk)); err != nil || string(b) != "disk of "+img.ID {
		t.Errorf("its disk: %q, %v", b, err)
	}
	if fi, err := os.Stat(d.blobPath(img.Disk)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its disk: %v, %v; want mode 0600", fi.Mode(), err)
	}
	if left := w.staging(); len(left) != 0 {
		t.Errorf("left of the pull: %v", left)
	}

	// Again, under another name, and in another form.
	if again := d.pullOf("nginx"); again.ID != img.ID || again.LastUsed.Equal(img.LastUsed) {
		t.Errorf("pulled again: %+v", again)
	}
	if alias := d.pullOf("nginx:latest-alias"); alias.ID != img.ID || len(alias.References) != 2 {
		t.Errorf("pulled under another name: %+v", alias)
	}
	if fetched, built := w.imgs.counts(); fetched != 1 || built != 1 {
		t.Errorf("fetched %d times, built %d times; want once each", fetched, built)
	}
	both, err := d.PullImage(ctx, api.ImagePull{Reference: "nginx", Form: api.FormInitramfs}, nil)
	if err != nil || both.Disk != img.Disk || both.Initramfs == "" || both.Size <= img.Size || len(both.References) != 2 {
		t.Errorf("in both forms: %+v, %v", both, err)
	}

	for _, name := range []string{"nginx", "docker.io/library/nginx:latest", img.ID, img.ID[7:], img.ID[7:20], img.ID[:20]} {
		if got, err := d.Image(ctx, name); err != nil || got.ID != img.ID {
			t.Errorf("Image(%q) = %s, %v", name, got.ID, err)
		}
	}
	for name, code := range map[string]api.Code{
		"": api.CodeInvalid, "Nginx": api.CodeInvalid, strings.Repeat("a", 600): api.CodeInvalid, "redis": api.CodeNotFound,
		"sha256:": api.CodeInvalid, "sha256:xyz": api.CodeInvalid, "sha256:" + strings.Repeat("0", 64): api.CodeNotFound, strings.Repeat("0", 12): api.CodeNotFound,
	} {
		var e *api.Error
		if _, err := d.Image(ctx, name); !errors.As(err, &e) || e.Code != code || code == api.CodeNotFound && e.Hint == "" {
			t.Errorf("Image(%q) = %v, want %s", name, err, code)
		}
	}
	d.pullOf("redis")
	if list, err := d.Images(ctx); err != nil || len(list) != 2 || list[1].ID != img.ID {
		t.Errorf("Images = %+v, %v; want redis first", list, err)
	}
	page, err := d.db.Events(ctx, api.EventFilter{Types: []api.EventType{api.EventImagePulled}}, 10)
	if err != nil || len(page.Events) != 4 {
		t.Errorf("%d events, %v; want one for each image, form and reference: 4", len(page.Events), err)
	}
}

func TestPullRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	w.imgs.set(func(f *fakeImages) { f.missing["docker.io/library/gone:latest"] = true })
	for name, c := range map[string]struct {
		pull api.ImagePull
		code api.Code
		text string
	}{
		"nothing":   {api.ImagePull{}, api.CodeInvalid, "reference: "},
		"no name":   {api.ImagePull{Reference: "a b"}, api.CodeInvalid, "reference: "},
		"form":      {api.ImagePull{Reference: "a", Form: "tape"}, api.CodeInvalid, "form: "},
		"not there": {api.ImagePull{Reference: "gone"}, api.CodeNotFound, "no registry"},
	} {
		if _, err := d.PullImage(ctx, c.pull, nil); api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: PullImage = %v, want %s with %q", name, err, c.code, c.text)
		}
	}

	// What a broken builder says is not believed.
	for name, alter := range map[string]func(r *ImageResult){
		"other image": func(r *ImageResult) { r.ID = idOf("other") },
		"other size":  func(r *ImageResult) { r.Size++ },
		"no digest":   func(r *ImageResult) { r.Digest = "../../etc/passwd" },
		"no file":     func(r *ImageResult) { r.File += "x" },
		"a link": func(r *ImageResult) {
			os.Remove(r.File)
			os.Symlink("/etc/hostname", r.File)
		},
	} {
		w.imgs.set(func(f *fakeImages) { f.alter = alter })
		if _, err := d.PullImage(ctx, api.ImagePull{Reference: "x"}, nil); api.CodeOf(err) != api.CodeInternal {
			t.Errorf("%s: PullImage = %v, want internal", name, err)
		}
	}
	if list, err := d.Images(ctx); err != nil || len(list) != 0 {
		t.Errorf("images after refused pulls: %+v, %v", list, err)
	}

	none := newWorld(t).start(options{config: func(c *Config) { c.Images = nil }})
	if _, err := none.PullImage(ctx, api.ImagePull{Reference: "x"}, nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("PullImage without builder = %v, want unavailable", err)
	}
	if _, err := none.LoadImage(ctx, strings.NewReader("x"), "", "", nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("LoadImage without builder = %v, want unavailable", err)
	}
}

// A pull that fails leaves nothing but what the next one goes on from, and not
// for ever.
func TestPullResumes(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	w.imgs.set(func(f *fakeImages) {
		f.middle = func(context.Context, ImageWork) error {
			return api.Errorf(api.CodeUnavailable, "the registry broke off")
		}
	})
	for range 2 {
		if _, err := d.PullImage(ctx, api.ImagePull{Reference: "nginx"}, nil); api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("PullImage = %v, want unavailable", err)
		}
	}
	if left := w.staging(); len(left) != 1 {
		t.Errorf("left of the pull: %v, want its staging", left)
	}
	if err := d.sweepStaging(); err != nil || len(w.staging()) != 1 {
		t.Errorf("swept at once: %v, %v", w.staging(), err)
	}
	w.imgs.set(func(f *fakeImages) { f.middle = nil })
	d.pullOf("nginx")
	if fetched, _ := w.imgs.counts(); fetched != 1 {
		t.Errorf("the layer was fetched %d times, want once", fetched)
	}
	if left := w.staging(); len(left) != 0 {
		t.Errorf("left of the pull: %v", left)
	}

	w.imgs.set(func(f *fakeImages) {
		f.middle = func(context.Context, ImageWork) error { return errors.New("no luck") }
	})
	if _, err := d.PullImage(ctx, api.ImagePull{Reference: "redis"}, nil); api.CodeOf(err) != api.CodeInternal {
		t.Errorf("PullImage = %v, want internal", err)
	}
	old := time.Now().Add(-2 * d.t.grace)
	for _, name := range w.staging() {
		if err := os.Chtimes(filepath.Join(d.stagingDir(), name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.sweepStaging(); err != nil || len(w.staging()) != 0 {
		t.Errorf("left after the grace: %v, %v", w.staging(), err)
	}
}

// Those who ask for one image at a time share one pull, which goes on while one
// of them waits, and ends with the last.
func TestPullTogether(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	entered, release := make(chan struct{}, 10), make(chan struct{})
	cut := make(chan error, 10)
	w.imgs.set(func(f *fakeImages) {
		f.middle = func(ctx context.Context, work ImageWork) error {
			entered <- struct{}{}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				cut <- ctx.Err()
				return ctx.Err()
			}
		}
	})
	type answer struct {
		img api.Image
		err error
	}
	begin := func(ref string) (answers chan answer, cancel context.CancelFunc) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		t.Cleanup(cancel)
		answers = make(chan answer, 1)
		go func() {
			img, err := d.PullImage(ctx, api.ImagePull{Reference: ref}, nil)
			answers <- answer{img, err}
		}()
		return answers, cancel
	}
	callers := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			d.jobs.mu.Lock()
			have := 0
			for _, job := range d.jobs.jobs {
				have += len(job.callers)
			}
			d.jobs.mu.Unlock()
			if have == n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d callers, want %d", have, n)
			}
		}
	}

	first, leave := begin("nginx")
	<-entered
	second, _ := begin("nginx:latest-alias")
	third, _ := begin("nginx")
	callers(3)
	leave()
	if a := <-first; !errors.Is(a.err, context.Canceled) && api.CodeOf(a.err) != api.CodeUnavailable {
		t.Errorf("the one who left got %v", a.err)
	}
	callers(2)
	close(release)
	for _, answers := range []chan answer{second, third} {
		if a := <-answers; a.err != nil || a.img.ID != idOf("docker.io/library/nginx:latest") {
			t.Errorf("PullImage = %+v, %v", a.img, a.err)
		}
	}
	if fetched, built := w.imgs.counts(); fetched != 1 || built != 1 {
		t.Errorf("fetched %d times, built %d times; want once each", fetched, built)
	}
	img, err := d.Image(context.Background(), "nginx")
	if err != nil || !slices.Equal(img.References, []string{"docker.io/library/nginx:latest", "docker.io/library/nginx:latest-alias"}) {
		t.Errorf("references %v, %v", img.References, err)
	}

	release = make(chan struct{})
	fourth, leave4 := begin("redis")
	fifth, leave5 := begin("redis")
	<-entered
	callers(2)
	leave4()
	leave5()
	select {
	case <-cut:
	case <-time.After(patience):
		t.Fatal("the pull that nobody waits for goes on")
	}
	<-fourth
	<-fifth
	// One who comes while it is on its way out gets another.
	again, _ := begin("redis")
	<-entered
	close(release)
	if a := <-again; a.err != nil {
		t.Errorf("PullImage after one that was left: %v", a.err)
	}
	if fetched, _ := w.imgs.counts(); fetched != 2 {
		t.Errorf("fetched %d times, want what was there gone on from", fetched)
	}
}

// A daemon that ends lets go of pulls, and whoever waits for them.
func TestPullAtTheEnd(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	entered := make(chan struct{})
	w.imgs.set(func(f *fakeImages) {
		f.middle = func(ctx context.Context, _ ImageWork) error {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := d.PullImage(context.Background(), api.ImagePull{Reference: "nginx"}, nil)
		done <- err
	}()
	<-entered
	d.stop()
	if err := <-done; api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("PullImage = %v, want unavailable", err)
	}
	if _, err := d.PullImage(context.Background(), api.ImagePull{Reference: "redis"}, nil); err == nil {
		t.Error("PullImage of a daemon that has ended succeeded")
	}
}

func TestLoadImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	images, err := d.LoadImage(ctx, strings.NewReader("one\ntwo:2\n"), "", "", nil)
	if err != nil || len(images) != 2 || images[1].References[0] != "docker.io/library/two:2" || images[0].Disk == "" {
		t.Fatalf("LoadImage = %+v, %v", images, err)
	}
	if images, err = d.LoadImage(ctx, strings.NewReader("x"), "mine:1", api.FormInitramfs, nil); err != nil || images[0].References[0] != "docker.io/library/mine:1" || images[0].Initramfs == "" {
		t.Errorf("LoadImage by name = %+v, %v", images, err)
	}
	for name, c := range map[string]struct {
		r    io.Reader
		name string
		form api.ImageForm
	}{
		"nothing":  {strings.NewReader(""), "", ""},
		"cut":      {io.MultiReader(strings.NewReader("one"), brokenReader{}), "", ""},
		"bad name": {strings.NewReader("one"), "A B", ""},
		"form":     {strings.NewReader("one"), "", "tape"},
	} {
		if _, err := d.LoadImage(ctx, c.r, c.name, c.form, nil); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: LoadImage = %v, want invalid", name, err)
		}
	}
	if left := w.staging(); len(left) != 0 {
		t.Errorf("left of loads: %v", left)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestRemoveImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	img := d.pullOf("nginx")
	d.pullOf("nginx:latest-alias")
	d.createFrom(api.VMCreate{Name: "web", Image: "nginx"})
	d.must("web", api.WaitRunning)

	remove := func(name string, force bool, code api.Code, text string) api.ImageRemoved {
		t.Helper()
		out, err := d.RemoveImage(ctx, name, force)
		if api.CodeOf(err) != code || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("RemoveImage(%s, %v) = %v, want %s with %q", name, force, err, code, text)
		}
		return out
	}
	remove("redis", false, api.CodeNotFound, "redis")
	remove(img.ID, false, api.CodeConflict, "several references")
	remove(img.ID, true, api.CodeConflict, "web")
	if out := remove("nginx:latest-alias", false, "", ""); len(out.Untagged) != 1 || len(out.Removed) != 0 {
		t.Errorf("untag = %+v", out)
	}
	remove("nginx", false, api.CodeConflict, "web")
	if err := d.DeleteVM(ctx, "web", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitDeleted)
	if out := remove("nginx", false, "", ""); len(out.Removed) != 1 || out.Freed == 0 {
		t.Errorf("removal = %+v", out)
	}
	if d.hasBlob(img.Disk) {
		t.Error("the disk of a removed image is still there")
	}

	// A reference that moved leaves an image without one.
	a := d.pullOf("one")
	d.pullOf("two")
	if _, _, err := d.db.TagImage(ctx, idOf("docker.io/library/two:latest"), "docker.io/library/one:latest", api.Event{}); err != nil {
		t.Fatal(err)
	}
	if out, err := d.PruneImages(ctx, api.ImagePrune{}); err != nil || !slices.Equal(out.Removed, []string{a.ID}) {
		t.Errorf("PruneImages = %+v, %v; want the one without a reference", out, err)
	}
	d.createFrom(api.VMCreate{Name: "stays", Image: "two", Stopped: true})
	d.pullOf("three")
	if out, err := d.PruneImages(ctx, api.ImagePrune{All: true, UnusedForSeconds: 3600}); err != nil || len(out.Removed) != 0 {
		t.Errorf("PruneImages of what is not used for an hour = %+v, %v", out, err)
	}
	if out, err := d.PruneImages(ctx, api.ImagePrune{All: true}); err != nil || !slices.Equal(out.Untagged, []string{"docker.io/library/three:latest"}) {
		t.Errorf("PruneImages = %+v, %v; want all but the one in use", out, err)
	}
	w.checkWorld(d.settle())
}

// What was used longest ago goes first, and never what a VM was made from.
func TestEvictImages(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{
		// What is evicted here is evicted by the test, and not meanwhile.
		timing: func(t *timing) { t.fresh = time.Hour },
		config: func(c *Config) { c.ImageCap = 3 * int64(len("disk of "+idOf("x"))) },
	})
	d.equip()
	have := func(want ...string) {
		t.Helper()
		list, err := d.Images(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, img := range list {
			got = append(got, api.ImageName(img.References[0]))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("images %v, want %v", got, want)
		}
	}
	d.pullOf("a")
	d.createFrom(api.VMCreate{Name: "a", Image: "a", Stopped: true})
	d.pullOf("b")
	d.pullOf("c")
	have("a", "b", "c")
	d.pullOf("b") // used now
	d.pullOf("d")
	if err := d.evictUnused(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	have("a", "b", "d")
	for _, n := range []string{"b", "d"} {
		d.createFrom(api.VMCreate{Name: n, Image: n, Stopped: true})
	}
	img := d.pullOf("e")
	if err := d.evictUnused(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	have("a", "b", "d") // which are in use
	if d.hasBlob(img.Disk) {
		t.Error("the disk of an evicted image is still there")
	}
	// What was used just now is about to be used.
	d.pullOf("e")
	if err := d.evictImages(ctx); err != nil {
		t.Fatal(err)
	}
	have("a", "b", "d", "e")
	w.checkWorld(d.settle())
}
