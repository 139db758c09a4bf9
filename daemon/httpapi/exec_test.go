package httpapi_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// running returns a fixture with a VM called web that runs, and a client of it.
func running(t *testing.T, svc *httpapitest.Service) (*fixture, *client.Client) {
	t.Helper()
	f := installed(t, svc)
	f.must(t, "POST", "/api/v1/vms", `{"name":"web","plugin":"hello"}`)
	c, err := client.New(client.Config{Addr: f.socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return f, c
}

func TestExecAndAttach(t *testing.T) {
	_, c := running(t, &httpapitest.Service{})
	data := bytes.Repeat([]byte("\x00\xff\r\n"), 100_000)
	for name, tc := range map[string]struct {
		open  func() (*client.Session, error)
		hello string
	}{
		"exec": {func() (*client.Session, error) {
			return c.Exec(t.Context(), "web", api.Exec{Args: []string{"cat", "-"}, Stdin: true})
		}, "cat -\n"},
		"attach": {func() (*client.Session, error) { return c.Attach(t.Context(), "web") }, "attached to web\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := tc.open()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var out bytes.Buffer
			exit, err := s.Copy(bytes.NewReader(data), &out, io.Discard)
			if err != nil || exit.Code != 0 || out.String() != tc.hello+string(data) {
				t.Errorf("Copy = %+v, %v with %d bytes", exit, err, out.Len())
			}
		})
	}
}

func TestExecRefusals(t *testing.T) {
	f, c := running(t, &httpapitest.Service{})
	for name, tc := range map[string]struct {
		path, body, upgrade, want string
		status                    int
	}{
		"no upgrade":      {"/vms/web/exec", `{"args":["x"]}`, "", "Upgrade: volant-stdio/1", 400},
		"other upgrade":   {"/vms/web/attach", ``, "websocket", "Upgrade: volant-stdio/1", 400},
		"no body":         {"/vms/web/exec", ``, stdio.Protocol, "no body", 400},
		"no command":      {"/vms/web/exec", `{}`, stdio.Protocol, "no command", 400},
		"unknown field":   {"/vms/web/exec", `{"argz":["x"]}`, stdio.Protocol, "args", 400},
		"size":            {"/vms/web/exec", `{"args":["x"],"rows":70000}`, stdio.Protocol, "rows", 400},
		"attach to this":  {"/vms/web/attach", `{}`, stdio.Protocol, "no body", 400},
		"no VM":           {"/vms/nope/exec", `{"args":["x"]}`, stdio.Protocol, "nope", 404},
		"no name of a VM": {"/vms/NOPE/attach", ``, stdio.Protocol, "NOPE", 400},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://volant"+api.Prefix+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			if tc.upgrade != "" {
				req.Header.Set("Connection", "Upgrade")
				req.Header.Set("Upgrade", tc.upgrade)
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := f.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.status || !bytes.Contains(b, []byte(tc.want)) {
				t.Errorf("answer = %s: %s, want %d with %q", resp.Status, b, tc.status, tc.want)
			}
		})
	}
	f.must(t, "POST", "/api/v1/vms/web/stop", "")
	if _, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"x"}}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("Exec in a VM that is stopped = %v", err)
	}
}

// TestSessionOfADaemonThatEnds checks that the server waits for no session, and
// leaves none.
func TestSessionOfADaemonThatEnds(t *testing.T) {
	guest := make(chan error, 1)
	f, c := running(t, &httpapitest.Service{Session: func(_ string, _ *api.Exec, r *stdio.Reader, _ *stdio.Writer) {
		_, err := r.Next()
		guest <- err
	}})
	s, err := c.Attach(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	start := time.Now()
	if err := f.stop(); err != nil {
		t.Errorf("Serve = %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the end took %v", took)
	}
	if _, err := s.Copy(nil, io.Discard, io.Discard); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("Copy = %v, want unavailable", err)
	}
	if err := <-guest; err == nil {
		t.Error("the guest got a frame")
	}
}

// TestSessionOfABadGuest has guests that flood, and that do not read, and
// clients that leave them.
func TestSessionOfABadGuest(t *testing.T) {
	for name, play := range map[string]func(net.Conn){
		"floods": func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
		"says nothing and reads": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			left := make(chan struct{})
			_, c := running(t, &httpapitest.Service{Connect: func(guest net.Conn) { play(guest); close(left) }})
			s, err := c.Attach(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Stdin().Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			s.Close()
			select {
			case <-left:
			case <-time.After(10 * time.Second):
				t.Error("the guest's connection is still open")
			}
		})
	}
}
