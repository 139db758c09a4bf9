// Package dockerfile builds an image of a Dockerfile with the builder that is
// installed on this machine, and leaves it as an archive for package build/oci.
// It is no builder itself.
//
// It knows four, and asks them in this order: buildctl, docker (with buildx),
// podman, buildah. The first that is in PATH and says that it works is taken;
// one that does not is passed over with the reason it gave. A builder keeps its
// own cache and settings, reads its own environment, and is run without a shell,
// in a process group of its own that ends with the context.
//
// The archive has Docker's format wherever the builder has the choice, because
// the OCI format has no place for HEALTHCHECK.
package dockerfile

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Spec says what to build.
type Spec struct {
	File    string            // path of the Dockerfile
	Context string            // directory that COPY reads from; empty: the Dockerfile's own
	Target  string            // stage to build; empty: the last
	Args    map[string]string // of ARG; a name is not empty and holds no "="
}

// Options say how. Zero values are usable.
type Options struct {
	Builder string       // one of Names; empty: the first that works
	Output  func(string) // called with each line that the builder prints; nil: not called
	Passed  func(string) // called with why a builder that is there was passed over; nil: not called
}

// ErrNoBuilder: no builder is there, or none works. The message says which were
// looked for, and what each said.
var ErrNoBuilder = errors.New("no builder of Dockerfiles works here")

const (
	// probeTimeout bounds the question whether a builder works. podman sets up
	// its storage at the first one.
	probeTimeout = 30 * time.Second
	// undoTimeout bounds the removal of what a builder holds for us.
	undoTimeout = 30 * time.Second
	// archiveName is that of the result in the folder that builders run in: a
	// relative name needs no quoting in the three ways that they spell outputs.
	archiveName = "image.tar"
)

// Build builds the image and returns the path of its archive, in dir, which must
// exist, and the name of the builder. It blocks until done or ctx ends; then
// every process it started has been told to end. Whatever it leaves is in dir.
func Build(ctx context.Context, s Spec, dir string, o Options) (archive, builder string, err error) {
	if s, err = s.resolve(); err != nil {
		return "", "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	b, err := find(ctx, dir, o)
	if err != nil {
		return "", "", err
	}
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		return "", "", err
	}
	p := b.plan(s, "localhost/fledge:"+hex.EncodeToString(name[:]))
	if p.undo != nil {
		// The builder's store may hold the image even when a later step failed.
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			if undoErr := run(ctx, p.undo, dir, nil); undoErr != nil && err == nil {
				err = undoErr
			}
		}()
	}
	for _, argv := range p.steps {
		if err := run(ctx, argv, dir, o.Output); err != nil {
			return "", "", err
		}
	}
	archive = filepath.Join(dir, archiveName)
	if _, err := os.Stat(archive); err != nil {
		return "", "", fmt.Errorf("%s ended well but wrote no image: %w", b.name, err)
	}
	return archive, b.name, nil
}

// resolve checks s and makes its paths absolute, so that they mean the same in
// another folder and none begins with a dash.
func (s Spec) resolve() (Spec, error) {
	if s.Context == "" {
		s.Context = filepath.Dir(s.File)
	}
	for _, p := range []*string{&s.File, &s.Context} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return s, err
		}
		*p = abs
	}
	fi, err := os.Stat(s.File)
	if err != nil {
		return s, err
	}
	if !fi.Mode().IsRegular() {
		return s, fmt.Errorf("%s is not a file: name the Dockerfile", s.File)
	}
	if fi, err = os.Stat(s.Context); err != nil {
		return s, fmt.Errorf("build context: %w", err)
	}
	if !fi.IsDir() {
		return s, fmt.Errorf("build context: %s is not a directory", s.Context)
	}
	if strings.IndexByte(s.Target, 0) >= 0 {
		return s, fmt.Errorf("target %q holds a NUL byte", s.Target)
	}
	for k, v := range s.Args {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.IndexByte(v, 0) >= 0 {
			return s, fmt.Errorf("build argument %q is not a name with a value", k)
		}
	}
	return s, nil
}

// find returns the builder to use.
func find(ctx context.Context, dir string, o Options) (*builder, error) {
	if o.Builder != "" && !slices.Contains(Names(), o.Builder) {
		return nil, fmt.Errorf("builder %q is not known; give one of %s", o.Builder, strings.Join(Names(), ", "))
	}
	var reasons []string
	for _, b := range builders() {
		if o.Builder != "" && o.Builder != b.name {
			continue
		}
		reason, err := b.probe(ctx, dir)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			return &b, nil
		}
		reasons = append(reasons, reason)
		if _, err := exec.LookPath(b.name); err == nil && o.Passed != nil && o.Builder == "" {
			o.Passed(reason)
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoBuilder, strings.Join(reasons, "; "))
}

// probe returns why b cannot be used, empty if it can. The error is ctx's.
func (b *builder) probe(ctx context.Context, dir string) (reason string, err error) {
	if _, err := exec.LookPath(b.name); err != nil {
		return b.name + " is not in PATH", nil
	}
	for _, argv := range b.probes {
		probeCtx, cancel := context.WithTimeout(ctx, probeTimeout)
		err := run(probeCtx, argv, dir, nil)
		cancel()
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Sprintf("%s did not answer within %v", strings.Join(argv, " "), probeTimeout), nil
		}
		if err != nil {
			return err.Error(), nil
		}
	}
	return "", nil
}
