package httpapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Time limits of a connection. There is no limit on a whole request: it would
// cut streams and long waits. Reads and writes are limited one by one.
const (
	headerTimeout   = 10 * time.Second // to send a request's header
	idleTimeout     = 2 * time.Minute  // between requests
	readTimeout     = 30 * time.Second // to send a JSON body, or the next piece of a blob
	writeTimeout    = 30 * time.Second // to take a reply, or the next piece of a stream
	unreadTimeout   = 5 * time.Second  // to send the rest of a body that was answered without it
	shutdownTimeout = 5 * time.Second  // for requests under way when the daemon ends
	heartbeat       = 15 * time.Second // between signs of life on a silent event stream
)

// Config is what a Server needs.
type Config struct {
	Service   Service
	Version   string
	Logger    *slog.Logger  // nil discards
	Heartbeat time.Duration // of event streams; 0 means 15 s
	Unread    time.Duration // how long a client may take to send the rest of a body that was answered without it; 0 means 5 s
}

// Server is the HTTP face of one daemon. It is safe for concurrent use.
type Server struct {
	svc       Service
	version   string
	log       *slog.Logger
	heartbeat time.Duration
	unread    time.Duration
	mux       *http.ServeMux

	joined    sync.WaitGroup // connections that were switched to another protocol
	closeOnce sync.Once
	closing   chan struct{} // closed when Serve ends; streams and waits end then
}

// New returns a Server, which is an http.Handler.
func New(c Config) *Server {
	s := &Server{svc: c.Service, version: c.Version, log: c.Logger, heartbeat: c.Heartbeat, unread: c.Unread, mux: http.NewServeMux(), closing: make(chan struct{})}
	if s.log == nil {
		s.log = discardLogger()
	}
	if s.heartbeat == 0 {
		s.heartbeat = heartbeat
	}
	if s.unread == 0 {
		s.unread = unreadTimeout
	}
	for _, rt := range routes() {
		s.mux.Handle(rt.pattern(), s.handler(rt))
	}
	return s
}

// Serve answers connections of ln until ctx ends, then ends streams and waits,
// gives other requests a short while, and closes ln. It returns nil when ctx
// ended it. A Server serves once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	hs := &http.Server{
		Handler:           s,
		ConnContext:       withPeer,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	s.closeOnce.Do(func() { close(s.closing) })
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := hs.Shutdown(bounded)
	if err != nil {
		err = hs.Close()
	}
	s.joined.Wait() // those end with closing
	if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) {
		return errors.Join(err, serveErr)
	}
	return err
}

// untilClosing returns a context that also ends when the server does.
func (s *Server) untilClosing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-s.closing:
			cancel(errClosing)
		case <-stop:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stop); cancel(context.Canceled) })
}

// errClosing is the cause of contexts that end because the daemon does.
var errClosing = &api.Error{Code: api.CodeUnavailable, Message: "volantd is ending", Hint: "VMs go on running; ask again when volantd is back"}

// response remembers what was sent. Unwrap lets http.ResponseController, and so
// flushing and upgrades, through.
type response struct {
	http.ResponseWriter
	status int

	kept     *keptResponse // what is sent, for a request with an idempotency key
	accepted bool          // the request took effect; what may fail yet is waiting
	failed   bool          // the reply says so further down
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.kept != nil {
		w.kept.write(b)
	}
	return w.ResponseWriter.Write(b)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start, id := time.Now(), rand.Text()[:16]
	w := &response{ResponseWriter: rw}
	w.Header().Set(api.HeaderVersion, s.version)
	w.Header().Set(api.HeaderRequestID, id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			s.log.Error("panic in a request", keyRequest, id, keyErr, v, "stack", string(debug.Stack()))
			if w.status != 0 {
				panic(http.ErrAbortHandler) // too late to say so: cut the reply short
			}
			s.fail(w, r, id, api.Errorf(api.CodeInternal, "volantd failed unexpectedly").WithHint("its log says more under request %s", id))
		}
		if w.status != 0 && w.status != http.StatusSwitchingProtocols {
			// Package http reads what is left of the body before the next request, with
			// no end to its patience. It sets deadlines of its own from then on.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.unread)) // not every connection has deadlines
		}
		s.log.Debug("request", keyRequest, id, keyMethod, r.Method, keyRoute, r.URL.Path, keyStatus, w.status, keyDur, time.Since(start))
	}()
	// A deadline of the connection's previous request still stands.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // not every writer has deadlines
	if err := checkOrigin(r); err != nil {
		s.fail(w, r, id, err)
		return
	}
	h, pattern := s.mux.Handler(r)
	switch {
	case pattern == "":
		s.unknownRoute(w, r, h)
	case path.Clean(r.URL.EscapedPath()) != r.URL.EscapedPath() && !strings.Contains(pattern, "{path...}"):
		// The mux would redirect; a client of this API that asks for such a
		// path is mistaken.
		s.unknownRoute(w, r, http.NotFoundHandler())
	default:
		s.mux.ServeHTTP(w, r)
	}
}

// unknownRoute answers for h, the mux's own refusal, in the API's form.
func (s *Server) unknownRoute(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &headerProbe{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if allow := probe.header.Get("Allow"); probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allow)
		e := api.Errorf(api.CodeInvalid, "%.20s is not a method of %.200q", r.Method, r.URL.Path).WithHint("it takes %s", allow)
		writeJSON(w, http.StatusMethodNotAllowed, api.ErrorBody{Error: *e})
		return
	}
	e := api.Errorf(api.CodeNotFound, "there is no route %.20s %.200q", r.Method, r.URL.Path).WithHint("GET /openapi describes the routes")
	writeJSON(w, http.StatusNotFound, api.ErrorBody{Error: *e})
}

// headerProbe takes a reply's status and header and drops its body.
type headerProbe struct {
	header http.Header
	status int
}

func (p *headerProbe) Header() http.Header         { return p.header }
func (p *headerProbe) WriteHeader(status int)      { p.status = status }
func (p *headerProbe) Write(b []byte) (int, error) { return len(b), nil }

// handler wraps one route: query check, then the route, then its error.
func (s *Server) handler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := checkQuery(r, rt.query)
		if strings.HasSuffix(rt.path, "/{path...}") {
			err = nil // the query is the workload's
		}
		if err == nil {
			err = s.serve(rt, w.(*response), r)
		}
		if err == nil {
			return
		}
		id := w.Header().Get(api.HeaderRequestID)
		if w.(*response).status != 0 {
			s.log.Debug("reply cut short", keyRequest, id, keyErr, err)
			return
		}
		s.fail(w, r, id, err)
	})
}

// checkOrigin refuses requests that a browser makes for a page from elsewhere.
// A Unix socket cannot be reached from a page.
func checkOrigin(r *http.Request) error {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "unix" {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
		return api.Errorf(api.CodeDenied, "the request calls this host %.80q", r.Host).
			WithHint("use its address or localhost: a name could have been pointed here by a web page (DNS rebinding)")
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Host != r.Host {
			return api.Errorf(api.CodeDenied, "the request comes from a web page of %.80q", origin).WithHint("pages of other origins may not use this API")
		}
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return api.Errorf(api.CodeDenied, "the request comes from a web page of another origin")
	}
	return nil
}

// writeJSON sends v. An error of writing means that the client is gone.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // a type of ours that has no JSON form
	}
	send(w, status, mediaJSON, buf.Bytes())
}

// send sends a reply that is whole.
func send(w http.ResponseWriter, status int, media string, body []byte) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))                        // it is whole before the request's end
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// decode reads the JSON body of r into dst.
func decode(w http.ResponseWriter, r *http.Request, dst any) error {
	data, err := readBody(w, r)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return api.Errorf(api.CodeInvalid, "the request has no body; send a JSON object")
	}
	return api.DecodeStrict(data, dst)
}

// decodeOptional is decode for a body that may be missing.
func decodeOptional(w http.ResponseWriter, r *http.Request, dst any) error {
	data, err := readBody(w, r)
	if err != nil || len(data) == 0 {
		return err
	}
	return api.DecodeStrict(data, dst)
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != mediaJSON {
		return nil, api.Errorf(api.CodeInvalid, "the request's Content-Type is %.80q", r.Header.Get("Content-Type")).WithHint("send Content-Type: %s", mediaJSON)
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readTimeout))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxManifestSize))
	// Unset, or the deadline would end a wait: the server goes on reading to
	// notice when the client leaves.
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, api.Errorf(api.CodeInvalid, "the request's body could not be read: %v", err)
	}
	return data, nil
}

// pathName returns the {name} of the path, checked. what says whose it is.
func pathName(what string, r *http.Request) (string, error) {
	name := r.PathValue("name")
	return name, api.ValidateName(what, name)
}
