package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve returns a client of a server in this process.
func serve(t *testing.T, handler http.HandlerFunc) *client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	c := newClient(path, func(string) time.Duration { return 200 * time.Millisecond })
	t.Cleanup(c.close)
	return c
}

func TestClientRequest(t *testing.T) {
	type request struct {
		method, uri, length, body string
		chunked, keeps, encoding  bool
	}
	var got request
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = request{r.Method, r.RequestURI, r.Header.Get("Content-Length"), string(b), len(r.TransferEncoding) > 0, !r.Close, r.Header.Get("Accept-Encoding") != ""}
		if r.ContentLength != int64(len(b)) {
			t.Errorf("length %d of a body of %d bytes", r.ContentLength, len(b))
		}
		w.WriteHeader(http.StatusNoContent)
	})
	for _, test := range []struct {
		call func() error
		want request
	}{
		{func() error { return c.put(t.Context(), opBoot, nil) }, request{method: "PUT", uri: "/api/v1/vm.boot", length: "0"}},
		{func() error { return c.put(t.Context(), opCreate, consoleConfig{Mode: "Off"}) }, request{method: "PUT", uri: "/api/v1/vm.create", length: "14", body: `{"mode":"Off"}`}},
		{func() error { return c.get(t.Context(), opInfo, nil) }, request{method: "GET", uri: "/api/v1/vm.info"}},
	} {
		if err := test.call(); err != nil || got != test.want {
			t.Errorf("sent %+v, %v, want %+v", got, err, test.want)
		}
	}
}

func TestClientErrors(t *testing.T) {
	tests := []struct {
		name, body string
		chain      []string
		text       string
	}{
		{"chain", `["Error from API", "The VM could not boot", "no such file"]`, []string{"Error from API", "The VM could not boot", "no such file"}, `vm.boot: status 500: "Error from API: The VM could not boot: no such file"`},
		{"no JSON", "{ \"error\": \"a\nb\" }", nil, `"{ \"error\": \"a\nb\" }"`},
		{"another JSON", `{"error": "x"}`, nil, `"{\"error\": \"x\"}"`},
		{"empty", "", nil, `status 500: ""`},
		{"endless", strings.Repeat("x", 2*maxAnswer), nil, "xxx"},
	}
	for _, test := range tests {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, test.body)
		})
		c.budget = func(string) time.Duration { return 10 * time.Second }
		err := c.put(t.Context(), opBoot, nil)
		var e *apiError
		if !errors.As(err, &e) {
			t.Errorf("%s: %v is no apiError", test.name, err)
			continue
		}
		want := strings.NewReplacer("\n", `\n`).Replace(test.text)
		if e.endpoint != opBoot || e.status != 500 || !slices.Equal(e.chain, test.chain) || !strings.Contains(err.Error(), want) || len(err.Error()) > 2*maxQuoted {
			t.Errorf("%s: %.200q, want %s", test.name, err, want)
		}
	}
}

func TestClientWaits(t *testing.T) {
	release := make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	err := c.put(t.Context(), opPause, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "vm.pause: no answer in 200ms") {
		t.Errorf("a silent server: %v, want DeadlineExceeded and the budget", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.put(cancelled, opPause, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v, want Canceled", err)
	}
	// What is no answer at all.
	garbage := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "garbage\n")
		conn.Close()
	})
	if err := garbage.get(t.Context(), opInfo, &info{}); err == nil {
		t.Error("garbage was taken for an answer")
	}
	// And a 200 that does not hold what was asked for.
	html := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })
	if err := html.get(t.Context(), opInfo, &info{}); err == nil || !strings.Contains(err.Error(), "vm.info") {
		t.Errorf("an answer that is no JSON: %v, want an error", err)
	}
}

// TestClientCounters: the largest number says that nothing was measured.
func TestClientCounters(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"disk-a": {"read_latency_min": 18446744073709551615}}`)
	})
	var got map[string]map[string]uint64
	if err := c.get(t.Context(), opCounters, &got); err != nil || got["disk-a"]["read_latency_min"] != 1<<64-1 {
		t.Errorf("counters = %v, %v", got, err)
	}
}

// TestClientFiles wants files to come in the very message of the request, each
// once, and to stay open here.
func TestClientFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newClient(path, func(string) time.Duration { return 5 * time.Second })
	defer c.close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, test := range map[string]struct{ answer, want string }{
		"done":       {"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n", ""},
		"added":      {"HTTP/1.1 200 \r\nContent-Length: 12\r\n\r\n{\"id\":\"net\"}", ""},
		"refused":    {"HTTP/1.1 500 \r\nContent-Length: 6\r\n\r\n[\"no\"]", `vm.add-net: status 500: "no"`},
		"no answer":  {"", "EOF"},
		"no HTTP":    {"garbage\r\n\r\n", "malformed"},
		"cut short":  {"HTTP/1.1 500 \r\nContent-Length: 60\r\n\r\n[\"no\"]", "status 500"},
		"no headers": {"HTTP/1.1 204 \r\n", "EOF"},
	} {
		got := make(chan string, 1)
		go func() {
			conn, err := l.AcceptUnix()
			if err != nil {
				got <- err.Error()
				return
			}
			defer conn.Close()
			b, oob := make([]byte, 4096), make([]byte, 256)
			n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
			if err != nil {
				got <- err.Error()
				return
			}
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(messages) != 1 {
				got <- fmt.Sprintf("%d control messages, %v", len(messages), err)
				return
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil || len(fds) != 2 {
				got <- fmt.Sprintf("%d files, %v", len(fds), err)
				return
			}
			for _, fd := range fds {
				unix.Close(fd)
			}
			io.WriteString(conn, test.answer)
			got <- string(b[:n])
		}()
		err := c.put(t.Context(), opAddNet, removeConfig{ID: "net"}, r, w)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		sent := <-got
		if !strings.HasPrefix(sent, "PUT /api/v1/vm.add-net HTTP/1.1\r\n") || !strings.Contains(sent, "\r\nContent-Length: 12\r\n") || !strings.HasSuffix(sent, "\r\n\r\n{\"id\":\"net\"}") {
			t.Errorf("%s: sent %q", name, sent)
		}
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("a file that was sent: %v", err)
	}
	// A server that does not answer.
	slow := newClient(path, func(string) time.Duration { return 100 * time.Millisecond })
	defer slow.close()
	before := openFiles(t)
	if err := slow.put(t.Context(), opRestore, removeConfig{}, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v, want DeadlineExceeded", err)
	}
	wantFiles(t, before)
}
