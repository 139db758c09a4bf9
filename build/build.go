package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// Options say what to build: a Recipe, or a Dockerfile, or a recipe with the
// Dockerfile in the place of its source.
type Options struct {
	Recipe   string // path of the fledge.toml
	Manifest string // path of the manifest, when it is not in or beside the recipe
	Output   string // NAME of NAME.cpio or NAME.img, and of NAME.manifest.json; default: the manifest's name, here

	Dockerfile *dockerfile.Spec // nil: as the recipe says
	Initramfs  bool             // an archive, whatever the recipe's strategy
	Builder    string           // of Dockerfiles, one of dockerfile.Names; empty: the first that works
	Registry   oci.Registry     // how registries are spoken to
	// Credentials finds how to log in to an image's registry; nil: not at all.
	Credentials func(context.Context, oci.Reference) (*api.RegistryAuth, error)
	TempDir     string // for downloads and layers; empty: TMPDIR, else /var/tmp

	Client   *http.Client // for downloads; nil: one with its own time limits
	Progress func(Step)   // called before, during and after each step; nil: not called
	Warn     func(string) // what the user should look at; nil: kept in Result only

	root string // host directory that libraries are looked for in; tests
}

// Step is one part of a build, about to begin, going on, or done.
type Step struct {
	// Name is "recipe", "manifest", or between them for mappings "agent",
	// "busybox", "mappings", "libraries", "archive", for an image "dockerfile",
	// "image", "flatten", "mappings", "disk" or "archive".
	Name     string
	Done     bool
	Detail   string        // what was done, or how far it is; empty when there was nothing to do
	Duration time.Duration // of a step that is done
}

// Result is a finished build.
type Result struct {
	Artifact     string // path
	ManifestPath string
	Manifest     *api.Manifest
	Digest       string // "sha256:..." of the artifact
	Size         int64  // bytes of the artifact
	Entries      int    // files, directories and all else in it
	Warnings     []string
}

// step is one part of a build; detail is for Step.
type step struct {
	name string
	run  func(context.Context) (detail string, err error)
}

// Build builds a recipe's artifact and manifest. It needs no root, but for disks
// of ext4 and squashfs. It blocks until done or ctx ends; then nothing it wrote
// is left. Faults in input files are *Error.
func Build(ctx context.Context, o Options) (*Result, error) {
	b := &builder{opts: o, result: new(Result)}
	err := b.run(ctx, step{"recipe", b.load})
	if err == nil {
		steps := b.packSteps()
		if b.recipe.rooted() {
			steps = b.imageSteps()
		}
		err = b.run(ctx, append(steps, step{"manifest", b.writeManifest})...)
	}
	if err != nil {
		return nil, errors.Join(err, b.cleanup(false))
	}
	return b.result, b.cleanup(true)
}

func (b *builder) run(ctx context.Context, steps ...step) error {
	for _, s := range steps {
		b.progress(Step{Name: s.name})
		start := time.Now()
		detail, err := s.run(ctx)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		b.progress(Step{Name: s.name, Done: true, Detail: detail, Duration: time.Since(start)})
	}
	return nil
}

// packSteps are those of an archive of mappings.
func (b *builder) packSteps() []step {
	b.tree = newTree()
	return []step{
		{"agent", b.addInit},
		{"busybox", b.addSource},
		{"mappings", b.addFiles},
		{"libraries", b.addLibraries},
		{"archive", b.writeArchive},
	}
}

type builder struct {
	opts     Options
	recipe   *Recipe
	template *template
	agent    string // of the manifest
	tree     *tree  // of mappings
	image    imageBuild
	tempDir  string // for downloads and layers; empty until needed
	written  []string
	result   *Result
}

// cleanup removes downloads, and outputs too when the build did not succeed.
func (b *builder) cleanup(ok bool) error {
	errs := []error{b.image.close()}
	if b.tempDir != "" {
		errs = append(errs, os.RemoveAll(b.tempDir))
	}
	if !ok {
		for _, name := range b.written {
			errs = append(errs, os.Remove(name))
		}
	}
	return errors.Join(errs...)
}

func (b *builder) progress(s Step) {
	if b.opts.Progress != nil {
		b.opts.Progress(s)
	}
}

func (b *builder) warn(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	b.result.Warnings = append(b.result.Warnings, msg)
	if b.opts.Warn != nil {
		b.opts.Warn(msg)
	}
}

// load reads recipe and manifest and names the outputs.
func (b *builder) load(context.Context) (string, error) {
	r, err := b.loadRecipe()
	if err != nil {
		return "", err
	}
	b.recipe = r
	if b.template, err = loadTemplate(r, b.opts.Manifest); err != nil {
		return "", err
	}
	b.agent = r.agent()
	if a := r.Agent; a != nil && a.SourceStrategy == AgentRelease && a.Version != "" && a.Version != "latest" {
		b.warn("%s: agent.version %q has no effect: volantd supplies its own agent at boot", r.file, clip(a.Version))
	}
	if r.Filesystem != nil && r.Strategy != StrategyRootfs {
		b.warn("%s: [filesystem] has no effect with strategy %s", r.file, r.Strategy)
	}
	base := b.opts.Output
	for _, suffix := range []string{".gz", ".zst", ".lz4", ".cpio", ".img"} {
		base = strings.TrimSuffix(base, suffix)
	}
	if b.opts.Output != "" && (base == "" || strings.HasSuffix(base, "/")) {
		return "", fmt.Errorf("output %q names no file", b.opts.Output)
	}
	name := &b.template.manifest.Name
	switch {
	case *name != "" || !r.rooted():
	case base != "":
		*name = nameOfPath(base)
	default:
		*name = r.imageName()
	}

	// Faults in the manifest are told before any work. What is not known yet
	// stands for itself: the digest, and what the image runs.
	if _, err := b.finish(api.ImageConfig{Cmd: []string{"/program"}}, "artifact", "sha256:"+strings.Repeat("0", 64)); err != nil {
		return "", err
	}
	if base == "" {
		base = *name
	}
	b.result.Artifact = base + ".img"
	if r.Strategy == StrategyInitramfs {
		b.result.Artifact = base + ".cpio" + extension(r.compression())
	}
	b.result.ManifestPath = base + ".manifest.json"
	return strings.TrimSpace(fmt.Sprintf("%s, plugin %s %s", r.file, *name, b.template.manifest.Version)), nil
}

// loadRecipe reads the recipe, or makes one for a Dockerfile.
func (b *builder) loadRecipe() (*Recipe, error) {
	var r *Recipe
	if d := b.opts.Dockerfile; b.opts.Recipe == "" && d != nil {
		r = &Recipe{Strategy: StrategyRootfs, dockerfile: d, file: d.File, src: &source{file: d.File}}
	} else {
		data, err := readDocument(b.opts.Recipe)
		if err != nil {
			return nil, err
		}
		if r, err = parseRecipe(b.opts.Recipe, data, d); err != nil {
			return nil, err
		}
	}
	if b.opts.Initramfs {
		if !r.rooted() {
			return nil, errors.New("--output-initramfs is for images: a recipe of mappings always makes an initramfs")
		}
		r.Strategy = StrategyInitramfs
	}
	return r, nil
}

// finish returns the manifest of an artifact; cfg is for one made of an image.
func (b *builder) finish(cfg api.ImageConfig, artifact, digest string) (*api.Manifest, error) {
	m := *b.template.manifest
	if b.recipe.rooted() {
		base, err := ManifestFromImage(m.Name, cfg)
		if err != nil {
			return nil, fmt.Errorf("the image's configuration: %w", err)
		}
		m = overlay(*base, m)
		b.image.describe(&m)
	}
	return b.template.finish(m, func(m *api.Manifest) error {
		if b.recipe.Strategy == StrategyInitramfs {
			m.Initramfs = &api.Initramfs{URL: artifact, Checksum: digest, Agent: b.agent}
			return nil
		}
		m.Rootfs = &api.Rootfs{URL: artifact, Checksum: digest, Format: "raw"}
		if f := b.recipe.Filesystem; f != nil && f.OverlaySize != "" && m.Root == nil {
			mib, _ := parseMiB(f.OverlaySize) // validated
			m.Root = &api.Root{SizeMB: mib}
		}
		if m.Root == nil || m.Root.Mode != api.RootReadOnly || m.Workload == nil {
			return nil
		}
		// What the image declares as its volumes is to stay writable.
		composed, err := api.Compose(*m, &api.ImageConfig{Entrypoint: m.Workload.Entrypoint, Volumes: cfg.Volumes}, api.VMCreate{})
		if err == nil {
			m.Volumes, m.Tmpfs = composed.Volumes, composed.Tmpfs
		}
		return err
	})
}

func extension(c initramfs.Compression) string {
	switch c {
	case initramfs.Gzip:
		return ".gz"
	case initramfs.Zstd:
		return ".zst"
	case initramfs.LZ4:
		return ".lz4"
	}
	return ""
}

// addInit puts /init where the recipe gives one.
func (b *builder) addInit(ctx context.Context) (string, error) {
	host, detail, err := b.initFile(ctx)
	if err != nil || host == "" {
		return "", err
	}
	fi, err := os.Stat(host)
	if err != nil {
		return "", err
	}
	return detail, b.tree.addFile("init", host, fi, 0o755, detail)
}

func (b *builder) checkDigest(host, digest string) error {
	if digest == "" {
		return nil
	}
	got, err := fileDigest(host)
	if err != nil {
		return err
	}
	if got != digest {
		return fmt.Errorf("%s: its digest is sha256:%s, not sha256:%s as the recipe says", host, got, digest)
	}
	return nil
}

// temp returns the folder for what is not kept. Layers may be large, and /tmp
// may be memory: hier(7) has /var/tmp for them.
func (b *builder) temp() (string, error) {
	if b.tempDir != "" {
		return b.tempDir, nil
	}
	parent := b.opts.TempDir
	if parent == "" && os.Getenv("TMPDIR") == "" {
		if fi, err := os.Stat("/var/tmp"); err == nil && fi.IsDir() {
			parent = "/var/tmp"
		}
	}
	dir, err := os.MkdirTemp(parent, "fledge-")
	if err != nil {
		return "", err
	}
	b.tempDir = dir
	return dir, nil
}

func (b *builder) download(ctx context.Context, key, url, digest string) (string, error) {
	dir, err := b.temp()
	if err != nil {
		return "", err
	}
	host, err := fetch(ctx, b.opts.Client, url, digest, dir)
	if err != nil {
		return "", b.recipe.src.errorf(key, "%w", err)
	}
	return filepath.Abs(host)
}

// addSource fetches busybox. It is put into the tree after the mappings, which
// take precedence over its links.
func (b *builder) addSource(ctx context.Context) (string, error) {
	s := b.recipe.Source
	if s == nil || s.BusyboxURL == "" {
		return "", nil
	}
	host, err := b.download(ctx, "source.busybox_url", s.BusyboxURL, s.BusyboxSHA256)
	if err != nil {
		return "", err
	}
	detail := "busybox " + s.BusyboxURL
	s.Busybox, s.BusyboxURL, s.BusyboxSHA256 = host, "", ""
	return detail, nil
}

// outputs returns the real paths of the files that the build will write.
func (b *builder) outputs() ([]string, error) {
	var out []string
	for _, name := range []string{b.result.Artifact, b.result.ManifestPath} {
		abs, err := filepath.Abs(name)
		if err != nil {
			return nil, err
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			abs = filepath.Join(dir, filepath.Base(abs))
		}
		out = append(out, abs)
	}
	return out, nil
}

func (b *builder) addFiles(ctx context.Context) (string, error) {
	r := b.recipe
	outputs, err := b.outputs()
	if err != nil {
		return "", err
	}
	if err := addMappings(ctx, b.tree, r, outputs); err != nil {
		return "", err
	}
	n := len(b.tree.nodes)
	if s := r.Source; s != nil && s.Busybox != "" {
		host := r.hostPath(s.Busybox)
		fi, err := os.Stat(host)
		if err != nil {
			return "", r.src.errorf("source.busybox", "%w", err)
		}
		if err := b.checkDigest(host, s.BusyboxSHA256); err != nil {
			return "", r.src.errorf("source.busybox", "%w", err)
		}
		if err := addBusybox(b.tree, host, fi); err != nil {
			return "", r.src.errorf("source.busybox", "%w", err)
		}
	}
	if err := addBase(b.tree); err != nil {
		return "", &Error{File: r.file, Err: err}
	}
	return fmt.Sprintf("%d mappings, %d files", len(r.Mappings), n), nil
}

// addLibraries completes programs, and checks that what must run can.
func (b *builder) addLibraries(ctx context.Context) (string, error) {
	l, err := newLinker(b.tree, b.opts.root, b.warn)
	if err != nil {
		return "", err
	}
	if err := l.link(ctx); err != nil {
		return "", b.inRecipe(err)
	}
	required, err := b.requirePrograms()
	if err != nil {
		return "", err
	}
	if err := checkScripts(b.tree, required, b.warn); err != nil {
		return "", b.inRecipe(err)
	}
	if l.copied == 0 {
		return "none needed", nil
	}
	return fmt.Sprintf("%d copied", l.copied), nil
}

func (b *builder) inRecipe(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &Error{File: b.recipe.file, Err: err}
}

// requirePrograms sees to it that /init and the workload are in the image, and
// returns their guest paths.
func (b *builder) requirePrograms() ([]string, error) {
	var required []string
	if b.agent != api.AgentHost {
		if !b.tree.runnable("/init") {
			return nil, b.recipe.src.errorf("init", "no mapping gives an executable /init")
		}
		required = append(required, "/init")
	}
	w := b.template.manifest.Workload
	if w == nil || len(w.Entrypoint) == 0 {
		return required, nil
	}
	program := w.Entrypoint[0]
	switch {
	case strings.Contains(program, "/") && !path.IsAbs(program):
		program = path.Join("/", w.Workdir, program)
	case !strings.Contains(program, "/"):
		search := w.Env["PATH"]
		if search == "" {
			search = searchPath
		}
		found := b.tree.lookPath(program, search)
		if found == "" {
			return nil, b.template.errorf("workload.entrypoint", "%q is not in the image: no executable of that name in %s", program, search)
		}
		program = found
	}
	if !b.tree.runnable(program) {
		return nil, b.template.errorf("workload.entrypoint", "%s is not in the image, or cannot be executed: map it", program)
	}
	return append(required, program), nil
}

func (b *builder) writeArchive(ctx context.Context) (string, error) {
	var a initramfs.Archive
	for _, n := range b.tree.sorted() {
		if err := a.Add(n.Entry); err != nil {
			return "", fmt.Errorf("%s: %w", n.origin, err)
		}
	}
	b.result.Entries = a.Len()
	sum := sha256.New()
	counter := &countWriter{w: sum}
	err := writeWhole(b.result.Artifact, func(f *os.File) error {
		w, err := b.recipe.compression().NewWriter(io.MultiWriter(contextWriter{ctx, f}, counter))
		if err != nil {
			return err
		}
		if _, err := a.WriteTo(w); err != nil {
			return err
		}
		return w.Close()
	})
	if err != nil {
		return "", fmt.Errorf("write %s: %w", b.result.Artifact, err)
	}
	b.written = append(b.written, b.result.Artifact)
	b.result.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	b.result.Size = counter.n
	return fmt.Sprintf("%s, %d entries, %d bytes", b.result.Artifact, b.result.Entries, b.result.Size), nil
}

func (b *builder) writeManifest(context.Context) (string, error) {
	m, err := b.finish(b.image.config(), filepath.Base(b.result.Artifact), b.result.Digest)
	if err != nil {
		return "", err
	}
	data, err := encodeManifest(m)
	if err != nil {
		return "", err
	}
	err = writeWhole(b.result.ManifestPath, func(w *os.File) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("write %s: %w", b.result.ManifestPath, err)
	}
	b.written = append(b.written, b.result.ManifestPath)
	b.result.Manifest = m
	return b.result.ManifestPath, syncDir(filepath.Dir(b.result.ManifestPath))
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
