package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Wait is what a call waits for before it returns. The zero value waits for
// nothing. When Timeout (0: the daemon's default of a minute) is over the error
// has api.CodeTimeout; the change itself stands.
type Wait struct {
	For     api.VMWait
	Timeout time.Duration
}

func (w Wait) query() url.Values {
	q := url.Values{}
	if w.For != api.WaitNone {
		q.Set("wait", string(w.For))
		if w.Timeout != 0 {
			q.Set("timeout", w.Timeout.String())
		}
	}
	return q
}

func vmPath(name, rest string) string { return "/vms/" + url.PathEscape(name) + rest }

// CreateVM creates a VM.
func (c *Client) CreateVM(ctx context.Context, req api.VMCreate, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/vms", query: w.query()}, req, &vm)
	return vm, err
}

// VM returns one VM, by name or id, after it got where w says.
func (c *Client) VM(ctx context.Context, name string, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: vmPath(name, ""), query: w.query()}, nil, &vm)
	return vm, err
}

// VMs lists VMs; total is how many match f without its limit and offset.
func (c *Client) VMs(ctx context.Context, f api.VMFilter) (vms []api.VM, total int, err error) {
	q := url.Values{}
	for _, s := range f.Status {
		q.Add("status", string(s))
	}
	set(q, "plugin", f.Plugin)
	set(q, "q", f.Query)
	set(q, "selector", f.Selector.String())
	setInt(q, "limit", uint64(f.Limit))
	setInt(q, "offset", uint64(f.Offset))
	set(q, "sort", f.Sort)
	if f.Desc {
		q.Set("order", "desc")
	}
	h, err := c.call(ctx, request{method: http.MethodGet, path: "/vms", query: q}, nil, &vms)
	if err != nil {
		return nil, 0, err
	}
	total, err = strconv.Atoi(h.Get(api.HeaderTotalCount))
	if err != nil {
		return nil, 0, api.Errorf(api.CodeInternal, "volantd's list of VMs lacks the header %s", api.HeaderTotalCount)
	}
	return vms, total, nil
}

// StartVM starts a VM. It is idempotent.
func (c *Client) StartVM(ctx context.Context, name string, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/start"), query: w.query()}, nil, &vm)
	return vm, err
}

// StopVM stops a VM. It is idempotent.
func (c *Client) StopVM(ctx context.Context, name string, how api.VMStop, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/stop"), query: w.query()}, how, &vm)
	return vm, err
}

// RestartVM stops a VM and starts it again.
func (c *Client) RestartVM(ctx context.Context, name string, how api.VMStop, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/restart"), query: w.query()}, how, &vm)
	return vm, err
}

// PauseVM lets a running VM stand still. It is idempotent.
func (c *Client) PauseVM(ctx context.Context, name string, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/pause"), query: w.query()}, nil, &vm)
	return vm, err
}

// ResumeVM lets a paused VM go on. It is idempotent.
func (c *Client) ResumeVM(ctx context.Context, name string, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/resume"), query: w.query()}, nil, &vm)
	return vm, err
}

// ScaleVM changes the size of a VM.
func (c *Client) ScaleVM(ctx context.Context, name string, in api.VMScale, w Wait) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/scale"), query: w.query()}, in, &vm)
	return vm, err
}

// DeleteVM stops and deletes a VM.
func (c *Client) DeleteVM(ctx context.Context, name string, how api.VMStop, w Wait) error {
	q := w.query()
	setInt(q, "grace_seconds", uint64(how.GraceSeconds))
	if how.Force {
		q.Set("force", "true")
	}
	_, err := c.call(ctx, request{method: http.MethodDelete, path: vmPath(name, ""), query: q}, nil, nil)
	return err
}

// RenameVM gives a VM another name.
func (c *Client) RenameVM(ctx context.Context, name, to string) (vm api.VM, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: vmPath(name, "/rename")}, api.VMRename{Name: to}, &vm)
	return vm, err
}

// VMConfig returns a version of a VM's configuration, the newest for 0.
func (c *Client) VMConfig(ctx context.Context, name string, version int) (v api.VMConfigVersion, err error) {
	q := url.Values{}
	setInt(q, "version", uint64(version))
	_, err = c.call(ctx, request{method: http.MethodGet, path: vmPath(name, "/config"), query: q}, nil, &v)
	return v, err
}

// VMConfigHistory returns versions of a VM's configuration, the newest first, at
// most limit; 0 for all that are kept.
func (c *Client) VMConfigHistory(ctx context.Context, name string, limit int) (list []api.VMConfigVersion, err error) {
	q := url.Values{}
	setInt(q, "limit", uint64(limit))
	_, err = c.call(ctx, request{method: http.MethodGet, path: vmPath(name, "/config/history"), query: q}, nil, &list)
	return list, err
}

// SetVMConfig makes a further version of a VM's configuration. The daemon says
// itself who asks.
func (c *Client) SetVMConfig(ctx context.Context, name string, in api.VMConfigChange) (v api.VMConfigVersion, err error) {
	q := url.Values{}
	setInt(q, "version", uint64(in.Version))
	setInt(q, "expect", uint64(in.Expect))
	if in.Restart {
		q.Set("restart", "true")
	}
	var body any
	if len(in.Patch) > 0 {
		body = in.Patch
	}
	_, err = c.call(ctx, request{method: http.MethodPatch, path: vmPath(name, "/config"), query: q}, body, &v)
	return v, err
}

// VMTimeline returns the steps of the VM's last start.
func (c *Client) VMTimeline(ctx context.Context, name string) (tl api.Timeline, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: vmPath(name, "/timeline")}, nil, &tl)
	return tl, err
}

// CallVM sends a request to the VM's workload. path begins with "/" and may have
// a query; size is that of body, or -1 when it is not known. The response is the
// workload's, or that of the daemon when it has no way to the workload, which
// carries an api.ErrorBody. The caller closes the response's body.
func (c *Client) CallVM(ctx context.Context, name, method, path string, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	return c.roundTrip(ctx, request{method: method, path: vmPath(name, "/agent"+path), header: header, body: body, size: size})
}

// selecting is the query that asks for what sel selects.
func selecting(sel api.Selector) url.Values {
	q := url.Values{}
	set(q, "selector", sel.String())
	return q
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

func setTime(q url.Values, name string, t time.Time) {
	if !t.IsZero() {
		q.Set(name, t.UTC().Format(time.RFC3339Nano))
	}
}

func setInt(q url.Values, name string, value uint64) {
	if value != 0 {
		q.Set(name, strconv.FormatUint(value, 10))
	}
}
