package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
)

// StatPath describes a file in a VM. Links on the way are followed, and the file
// itself, if it is one, with follow. Codes: not_found (also of the file),
// invalid, conflict (the VM does not run, or the path leads through a file),
// unsupported (the VM has no agent), unavailable.
func (c *Client) StatPath(ctx context.Context, vm, path string, follow bool) (f api.File, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: vmPath(vm, "/stat"), query: fileQuery(path, "follow", follow)}, nil, &f)
	return f, err
}

// CopyFrom returns an archive, as package client/api/archive packs them, of a
// file in a VM and all below it, by the name that StatPath gives it; with what is
// in it, by ".", when path ends in "/." or is "/". A link is followed with
// follow. The caller closes it. Codes as StatPath's, and exhausted; Read has them
// too, and unavailable when the archive was cut short: only after io.EOF is it
// whole.
func (c *Client) CopyFrom(ctx context.Context, vm, path string, follow bool) (io.ReadCloser, error) {
	silent := api.Errorf(api.CodeUnavailable, "%s did not answer within %v", c.Addr(), patience).WithHint("is it volantd that listens there? see its log")
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(patience, func() { cancel(silent) })
	resp, err := c.send(ctx, request{method: http.MethodGet, path: vmPath(vm, "/archive"), query: fileQuery(path, "follow", follow)})
	if !late.Stop() && err == nil {
		err = silent
		resp.Body.Close()
	}
	if err != nil {
		err = c.cause(ctx, err)
		cancel(nil)
		return nil, err
	}
	return &archiveBody{ctx: ctx, cancel: cancel, vm: vm, resp: resp}, nil
}

// archiveBody is an archive from a VM.
type archiveBody struct {
	ctx    context.Context // of CopyFrom
	cancel context.CancelCauseFunc
	vm     string
	resp   *http.Response
}

func (b *archiveBody) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	switch {
	case err == nil:
	case b.ctx.Err() != nil:
		err = context.Cause(b.ctx)
	case err != io.EOF: //nolint:errorlint // it is bare
		err = api.Errorf(api.CodeUnavailable, "what VM %s sent was cut short", b.vm).
			WithHint("volar ps shows whether the VM runs; volantd may have ended, or the VM")
	default:
		err = trailerError(b.resp, err)
	}
	return n, err
}

// trailerError returns the error that a response ends with, or else.
func trailerError(resp *http.Response, or error) error {
	text := resp.Trailer.Get(api.TrailerError)
	if text == "" {
		return or
	}
	var e api.Error
	if json.Unmarshal([]byte(text), &e) != nil || e.Code == "" {
		return api.Errorf(api.CodeInternal, "volantd could not send all of it, without saying why")
	}
	return &e
}

func (b *archiveBody) Close() error {
	b.cancel(nil)
	return b.resp.Body.Close()
}

// CopyTo unpacks an archive, which r yields, into a directory of a VM. With keep
// files belong to whom the archive says, and may have the set-id bits; else they
// are root's. r is not closed, and may still be read from for a moment when
// CopyTo has failed. Codes: not_found, invalid (also of the archive), conflict
// (the VM does not run, or what is there does not fit), exhausted (its disk is
// full), unsupported, unavailable. An error of r is returned as it is. What was
// unpacked until then stays, but no half file.
func (c *Client) CopyTo(ctx context.Context, vm, dir string, keep bool, r io.Reader) error {
	body := pump(ctx, r)
	defer body.Close()
	_, err := c.call(ctx, request{
		method: http.MethodPut, path: vmPath(vm, "/archive"), query: fileQuery(dir, "keep", keep), body: body, size: -1, slow: true,
		header: http.Header{"Content-Type": {mediaTar}},
	}, nil, nil)
	if err != nil && ctx.Err() == nil {
		select {
		case own := <-body.failed: // which package http puts into words
			return own
		default:
		}
	}
	return err
}

// mediaTar is the media type of archives.
const mediaTar = "application/x-tar"

// pumped yields what another reader does, and ends with a context though that
// may block: package http waits for its body's Read.
type pumped struct {
	*io.PipeReader
	stop   func() bool
	failed chan error // one place: the error of the other reader
}

// pump begins that. What it reads last is lost when it is closed.
func pump(ctx context.Context, r io.Reader) *pumped {
	out, in := io.Pipe()
	p := &pumped{PipeReader: out, failed: make(chan error, 1)}
	p.stop = context.AfterFunc(ctx, func() { out.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.CopyBuffer(in, onlyReader{&noted{r, p.failed}}, make([]byte, 64<<10))
		in.CloseWithError(err) // nil is io.EOF
	}()
	return p
}

func (p *pumped) Close() error {
	p.stop()
	return p.PipeReader.Close()
}

// onlyReader hides the shortcuts of package io, which would take buffers of
// their own.
type onlyReader struct{ io.Reader }

// noted keeps the error of a reader.
type noted struct {
	r      io.Reader
	failed chan<- error
}

func (n *noted) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // it is bare
		n.failed <- err // once: it is not read from again
	}
	return m, err
}

func fileQuery(path, flag string, set bool) url.Values {
	q := url.Values{"path": {path}}
	if set {
		q.Set(flag, strconv.FormatBool(set))
	}
	return q
}
