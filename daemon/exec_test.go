package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// handleSessions adds exec and attach. A command is refused with the status that
// it names, or prints what it was given; an attach ends with the workload.
func (g *fakeGuest) handleSessions(mux *http.ServeMux) {
	upgrade := func(w http.ResponseWriter) *stdio.Writer {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", stdio.Protocol)
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		go func() {
			io.Copy(io.Discard, rw) // what is typed, until the client leaves
			conn.Close()
		}()
		return stdio.NewWriter(conn)
	}
	mux.HandleFunc("POST "+wire.PathExec, func(w http.ResponseWriter, r *http.Request) {
		var e wire.Exec
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			panic(err)
		}
		var status int
		if n, _ := fmt.Sscanf(e.Args[0], "refuse%d", &status); n == 1 {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"message":"because"}`)
			return
		}
		out := upgrade(w)
		_ = out.Write(stdio.Frame{Type: stdio.Stdout, Data: fmt.Appendf(nil, "%+v", e)})
		_ = out.Write(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 3}})
	})
	mux.HandleFunc("POST "+wire.PathAttach, func(w http.ResponseWriter, r *http.Request) {
		out := upgrade(w)
		for {
			s, _, changed := g.get()
			if s.Exit != nil {
				_ = out.Write(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: s.Exit.Code}})
				return
			}
			<-changed
		}
	})
}

// readSession reads a session to its exit status.
func readSession(t *testing.T, conn io.ReadWriteCloser) (string, stdio.ExitStatus) {
	t.Helper()
	defer conn.Close()
	r := stdio.NewReader(conn)
	var out strings.Builder
	for {
		f, err := r.Next()
		if err != nil {
			t.Errorf("session: %v", err)
			return out.String(), stdio.ExitStatus{}
		}
		if f.Type == stdio.Exit {
			return out.String(), f.Exit
		}
		out.Write(f.Data)
	}
}

func TestVMExec(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	bare := d.manifest("bare")
	bare.Initramfs.Agent, bare.Workload = api.AgentNone, nil
	d.equip(bare)
	d.create("web", "serve")
	d.create("bare", "bare")
	d.must("web", api.WaitHealthy)
	d.must("bare", api.WaitRunning)

	conn, err := d.VMExec(ctx, "web", api.Exec{Args: []string{"a", "b c"}, Env: map[string]string{"Z": "1", "A": "x=y"}, User: "u", Workdir: "/w", TTY: true, Rows: 5, Cols: 6, Term: "vt220"})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%+v", wire.Exec{Args: []string{"a", "b c"}, Env: []string{"A=x=y", "Z=1"}, User: "u", Workdir: "/w", TTY: true, Rows: 5, Cols: 6, Term: "vt220"})
	if out, exit := readSession(t, conn); out != want || exit.Code != 3 {
		t.Errorf("the guest was told %s, exit %+v; want %s", out, exit, want)
	}

	for _, tc := range []struct {
		vm, command, want string
		code              api.Code
	}{
		{"wob", "x", `no VM "wob"`, api.CodeNotFound},
		{"web", "", "no command", api.CodeInvalid},
		{"bare", "x", "no agent", api.CodeUnsupported},
		{"web", "refuse400", "because", api.CodeInvalid},
		{"web", "refuse404", "earlier version", api.CodeUnsupported},
		{"web", "refuse409", "because", api.CodeConflict},
		{"web", "refuse429", "because", api.CodeExhausted},
		{"web", "refuse500", "because", api.CodeUnavailable},
		{"web", "refuse200", "does not answer", api.CodeUnavailable},
	} {
		if _, err := d.VMExec(ctx, tc.vm, api.Exec{Args: []string{tc.command}}); api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("VMExec(%s, %q) = %v, want %s: %s", tc.vm, tc.command, err, tc.code, tc.want)
		}
	}
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	for what, open := range map[string]func() (io.ReadWriteCloser, error){
		"exec":   func() (io.ReadWriteCloser, error) { return d.VMExec(ctx, "web", api.Exec{Args: []string{"x"}}) },
		"attach": func() (io.ReadWriteCloser, error) { return d.VMAttach(ctx, "web") },
	} {
		if _, err := open(); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "is stopped") {
			t.Errorf("%s in a VM that is stopped = %v, want conflict", what, err)
		}
	}
	if _, err := d.VMAttach(ctx, "bare"); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("VMAttach without an agent = %v, want unsupported", err)
	}
}

// TestVMAttachFromTheStart attaches to VMs that were just created and whose
// workloads end at once: no status may be lost, and every machine must go.
func TestVMAttachFromTheStart(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("exit", "7"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprintf("job-%d", i)
			if _, err := d.CreateVM(context.Background(), api.VMCreate{Name: name, Plugin: "exit"}); err != nil {
				t.Error(err)
				return
			}
			conn, err := d.VMAttach(context.Background(), name)
			if err != nil {
				t.Errorf("VMAttach: %v", err)
				return
			}
			if _, exit := readSession(t, conn); exit.Code != 7 {
				t.Errorf("exit = %+v, want 7", exit)
			}
		})
	}
	wg.Wait()
	d.settle()
	if n := len(d.visits.vm); n != 0 {
		t.Errorf("%d VMs are still visited", n)
	}
}

// TestVMAttachGivesUp has VMs that will not be there.
func TestVMAttachGivesUp(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("silent"), d.manifest("panic"))
	d.create("boom", "panic")
	if _, err := d.VMAttach(context.Background(), "boom"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("VMAttach to a VM that panics = %v, want conflict", err)
	}
	d.create("mute", "silent")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.VMAttach(ctx, "mute"); err == nil || ctx.Err() == nil {
		t.Errorf("VMAttach to a VM that is silent = %v", err)
	}
	if n := len(d.visits.vm); n != 0 {
		t.Errorf("%d VMs are still visited", n)
	}
}

// TestVMAttachOfTheSlow has a client that never reads: its VM goes all the same.
func TestVMAttachOfTheSlow(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("exit", "0"))
	d.create("job", "exit")
	conn, err := d.VMAttach(context.Background(), "job")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	start := time.Now()
	vms := d.settle()
	if took := time.Since(start); took > farewell+20*time.Second {
		t.Errorf("the VM went after %v", took)
	}
	if !slices.ContainsFunc(vms, func(vm row.VM) bool { return vm.Status == api.VMStopped }) {
		t.Errorf("VMs: %+v", vms)
	}
}

// A guest whose agent takes calls and answers none holds up neither the calls to
// other VMs nor, for long, those to itself.
func TestHungGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := newWorld(t)
	d := w.start(options{timing: func(t *timing) {
		t.call, t.silence, t.powerOff = 200*time.Millisecond, 500*time.Millisecond, 200*time.Millisecond
	}})
	d.equip()
	hung := d.create("hung", "serve")
	d.create("other", "serve")
	d.must("hung", api.WaitHealthy)
	d.must("other", api.WaitHealthy)
	w.guest(hung.ID).hang(func(string) bool { return true })
	calls := make(chan error, 8)
	for range cap(calls) {
		go func() {
			_, err := d.VMExec(ctx, "hung", api.Exec{Args: []string{"true"}})
			calls <- err
		}()
	}
	begin := time.Now()
	if _, err := d.StopVM(ctx, "other", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("other", api.WaitStopped)
	if _, err := d.StartVM(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	d.must("other", api.WaitHealthy)
	for range cap(calls) {
		if err := <-calls; err == nil || ctx.Err() != nil {
			t.Errorf("VMExec = %v after %v, want an error soon", err, time.Since(begin))
		}
	}
	if _, err := d.StopVM(ctx, "hung", api.VMStop{GraceSeconds: 1}); err != nil {
		t.Fatal(err)
	}
	d.must("hung", api.WaitStopped)
	w.checkWorld(d.settle())
}
