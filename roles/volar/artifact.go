package volar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// Limits of fetching from the network.
const (
	maxArtifact = 16 << 30 // bytes
	fetchIdle   = 30 * time.Second
)

// artifact is one file that a manifest names.
type artifact struct {
	field    string // in the manifest, for errors
	ref      *string
	checksum *string
}

func artifactsOf(m *api.Manifest) []artifact {
	var list []artifact
	if m.Initramfs != nil {
		list = append(list, artifact{"initramfs", &m.Initramfs.URL, &m.Initramfs.Checksum})
	}
	if m.Rootfs != nil {
		list = append(list, artifact{"rootfs", &m.Rootfs.URL, &m.Rootfs.Checksum})
	}
	for i := range m.Disks {
		list = append(list, artifact{fmt.Sprintf("disks[%d]", i), &m.Disks[i].Source, &m.Disks[i].Checksum})
	}
	return list
}

// uploadArtifacts brings what m names into the daemon's store, and writes its
// digests into m. References become absolute.
func (c *cli) uploadArtifacts(cl *client.Client, m *api.Manifest, base location) error {
	for _, a := range artifactsOf(m) {
		at, err := base.resolve(*a.ref)
		if err == nil {
			err = c.uploadArtifact(cl, a, at)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", a.field, err)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = &hintError{err, "relative paths in a manifest begin where the manifest is"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) uploadArtifact(cl *client.Client, a artifact, at location) error {
	if at.url == nil {
		abs, err := filepath.Abs(at.dir)
		if err != nil {
			return err
		}
		*a.ref = abs
		digest, err := c.upload(cl, abs, *a.checksum)
		if err != nil {
			return err
		}
		*a.checksum = digest
		return nil
	}
	*a.ref = at.url.String()
	if *a.checksum != "" {
		// What is known by its digest and stored need not be fetched.
		if _, err := cl.Blob(c.ctx, *a.checksum); api.CodeOf(err) != api.CodeNotFound {
			return err
		}
	} else if at.url.Scheme == "http" {
		c.notef("%s comes by plain http and has no checksum: whoever is on the way can change it", at)
	}
	tmp, err := c.download(at.url)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	digest, err := c.upload(cl, tmp, *a.checksum)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	*a.checksum = digest
	return nil
}

// upload brings a local file into the daemon's store unless it is there, and
// returns its digest, which must be want unless that is empty.
func (c *cli) upload(cl *client.Client, name, want string) (digest string, err error) {
	f, n, err := openRegular(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, c.watch(f, "reading "+filepath.Base(name), n)); err != nil {
		return "", err
	}
	digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	if want != "" && want != digest {
		return "", &hintError{
			api.Errorf(api.CodeInvalid, "checksum: %s has digest %s, but the manifest says %s", name, digest, want),
			"the file was changed after the manifest was written, or is not the one it means",
		}
	}
	_, err = cl.Blob(c.ctx, digest)
	if err == nil || api.CodeOf(err) != api.CodeNotFound {
		return digest, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	_, err = cl.PutBlob(c.ctx, digest, c.watch(f, "uploading "+filepath.Base(name), n), n)
	return digest, err
}

// get fetches a URL. The caller closes the body, whose reads fail when nothing
// comes for a while.
func (c *cli) get(u *url.URL) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(c.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header.Set("User-Agent", "volant/"+c.version)
	idle := time.AfterFunc(fetchIdle, func() { cancel(fmt.Errorf("%s sent nothing for %v", u.Host, fetchIdle)) })
	hc := &http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DialContext:       (&net.Dialer{Timeout: fetchIdle}).DialContext,
		DisableKeepAlives: true,
	}}
	resp, err := hc.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		err = orCause(ctx, err) // before we end it ourselves
		idle.Stop()
		cancel(nil)
		return nil, fmt.Errorf("get %s: %w", u.Redacted(), err)
	}
	if resp.StatusCode != http.StatusOK {
		idle.Stop()
		cancel(nil)
		return nil, errors.Join(fmt.Errorf("get %s: the server answers %s", u.Redacted(), resp.Status), resp.Body.Close())
	}
	return &idleBody{ctx: ctx, body: resp.Body, idle: idle, cancel: cancel}, nil
}

// orCause returns why ctx ended, if it did, else err.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// idleBody is a response's body that is given up when it stands still.
type idleBody struct {
	ctx    context.Context // of the request; only to know why it ended
	body   io.ReadCloser
	idle   *time.Timer
	cancel context.CancelCauseFunc
}

func (b *idleBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if n > 0 {
		b.idle.Reset(fetchIdle)
	}
	if err != nil && err != io.EOF {
		err = orCause(b.ctx, err)
	}
	return n, err
}

func (b *idleBody) Close() error {
	b.idle.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// download fetches u into a temporary file, which the caller removes.
func (c *cli) download(u *url.URL) (name string, err error) {
	body, err := c.get(u)
	if err != nil {
		return "", err
	}
	defer body.Close()
	f, err := os.CreateTemp("", "volar-*")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err := io.Copy(f, io.LimitReader(c.watch(body, "fetching "+u.Redacted(), 0), maxArtifact+1))
	if err != nil {
		return "", fmt.Errorf("get %s: %w", u.Redacted(), err)
	}
	if n > maxArtifact {
		return "", api.Errorf(api.CodeTooLarge, "%s is larger than %s", u.Redacted(), size(maxArtifact))
	}
	return f.Name(), nil
}

// watched tells on stderr how far a reader got, when reading takes long.
type watched struct {
	r     io.Reader
	c     *cli
	what  string
	total int64 // 0 when not known
	done  int64
	next  time.Time
}

func (c *cli) watch(r io.Reader, what string, total int64) io.Reader {
	return &watched{r: r, c: c, what: what, total: total, next: time.Now().Add(c.progressAfter)}
}

func (w *watched) Read(p []byte) (int, error) {
	if err := w.c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.done += int64(n)
	if now := time.Now(); now.After(w.next) && err == nil {
		w.next = now.Add(w.c.progressAfter)
		if w.total > 0 {
			w.c.notef("%s: %s of %s", w.what, size(w.done), size(w.total))
		} else {
			w.c.notef("%s: %s", w.what, size(w.done))
		}
	}
	return n, err
}
