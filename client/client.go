package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api"
)

const (
	dialTimeout = 5 * time.Second
	// patience is how long the daemon may take to answer, beyond what it was asked
	// to wait for. It is to answer in milliseconds, but a host can be busy.
	patience   = time.Minute
	maxReply   = 64 << 20 // bytes of a JSON reply; some 60,000 VMs
	maxErrBody = 1 << 20  // bytes of an error's body
	maxLine    = 1 << 20  // bytes of one line of a stream
	// resendFor is how long a request is sent again whose connection was lost: a
	// restart of volantd takes a second or two.
	resendFor = 30 * time.Second
)

// Config says how to reach a daemon.
type Config struct {
	// Addr is "unix:///path" or an absolute path; empty means api.DefaultSocket.
	Addr string
	// Version is the caller's own, sent as user agent.
	Version string
	// OnVersion is called once, with the daemon's version, after the first
	// response. It may be called from any goroutine. nil ignores it.
	OnVersion func(daemon string)
}

// Client speaks to one daemon. The zero value dials api.DefaultSocket. It is
// safe for concurrent use.
type Client struct {
	socket    string
	version   string
	onVersion func(string)

	initOnce    sync.Once
	http        *http.Client // set by initOnce
	versionOnce sync.Once
}

// New returns a Client. It dials nothing; the error is about c.Addr.
func New(c Config) (*Client, error) {
	socket, err := parseAddr(c.Addr)
	if err != nil {
		return nil, err
	}
	return &Client{socket: socket, version: c.Version, onVersion: c.OnVersion}, nil
}

func parseAddr(addr string) (string, error) {
	path := strings.TrimPrefix(addr, "unix://")
	switch {
	case addr == "":
		return api.DefaultSocket, nil
	case strings.Contains(path, "://"):
		return "", api.Errorf(api.CodeInvalid, "%q is not an address of volantd", addr).
			WithHint("give unix:///path/to/socket; other hosts are reached by forwarding it with ssh -L")
	case !strings.HasPrefix(path, "/"):
		return "", api.Errorf(api.CodeInvalid, "%q is not an address of volantd", addr).WithHint("the path of the socket must be absolute: unix:///path/to/socket")
	}
	return path, nil
}

// Addr returns where the daemon is, as "unix:///path".
func (c *Client) Addr() string {
	c.init()
	return "unix://" + c.socket
}

// Close drops idle connections. The Client stays usable.
func (c *Client) Close() {
	c.init()
	c.http.CloseIdleConnections()
}

func (c *Client) init() {
	c.initOnce.Do(func() {
		if c.socket == "" {
			c.socket = api.DefaultSocket
		}
		c.http = &http.Client{
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					d := net.Dialer{Timeout: dialTimeout}
					return d.DialContext(ctx, "unix", c.socket)
				},
				DisableCompression: true,
				IdleConnTimeout:    time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
}

// request is one call of a route.
type request struct {
	method string
	path   string // below api.Prefix, escaped
	root   bool   // path is not below api.Prefix
	query  url.Values
	header http.Header
	body   io.Reader
	size   int64 // of body when known; -1 otherwise
	slow   bool  // the body may take any time
}

// limit is how long the answer may take.
func (r request) limit() time.Duration {
	asked, err := time.ParseDuration(r.query.Get("timeout"))
	if err != nil && r.query.Has("wait") {
		asked = time.Minute // the daemon's default
	}
	return patience + asked
}

// send does the request and returns a response of success, whose body the
// caller closes.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	resp, err := c.roundTrip(ctx, r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	return nil, errors.Join(readError(resp), resp.Body.Close())
}

// roundTrip does the request and returns whatever response came.
func (c *Client) roundTrip(ctx context.Context, r request) (*http.Response, error) {
	c.init()
	target := r.path
	if !r.root {
		target = api.Prefix + r.path
	}
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://volant"+target, r.body)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%s %s: %v", r.method, r.path, err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.size != 0 {
		req.ContentLength = r.size
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", strings.TrimSuffix("volant/"+c.version, "/"))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if v := resp.Header.Get(api.HeaderVersion); v != "" && c.onVersion != nil {
		c.versionOnce.Do(func() { c.onVersion(v) })
	}
	return resp, nil
}

// call sends in, if any, as JSON and decodes the reply into out, if any.
func (c *Client) call(ctx context.Context, r request, in, out any) (http.Header, error) {
	var data []byte
	if in != nil {
		var err error
		if data, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r.header = http.Header{"Content-Type": {"application/json"}}
	}
	if r.method == http.MethodPost {
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header.Set(api.HeaderIdempotencyKey, rand.Text())
	}
	if !r.slow {
		silent := api.Errorf(api.CodeUnavailable, "%s did not answer within %v", c.Addr(), r.limit()).WithHint("is it volantd that listens there? see its log")
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.limit(), silent)
		defer cancel()
	}
	header, reply, err := c.exchange(ctx, r, in != nil, data)
	// The connection was lost, maybe since volantd was restarted. It may have done
	// what was asked; with the same key it is not done again.
	backoff, giveUp := minBackoff, time.Now().Add(resendFor)
	for connected := err == nil || !isDial(err); err != nil && connected && r.header.Get(api.HeaderIdempotencyKey) != "" && isLost(err) && time.Now().Before(giveUp); {
		if backoff, err = pause(ctx, backoff); err == nil {
			header, reply, err = c.exchange(ctx, r, in != nil, data)
		}
	}
	if err != nil {
		return nil, c.cause(ctx, err)
	}
	if out == nil {
		return header, nil
	}
	if len(reply) > maxReply {
		return nil, api.Errorf(api.CodeTooLarge, "volantd's reply to %s %s is larger than %d bytes", r.method, r.path, maxReply)
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return nil, api.Errorf(api.CodeInternal, "volantd's reply to %s %s does not parse: %v", r.method, r.path, err).
			WithHint("is it volantd that listens on %s?", c.socket)
	}
	return header, nil
}

// exchange sends a request, with data as its body if it has one, and returns the
// reply, of which it reads one byte more than maxReply at most.
func (c *Client) exchange(ctx context.Context, r request, hasBody bool, data []byte) (http.Header, []byte, error) {
	if hasBody {
		r.body, r.size = bytes.NewReader(data), int64(len(data))
	}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close() // read to its end below, or not worth keeping
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		err = c.transportError(ctx, err)
	}
	return resp.Header, reply, err
}

// lostError is a failure of the connection, after which it is not known whether
// the request was done.
type lostError struct {
	err  *api.Error
	dial bool // no connection was made
}

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}

func isDial(err error) bool {
	var lost *lostError
	return errors.As(err, &lost) && lost.dial
}

// readError returns the error that a response carries.
func readError(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrBody))
	var body api.ErrorBody
	if err != nil || json.Unmarshal(data, &body) != nil || body.Error.Code == "" {
		return api.Errorf(api.CodeInternal, "volantd answered %s without saying why", resp.Status)
	}
	return &body.Error
}

// transportError turns a failure to speak with the daemon into a sentence. Unless
// ctx has ended, or err says it already, it is a *lostError.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	var apiErr *api.Error
	if errors.As(err, &apiErr) {
		return err
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return &lostError{api.Errorf(api.CodeUnavailable, "the connection to volantd was lost: %v", unwrapURL(err)).WithHint("see volantd's log"), false}
	}
	return &lostError{c.dialError(err, op), true}
}

func (c *Client) dialError(err error, op *net.OpError) *api.Error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.CodeUnavailable, "volantd does not answer: there is no socket %s", c.socket).
			WithHint("start it as root with: volantd; or say where it listens with --host unix:///path")
	case errors.Is(err, syscall.ECONNREFUSED):
		return api.Errorf(api.CodeUnavailable, "volantd does not answer: nobody listens on %s", c.socket).
			WithHint("it has ended; start it as root with: volantd")
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf(api.CodeUnavailable, "volantd cannot be reached: permission denied on %s", c.socket).
			WithHint("run as root, or as a member of the socket's group")
	}
	return api.Errorf(api.CodeUnavailable, "volantd does not answer on %s: %v", c.socket, op.Err)
}

// unwrapURL takes off the URL that package http puts before its errors: the
// host in it means nothing on a socket.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
