package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

var _ httpapi.Service = (*httpapitest.Service)(nil)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s:%d: got %q, want %q", file, i+1, g, w)
		}
	}
}

// fixture is a server on a real Unix socket.
type fixture struct {
	svc    *httpapitest.Service
	socket string
	http   *http.Client
	log    *syncBuffer
	stop   func() error // ends the server and returns what Serve returned
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func serve(t *testing.T, svc *httpapitest.Service) *fixture {
	t.Helper()
	f := &fixture{svc: svc, socket: filepath.Join(t.TempDir(), "run", "v.sock"), log: &syncBuffer{}}
	ln, err := httpapi.Listen(t.Context(), "unix://"+f.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := httpapi.New(httpapi.Config{Service: svc, Version: "1.2.3", Heartbeat: 20 * time.Millisecond, Unread: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(f.log, nil))})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	f.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	f.http = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", f.socket)
	}}}
	t.Cleanup(f.http.CloseIdleConnections)
	return f
}

func (f *fixture) do(t *testing.T, method, path, body string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://volant"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, data
}

// must does a request that has to succeed.
func (f *fixture) must(t *testing.T, method, path, body string) []byte {
	t.Helper()
	resp, data := f.do(t, method, path, body)
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s = %d %s", method, path, resp.StatusCode, data)
	}
	return data
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func manifest(name string) string {
	return fmt.Sprintf(`{"name": %q, "version": "1.0", "initramfs": {"url": "app.cpio", "checksum": %q}, "resources": {"cpu_cores": 1, "memory_mb": 128},
		"workload": {"type": "http", "entrypoint": ["/app"], "base_url": "http://127.0.0.1:8080"}}`, name, digest("archive"))
}

// installed returns a server that has the plugin hello.
func installed(t *testing.T, svc *httpapitest.Service) *fixture {
	t.Helper()
	f := serve(t, svc)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://volant/api/v1/blobs/"+digest("archive"), strings.NewReader("archive"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.http.Do(req)
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("put blob: %v %v", resp, err)
	}
	resp.Body.Close()
	f.must(t, "POST", "/api/v1/plugins", manifest("hello"))
	return f
}

// TestResponses compares what every JSON route answers with golden files.
func TestResponses(t *testing.T) {
	f := installed(t, &httpapitest.Service{
		Boot: map[string]string{"slow": "starting", "bad": "the workload exited with status 3"},
		Workload: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s?%s", r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
		}),
		Logs: []api.LogEntry{{Seq: 1, Stream: "stdout", Line: "<up>"}, {Seq: 2, Stream: "console", Line: "boot"}, {Seq: 3, Stream: "stderr", Line: "x"}},
	})
	var out bytes.Buffer
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/healthz", ""},
		{"GET", "/api/v1/system/status", ""},
		{"GET", "/api/v1/system/info", ""},
		{"GET", "/api/v1/vms", ""},
		{"POST", "/api/v1/vms", `{"name": "web", "plugin": "hello", "labels": {"tier": "front"}}`},
		{"GET", "/api/v1/vms/web?wait=healthy", ""},
		{"GET", "/api/v1/vms/vm-0001", ""},
		{"POST", "/api/v1/vms?wait=healthy&timeout=5s", `{"name": "db", "plugin": "hello", "cpu_cores": 2, "memory_mb": 512}`},
		{"POST", "/api/v1/vms?wait=running&timeout=50ms", `{"name": "slow", "plugin": "hello"}`},
		{"POST", "/api/v1/vms?wait=healthy", `{"name": "bad", "plugin": "hello"}`},
		{"POST", "/api/v1/vms", `{"name": "idle", "plugin": "hello", "stopped": true}`},
		{"GET", "/api/v1/vms?status=running,starting&sort=name&order=desc&limit=2&offset=1", ""},
		{"GET", "/api/v1/vms/web/timeline", ""},
		{"GET", "/api/v1/vms/web/logs", ""},
		{"GET", "/api/v1/vms/web/logs?log=console", ""},
		{"GET", "/api/v1/vms/web/logs?after=1&tail=1", ""},
		{"GET", "/api/v1/vms/web/logs?tail=0", ""},
		{"GET", "/api/v1/vms/web/logs?since=2026-11-01T12:00:00Z&until=2026-11-01T13:00:00.5%2B01:00", ""},
		{"PATCH", "/api/v1/vms/web/agent/a%2Fb/c?x=1&wait=no", ""},
		{"GET", "/api/v1/vms/idle/agent/", ""},
		{"POST", "/api/v1/vms/web/stop?wait=stopped", `{"grace_seconds": 3}`},
		{"POST", "/api/v1/vms/web/start?wait=running", ""},
		{"POST", "/api/v1/vms/web/restart", ""},
		{"GET", "/api/v1/system/summary", ""},
		{"DELETE", "/api/v1/vms/web?wait=deleted&force", ""},
		{"GET", "/api/v1/vms/web", ""},
		{"GET", "/api/v1/plugins", ""},
		{"GET", "/api/v1/plugins/hello", ""},
		{"GET", "/api/v1/plugins/hello/manifest", ""},
		{"POST", "/api/v1/plugins/hello/enabled", `{"enabled": false}`},
		{"POST", "/api/v1/vms", `{"name": "late", "plugin": "hello"}`},
		{"DELETE", "/api/v1/plugins/hello", ""},
		{"GET", "/api/v1/blobs/" + digest("archive"), ""},
		{"GET", "/api/v1/blobs/" + digest("other"), ""},
		{"POST", "/api/v1/kernels", `{"name": "generic", "version": "6.12", "digest": "` + digest("archive") + `"}`},
		{"POST", "/api/v1/kernels", `{"name": "volant", "version": "6.12", "digest": "` + digest("archive") + `", "modules": "` + digest("archive") + `"}`},
		{"POST", "/api/v1/kernels/volant/default", ""},
		{"GET", "/api/v1/kernels", ""},
		{"DELETE", "/api/v1/kernels/generic", ""},
		{"GET", "/api/v1/events?follow=false&after=3&type=VM_RUNNING,KERNEL_DEFAULT", ""},
		{"GET", "/api/v1/events/vms?follow=false&vm=db", ""},
	} {
		resp, data := f.do(t, c.method, c.path, c.body)
		fmt.Fprintf(&out, "%s %s", c.method, c.path)
		if c.body != "" {
			fmt.Fprintf(&out, " %s", c.body)
		}
		fmt.Fprintf(&out, "\n%d %s\n", resp.StatusCode, resp.Header.Get("Content-Type"))
		if n := resp.Header.Get(api.HeaderTotalCount); n != "" {
			fmt.Fprintf(&out, "%s: %s\n", api.HeaderTotalCount, n)
		}
		var pretty bytes.Buffer
		if json.Indent(&pretty, data, "", "  ") == nil {
			data = pretty.Bytes()
		}
		fmt.Fprintf(&out, "%s\n\n", bytes.TrimSpace(data))
		if v, id := resp.Header.Get(api.HeaderVersion), resp.Header.Get(api.HeaderRequestID); v != "1.2.3" || len(id) != 16 {
			t.Errorf("%s %s: version %q, request id %q", c.method, c.path, v, id)
		}
	}
	golden(t, "responses.txt", out.Bytes())
}

// TestBadRequests sends what must be refused, and checks status, code and words.
func TestBadRequests(t *testing.T) {
	f := installed(t, &httpapitest.Service{})
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               api.Code
		want               string // a part of message and hint
	}{
		"unknown route":           {"GET", "/api/v1/machines", "", 404, api.CodeNotFound, "there is no route GET"},
		"unclean path":            {"GET", "/api/v1/vms/../vms", "", 404, api.CodeNotFound, "there is no route"},
		"trailing slash":          {"GET", "/api/v1/vms/", "", 404, api.CodeNotFound, "there is no route"},
		"wrong method":            {"PATCH", "/api/v1/vms/web", "", 405, api.CodeInvalid, "it takes DELETE, GET, HEAD"},
		"unknown parameter":       {"GET", "/api/v1/vms?statsu=running", "", 400, api.CodeInvalid, "did you mean status?"},
		"no parameters":           {"GET", "/api/v1/kernels?x=1", "", 400, api.CodeInvalid, "it takes none"},
		"query syntax":            {"GET", "/api/v1/vms?q=%zz", "", 400, api.CodeInvalid, "does not parse"},
		"unknown state":           {"GET", "/api/v1/vms?status=runing", "", 400, api.CodeInvalid, "did you mean running?"},
		"negative limit":          {"GET", "/api/v1/vms?limit=-1", "", 400, api.CodeInvalid, "limit: \"-1\" is not a whole number"},
		"huge limit":              {"GET", "/api/v1/vms?limit=99999999999999999999", "", 400, api.CodeInvalid, "limit"},
		"unknown sort":            {"GET", "/api/v1/vms?sort=size", "", 400, api.CodeInvalid, "sort"},
		"selector":                {"GET", "/api/v1/vms?selector=app%3Dweb+x", "", 400, api.CodeInvalid, "at byte 9"},
		"selector of volumes":     {"GET", "/api/v1/volumes?selector=a+in+x", "", 400, api.CodeInvalid, "at byte 6"},
		"unknown order":           {"GET", "/api/v1/vms?order=up", "", 400, api.CodeInvalid, "asc, desc"},
		"name that climbs":        {"GET", "/api/v1/vms/..%2Fx", "", 400, api.CodeInvalid, "VM name"},
		"name in body":            {"POST", "/api/v1/vms", `{"name": "../x", "plugin": "hello"}`, 400, api.CodeInvalid, "name: VM name"},
		"no body":                 {"POST", "/api/v1/vms", "", 400, api.CodeInvalid, "has no body"},
		"unknown field":           {"POST", "/api/v1/vms", `{"name": "a", "plguin": "hello"}`, 400, api.CodeInvalid, "did you mean plugin?"},
		"wrong type":              {"POST", "/api/v1/vms", `{"name": "a", "cpu_cores": "two"}`, 400, api.CodeInvalid, "cpu_cores: is a string"},
		"trailing data":           {"POST", "/api/v1/vms", `{"name": "a"} {}`, 400, api.CodeInvalid, "more data"},
		"too large":               {"POST", "/api/v1/vms", `{"name": "` + strings.Repeat("a", api.MaxManifestSize) + `"}`, 413, api.CodeTooLarge, "larger than"},
		"taken":                   {"POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`, 409, api.CodeExists, "already"},
		"unknown plugin":          {"POST", "/api/v1/vms", `{"name": "a", "plugin": "nope"}`, 404, api.CodeNotFound, "no plugin"},
		"unknown wait":            {"POST", "/api/v1/vms?wait=up", `{"name": "a", "plugin": "hello"}`, 400, api.CodeInvalid, "wait"},
		"wait of another route":   {"POST", "/api/v1/vms/web/stop?wait=running", "", 400, api.CodeInvalid, "one of stopped"},
		"wait for a stopped one":  {"POST", "/api/v1/vms?wait=running", `{"name": "a", "plugin": "hello", "stopped": true}`, 400, api.CodeInvalid, "created stopped"},
		"timeout too long":        {"POST", "/api/v1/vms/web/start?wait=running&timeout=1h", "", 400, api.CodeInvalid, "up to 10m"},
		"timeout without unit":    {"POST", "/api/v1/vms/web/start?wait=running&timeout=30", "", 400, api.CodeInvalid, "such as 30s"},
		"negative grace":          {"POST", "/api/v1/vms/web/stop", `{"grace_seconds": -1}`, 400, api.CodeInvalid, "grace_seconds"},
		"unknown VM":              {"POST", "/api/v1/vms/nope/stop", "", 404, api.CodeNotFound, "no VM"},
		"logs without a number":   {"GET", "/api/v1/vms/web/logs?tail=few", "", 400, api.CodeInvalid, "a whole number or all"},
		"logs since whenever":     {"GET", "/api/v1/vms/web/logs?since=10m", "", 400, api.CodeInvalid, "RFC 3339"},
		"logs of nobody":          {"GET", "/api/v1/vms/web/logs?log=consol", "", 400, api.CodeInvalid, "did you mean console?"},
		"logs of an unknown VM":   {"GET", "/api/v1/vms/nope/logs?follow", "", 404, api.CodeNotFound, "no VM"},
		"delete of an unknown VM": {"DELETE", "/api/v1/vms/nope?wait=deleted", "", 404, api.CodeNotFound, "no VM"},
		"manifest misspelt":       {"POST", "/api/v1/plugins", strings.Replace(manifest("x"), `"entrypoint"`, `"entrypont"`, 1), 400, api.CodeInvalid, "workload.entrypont: is not a known field; did you mean entrypoint?"},
		"manifest invalid":        {"POST", "/api/v1/plugins", strings.Replace(manifest("x"), `"memory_mb": 128`, `"memory_mb": 1`, 1), 400, api.CodeInvalid, "resources.memory_mb"},
		"artifact missing":        {"POST", "/api/v1/plugins", strings.Replace(manifest("x"), digest("archive"), digest("other"), 1), 400, api.CodeInvalid, "was not uploaded"},
		"plugin in use":           {"DELETE", "/api/v1/plugins/hello", "", 409, api.CodeConflict, "used by VM web"},
		"digest":                  {"GET", "/api/v1/blobs/sha256:xyz", "", 400, api.CodeInvalid, "not a digest"},
		"blob with other bytes":   {"PUT", "/api/v1/blobs/" + digest("a"), "b", 400, api.CodeInvalid, "the bytes have digest"},
		"kernel digest":           {"POST", "/api/v1/kernels", `{"name": "k", "version": "1", "digest": "md5:1"}`, 400, api.CodeInvalid, "digest:"},
		"event type":              {"GET", "/api/v1/events?type=VM_RUNING", "", 400, api.CodeInvalid, "did you mean VM_RUNNING?"},
		"event id":                {"GET", "/api/v1/events?after=x", "", 400, api.CodeInvalid, "after"},
		"events since whenever":   {"GET", "/api/v1/events?since=10m", "", 400, api.CodeInvalid, "RFC 3339"},
		"config misspelt":         {"PATCH", "/api/v1/vms/web/config", `{"memroy_mb": 1}`, 400, api.CodeInvalid, "did you mean memory_mb?"},
		"config without a body":   {"PATCH", "/api/v1/vms/web/config", "", 400, api.CodeInvalid, "has no body"},
		"config version":          {"GET", "/api/v1/vms/web/config?version=-1", "", 400, api.CodeInvalid, "version"},
		"config of a past":        {"GET", "/api/v1/vms/web/config?version=7", "", 404, api.CodeNotFound, "no version 7"},
		"config that has changed": {"PATCH", "/api/v1/vms/web/config?expect=7", `{}`, 409, api.CodeConflict, "is version 1, not 7"},
		"new name":                {"POST", "/api/v1/vms/web/rename", `{"name": "../x"}`, 400, api.CodeInvalid, "VM name"},
		"rename an unknown VM":    {"POST", "/api/v1/vms/nope/rename", `{"name": "x"}`, 404, api.CodeNotFound, "no VM"},
		"life":                    {"POST", "/api/v1/vms", `{"name": "a", "plugin": "hello", "ttl_seconds": -1}`, 400, api.CodeInvalid, "ttl_seconds"},
		"boolean":                 {"GET", "/api/v1/events?follow=maybe", "", 400, api.CodeInvalid, "true or false"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, data := f.do(t, c.method, c.path, c.body)
			var body api.ErrorBody
			if err := json.Unmarshal(data, &body); err != nil {
				t.Fatalf("body %q: %v", data, err)
			}
			if resp.StatusCode != c.status || body.Error.Code != c.code || !strings.Contains(body.Error.Message+"; "+body.Error.Hint, c.want) {
				t.Errorf("%s %s = %d %+v; want %d %s with %q", c.method, c.path, resp.StatusCode, body.Error, c.status, c.code, c.want)
			}
			if c.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
}

func TestContentType(t *testing.T) {
	f := serve(t, &httpapitest.Service{})
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://volant/api/v1/vms", strings.NewReader(`{"name":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/plain")
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(data), "Content-Type") {
		t.Errorf("text/plain = %d %s, want 400", resp.StatusCode, data)
	}
}

// TestInternalErrors checks that faults are logged and not shown.
func TestInternalErrors(t *testing.T) {
	for name, err := range map[string]error{
		"unknown": errors.New("secret detail"),
		"timeout": context.DeadlineExceeded,
		"denied":  api.Errorf(api.CodeDenied, "no"),
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, &httpapitest.Service{Err: map[string]error{"VMs": err}})
			resp, data := f.do(t, "GET", "/api/v1/vms", "")
			want := map[string]int{"unknown": 500, "timeout": 504, "denied": 403}[name]
			if resp.StatusCode != want || strings.Contains(string(data), "secret") {
				t.Errorf("answer = %d %s, want %d without detail", resp.StatusCode, data, want)
			}
			id := resp.Header.Get(api.HeaderRequestID)
			if logged := strings.Contains(f.log.String(), "secret detail") && strings.Contains(f.log.String(), id); logged != (name == "unknown") {
				t.Errorf("log %q, request %s", f.log, id)
			}
		})
	}
}

func TestPanic(t *testing.T) {
	f := installed(t, &httpapitest.Service{Workload: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") })})
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	resp, data := f.do(t, "GET", "/api/v1/vms/web/agent/", "")
	if resp.StatusCode != 500 || !strings.Contains(string(data), `"internal"`) || !strings.Contains(f.log.String(), "oops") {
		t.Errorf("answer = %d %s, log %s", resp.StatusCode, data, f.log)
	}
	f.must(t, "GET", "/healthz", "")
}

// TestUpgrade sends an upgraded connection through the agent route.
func TestUpgrade(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, "echo "+line)
	}
	f := installed(t, &httpapitest.Service{Workload: http.HandlerFunc(echo)})
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	conn, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(conn, "GET /api/v1/vms/web/agent/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade = %v %v", resp, err)
	}
	fmt.Fprint(conn, "hi\n")
	if got, err := br.ReadString('\n'); got != "echo hi\n" {
		t.Errorf("read %q %v", got, err)
	}
}

// sse reads server-sent events from a body until n came.
func sse(t *testing.T, body io.Reader, n int) (out []string) {
	t.Helper()
	sc := bufio.NewScanner(body)
	var ev []string
	for len(out) < n && sc.Scan() {
		switch line := sc.Text(); {
		case line != "":
			ev = append(ev, line)
		case len(ev) > 0 && !strings.HasPrefix(ev[0], ":"):
			out = append(out, strings.Join(ev, "|"))
			ev = nil
		default:
			ev = nil
		}
	}
	return out
}

func (f *fixture) stream(t *testing.T, path, lastID string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://volant"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestEventsResumeAndFollow(t *testing.T) {
	f := installed(t, &httpapitest.Service{})
	f.must(t, "POST", "/api/v1/vms", `{"name": "a", "plugin": "hello"}`) // events 2 to 5
	resp := f.stream(t, "/api/v1/events?after=1", "3")
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("Content-Type %q", got)
	}
	got := sse(t, resp.Body, 2)
	if len(got) != 2 || !strings.HasPrefix(got[0], "id: 4|event: VM_RUNNING|data: {\"seq\":4,") || !strings.HasPrefix(got[1], "id: 5|event: VM_HEALTHY|") {
		t.Errorf("after 3 came %q", got)
	}
	f.must(t, "POST", "/api/v1/vms/a/stop", "")
	if got := sse(t, resp.Body, 1); len(got) != 1 || !strings.HasPrefix(got[0], "id: 6|event: VM_STOPPING|") {
		t.Errorf("then came %q", got)
	}
}

func TestEventsHeartbeatAndShutdown(t *testing.T) {
	f := serve(t, &httpapitest.Service{})
	resp := f.stream(t, "/api/v1/events", "")
	br := bufio.NewReader(resp.Body)
	if line, err := br.ReadString('\n'); line != ": alive\n" {
		t.Fatalf("first line %q %v, want a heartbeat", line, err)
	}
	if err := f.stop(); err != nil {
		t.Errorf("Serve = %v, want nil with a stream open", err)
	}
	if got := sse(t, br, 1); len(got) != 1 || !strings.Contains(got[0], `event: error|data: {"code":"unavailable"`) {
		t.Errorf("at the end came %q", got)
	}
}

func TestWaitEndsAtShutdown(t *testing.T) {
	f := installed(t, &httpapitest.Service{Boot: map[string]string{"web": "starting"}})
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	status := make(chan int, 1)
	go func() {
		resp, err := f.http.Get("http://volant/api/v1/vms/web?wait=running&timeout=5m")
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	time.Sleep(100 * time.Millisecond) // let the request arrive; if it does not, it is refused, which fails too
	start := time.Now()
	if err := f.stop(); err != nil {
		t.Errorf("Serve = %v", err)
	}
	if got := <-status; got != 503 || time.Since(start) > 4*time.Second {
		t.Errorf("status %d after %v, want 503 at once", got, time.Since(start))
	}
}

func TestLogsErrorInStream(t *testing.T) {
	f := installed(t, &httpapitest.Service{
		Logs: []api.LogEntry{{Seq: 1, Stream: "stdout", Line: "one"}},
		Err:  map[string]error{"VMLogs": api.Errorf(api.CodeUnavailable, "the agent went away")},
	})
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	lines := strings.Split(strings.TrimSpace(string(f.must(t, "GET", "/api/v1/vms/web/logs?follow", ""))), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"one"`) || lines[1] != `{"error":{"code":"unavailable","message":"the agent went away"}}` {
		t.Errorf("lines %q", lines)
	}
}

// TestUploadCutShort checks that an upload which ends early is the client's
// fault, and leaves no blob.
func TestUploadCutShort(t *testing.T) {
	f := serve(t, &httpapitest.Service{})
	conn, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", digest("abc"))
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	_, _ = io.ReadAll(conn)
	if resp, _ := f.do(t, "GET", "/api/v1/blobs/"+digest("abc"), ""); resp.StatusCode != 404 {
		t.Errorf("blob after a cut upload: %d, want 404", resp.StatusCode)
	}
}

// TestOrigin checks the refusal of browsers on a TCP connection.
func TestOrigin(t *testing.T) {
	srv := httpapi.New(httpapi.Config{Service: &httpapitest.Service{}, Version: "1"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	defer func() { cancel(); <-done }()
	addr := ln.Addr().String()
	for name, c := range map[string]struct {
		host, header, value string
		status              int
	}{
		"address":     {addr, "", "", 200},
		"localhost":   {"localhost:1", "", "", 200},
		"own origin":  {addr, "Origin", "http://" + addr, 200},
		"rebound":     {"evil.example:7777", "", "", 403},
		"cross":       {addr, "Origin", "http://evil.example", 403},
		"null origin": {addr, "Origin", "null", 403},
		"cross-site":  {addr, "Sec-Fetch-Site", "cross-site", 403},
		"user":        {addr, "Sec-Fetch-Site", "none", 200},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/healthz", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = c.host
			if c.header != "" {
				req.Header.Set(c.header, c.value)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.status)
			}
		})
	}
}

// A client that does not send the body that it announced keeps no connection.
func TestUnreadBody(t *testing.T) {
	f := serve(t, &httpapitest.Service{})
	for _, path := range []string{"/api/v1/nowhere", "/api/v1/vms/web/attach"} {
		conn, err := net.Dial("unix", f.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", path); err != nil {
			t.Fatal(err)
		}
		reply, err := io.ReadAll(conn) // to the end of the connection
		if err != nil || !bytes.HasPrefix(reply, []byte("HTTP/1.1 4")) {
			t.Errorf("POST %s: %.60q, %v; want a refusal, and the connection closed", path, reply, err)
		}
	}
}

// Waiting for what can never be is refused before anything is done for it.
func TestWaitRefusedFirst(t *testing.T) {
	f := installed(t, &httpapitest.Service{})
	f.must(t, "POST", "/api/v1/vms?wait=running", `{"name": "web", "plugin": "hello", "health_check": {"disable": true}}`)
	seen := f.must(t, "GET", "/api/v1/events?follow=false", "")
	for path, body := range map[string]string{
		"/api/v1/vms?wait=healthy":             `{"name": "bad", "plugin": "hello", "health_check": {"disable": true}}`,
		"/api/v1/vms/web/start?wait=healthy":   "",
		"/api/v1/vms/web/restart?wait=healthy": "",
		"/api/v1/vms/web/scale?wait=healthy":   `{"memory_mb": 999}`,
	} {
		if resp, data := f.do(t, "POST", path, body); resp.StatusCode != 400 || !strings.Contains(string(data), "no health check") {
			t.Errorf("POST %s: %d %s, want it refused", path, resp.StatusCode, data)
		}
	}
	if now := f.must(t, "GET", "/api/v1/events?follow=false", ""); !bytes.Equal(now, seen) {
		t.Errorf("something was done:\n%s", now)
	}
}
