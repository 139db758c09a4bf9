package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
)

// Bounds on what a guest can make the host read.
const (
	maxAgentAnswer = 1 << 20
	// maxAgentHeader bounds the header of an answer, the workload's own included,
	// and all interim answers before it.
	maxAgentHeader = 64 << 10
	// maxLogLine holds a wire.LogEntry whose data is all escapes, \u00XX.
	maxLogLine = 6*wire.MaxLogLine + 1<<10
	// pollWait is how long a status request waits for news; below the guest's
	// own bound of 60 s.
	pollWait = 30 * time.Second
	// pollSlack is how much longer than pollWait the answer may take.
	pollSlack = 10 * time.Second
)

// agent speaks to kestrel in one guest: HTTP over the driver's streams. It is
// safe for concurrent use.
type agent struct {
	link hv.Transport
	rt   *http.Transport
}

func newAgent(link hv.Transport) *agent {
	return &agent{link: link, rt: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return link.Dial(ctx) },
		DisableCompression: true,
		// net/http would take 10 MiB of each answer, and of each connection.
		MaxResponseHeaderBytes: maxAgentHeader,
		MaxIdleConns:           4,
		IdleConnTimeout:        30 * time.Second,
	}}
}

// close drops the streams; requests that are under way fail.
func (a *agent) close() {
	a.link.Close() //nolint:errcheck // nothing is lost with a stream that does not close
	a.rt.CloseIdleConnections()
}

// do makes one request. The caller closes the body of the answer, which is a
// success.
func (a *agent) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		rd = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), rd)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.rt.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status alone says enough
		var e wire.Error
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			e.Message = "no message"
		}
		return nil, fmt.Errorf("agent: %s: status %d: %s", path, resp.StatusCode, clip(e.Message, maxStepText))
	}
	return resp, nil
}

// get decodes the answer of a GET request into dst.
func (a *agent) get(ctx context.Context, path string, query url.Values, dst any) error {
	resp, err := a.do(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := readAtMost(resp.Body, maxAgentAnswer)
	if err != nil {
		return fmt.Errorf("agent: %s: %w", path, err)
	}
	if err := json.Unmarshal(b, dst); err != nil {
		return fmt.Errorf("agent: %s: %w", path, err)
	}
	return nil
}

func (a *agent) hello(ctx context.Context) (wire.Hello, error) {
	var h wire.Hello
	err := a.get(ctx, wire.PathHello, nil, &h)
	return h, err
}

// status returns the guest's status once its Seq exceeds after, or as it is
// when pollWait is over.
func (a *agent) status(ctx context.Context, after uint64) (wire.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, pollWait+pollSlack)
	defer cancel()
	var s wire.Status
	err := a.get(ctx, wire.PathStatus, url.Values{"after": {strconv.FormatUint(after, 10)}, "wait": {pollWait.String()}}, &s)
	return s, err
}

// wake tells the guest that it was not running for a while.
func (a *agent) wake(ctx context.Context, w wire.Wake) error {
	resp, err := a.do(ctx, http.MethodPost, wire.PathWake, nil, w)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (a *agent) shutdown(ctx context.Context, grace time.Duration) error {
	resp, err := a.do(ctx, http.MethodPost, wire.PathShutdown, nil, wire.Shutdown{Grace: grace})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// streamError says that what a guest sends is not what the protocol has.
type streamError struct{ err error }

func (e *streamError) Error() string { return "agent: " + wire.PathLogs + ": " + e.err.Error() }
func (e *streamError) Unwrap() error { return e.err }

// logs passes on the entries after seq, and what follows, until the guest ends
// the stream, which is no error, or ctx ends. keep is given batches as they
// arrive; they are valid until it returns.
func (a *agent) logs(ctx context.Context, after uint64, keep func([]wire.LogEntry) error) error {
	resp, err := a.do(ctx, http.MethodGet, wire.PathLogs, url.Values{"after": {strconv.FormatUint(after, 10)}, "follow": {"true"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	rd := bufio.NewReaderSize(resp.Body, 16<<10)
	var entries []wire.LogEntry
	size := 0
	for {
		line, err := readLine(rd, maxLogLine)
		if err != nil {
			return errors.Join(flush(entries, keep), ignoreEOF(err))
		}
		var e wire.LogEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return errors.Join(flush(entries, keep), &streamError{err})
		}
		entries, size = append(entries, e), size+len(line)
		// What is already here is written at once, but not line by line.
		if len(entries) >= logBatch || size >= logBatchBytes || rd.Buffered() == 0 {
			if err := keep(entries); err != nil {
				return err
			}
			clear(entries)
			entries, size = entries[:0], 0
		}
	}
}

// readLine returns the next line, of at most limit bytes. It is valid until the
// next call.
func readLine(rd *bufio.Reader, limit int) ([]byte, error) {
	line, err := rd.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) {
		if long = append(long, line...); len(long) > limit {
			return nil, &streamError{fmt.Errorf("a line of more than %d bytes", limit)}
		}
		line, err = rd.ReadSlice('\n')
	}
	return append(long, line...), err
}

func flush(entries []wire.LogEntry, keep func([]wire.LogEntry) error) error {
	if len(entries) == 0 {
		return nil
	}
	return keep(entries)
}

func ignoreEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // a bare EOF is the orderly end
		return nil
	}
	return err
}

// proxy serves requests by the workload: paths are the workload's own.
func (a *agent) proxy(vm string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "agent"
			r.Out.URL.Path = wire.PathWorkload + r.In.URL.Path
			if r.In.URL.RawPath != "" {
				r.Out.URL.RawPath = wire.PathWorkload + r.In.URL.RawPath
			}
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport:     a.rt,
		ErrorLog:      log.New(io.Discard, "", 0), // it is the guest's to say how often
		FlushInterval: -1,                         // event streams must not wait for a buffer to fill
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			e := api.Errorf(api.CodeUnavailable, "the workload of VM %s does not answer", vm).WithHint("volar vms logs %s shows what it says", vm)
			b, merr := json.Marshal(api.ErrorBody{Error: *e})
			if merr != nil {
				b = nil
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadGateway)
			w.Write(b) //nolint:errcheck // the client has gone
		},
	}
}

// VMWorkload returns a handler that passes requests, upgrades included, to the
// VM's workload through the agent channel. The request's path is what the
// workload sees. Codes: not_found, conflict (not running, no agent).
func (d *Daemon) VMWorkload(ctx context.Context, name string) (http.Handler, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if w := d.worker(vm.ID); w != nil && vm.Status == api.VMRunning {
		if a := w.agent.Load(); a != nil {
			return a.proxy(vm.Name), nil
		}
	}
	return nil, wrongState(&vm, "a workload is reached while its VM is running and its agent answers")
}
