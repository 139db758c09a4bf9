package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

const (
	// attachWait is how long an attach waits for a VM that is on its way,
	// beyond Config.BootTimeout: for its turn to boot.
	attachWait = 30 * time.Second
	// attachPause lies between two tries to reach an agent that is not up yet.
	attachPause = 20 * time.Millisecond
	// farewell is how long a guest whose workload has ended is kept for those
	// who are attached to hear of that. An honest client takes milliseconds.
	farewell = 5 * time.Second
)

// agentError is an answer of the agent that is not a success.
type agentError struct {
	status  int
	message string
	code    wire.ErrorCode // of the routes that have codes
}

func (e *agentError) Error() string { return e.message }

// session asks the agent to switch to stdio.Protocol and returns the connection,
// which the caller closes. ctx bounds the asking only.
func (a *agent) session(ctx context.Context, path string, body any) (io.ReadWriteCloser, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "http", Host: "agent", Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", stdio.Protocol)
	resp, err := a.rt.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %s: %w", path, err)
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if ok && resp.StatusCode == http.StatusSwitchingProtocols && resp.Header.Get("Upgrade") == stdio.Protocol {
		return conn, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode/100 == 2 {
		return nil, fmt.Errorf("agent: %s: it did not switch to %s", path, stdio.Protocol)
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status alone says enough
	var e wire.Error
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = "no message"
	}
	return nil, &agentError{status: resp.StatusCode, message: clip(e.Message, maxStepText)}
}

// VMExec runs a command in a VM beside its workload, and returns the connection
// with it, which speaks stdio.Protocol and which the caller closes. Codes:
// invalid, too_large, not_found, conflict (the VM or its workload does not run),
// unsupported (no agent), exhausted (api.MaxExecs), unavailable.
func (d *Daemon) VMExec(ctx context.Context, name string, e api.Exec) (io.ReadWriteCloser, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	vm, a, err := d.reach(ctx, name, "commands run in a VM that is running")
	if err != nil {
		return nil, err
	}
	in := wire.Exec{
		Args: e.Args, Workdir: e.Workdir, User: e.User, TTY: e.TTY, Stdin: e.Stdin, Rows: e.Rows, Cols: e.Cols, Term: e.Term,
	}
	for _, k := range slices.Sorted(maps.Keys(e.Env)) {
		in.Env = append(in.Env, k+"="+e.Env[k])
	}
	asking, cancel := context.WithTimeout(ctx, d.t.silence)
	defer cancel()
	conn, err := a.session(asking, wire.PathExec, in)
	if err != nil {
		return nil, d.sessionError(ctx, &vm, err)
	}
	return conn, nil
}

// VMAttach connects with the workload of a VM, as VMExec with a command. A VM
// that is pending or starting is waited for. Codes as VMExec, and timeout.
func (d *Daemon) VMAttach(ctx context.Context, name string) (io.ReadWriteCloser, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := d.hasAgent(ctx, &vm); err != nil {
		return nil, err
	}
	// From now on the guest stays until this client has heard of its end.
	leave := d.visits.enter(vm.ID)
	conn, err := d.attach(ctx, vm)
	if err != nil {
		leave()
		return nil, err
	}
	return &visit{conn, sync.OnceFunc(leave)}, nil
}

// attach tries until the agent answers, or the VM is in no state to wait for.
func (d *Daemon) attach(ctx context.Context, vm row.VM) (io.ReadWriteCloser, error) {
	waiting, cancel := context.WithTimeout(ctx, d.cfg.BootTimeout+attachWait)
	defer cancel()
	for {
		switch vm.Status {
		case api.VMPending, api.VMStarting, api.VMRunning:
		default:
			return nil, wrongState(&vm, "one attaches to a VM that is pending, starting or running")
		}
		if w := d.worker(vm.ID); w != nil {
			if a := w.agent.Load(); a != nil {
				conn, err := a.session(waiting, wire.PathAttach, struct{}{})
				var said *agentError
				if err == nil {
					return conn, nil
				}
				if errors.As(err, &said) {
					return nil, d.sessionError(ctx, &vm, err)
				}
			}
		}
		select {
		case <-time.After(attachPause):
		case <-waiting.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, api.Errorf(api.CodeTimeout, "VM %s is %s and its agent does not answer", vm.Name, vm.Status).
				WithHint("volar vms logs --console %s shows how far it is", vm.Name)
		case <-d.stopping:
			return nil, api.Errorf(api.CodeUnavailable, "volantd is stopping; VM %s is %s", vm.Name, vm.Status)
		}
		now, err := d.store.VMByID(waiting, vm.ID)
		switch {
		case errors.Is(err, row.ErrNotFound):
			return nil, d.goneError(&vm)
		case err == nil:
			vm = now
		case waiting.Err() == nil:
			return nil, d.publicError("attach to VM", err)
		}
	}
}

// hasAgent refuses a VM that has no agent.
func (d *Daemon) hasAgent(ctx context.Context, vm *row.VM) error {
	m, err := d.store.Manifest(ctx, vm.Manifest)
	if err != nil {
		return d.publicError("get manifest", err)
	}
	if agentKind(&m) == api.AgentNone {
		return api.Errorf(api.CodeUnsupported, "VM %s has no agent: its archive brings its own /init", vm.Name).
			WithHint("volar vms logs --console %s shows what it prints", vm.Name)
	}
	return nil
}

// wrongState is the error for a VM that is not in the state for a session.
func wrongState(vm *row.VM, allowed string) error {
	e := api.Errorf(api.CodeConflict, "VM %s is %s; %s", vm.Name, vm.Status, allowed)
	switch vm.Status {
	case api.VMStopped, api.VMCrashed, api.VMFailed:
		return e.WithHint("volar vms start %s", vm.Name)
	case api.VMPending, api.VMStarting:
		return e.WithHint("volar vms start %s waits until it runs", vm.Name)
	case api.VMPaused:
		return e.WithHint("volar vms resume %s lets it go on", vm.Name)
	}
	return e
}

func silentAgent(vm *row.VM) error {
	return api.Errorf(api.CodeUnavailable, "the agent of VM %s does not answer", vm.Name).
		WithHint("try again; volar vms logs --console %s shows what its kernel says", vm.Name)
}

// sessionError says why the agent did not open a session.
func (d *Daemon) sessionError(ctx context.Context, vm *row.VM, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var said *agentError
	if !errors.As(err, &said) {
		d.log.Debug("no session", keyVM, vm.ID, keyErr, err)
		return silentAgent(vm)
	}
	switch said.status {
	case http.StatusBadRequest:
		return api.Errorf(api.CodeInvalid, "the agent of VM %s refuses: %s", vm.Name, said.message)
	case http.StatusConflict:
		return api.Errorf(api.CodeConflict, "VM %s: %s", vm.Name, said.message)
	case http.StatusTooManyRequests:
		return api.Errorf(api.CodeExhausted, "VM %s: %s", vm.Name, said.message)
	case http.StatusNotFound:
		return api.Errorf(api.CodeUnsupported, "the agent of VM %s is of an earlier version, and cannot do that", vm.Name).
			WithHint("volar vms restart %s gives it this one's", vm.Name)
	}
	return api.Errorf(api.CodeUnavailable, "the agent of VM %s refuses: %s", vm.Name, said.message)
}

// visit is a connection that its guest's end waits for.
type visit struct {
	io.ReadWriteCloser
	leave func()
}

func (v *visit) Close() error {
	err := v.ReadWriteCloser.Close()
	v.leave()
	return err
}

// visits counts who is attached, or waits to be. The zero value is ready for
// use, and safe for concurrent use.
type visits struct {
	mu sync.Mutex
	vm map[string]*visitors // by id; guarded by mu, as is what it holds
}

type visitors struct {
	n    int
	none chan struct{} // closed when the last has left
}

// enter counts one in, and returns what counts it out; that is called once.
func (v *visits) enter(id string) (leave func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.vm == nil {
		v.vm = make(map[string]*visitors)
	}
	here := v.vm[id]
	if here == nil {
		here = &visitors{none: make(chan struct{})}
		v.vm[id] = here
	}
	here.n++
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if here.n--; here.n == 0 {
			close(here.none)
			delete(v.vm, id)
		}
	}
}

// wait waits until all who are there now have left, at most d.
func (v *visits) wait(ctx context.Context, id string, d time.Duration) {
	v.mu.Lock()
	here := v.vm[id]
	v.mu.Unlock()
	if here == nil {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-here.none:
	case <-t.C:
	case <-ctx.Done():
	}
}
