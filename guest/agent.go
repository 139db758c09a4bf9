package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// maxBody bounds the bodies of the agent's own routes, in bytes, but for
	// wire.MaxExec and archives.
	maxBody = 64 << 10
	// maxHeader bounds a request's header, in bytes: proxied requests may carry
	// large cookies.
	maxHeader = 64 << 10
	// headerTimeout is how long a request's header may take.
	headerTimeout = 10 * time.Second
	// maxWait is the longest wait of PathStatus.
	maxWait = 60 * time.Second
	// logBatch is how many log entries are written between two flushes.
	logBatch = 256
)

// agent is the HTTP side of kestrel: one handler for every transport.
type agent struct {
	log      *slog.Logger
	hello    func() wire.Hello
	wake     func(context.Context, wire.Wake) (wire.Woken, error)
	shutdown func(wire.Shutdown)
	files    Files
	status   *status
	ring     *logRing
	hub      *hub
	commands *commands
	sessions *sessions
	archives *archives
	quit     <-chan struct{}        // closed when every request shall come to its end
	workload *httputil.ReverseProxy // nil where there is none to proxy to
}

// server makes the HTTP server for the agent's listeners.
func (a *agent) server() *http.Server {
	return &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

func (a *agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathHello, a.getHello)
	mux.HandleFunc("GET "+wire.PathStatus, a.getStatus)
	mux.HandleFunc("GET "+wire.PathLogs, a.getLogs)
	mux.HandleFunc("POST "+wire.PathShutdown, a.postShutdown)
	mux.HandleFunc("POST "+wire.PathWake, a.postWake)
	mux.HandleFunc("POST "+wire.PathExec, a.postExec)
	mux.HandleFunc("POST "+wire.PathAttach, a.postAttach)
	mux.HandleFunc("GET "+wire.PathMemory, a.getMemory)
	mux.HandleFunc("GET "+wire.PathStat, a.getStat)
	mux.HandleFunc("GET "+wire.PathArchive, a.getArchive)
	mux.HandleFunc("PUT "+wire.PathArchive, a.putArchive)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Errorf("the agent has no %s %s", r.Method, r.URL.Path))
	})
	proxy := http.StripPrefix(wire.PathWorkload, http.HandlerFunc(a.proxy))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Past the mux, which would clean the workload's paths.
		if r.URL.Path == wire.PathWorkload || strings.HasPrefix(r.URL.Path, wire.PathWorkload+"/") {
			proxy.ServeHTTP(w, r)
			return
		}
		limit := int64(maxBody)
		switch r.URL.Path {
		case wire.PathExec:
			limit = wire.MaxExec
		case wire.PathArchive:
			limit = math.MaxInt64 // of which nothing is kept in memory
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		mux.ServeHTTP(w, r)
	})
}

func (a *agent) getHello(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, a.hello())
}

func (a *agent) getStatus(w http.ResponseWriter, r *http.Request) {
	after, err := queryUint(r, "after")
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	var wait time.Duration
	if s := r.FormValue("wait"); s != "" {
		wait, err = time.ParseDuration(s)
		if err != nil || wait < 0 {
			writeError(w, http.StatusBadRequest, fmt.Errorf("wait: %q is not a duration", s))
			return
		}
	}
	if r.FormValue("after") == "" {
		wait = 0 // whatever it is, it is news
	}
	st := a.status.wait(r.Context(), a.quit, after, min(wait, maxWait))
	if writeJSON(w, http.StatusOK, st) == nil && http.NewResponseController(w).Flush() == nil {
		a.status.sent(st.Seq)
	}
}

func (a *agent) getLogs(w http.ResponseWriter, r *http.Request) {
	after, err := queryUint(r, "after")
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	follow := false
	if s := r.FormValue("follow"); s != "" {
		follow, err = strconv.ParseBool(s)
		if err != nil {
			writeError(w, http.StatusBadRequest, fmt.Errorf("follow: %q is neither true nor false", s))
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w).Flush
	var buf []byte
	for {
		entries, more := a.ring.since(after, logBatch)
		for i := range entries {
			buf = appendEntry(buf[:0], &entries[i])
			if _, err := w.Write(buf); err != nil {
				return
			}
			after = entries[i].Seq
		}
		if flush() != nil {
			return
		}
		if len(entries) == logBatch {
			continue
		}
		if !follow {
			return
		}
		select {
		case <-more:
		case <-a.quit:
			follow = false // once more for what came last
		case <-r.Context().Done():
			return
		}
	}
}

func (a *agent) postShutdown(w http.ResponseWriter, r *http.Request) {
	var req wire.Shutdown
	if err := readJSON(r, &req); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush()
	a.shutdown(req)
}

func (a *agent) proxy(w http.ResponseWriter, r *http.Request) {
	if a.workload == nil {
		writeError(w, http.StatusNotFound, errors.New("the workload has no base_url to proxy to"))
		return
	}
	// Otherwise the server reads the whole request before it sends a response.
	_ = http.NewResponseController(w).EnableFullDuplex()
	a.workload.ServeHTTP(w, r)
}

// newProxy makes the proxy to a workload's base URL. It streams in both
// directions, passes upgrades on, and keeps the Host and the forwarding headers
// that the host set.
func newProxy(base string, log *slog.Logger) (*httputil.ReverseProxy, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	return &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(u)
			pr.Out.Host = pr.In.Host
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery // also what does not parse: the workload may know better
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := pr.In.Header[name]; ok {
					pr.Out.Header[name] = v
				}
			}
		},
		Transport: &http.Transport{
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     30 * time.Second,
		},
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return // nobody is left to answer
			}
			writeError(w, http.StatusBadGateway, fmt.Errorf("the workload does not answer: %w", err))
		},
	}, nil
}

func queryUint(r *http.Request, name string) (uint64, error) {
	s := r.FormValue(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", name, s)
	}
	return n, nil
}

// readJSON reads a body, which may be empty.
func readJSON(r *http.Request, v any) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b))) // it is whole before the request's end
	w.WriteHeader(code)
	_, err = w.Write(b)
	return err
}

func writeError(w http.ResponseWriter, code int, err error) {
	_ = writeJSON(w, code, wire.Error{Message: err.Error()})
}
