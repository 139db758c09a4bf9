package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// archiveIdle is how long a guest may take for the next piece of an archive.
const archiveIdle = 2 * time.Minute

// archiveBuffer is how much of an archive is copied at once, in bytes.
const archiveBuffer = 64 << 10

// errStalled is why a transfer was given up.
var errStalled = errors.New("the agent did not go on")

// reach finds a VM that runs, and its agent. allowed says what only such a VM
// can do.
func (d *Daemon) reach(ctx context.Context, name, allowed string) (row.VM, *agent, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return vm, nil, err
	}
	if err := d.hasAgent(ctx, &vm); err != nil {
		return vm, nil, err
	}
	if vm.Status != api.VMRunning {
		return vm, nil, wrongState(&vm, allowed)
	}
	if w := d.worker(vm.ID); w != nil {
		if a := w.agent.Load(); a != nil {
			return vm, a, nil
		}
	}
	return vm, nil, silentAgent(&vm)
}

// reachFiles is reach for what deals in files.
func (d *Daemon) reachFiles(ctx context.Context, name, path string) (row.VM, *agent, error) {
	if err := api.ValidatePath(path); err != nil {
		return row.VM{}, nil, err
	}
	return d.reach(ctx, name, "files are copied when it is running")
}

// files does a request about files. The caller closes the body of the answer,
// which is a success; else the error is an *agentError, or of the connection.
func (a *agent) files(ctx context.Context, method, route, path, flag string, set bool, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "agent", Path: route, RawQuery: url.Values{"path": {path}, flag: {strconv.FormatBool(set)}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := a.rt.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %s: %w", route, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAgentError)) // the status alone says enough
	return nil, readAgentError(resp.StatusCode, text)
}

// maxAgentError bounds the error that a guest may send, in bytes; some of it is
// names, of which a byte can become six.
const maxAgentError = 64 << 10

// readAgentError reads the error of a guest.
func readAgentError(status int, text []byte) *agentError {
	var e wire.Error
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = "no message"
	}
	return &agentError{status: status, message: clip(e.Message, maxStepText), code: e.Code}
}

// fileError says why the agent did not do what was asked of a VM's files.
func (d *Daemon) fileError(ctx context.Context, vm *row.VM, err error) error {
	var said *agentError
	if ctx.Err() != nil || !errors.As(err, &said) || said.code == "" {
		return d.sessionError(ctx, vm, err)
	}
	code := api.CodeUnavailable
	switch said.code {
	case wire.ErrorInvalid:
		code = api.CodeInvalid
	case wire.ErrorNotFound:
		code = api.CodeNotFound
	case wire.ErrorConflict:
		code = api.CodeConflict
	case wire.ErrorBusy, wire.ErrorNoSpace:
		code = api.CodeExhausted
	}
	return api.Errorf(code, "VM %s: %s", vm.Name, said.message)
}

// VMStat describes a file in a VM. Codes: not_found, invalid, too_large,
// conflict, unsupported, unavailable.
func (d *Daemon) VMStat(ctx context.Context, name, path string, follow bool) (api.File, error) {
	vm, a, err := d.reachFiles(ctx, name, path)
	if err != nil {
		return api.File{}, err
	}
	asking, cancel := context.WithTimeout(ctx, d.t.silence)
	defer cancel()
	resp, err := a.files(asking, http.MethodGet, wire.PathStat, path, "follow", follow, nil)
	if err != nil {
		return api.File{}, d.fileError(ctx, &vm, err)
	}
	defer resp.Body.Close()
	b, err := readAtMost(resp.Body, maxAgentError)
	var f wire.FileInfo
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return api.File{}, d.fileError(ctx, &vm, fmt.Errorf("agent: %s: %w", wire.PathStat, err))
	}
	return api.File{
		Name: f.Name, Path: f.Path, Type: api.FileType(f.Type), Mode: f.Mode & 0o7777, UID: f.UID, GID: f.GID, Size: f.Size, ModTime: f.ModTime, Target: f.Target,
	}, nil
}

// VMCopyFrom returns an archive of a file in a VM and all below it, which the
// caller closes. ctx bounds all of it. An *api.Error of Read came after an archive
// that nobody takes for whole; after any other error there may be one that ends
// between two files. Codes as VMStat's, and exhausted.
func (d *Daemon) VMCopyFrom(ctx context.Context, name, path string, follow bool) (io.ReadCloser, error) {
	vm, a, err := d.reachFiles(ctx, name, path)
	if err != nil {
		return nil, err
	}
	moving, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(d.t.silence, func() { cancel(errStalled) })
	resp, err := a.files(moving, http.MethodGet, wire.PathArchive, path, "follow", follow, nil)
	late.Stop()
	if err != nil {
		cancel(nil)
		return nil, d.fileError(ctx, &vm, err)
	}
	return &archiveBody{d: d, ctx: ctx, vm: &vm, resp: resp, late: late, cancel: cancel}, nil
}

// archiveBody is an archive that a guest sends. late ends it, and is at work
// while the guest is waited for.
type archiveBody struct {
	d      *Daemon
	ctx    context.Context // of VMCopyFrom
	vm     *row.VM
	resp   *http.Response
	late   *time.Timer
	cancel context.CancelCauseFunc
}

func (b *archiveBody) Read(p []byte) (int, error) {
	b.late.Reset(archiveIdle)
	n, err := b.resp.Body.Read(p)
	b.late.Stop()
	if err != io.EOF { //nolint:errorlint // it is bare
		return n, err
	}
	if text := b.resp.Trailer.Get(wire.TrailerError); text != "" {
		err = b.d.fileError(b.ctx, b.vm, readAgentError(http.StatusInternalServerError, []byte(text)))
	}
	return n, err
}

func (b *archiveBody) Close() error {
	b.late.Stop()
	b.cancel(nil)
	return b.resp.Body.Close()
}

// VMCopyTo unpacks an archive into a directory of a VM; with keep files belong to
// whom the archive says. r may still be read from for a moment when it has
// failed. Codes as VMCopyFrom's.
func (d *Daemon) VMCopyTo(ctx context.Context, name, path string, keep bool, r io.Reader) error {
	vm, a, err := d.reachFiles(ctx, name, path)
	if err != nil {
		return err
	}
	moving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(archiveIdle, func() { cancel(errStalled) })
	defer late.Stop()
	out, in := io.Pipe() // package http waits for its body's Read, which may block longer than ctx lasts
	defer out.Close()
	defer context.AfterFunc(moving, func() { out.CloseWithError(context.Cause(moving)) })()
	go func() {
		_, err := io.CopyBuffer(in, r, make([]byte, archiveBuffer))
		in.CloseWithError(err) // nil is io.EOF
	}()
	resp, err := a.files(moving, http.MethodPut, wire.PathArchive, path, "keep", keep, &pausedReader{out, late})
	if err != nil {
		return d.fileError(ctx, &vm, err)
	}
	return resp.Body.Close()
}

// pausedReader stops the clock of a guest while somebody else is waited for.
type pausedReader struct {
	r    io.Reader
	late *time.Timer
}

func (p *pausedReader) Read(b []byte) (int, error) {
	p.late.Stop()
	n, err := p.r.Read(b)
	p.late.Reset(archiveIdle)
	return n, err
}
