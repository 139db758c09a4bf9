package volar

import (
	"errors"
	"io"
	"sync"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
)

// pull has the daemon get an image from its registry, with the credentials that
// its user has for it.
func (c *cli) pull(reference string, f formFlags) (api.Image, error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return api.Image{}, &usageError{msg: err.Error()}
	}
	if _, err := oci.ParsePlatform(f.Platform); err != nil {
		return api.Image{}, usagef("--platform: %v", err)
	}
	auth, err := oci.Credentials(c.ctx, ref)
	if err != nil {
		return api.Image{}, err
	}
	cl, err := c.daemon()
	if err != nil {
		return api.Image{}, err
	}
	p := c.imageProgress(familiar(ref.String()))
	defer p.end()
	return cl.PullImage(c.ctx, api.ImagePull{Reference: ref.String(), Platform: f.Platform, Form: f.form(), Auth: auth}, p.report)
}

// load streams the archive that src makes to the daemon.
func (c *cli) load(src localSource, name string, form api.ImageForm) (images []api.Image, err error) {
	if name != "" {
		ref, err := oci.ParseReference(name)
		if err != nil {
			return nil, &usageError{msg: "--name: " + err.Error()}
		}
		if ref.Digest != "" {
			return nil, usagef("--name %q: a name that is given here has no digest", name)
		}
		name = ref.String()
	}
	cl, err := c.daemon()
	if err != nil {
		return nil, err
	}
	r, err := src.open(c.ctx)
	if err != nil {
		return nil, sourceError(src.what, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := c.imageProgress(src.what)
	defer p.end()
	read := &failing{r: r}
	images, err = cl.LoadImage(c.ctx, name, form, read, p.report)
	if cause := read.failed(); err != nil && cause != nil {
		err = cause // the daemon only met an archive that is cut short
	}
	if err != nil {
		err = sourceError(src.what, err)
	}
	return images, err
}

// failing remembers the error of a reader, which the HTTP client may go on
// reading for a moment after it returned.
type failing struct {
	r   io.Reader
	mu  sync.Mutex
	err error // guarded by mu
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
	}
	return n, err
}

func (f *failing) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
