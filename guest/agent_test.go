package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// testAgent is an agent without a guest around it.
type testAgent struct {
	*agent
	quit      chan struct{}
	shutdowns chan wire.Shutdown
}

func newTestAgent() *testAgent {
	a := &testAgent{quit: make(chan struct{}), shutdowns: make(chan wire.Shutdown, 1)}
	a.agent = &agent{
		log:      discardLog(),
		hello:    func() wire.Hello { return wire.Hello{VM: "vm-1"} },
		shutdown: func(s wire.Shutdown) { a.shutdowns <- s },
		status:   newStatus(&timeline{now: func() time.Duration { return 0 }}),
		ring:     newLogRing(1 << 20),
		hub:      newHub(discardLog(), func(int, syscall.Signal) error { return nil }),
		sessions: new(sessions),
		quit:     a.quit,
	}
	return a
}

func (a *testAgent) do(method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.handler().ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	return w
}

func TestStatusLongPoll(t *testing.T) {
	tests := []struct {
		name, query string
		change      time.Duration // when the status changes; 0 for never
		quit        time.Duration
		took        time.Duration
		seq         uint64
	}{
		{"at once without after", "?wait=10s", time.Second, 0, 0, 1},
		{"at once when it is old", "?after=0&wait=10s", time.Second, 0, 0, 1},
		{"without wait", "?after=1", time.Second, 0, 0, 1},
		{"until it changes", "?after=1&wait=10s", 2 * time.Second, 0, 2 * time.Second, 2},
		{"until the time is up", "?after=1&wait=10s", time.Minute, 0, 10 * time.Second, 1},
		{"a minute at most", "?after=1&wait=1h", 0, 0, time.Minute, 1},
		{"until the guest goes", "?after=1&wait=10s", 0, 3 * time.Second, 3 * time.Second, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newTestAgent()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				after := func(d time.Duration, f func()) {
					if d > 0 {
						go func() {
							if sleep(ctx, d) {
								f()
							}
						}()
					}
				}
				after(tt.change, func() { a.status.update(func(*wire.Status) {}) })
				after(tt.quit, func() { close(a.quit) })
				start := time.Now()
				var st wire.Status
				if err := json.Unmarshal(a.do("GET", wire.PathStatus+tt.query, "").Body.Bytes(), &st); err != nil {
					t.Fatal(err)
				}
				if st.Seq != tt.seq || time.Since(start) != tt.took {
					t.Errorf("got status %d after %v, want %d after %v", st.Seq, time.Since(start), tt.seq, tt.took)
				}
			})
		})
	}
}

func TestFinalStatusIsDeliveredOnce(t *testing.T) {
	a := newTestAgent()
	delivered := func() bool {
		select {
		case <-a.status.delivered:
			return true
		default:
			return false
		}
	}
	a.do("GET", wire.PathStatus, "")
	a.status.finish(func(s *wire.Status) { s.Workload = wire.WorkloadExited })
	if delivered() {
		t.Error("the final status counts as delivered before anybody asked")
	}
	a.status.sent(1) // a response that was under way
	if delivered() {
		t.Error("an earlier status counts as the final one")
	}
	a.status.update(func(*wire.Status) {})
	a.do("GET", wire.PathStatus, "")
	a.do("GET", wire.PathStatus, "")
	if !delivered() {
		t.Error("the final status was sent and does not count as delivered")
	}
}

func TestLogsFollow(t *testing.T) {
	a := newTestAgent()
	srv := httptest.NewServer(a.handler())
	defer srv.Close()
	for i := range 2*logBatch + 10 {
		a.ring.add(wire.Stdout, fmt.Appendf(nil, "<line %d>", i), false)
	}
	resp, err := http.Get(srv.URL + wire.PathLogs + "?after=5&follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReader(resp.Body))
	next := func() wire.LogEntry {
		var e wire.LogEntry
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	for seq := uint64(6); seq <= 2*logBatch+10; seq++ {
		if e := next(); e.Seq != seq || e.Data != fmt.Sprintf("<line %d>", seq-1) {
			t.Fatalf("entry = %+v, want number %d", e, seq)
		}
	}
	a.ring.add(wire.Stderr, []byte("live"), true)
	if e := next(); e.Data != "live" || !e.Partial || e.Stream != wire.Stderr {
		t.Errorf("entry = %+v, want the one that was added live", e)
	}
	a.ring.add(wire.Stdout, []byte("last"), false)
	close(a.quit)
	if e := next(); e.Data != "last" {
		t.Errorf("entry = %+v, want the last", e)
	}
	var e wire.LogEntry
	if err := dec.Decode(&e); !errors.Is(err, io.EOF) {
		t.Errorf("after the end of the guest: %+v, %v, want the end of the stream", e, err)
	}
}

func TestShutdownRoute(t *testing.T) {
	a := newTestAgent()
	if w := a.do("POST", wire.PathShutdown, `{"grace_ns":5}`); w.Code != http.StatusAccepted || (<-a.shutdowns).Grace != 5 {
		t.Errorf("shutdown = %d %s", w.Code, w.Body)
	}
	if w := a.do("POST", wire.PathShutdown, ``); w.Code != http.StatusAccepted || (<-a.shutdowns).Grace != 0 {
		t.Errorf("shutdown without a body = %d %s", w.Code, w.Body)
	}
}

func TestProxyWithoutWorkload(t *testing.T) {
	a := newTestAgent()
	if w := a.do("GET", wire.PathWorkload, ""); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "base_url") {
		t.Errorf("without a base URL the proxy answers %d %s", w.Code, w.Body)
	}
	p, err := newProxy("http://127.0.0.1:1", discardLog())
	if err != nil {
		t.Fatal(err)
	}
	a.workload = p
	if w := a.do("GET", wire.PathWorkload+"/x", ""); w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "does not answer") {
		t.Errorf("without a workload the proxy answers %d %s", w.Code, w.Body)
	}
	if w := a.do("GET", wire.PathWorkload+"x", ""); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "the agent has no") {
		t.Errorf("a path that only begins like the workload's = %d %s", w.Code, w.Body)
	}
}
