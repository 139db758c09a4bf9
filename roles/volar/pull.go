package volar

import (
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// Values of --pull.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// image brings the image that the user means into the daemon's store, as its
// flags say, and returns it with the name that a VM is to be made from.
func (c *cli) image(cl *client.Client, source string, f imageFlags) (img api.Image, name string, err error) {
	if isLocalSource(source) {
		return c.localImage(source, f)
	}
	held, err := imageArgument(source)
	if err != nil {
		return img, "", err
	}
	if f.Pull != pullAlways {
		img, err := cl.Image(c.ctx, held)
		switch {
		case err == nil && f.suits(img):
			return img, nameIn(img, source), nil
		case err == nil && f.Pull == pullNever:
			return img, "", &hintError{
				api.Errorf(api.CodeNotFound, "image %s is there, but not %s", source, f.words()), "leave out --pull=never, or pull it first: volar images pull",
			}
		case err != nil && (f.Pull == pullNever || !mayBePulled(err)):
			return img, "", err
		}
	}
	if img, err = c.pull(source, f.formFlags); err != nil {
		return img, "", err
	}
	return img, nameIn(img, source), nil
}

// mayBePulled reports whether an image that the daemon does not have may be one
// of a registry.
func mayBePulled(err error) bool { return api.CodeOf(err) == api.CodeNotFound }

// suits reports whether the daemon has the image in the form, and for the
// platform, that the user asks for.
func (f formFlags) suits(img api.Image) bool {
	if f.Initramfs && img.Initramfs == "" || !f.Initramfs && img.Disk == "" {
		return false
	}
	if f.Platform == "" {
		return true
	}
	want, err := oci.ParsePlatform(f.Platform)
	return err == nil && want.String() == img.Platform
}

func (f formFlags) words() string {
	form := "as a disk"
	if f.Initramfs {
		form = "as an initramfs"
	}
	if f.Platform != "" {
		form += " for " + f.Platform
	}
	return form
}

// nameIn returns the reference of img that source means, or its ID.
func nameIn(img api.Image, source string) string {
	ref, err := oci.ParseReference(source)
	if err != nil {
		return img.ID
	}
	for _, name := range img.References {
		if name == ref.String() {
			return name
		}
	}
	return img.ID
}

// imageArgument returns what the daemon knows an image by that a user names: its
// reference in full, or an ID, or the first digits of one, as they are.
func imageArgument(s string) (string, error) {
	hex := strings.TrimPrefix(s, "sha256:")
	if len(hex) >= minID && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == "" {
		return s, nil
	}
	ref, err := oci.ParseReference(s)
	if err != nil {
		return "", &usageError{msg: err.Error()}
	}
	return ref.String(), nil
}

// minID is how many digits of an ID are taken for one.
const minID = 4

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

// localImage loads the image of a source on this machine, which must hold one.
func (c *cli) localImage(source string, f imageFlags) (img api.Image, name string, err error) {
	if f.Platform != "" {
		return img, "", usagef("--platform chooses among a registry's images; %s is used as it is", source)
	}
	src, err := c.localSource(source)
	if err != nil {
		return img, "", err
	}
	images, err := c.load(src, "", f.form())
	if err != nil {
		return img, "", err
	}
	img, err = src.choose(images)
	return img, imageName(img), err
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
