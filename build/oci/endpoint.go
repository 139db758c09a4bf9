package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/volantvm/volant/client/api"
)

// Waits. Registries behind slow disks and proxies take their time; one that is
// silent for longer is down.
const (
	dialTimeout   = 30 * time.Second
	headerTimeout = 60 * time.Second // until a response begins
	stallTimeout  = 60 * time.Second // without a byte of a body
	maxRetryAfter = 30 * time.Second // more than that is not waited for
	maxErrorBody  = 64 << 10         // bytes read of an error's body
)

// endpoint is one end that an image may come from: its registry, or a mirror.
type endpoint struct {
	host       string
	repository string
	mirror     bool
	plain      bool // without TLS
	auth       *api.RegistryAuth
	userAgent  string
	guard      *guard
	pause      time.Duration // before the first retry

	mu     sync.Mutex
	client *http.Client // once logged in
	err    error        // why that did not work; once is enough for one pull
}

func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    parallel + 1,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true, // digests are of bytes as they are stored
		MaxResponseHeaderBytes: 1 << 20,
	}
}

// guard lets nothing out without TLS but to the hosts named for it, and
// nothing with TLS to those: go-containerregistry would decide by the looks of
// a name, and a redirect or a token server's address could be anything.
type guard struct {
	base  http.RoundTripper
	plain []string

	mu     sync.Mutex
	failed error // the last error that was not the guard's own
}

// plainError: a request without TLS was asked for, and refused.
type plainError struct{ host string }

func (e *plainError) Error() string { return "refusing to speak to " + e.host + " without TLS" }

// tlsError: a host named as plain was about to be spoken to with TLS.
type tlsError struct{ host string }

func (e *tlsError) Error() string { return e.host + " is named as a registry without TLS" }

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch plain := g.allowed(req.URL.Host); {
	case req.URL.Scheme == "http" && !plain:
		return nil, &plainError{req.URL.Host}
	case req.URL.Scheme == "https" && plain:
		return nil, &tlsError{req.URL.Host}
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		g.mu.Lock()
		g.failed = err
		g.mu.Unlock()
	}
	return resp, err
}

// cause finds, in an error of a handshake with host that was tried with and
// without TLS, the error of the try that the guard let through.
func (g *guard) cause(host string, err error) error {
	var te *tlsError
	var pe *plainError
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed != nil && (errors.As(err, &te) || errors.As(err, &pe) && pe.host == host) {
		return g.failed
	}
	return err
}

// allowed reports whether host is named as one without TLS. Port 80 need not
// be written.
func (g *guard) allowed(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, ":80"))
	for _, p := range g.plain {
		if strings.ToLower(strings.TrimSuffix(p, ":80")) == host {
			return true
		}
	}
	return false
}

// login returns the client for the endpoint, after the handshake in which it
// says what login it wants.
func (e *endpoint) login(ctx context.Context, ref Reference) (*http.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil || e.err != nil {
		return e.client, e.err
	}
	var options []name.Option
	if e.plain {
		options = append(options, name.Insecure)
	}
	reg, err := name.NewRegistry(e.host, options...)
	if err != nil {
		return nil, errorf(ErrReference, "registry %s: %w", e.host, err)
	}
	auth := authn.Anonymous
	if a := e.auth; a != nil {
		auth = authn.FromConfig(authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken})
	}
	var rt http.RoundTripper
	err = retry(ctx, e.pause, func() (bool, error) {
		var err error
		rt, err = transport.NewWithContext(ctx, reg, auth, transport.NewUserAgent(e.guard, e.userAgent), []string{reg.Repo(e.repository).Scope(transport.PullScope)})
		return false, e.failure(ref, "", err)
	})
	if err != nil {
		if ctx.Err() == nil {
			e.err = err
		}
		return nil, err
	}
	e.client = &http.Client{Transport: rt}
	return e.client, nil
}

// get asks for a path below the repository and returns a response of status
// 200 or, where the header asks for a range, 206 or 416. Its body fails when nothing
// comes for a while; the caller closes it.
func (e *endpoint) get(ctx context.Context, ref Reference, path, what string, header http.Header) (*http.Response, error) {
	client, err := e.login(ctx, ref)
	if err != nil {
		return nil, err
	}
	scheme := "https"
	if e.plain {
		scheme = "http"
	}
	reg, err := name.NewRegistry(e.host) // docker.io has another host name
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+reg.RegistryStr()+"/v2/"+e.repository+"/"+path, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range header {
		if v != nil {
			req.Header[k] = v
		}
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, e.failure(ref, what, err)
	}
	switch ranged := req.Header.Get("Range") != ""; {
	case resp.StatusCode == http.StatusOK,
		ranged && (resp.StatusCode == http.StatusPartialContent || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		resp.Body = &stallReader{body: resp.Body, timer: time.AfterFunc(stallTimeout, func() { cancel(errStalled) }), cancel: cancel, cause: func() error { return context.Cause(ctx) }}
		return resp, nil
	}
	defer cancel(nil)
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	te := &transport.Error{StatusCode: resp.StatusCode}
	_ = json.Unmarshal(body, te) // not every registry sends its codes
	return nil, e.failure(ref, what, &statusError{te, resp.Header.Get("Retry-After")})
}

var errStalled = errors.New("nothing came for a minute")

// stallReader cancels a response's body when nothing comes.
type stallReader struct {
	body   io.ReadCloser
	timer  *time.Timer
	cause  func() error // of the request's cancellation
	cancel context.CancelCauseFunc
}

func (r *stallReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	if n > 0 {
		r.timer.Reset(stallTimeout)
	}
	if err != nil && err != io.EOF && r.cause() == errStalled {
		err = &temporary{errStalled, 0}
	}
	return n, err
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	err := r.body.Close()
	r.cancel(nil)
	return err
}

// statusError is an answer that refuses.
type statusError struct {
	err        *transport.Error
	retryAfter string
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// temporary is a failure that may pass: try again after a while.
type temporary struct {
	err   error
	after time.Duration
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

// failure says what an error of the endpoint means for the image; what names
// the part of it that was asked for, if it was not the image itself.
func (e *endpoint) failure(ref Reference, what string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || isOurs(err) {
		return err
	}
	subject := ref.String()
	if what != "" {
		subject += ": " + what
	}
	var te *transport.Error
	if errors.As(err, &te) {
		return e.refusal(subject, te, err)
	}
	err = e.guard.cause(e.host, err)
	var pe *plainError
	var record tls.RecordHeaderError
	var unknownCA x509.UnknownAuthorityError
	var badCert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return errorf(ErrUnavailable, "%s: %s speaks plain HTTP: if that is meant, name it among the plain-HTTP registries", subject, e.host)
	case errors.As(err, &unknownCA), errors.As(err, &badCert):
		return errorf(ErrUnavailable, "%s: the certificate of %s is not trusted: %w", subject, e.host, err)
	case errors.As(err, &pe) && pe.host != e.host:
		return errorf(ErrUnavailable, "%s: %s sends us to %s, without TLS: if that is meant, name it among the plain-HTTP registries", subject, e.host, clip(pe.host))
	}
	out := errorf(ErrUnavailable, "%s: cannot reach %s: %w", subject, e.host, err)
	var ne net.Error
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, errStalled) || errors.As(err, &ne) && ne.Timeout() {
		return &temporary{out, 0}
	}
	return out
}

// refusal translates a status and the codes of the distribution specification.
func (e *endpoint) refusal(subject string, te *transport.Error, err error) error {
	said := "status " + strconv.Itoa(te.StatusCode)
	for _, d := range te.Errors[:min(len(te.Errors), 3)] {
		said += ", " + clip(string(d.Code)+": "+d.Message)
	}
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if e.mirror {
			return errorf(ErrUnauthorized, "%s: the mirror %s refuses access (%s): mirrors are asked without login", subject, e.host, said)
		}
		if e.auth != nil {
			return errorf(ErrUnauthorized, "%s: %s refuses these credentials (%s): log in again with docker login %s", subject, e.host, said, e.host)
		}
		return errorf(ErrUnauthorized, "%s: %s refuses access (%s): the image is private or does not exist; log in with docker login %s", subject, e.host, said, e.host)
	case http.StatusNotFound:
		return errorf(ErrNotFound, "%s: %s does not have it (%s)", subject, e.host, said)
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		var after time.Duration
		var se *statusError
		if errors.As(err, &se) {
			if n, err := strconv.Atoi(se.retryAfter); err == nil && n > 0 {
				after = time.Duration(min(n, 1<<20)) * time.Second
			}
		}
		return &temporary{errorf(ErrUnavailable, "%s: %s cannot serve now (%s): try again later", subject, e.host, said), after}
	}
	return errorf(ErrUnavailable, "%s: %s answers with %s", subject, e.host, said)
}

// isOurs reports whether err was made by this package already.
func isOurs(err error) bool {
	var f *fault
	return errors.As(err, &f)
}

// Retrying what may pass: five tries in a row without progress, the pause
// between them doubling from half a second.
const (
	maxAttempts = 5
	maxTries    = 50 // with progress between them
	firstPause  = 500 * time.Millisecond
)

// retry calls try until it succeeds or fails for good. A try that moved on
// counts as a first one, up to a bound.
func retry(ctx context.Context, first time.Duration, try func() (progress bool, err error)) error {
	pause, failed := first, 0
	for n := 1; ; n++ {
		progress, err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if progress {
			pause, failed = first, 0
		}
		failed++
		var t *temporary
		if !errors.As(err, &t) || failed >= maxAttempts || n >= maxTries || t.after > maxRetryAfter {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(max(pause, t.after)):
		}
		pause *= 2
	}
}
