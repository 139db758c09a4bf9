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

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// Options say what to build. Only Recipe is required.
type Options struct {
	Recipe   string // path of the fledge.toml
	Manifest string // path of the manifest, when it is not in or beside the recipe
	Output   string // NAME of NAME.cpio and NAME.manifest.json; default: the manifest's name, here

	Client   *http.Client // for downloads; nil: one with its own time limits
	Progress func(Step)   // called before and after each step; nil: not called
	Warn     func(string) // what the user should look at; nil: kept in Result only

	root string // host directory that libraries are looked for in; tests
}

// Step is one part of a build, about to begin or done.
type Step struct {
	Name     string // "recipe", "agent", "busybox", "mappings", "libraries", "archive", "manifest"
	Done     bool
	Detail   string        // what was done; empty when there was nothing to do
	Duration time.Duration // of a step that is done
}

// Result is a finished build.
type Result struct {
	Archive      string // path
	ManifestPath string
	Manifest     *api.Manifest
	Digest       string // "sha256:..." of the archive
	Size         int64  // bytes of the archive
	Entries      int
	Warnings     []string
}

// Build builds a recipe's artifact and manifest. It needs no root. It blocks
// until done or ctx ends; then nothing it wrote is left. Faults in input files
// are *Error; ErrStrategy is wrapped when the recipe asks for a strategy this
// version does not build.
func Build(ctx context.Context, o Options) (*Result, error) {
	b := &builder{opts: o, tree: newTree(), result: new(Result)}
	for _, s := range []struct {
		name string
		run  func(context.Context) (detail string, err error)
	}{
		{"recipe", b.load},
		{"agent", b.addInit},
		{"busybox", b.addSource},
		{"mappings", b.addFiles},
		{"libraries", b.addLibraries},
		{"archive", b.writeArchive},
		{"manifest", b.writeManifest},
	} {
		b.progress(Step{Name: s.name})
		start := time.Now()
		detail, err := s.run(ctx)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, errors.Join(err, b.cleanup(false))
		}
		b.progress(Step{Name: s.name, Done: true, Detail: detail, Duration: time.Since(start)})
	}
	return b.result, b.cleanup(true)
}

type builder struct {
	opts     Options
	recipe   *Recipe
	template *template
	agent    string // of the manifest
	tree     *tree
	tempDir  string // for downloads; empty until needed
	written  []string
	result   *Result
}

// cleanup removes downloads, and outputs too when the build did not succeed.
func (b *builder) cleanup(ok bool) error {
	var errs []error
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
	r, err := LoadRecipe(b.opts.Recipe)
	if err != nil {
		return "", err
	}
	b.recipe = r
	if b.template, err = loadTemplate(r, b.opts.Manifest); err != nil {
		return "", err
	}
	switch a := r.Agent; {
	case r.Init != nil:
		b.agent = api.AgentNone
	case a == nil || a.SourceStrategy == AgentRelease:
		b.agent = api.AgentHost
		if a != nil && a.Version != "" && a.Version != "latest" {
			b.warn("%s: agent.version %q has no effect: volantd supplies its own agent at boot", r.file, clip(a.Version))
		}
	default:
		b.agent = api.AgentImage
	}
	if r.Filesystem != nil {
		b.warn("%s: [filesystem] has no effect with strategy %s", r.file, r.Strategy)
	}

	// Faults in the manifest are told before any work; the digest is not
	// known yet and stands for itself.
	name := b.template.manifest.Name
	if _, err := b.template.finish("artifact.cpio", "sha256:"+strings.Repeat("0", 64), b.agent); err != nil {
		return "", err
	}
	base := b.opts.Output
	if base == "" {
		base = name
	}
	for _, suffix := range []string{".gz", ".zst", ".lz4", ".cpio"} {
		base = strings.TrimSuffix(base, suffix)
	}
	if base == "" || strings.HasSuffix(base, "/") {
		return "", fmt.Errorf("output %q names no file", b.opts.Output)
	}
	b.result.Archive = base + ".cpio" + extension(r.compression())
	b.result.ManifestPath = base + ".manifest.json"
	return fmt.Sprintf("%s, plugin %s %s", r.file, name, b.template.manifest.Version), nil
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
	r := b.recipe
	switch {
	case r.Init != nil && r.Init.Path != "":
		return "init " + r.Init.Path, b.addPinned("init", "init.path", r.Init.Path, "", "[init] path")
	case b.agent != api.AgentImage:
		return "", nil
	case r.Agent.SourceStrategy == AgentLocal:
		digest := strings.TrimPrefix(r.Agent.Checksum, "sha256:")
		return "agent " + r.Agent.Path, b.addPinned("init", "agent.path", r.Agent.Path, digest, "[agent] path")
	}
	host, err := b.download(ctx, "agent.url", r.Agent.URL, strings.TrimPrefix(r.Agent.Checksum, "sha256:"))
	if err != nil {
		return "", err
	}
	return "agent " + r.Agent.URL, b.addPinned("init", "agent.url", host, "", "[agent] url")
}

// addPinned adds an executable host file, checking its digest if one is given.
func (b *builder) addPinned(guest, key, hostPath, digest, origin string) error {
	host := b.recipe.hostPath(hostPath)
	fi, err := os.Stat(host)
	if err != nil {
		return b.recipe.src.errorf(key, "%w", err)
	}
	if err := b.checkDigest(host, digest); err != nil {
		return b.recipe.src.errorf(key, "%w", err)
	}
	if err := b.tree.addFile(guest, host, fi, 0o755, origin); err != nil {
		return b.recipe.src.errorf(key, "%w", err)
	}
	return nil
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

func (b *builder) download(ctx context.Context, key, url, digest string) (string, error) {
	if b.tempDir == "" {
		dir, err := os.MkdirTemp("", "fledge-")
		if err != nil {
			return "", err
		}
		b.tempDir = dir
	}
	host, err := fetch(ctx, b.opts.Client, url, digest, b.tempDir)
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

func (b *builder) addFiles(ctx context.Context) (string, error) {
	r := b.recipe
	var outputs []string
	for _, name := range []string{b.result.Archive, b.result.ManifestPath} {
		abs, err := filepath.Abs(name)
		if err != nil {
			return "", err
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			abs = filepath.Join(dir, filepath.Base(abs))
		}
		outputs = append(outputs, abs)
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
	err := writeWhole(b.result.Archive, func(f io.Writer) error {
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
		return "", fmt.Errorf("write %s: %w", b.result.Archive, err)
	}
	b.written = append(b.written, b.result.Archive)
	b.result.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	b.result.Size = counter.n
	return fmt.Sprintf("%s, %d entries, %d bytes", b.result.Archive, b.result.Entries, b.result.Size), nil
}

func (b *builder) writeManifest(context.Context) (string, error) {
	m, err := b.template.finish(filepath.Base(b.result.Archive), b.result.Digest, b.agent)
	if err != nil {
		return "", err
	}
	data, err := encodeManifest(m)
	if err != nil {
		return "", err
	}
	err = writeWhole(b.result.ManifestPath, func(w io.Writer) error {
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
