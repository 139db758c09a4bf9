package daemon

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv/hvtest"
)

// misdeed is what an agent does with a request instead of an answer.
type misdeed struct {
	name string
	do   func(w http.ResponseWriter, r *http.Request)
}

// raw takes the connection and writes text again and again, or once, until the
// host has had enough.
func raw(head, again string, drain bool) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		if drain {
			go io.Copy(io.Discard, conn)
		}
		_, err = io.WriteString(conn, head)
		for err == nil && again != "" {
			_, err = io.WriteString(conn, again)
		}
		if again == "" {
			io.Copy(io.Discard, conn) // until the host leaves
		}
	}
}

func misdeeds() []misdeed {
	block := strings.Repeat("x", 32<<10)
	status := func(s string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) }
	}
	return []misdeed{
		{"garbage", status("\x00\xff\xfe}{garbage]]")},
		{"null", status("null")},
		{"wrong types", status(`{"protocol":"one","seq":-1,"workload":7,"timeline":{},"healthy":"no"}`)},
		{"numbers without bound", status(`{"seq":18446744073709551615,"restarts":9223372036854775807,"pid":-9223372036854775808,"workload":"running","exit":{"code":99999999999,"signal":"` + strings.Repeat("S", 4096) + `"}}`)},
		{"nested without end", status(strings.Repeat("[", 500_000))},
		{"endless body", raw("HTTP/1.1 200 OK\r\n\r\n{\"version\":\"", block, false)},
		{"endless lines", raw("HTTP/1.1 200 OK\r\n\r\n", `{"seq":1,"time":"2026-01-01T00:00:00Z","stream":"stdout","data":"again"}`+"\n", false)},
		{"endless chunks of nothing", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+block[:100]+"\r\n\n\r\n", false)},
		{"endless header", raw("HTTP/1.1 200 OK\r\nX: ", block, false)},
		{"endless headers", raw("HTTP/1.1 200 OK\r\n", "X-A: "+block[:1000]+"\r\n", false)},
		{"endless interim answers", raw("", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n", false)},
		{"length that is a lie", raw("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n{", "", false)},
		{"no HTTP", raw("\x01\x02\x03\x04 what is this\r\n\r\n", "", false)},
		{"endless noise", raw("", block, false)},
		{"an upgrade nobody asked for", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n", block, true)},
		{"sessions of noise", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: volant-stdio/1\r\n\r\n", block, true)},
		{"silence", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"never reads", raw("", "", false)},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"errors without end", raw("HTTP/1.1 500 Oops\r\n\r\n{\"message\":\"", block, false)},
		{"seq that goes back", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"seq":%d,"workload":"running"}`+"\n", 5+time.Now().UnixNano()%3)
		}},
	}
}

// TestHostileGuest lets an agent do its worst on every route, while a VM beside
// it is used as ever. Nothing it does costs the daemon more than a bounded amount
// of memory, disk and time, or anything of another VM.
func TestHostileGuest(t *testing.T) {
	for _, deed := range misdeeds() {
		t.Run(deed.name, func(t *testing.T) { hostile(t, deed) })
	}
}

func hostile(t *testing.T, deed misdeed) {
	ctx := context.Background()
	w := newWorld(t)
	var evil atomic.Bool
	var id atomic.Value
	id.Store("")
	w.hv.SetGuest(func(m *hvtest.Machine) hvtest.Guest {
		g := w.boot(m)
		honest := g.Agent
		g.Agent = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if evil.Load() && m.Spec().ID == id.Load() {
				deed.do(rw, r)
				return
			}
			honest.ServeHTTP(rw, r)
		})
		return g
	})
	d := w.start(options{timing: func(t *timing) {
		t.call, t.silence, t.powerOff, t.drain = 200*time.Millisecond, 300*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	}})
	d.equip()
	id.Store(d.create("evil", "serve").ID)
	d.create("good", "serve")
	d.must("evil", api.WaitHealthy)
	d.must("good", api.WaitHealthy)
	d.settle()

	before, peak := heap(), uint64(0)
	goroutines := runtime.NumGoroutine()
	evil.Store(true)
	var calls sync.WaitGroup
	call := func(what string, fn func(ctx context.Context)) {
		calls.Go(func() {
			const limit = 500 * time.Millisecond
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			begin := time.Now()
			fn(ctx)
			if took := time.Since(begin); took > limit+10*time.Second {
				t.Errorf("%s takes %v, and was given %v", what, took, limit)
			}
		})
	}
	drain := func(ctx context.Context, r io.ReadCloser, err error) {
		if err == nil {
			stop := context.AfterFunc(ctx, func() { r.Close() })
			defer stop()
			io.Copy(io.Discard, r)
			r.Close()
		}
	}
	call("exec", func(ctx context.Context) {
		conn, err := d.VMExec(ctx, "evil", api.Exec{Args: []string{"x"}})
		drain(ctx, conn, err)
	})
	call("attach", func(ctx context.Context) {
		conn, err := d.VMAttach(ctx, "evil")
		drain(ctx, conn, err)
	})
	call("stat", func(ctx context.Context) { d.VMStat(ctx, "evil", "/x", false) })
	call("copy from", func(ctx context.Context) {
		r, err := d.VMCopyFrom(ctx, "evil", "/x", false)
		drain(ctx, r, err)
	})
	call("copy to", func(ctx context.Context) { d.VMCopyTo(ctx, "evil", "/x", false, endlessZeros{ctx}) })
	call("logs", func(ctx context.Context) {
		d.VMLogs(ctx, "evil", api.LogQuery{Follow: true}, func([]api.LogEntry) error { return nil })
	})
	call("workload", func(ctx context.Context) {
		h, err := d.VMWorkload(ctx, "evil")
		if err != nil {
			return
		}
		defer func() {
			if v := recover(); v != nil && v != http.ErrAbortHandler {
				panic(v)
			}
		}()
		h.ServeHTTP(&nowhere{header: http.Header{}}, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	})
	// A new daemon meets the same guest at its first word.
	over := make(chan struct{})
	go func() { calls.Wait(); close(over) }()
	for open := true; open; {
		begin := time.Now()
		vm, err := d.VM(ctx, "good")
		if err != nil || vm.Status != api.VMRunning || !vm.Healthy {
			t.Fatalf("the VM beside: %+v, %v", vm, err)
		}
		if conn, err := d.VMExec(ctx, "good", api.Exec{Args: []string{"x"}}); err != nil {
			t.Fatalf("exec in the VM beside: %v", err)
		} else if _, exit := readSession(t, conn); exit.Code != 3 {
			t.Errorf("exec in the VM beside exits with %+v", exit)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("calls for the VM beside take %v", took)
		}
		peak = max(peak, heap())
		select {
		case <-over:
			open = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	if grown := int64(peak) - int64(before); grown > 64<<20 {
		t.Errorf("it costs %d MiB of memory", grown>>20)
	}
	size := int64(0)
	filepath.WalkDir(filepath.Join(w.root, "data", "vms", id.Load().(string)), func(_ string, e os.DirEntry, err error) error {
		if fi, ierr := e.Info(); err == nil && ierr == nil && fi.Mode().IsRegular() {
			size += fi.Size()
		}
		return nil
	})
	if size > 16<<20 {
		t.Errorf("it costs %d MiB of disk", size>>20)
	}
	d.stop()
	d = w.start(options{timing: func(t *timing) {
		t.call, t.silence, t.powerOff, t.drain = 200*time.Millisecond, 300*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	}})
	<-d.Ready()
	d.must("good", api.WaitHealthy)
	if err := d.DeleteVM(ctx, "evil", api.VMStop{GraceSeconds: 1}); err != nil {
		t.Fatal(err)
	}
	d.must("evil", api.WaitDeleted)
	vms := d.settle()
	if len(vms) != 1 || vms[0].Incarnation != 1 {
		t.Errorf("left: %+v, want the good one as it was", vms)
	}
	w.checkWorld(vms)
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines+10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before the guest did anything", runtime.NumGoroutine(), goroutines)
		}
	}
}

// heap is how many bytes live.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// endlessZeros is an upload that ends with its context.
type endlessZeros struct{ ctx context.Context }

func (z endlessZeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), z.ctx.Err()
}

// nowhere takes a reply and keeps nothing.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Flush()                      {}

// A guest that lies from its first word never counts as up, and is ended when it
// has had its time.
func TestHostileBoot(t *testing.T) {
	for _, deed := range misdeeds() {
		t.Run(deed.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.hv.SetGuest(func(m *hvtest.Machine) hvtest.Guest {
				return hvtest.Guest{Agent: http.HandlerFunc(deed.do), PowerButton: func() {}}
			})
			d := w.start(options{config: func(c *Config) { c.BootTimeout = 500 * time.Millisecond }, timing: func(t *timing) {
				t.call, t.silence = 100*time.Millisecond, 200*time.Millisecond
			}})
			d.equip()
			d.create("evil", "serve")
			if _, err := d.wait("evil", api.WaitRunning); err == nil {
				t.Error("it counts as running")
			}
			d.wait("evil", api.WaitStopped)
			if vm := mustVM(t, d, "evil"); vm.Status != api.VMFailed || vm.Reason == "" || len(vm.Reason) > 4096 {
				t.Errorf("it is %s because %.200q", vm.Status, vm.Reason)
			}
			w.checkWorld(d.settle())
		})
	}
}
