package cloudhypervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxAnswer bounds what is read of an answer, in bytes. vm.info of a machine
	// with all its devices has some 20 KiB.
	maxAnswer = 4 << 20
	// maxQuoted bounds what an error tells of an answer, in bytes.
	maxQuoted = 2000
)

// Endpoints of the API.
const (
	opPing     = "vmm.ping"
	opQuit     = "vmm.shutdown"
	opCreate   = "vm.create"
	opBoot     = "vm.boot"
	opInfo     = "vm.info"
	opCounters = "vm.counters"
	opPause    = "vm.pause"
	opResume   = "vm.resume"
	opButton   = "vm.power-button"
	opAddNet   = "vm.add-net"
	opAddDisk  = "vm.add-disk"
	opRemove   = "vm.remove-device"
	opResize   = "vm.resize"
	opSnapshot = "vm.snapshot"
	opRestore  = "vm.restore"
)

// budget is how long a call may take. They are generous: one thread serves all
// calls, and a busy host may not run it for a second or two.
func budget(op string) time.Duration {
	switch op {
	case opBoot:
		return time.Minute // 16 ms measured; but it reads kernel and initramfs from disks that may be slow
	case opSnapshot, opRestore:
		return 10 * time.Minute // which read or write all the memory
	case opQuit:
		return 2 * time.Second // SIGKILL follows
	}
	return 10 * time.Second
}

// client speaks to the API of one VMM. Each call has a connection of its own,
// one at a time: the server serves ten, and no two calls at once. It is safe for
// concurrent use.
type client struct {
	http   *http.Client
	socket string
	budget func(op string) time.Duration
}

func newClient(socket string, budget func(string) time.Duration) *client {
	return &client{socket: socket, budget: budget, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, DisableCompression: true, MaxConnsPerHost: 1,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// apiError is an answer that says no. Its text is for people: it differs between
// versions, as does the status.
type apiError struct {
	endpoint string
	status   int
	chain    []string // outermost first; nil when the answer is not the usual one
	raw      []byte
}

func (e *apiError) Error() string {
	text := strings.Join(e.chain, ": ")
	if e.chain == nil {
		text = string(e.raw)
	}
	if len(text) > maxQuoted {
		text = text[:maxQuoted]
	}
	return fmt.Sprintf("%s: status %d: %q", e.endpoint, e.status, text)
}

// get calls an endpoint that only tells, and decodes its answer into out.
func (c *client) get(ctx context.Context, op string, out any) error {
	return c.do(ctx, http.MethodGet, op, nil, out)
}

// put calls an endpoint that does something. body is nil for those that take
// none: they refuse one. The files, which stay the caller's, go with the request
// to one of the endpoints that take some.
func (c *client) put(ctx context.Context, op string, body any, files ...*os.File) error {
	return c.do(ctx, http.MethodPut, op, body, nil, files...)
}

func (c *client) do(ctx context.Context, method, op string, body, out any, files ...*os.File) error {
	limit := c.budget(op)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	answer, err := c.send(ctx, method, op, body, files)
	if err == nil && out != nil {
		err = json.Unmarshal(answer, out)
	}
	var refused *apiError
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	return &brokenError{op, err}
}

// brokenError is a call that came to no answer, or to one that is none, for
// another reason than the time.
type brokenError struct {
	endpoint string
	err      error
}

func (e *brokenError) Error() string { return e.endpoint + ": " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

func (c *client) send(ctx context.Context, method, op string, body any, files []*os.File) ([]byte, error) {
	// A reader of known length, for the server refuses chunks.
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost/api/v1/"+op, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	var resp *http.Response
	if len(files) == 0 {
		resp, err = c.http.Do(req)
	} else {
		resp, err = c.sendFiles(req, files)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 == 2 {
		return answer, err
	}
	// Of a refusal what could be read is better than nothing.
	refused := &apiError{endpoint: op, status: resp.StatusCode, raw: answer}
	if json.Unmarshal(answer, &refused.chain) != nil {
		refused.chain = nil
	}
	return nil, refused
}

// sendFiles sends a request in one message with the files (SCM_RIGHTS of
// unix(7)), as the server wants it, and net/http cannot.
func (c *client) sendFiles(req *http.Request, files []*os.File) (*http.Response, error) {
	var d net.Dialer
	dialed, err := d.DialContext(req.Context(), "unix", c.socket)
	if err != nil {
		return nil, err
	}
	conn := dialed.(*net.UnixConn)
	stop := context.AfterFunc(req.Context(), func() { conn.Close() }) // which breaks what waits on it
	fail := func(err error) (*http.Response, error) {
		stop()
		conn.Close() // the call has failed
		return nil, err
	}
	var message bytes.Buffer
	req.Close = true
	if err := req.Write(&message); err != nil {
		return fail(err)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	n, _, err := conn.WriteMsgUnix(message.Bytes(), unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	if err == nil && n < message.Len() {
		_, err = conn.Write(message.Bytes()[n:])
	}
	if err != nil {
		return fail(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
	if err != nil {
		return fail(err)
	}
	resp.Body = &body{resp.Body, conn, stop}
	return resp, nil
}

// body is an answer's, with the connection that it comes by.
type body struct {
	io.ReadCloser
	conn io.Closer
	stop func() bool
}

func (b *body) Close() error {
	b.stop()
	return errors.Join(b.ReadCloser.Close(), b.conn.Close())
}

// close ends what connections there are.
func (c *client) close() { c.http.CloseIdleConnections() }

// ping is the answer of vmm.ping.
type ping struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
}

// States that vm.info tells. After a shutdown the machine counts as created.
const (
	stateCreated  = "Created"
	stateRunning  = "Running"
	statePaused   = "Paused"
	stateShutdown = "Shutdown"
)

// info is what is used of the answer of vm.info.
type info struct {
	State  string `json:"state"`
	Config stored `json:"config"`
	// Devices are those that the guest has, by id, also while it is asked to let
	// go of one that the configuration has no more.
	Devices map[string]json.RawMessage `json:"device_tree"`
}
