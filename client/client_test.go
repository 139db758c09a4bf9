package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// serve runs the real server on the socket and returns how to end it.
func serve(t *testing.T, svc *httpapitest.Service, socket string) (stop func()) {
	t.Helper()
	ln, err := httpapi.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- httpapi.New(httpapi.Config{Service: svc, Version: "2.0", Heartbeat: 50 * time.Millisecond}).Serve(ctx, ln)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func connect(t *testing.T, svc *httpapitest.Service) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "v.sock")
	serve(t, svc, socket)
	c, err := client.New(client.Config{Addr: "unix://" + socket, Version: "1.0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func hello() api.Manifest {
	return api.Manifest{
		Name: "hello", Version: "1", Initramfs: &api.Initramfs{URL: "app.cpio", Checksum: digest([]byte("archive"))},
		Resources: api.Resources{CPUCores: 1, MemoryMB: 64},
		Workload:  &api.Workload{Type: api.WorkloadExec, Entrypoint: []string{"/app"}},
	}
}

func install(t *testing.T, c *client.Client) {
	t.Helper()
	if _, err := c.PutBlob(t.Context(), digest([]byte("archive")), strings.NewReader("archive"), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := c.InstallPlugin(t.Context(), hello()); err != nil {
		t.Fatal(err)
	}
}

// TestRoutes calls every method against the real server.
func TestRoutes(t *testing.T) {
	ctx := t.Context()
	c := connect(t, &httpapitest.Service{
		Boot:     map[string]string{"slow": "starting"},
		Workload: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }),
		Logs:     []api.LogEntry{{Seq: 1, Line: "a"}, {Seq: 2, Line: "b"}, {Seq: 3, Stream: "console", Line: "c"}},
	})
	check := func(what string, ok bool, err error) {
		t.Helper()
		if err != nil || !ok {
			t.Errorf("%s: ok %v, err %v", what, ok, err)
		}
	}
	check("Health", true, c.Health(ctx))
	doc, err := c.OpenAPI(ctx)
	check("OpenAPI", bytes.Contains(doc, []byte(`"3.1.0"`)), err)
	info, err := c.SystemInfo(ctx)
	check("SystemInfo", info.Bridge == "vbr0", err)
	doctor, err := c.Doctor(ctx)
	check("Doctor", len(doctor.Hypervisors) == 2 && doctor.Hypervisors[0].Chosen, err)

	install(t, c)
	b, err := c.Blob(ctx, digest([]byte("archive")))
	check("Blob", b.Size == 7, err)
	empty, err := c.PutBlob(ctx, digest(nil), strings.NewReader(""), 0)
	check("PutBlob of nothing", empty.Size == 0, err)
	plugins, err := c.Plugins(ctx, nil)
	check("Plugins", len(plugins) == 1, err)
	p, err := c.Plugin(ctx, "hello")
	check("Plugin", p.Version == "1", err)
	m, err := c.Manifest(ctx, "hello")
	check("Manifest", m.Resources.MemoryMB == 64, err)
	p, err = c.EnablePlugin(ctx, "hello", true)
	check("EnablePlugin", p.Enabled, err)

	vm, err := c.CreateVM(ctx, api.VMCreate{Name: "web", Plugin: "hello"}, client.Wait{For: api.WaitHealthy, Timeout: time.Minute})
	check("CreateVM", vm.Healthy, err)
	_, err = c.CreateVM(ctx, api.VMCreate{Name: "slow", Plugin: "hello"}, client.Wait{For: api.WaitRunning, Timeout: 20 * time.Millisecond})
	check("CreateVM of a slow one", api.CodeOf(err) == api.CodeTimeout, nil)
	vms, total, err := c.VMs(ctx, api.VMFilter{Status: []api.VMState{api.VMRunning, api.VMStarting}, Plugin: "hello", Query: "s", Limit: 1, Sort: "name", Desc: true})
	check("VMs", total == 1 && len(vms) == 1 && vms[0].Name == "slow", err)
	_, total, err = c.VMs(ctx, api.VMFilter{Offset: 1})
	check("VMs from 1", total == 2, err)
	vm, err = c.StopVM(ctx, "web", api.VMStop{GraceSeconds: 1}, client.Wait{For: api.WaitStopped})
	check("StopVM", vm.Status == api.VMStopped, err)
	vm, err = c.StartVM(ctx, "web", client.Wait{For: api.WaitRunning})
	check("StartVM", vm.Incarnation == 2, err)
	vm, err = c.RestartVM(ctx, "web", api.VMStop{Force: true}, client.Wait{})
	check("RestartVM", vm.Incarnation == 3, err)
	vm, err = c.VM(ctx, vm.ID, client.Wait{For: api.WaitHealthy})
	check("VM", vm.Name == "web", err)
	tl, err := c.VMTimeline(ctx, "web")
	check("VMTimeline", len(tl.Steps) == 4, err)
	var lines []string
	err = c.VMLogs(ctx, "web", api.LogQuery{After: 1, Tail: 5}, func(e api.LogEntry) error { lines = append(lines, e.Line); return nil })
	check("VMLogs", slices.Equal(lines, []string{"b"}), err)
	resp, err := c.CallVM(ctx, "web", "POST", "/x?y=z", nil, strings.NewReader("echo"), 4)
	if err == nil {
		data, _ := io.ReadAll(resp.Body)
		check("CallVM", string(data) == "echo", resp.Body.Close())
	} else {
		t.Error(err)
	}
	sum, err := c.SystemSummary(ctx)
	check("SystemSummary", sum.TotalVMs == 2, err)
	check("RemovePlugin in use", api.CodeOf(c.RemovePlugin(ctx, "hello")) == api.CodeConflict, nil)
	for _, name := range []string{"web", "slow"} {
		check("DeleteVM", true, c.DeleteVM(ctx, name, api.VMStop{GraceSeconds: 2, Force: true}, client.Wait{For: api.WaitDeleted}))
	}
	check("RemovePlugin", true, c.RemovePlugin(ctx, "hello"))

	k, err := c.ImportKernel(ctx, api.KernelImport{Name: "generic", Version: "6.12", Digest: digest([]byte("archive"))})
	check("ImportKernel", k.Default, err)
	k, err = c.DefaultKernel(ctx, "generic")
	check("DefaultKernel", k.Default, err)
	ks, err := c.Kernels(ctx)
	check("Kernels", len(ks) == 1, err)
	check("RemoveKernel", true, c.RemoveKernel(ctx, "generic"))
	_, err = c.VM(ctx, "../x", client.Wait{})
	check("VM of a bad name", api.CodeOf(err) == api.CodeInvalid, nil)
}

// TestRefusedUpload checks that the answer to a large upload arrives although
// the daemon stopped reading.
func TestRefusedUpload(t *testing.T) {
	full := api.Errorf(api.CodeExhausted, "the disk is full")
	c := connect(t, &httpapitest.Service{Err: map[string]error{"PutBlob": full}})
	big := make([]byte, 32<<20)
	_, err := c.PutBlob(t.Context(), digest(big), bytes.NewReader(big), int64(len(big)))
	var e *api.Error
	if !errors.As(err, &e) || *e != *full {
		t.Errorf("PutBlob = %v, want %v", err, full)
	}
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ socket, want, hint string }{
		"no socket": {filepath.Join(dir, "none.sock"), "there is no socket", "start it"},
		"dead":      {dead, "nobody listens", "start it"},
		"too long":  {"/" + strings.Repeat("x", 200), "invalid argument", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := client.New(client.Config{Addr: c.socket})
			if err != nil {
				t.Fatal(err)
			}
			_, err = cl.SystemInfo(t.Context())
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeUnavailable || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("SystemInfo = %#v, want unavailable with %q and a hint with %q", err, c.want, c.hint)
			}
		})
	}
}

// TestNotVolantd speaks to servers of something else.
func TestNotVolantd(t *testing.T) {
	for name, c := range map[string]struct {
		status      int
		reply, want string
	}{
		"no JSON":        {200, "<html>", "does not parse"},
		"other JSON":     {200, `{}`, "does not parse"},
		"no total count": {200, `[]`, "lacks the header"},
		"other error":    {418, `{"error": "old form"}`, "418"},
		"redirect":       {307, "", "307"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "v.sock")
			ln, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.reply)
			})}
			go func() { _ = srv.Serve(ln) }()
			defer srv.Close()
			cl, err := client.New(client.Config{Addr: socket})
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := cl.VMs(t.Context(), api.VMFilter{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("VMs = %v, want %q", err, c.want)
			}
		})
	}
}

func errHint(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

func TestNewRefuses(t *testing.T) {
	for addr, want := range map[string]string{"http://1.2.3.4:7777": "ssh -L", "tcp://x": "ssh -L", "v.sock": "must be absolute", "unix://v.sock": "must be absolute"} {
		if _, err := client.New(client.Config{Addr: addr}); err == nil || !strings.Contains(errHint(err), want) {
			t.Errorf("New(%q) = %v, want hint %q", addr, err, want)
		}
	}
	if got := (&client.Client{}).Addr(); got != "unix://"+api.DefaultSocket {
		t.Errorf("zero Client is at %s", got)
	}
}

func TestVersionToldOnce(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	serve(t, &httpapitest.Service{}, socket)
	var got []string
	c, err := client.New(client.Config{Addr: socket, OnVersion: func(v string) { got = append(got, v) }})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, []string{"2.0"}) {
		t.Errorf("told %q", got)
	}
}

// TestEventsAcrossRestart follows events while the daemon ends and comes back,
// and checks that each arrives once, in order.
func TestEventsAcrossRestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	svc := &httpapitest.Service{}
	stop := serve(t, svc, socket)
	c, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	install(t, c) // event 1
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, done := make(chan uint64, 100), make(chan error, 1)
	go func() {
		done <- c.Events(ctx, api.EventFilter{}, true, func(e api.Event) error { seen <- e.Seq; return nil })
	}()
	if n := <-seen; n != 1 {
		t.Fatalf("first event is %d", n)
	}
	stop()
	stop = serve(t, svc, socket)
	if _, err := c.CreateVM(ctx, api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{}); err != nil { // 2 to 5
		t.Fatal(err)
	}
	for want := uint64(2); want <= 5; want++ {
		if got := <-seen; got != want {
			t.Fatalf("got event %d, want %d", got, want)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Events = %v, want Canceled", err)
	}
	stop()
}

func TestEventsErrors(t *testing.T) {
	c := connect(t, &httpapitest.Service{})
	install(t, c)
	stop := errors.New("stop")
	if err := c.Events(t.Context(), api.EventFilter{}, true, func(api.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Events = %v, want the error of yield", err)
	}
	if err := c.Events(t.Context(), api.EventFilter{VM: "../x"}, true, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("Events of a bad name = %v, want invalid", err)
	}
	n := 0
	if err := c.Events(t.Context(), api.EventFilter{Types: []api.EventType{api.EventPluginInstalled, api.EventVMCreated}}, false, func(api.Event) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("Events = %v with %d events, want 1", err, n)
	}
	down, err := client.New(client.Config{Addr: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Events(t.Context(), api.EventFilter{}, true, nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("Events without a daemon = %v, want unavailable at once", err)
	}
}

// TestLogQuery checks that each part of a query reaches the daemon.
func TestLogQuery(t *testing.T) {
	at := func(sec int64) time.Time { return time.Unix(1e9+sec, 5e8) }
	c := connect(t, &httpapitest.Service{Logs: []api.LogEntry{
		{Seq: 1, Time: at(1), Stream: "stdout"}, {Seq: 2, Time: at(2), Stream: "stdout"}, {Seq: 3, Time: at(3), Stream: "volant", Lost: 7, Incarnation: 2},
		{Seq: 4, Stream: "console", Partial: true}, {Seq: 5, Stream: "vmm"},
	}})
	install(t, c)
	if _, err := c.CreateVM(t.Context(), api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		q    api.LogQuery
		want []uint64
	}{
		{api.LogQuery{}, []uint64{1, 2, 3}},
		{api.LogQuery{Tail: 2}, []uint64{2, 3}},
		{api.LogQuery{Tail: api.TailNone}, nil},
		{api.LogQuery{Since: at(2)}, []uint64{2, 3}},
		{api.LogQuery{Since: at(2), Until: at(3).In(time.FixedZone("", 3600))}, []uint64{2}},
		{api.LogQuery{Log: api.LogConsole}, []uint64{4}},
		{api.LogQuery{Log: api.LogVMM}, []uint64{5}},
	} {
		var got []uint64
		err := c.VMLogs(t.Context(), "a", tc.q, func(e api.LogEntry) error {
			if e.Seq == 3 && (e.Lost != 7 || e.Incarnation != 2) || e.Partial != (e.Seq == 4) {
				t.Errorf("entry = %+v", e)
			}
			got = append(got, e.Seq)
			return nil
		})
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("VMLogs(%+v) = %v, %v, want %v", tc.q, got, err, tc.want)
		}
	}
}

func TestLogsErrors(t *testing.T) {
	c := connect(t, &httpapitest.Service{
		Logs: []api.LogEntry{{Seq: 1, Line: strings.Repeat("x", 100_000)}},
		Err:  map[string]error{"VMLogs": api.Errorf(api.CodeUnavailable, "the agent went away")},
	})
	install(t, c)
	if _, err := c.CreateVM(t.Context(), api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := c.VMLogs(t.Context(), "a", api.LogQuery{}, func(e api.LogEntry) error { n += len(e.Line); return nil })
	if n != 100_000 || err == nil || err.Error() != "the agent went away" {
		t.Errorf("VMLogs gave %d bytes and %v", n, err)
	}
}

func TestContextEnds(t *testing.T) {
	c := connect(t, &httpapitest.Service{Boot: map[string]string{"a": "starting"}})
	install(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.CreateVM(ctx, api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{For: api.WaitRunning}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("CreateVM = %v, want DeadlineExceeded", err)
	}
}

// TestNewLogsAcrossRestart follows only new lines, of which the first come while
// the client is not connected.
func TestNewLogsAcrossRestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	svc := &httpapitest.Service{Logs: []api.LogEntry{{Seq: 1, Stream: "stdout", Time: time.Now().Add(-time.Minute)}}}
	stop := serve(t, svc, socket)
	c, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	install(t, c)
	if _, err := c.CreateVM(t.Context(), api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, done := make(chan uint64, 100), make(chan error, 1)
	go func() {
		done <- c.VMLogs(ctx, "a", api.LogQuery{Follow: true, Tail: api.TailNone}, func(e api.LogEntry) error { seen <- e.Seq; return nil })
	}()
	time.Sleep(500 * time.Millisecond) // nothing tells that it is connected
	stop()
	svc.Logs = append(svc.Logs, api.LogEntry{Seq: 2, Stream: "stdout", Time: time.Now()})
	stop = serve(t, svc, socket)
	select {
	case n := <-seen:
		if n != 2 {
			t.Errorf("the first line is %d, want 2", n)
		}
	case err := <-done:
		t.Errorf("VMLogs = %v", err)
	}
	cancel()
	stop()
}

// TestLogsAcrossRestart follows a log while the daemon ends and comes back: no
// line twice, none lost.
func TestLogsAcrossRestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	svc := &httpapitest.Service{Logs: []api.LogEntry{{Seq: 1, Stream: "stdout"}, {Seq: 2, Stream: "stdout"}}}
	stop := serve(t, svc, socket)
	c, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	install(t, c)
	if _, err := c.CreateVM(t.Context(), api.VMCreate{Name: "a", Plugin: "hello"}, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, done := make(chan uint64, 100), make(chan error, 1)
	go func() {
		done <- c.VMLogs(ctx, "a", api.LogQuery{Follow: true, Tail: 1}, func(e api.LogEntry) error { seen <- e.Seq; return nil })
	}()
	if n := <-seen; n != 2 {
		t.Fatalf("first line is %d, want 2", n)
	}
	stop()
	svc.Logs = append(svc.Logs, api.LogEntry{Seq: 3, Stream: "stdout"}, api.LogEntry{Seq: 4, Stream: "stdout"})
	stop = serve(t, svc, socket)
	for want := uint64(3); want <= 4; want++ {
		if got := <-seen; got != want {
			t.Fatalf("got line %d, want %d", got, want)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("VMLogs = %v, want Canceled", err)
	}
	stop()
}
