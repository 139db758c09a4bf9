package hvtest

import (
	"bytes"
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

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// Harness is what the suite must know of a driver to test it.
type Harness struct {
	// Driver returns a new driver value, as a daemon that starts makes one. All
	// of them drive machines of the same host.
	Driver func(t testing.TB) hv.Driver
	// Spec returns a machine that was never launched, in a directory of its
	// own, whose guest serves package hvtest/guest and powers off when the
	// power button is pressed.
	Spec func(t testing.TB) hv.Spec
	// Tiny returns a machine like Spec's, but of this guest and 16 MiB. Only
	// RunTiny needs it.
	Tiny func(t testing.TB, g Tiny) hv.Spec
	// TinyPanics says that the VMM sees a Tiny panic.
	TinyPanics bool
	// Orphan launches the machine from a daemon that is then killed without a
	// chance to clean up, and returns its record.
	Orphan func(t testing.TB, spec hv.Spec) hv.Record
	// Crash kills the VMM of a record from outside.
	Crash func(t testing.TB, rec hv.Record)
	// Alive lists the VMM processes that run for this directory.
	Alive func(t testing.TB, dir string) []string
	// Broken returns machines, made from sound ones, that Launch must refuse
	// with ErrInvalidSpec, beyond those that the suite knows.
	Broken func(t testing.TB) map[string]hv.Spec
	// Tap returns a TAP that no machine has, for a NIC to be plugged; nil where
	// there can be none.
	Tap func(t testing.TB) string
	// Inert says that the guest's kernel cannot take what Resize gives it.
	Inert bool
	// Timeout bounds each test; it has to cover a few boots on a busy host.
	Timeout time.Duration
	// Parallel is how many machines may boot at a time; 0 means 1.
	Parallel int
}

// Run runs the conformance suite: what hv's documentation promises of every
// driver. Each test ends by looking for processes and files left behind.
func Run(t *testing.T, h Harness) {
	caps := h.probe(t)
	tests := []conformance{
		{"life", testLife},
		{"shutdown", testShutdown},
		{"reset", testReset},
		{"panic", testPanic},
		{"pause", testPause},
		{"power button", testPowerButton},
		{"agent", testAgent},
		{"crash", testCrash},
		{"detach and attach", testDetach},
		{"end unattended", testUnattended},
		{"daemon killed", testOrphan},
		{"foreign records", testForeign},
		{"launch cancelled", testCancel},
		{"launch refused", testRefused},
		{"console bounded", testConsole},
		{"disks", testDisks},
	}
	if caps.Snapshot {
		tests = append(tests, conformance{"snapshot", testSnapshot}, conformance{"snapshot refused", testSnapshotRefused})
	}
	if caps.Template {
		tests = append(tests, conformance{"template", testTemplate})
	}
	if caps.ResizeCPU || caps.ResizeMemory {
		tests = append(tests, conformance{"resize", testResize})
	}
	if caps.PlugDisk {
		tests = append(tests, conformance{"plug disk", testPlugDisk})
	}
	if caps.PlugNIC && h.Tap != nil {
		tests = append(tests, conformance{"plug NIC", testPlugNIC})
	}
	h.run(t, tests)
}

// conformance is one test of a suite.
type conformance struct {
	name string
	run  func(*run)
}

// probe returns what the driver can do.
func (h Harness) probe(t *testing.T) hv.Capabilities {
	t.Helper()
	caps, err := h.Driver(t).Probe(t.Context())
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	return caps
}

func (h Harness) run(t *testing.T, tests []conformance) {
	caps := h.probe(t)
	s := &suite{Harness: h, slots: make(chan struct{}, max(1, h.Parallel))}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if h.Parallel > 1 {
				t.Parallel()
			}
			s.slots <- struct{}{}
			defer func() { <-s.slots }()
			ctx, cancel := context.WithTimeout(t.Context(), h.Timeout)
			defer cancel()
			test.run(&run{T: t, suite: s, ctx: ctx, driver: h.Driver(t), caps: caps})
		})
	}
}

type suite struct {
	Harness
	slots chan struct{}
}

// run is one test of the suite.
type run struct {
	*testing.T
	*suite
	ctx    context.Context
	driver hv.Driver
	caps   hv.Capabilities
}

// spec returns a fresh machine, which is watched.
func (r *run) spec() hv.Spec {
	r.Helper()
	return r.watch(r.Spec(r))
}

// watch has the leak table of a machine checked when the test is over.
func (r *run) watch(spec hv.Spec) hv.Spec {
	r.Helper()
	parent := filepath.Dir(spec.Dir)
	before := names(r, parent)
	r.Cleanup(func() {
		// A process that was just killed may take a moment to disappear.
		var alive []string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if alive = r.Alive(r, spec.Dir); len(alive) == 0 {
				break
			}
		}
		if len(alive) > 0 {
			r.Errorf("processes left behind: %q", alive)
		}
		if after := names(r, parent); !slices.Equal(before, after) {
			r.Errorf("files beside the machine's directory: before %q, after %q", before, after)
		}
		for _, name := range names(r, spec.Dir) {
			if strings.HasSuffix(name, ".sock") {
				r.Errorf("socket left behind: %s", name)
			}
		}
	})
	return spec
}

// names lists a directory; one that is gone has none.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// launch boots a machine, which is killed when the test is over.
func (r *run) launch(spec hv.Spec) hv.VM {
	r.Helper()
	vm, err := r.driver.Launch(r.ctx, spec)
	if err != nil {
		r.Fatalf("Launch: %v", err)
	}
	r.killAtEnd(vm)
	return vm
}

func (r *run) killAtEnd(vm hv.VM) {
	r.Cleanup(func() {
		if r.Failed() {
			r.Logf("console of %s ends with:\n%s", vm.Record().ID, vmm.Tail(vm.Record().ConsoleLog, 2048))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if vm.Kill(ctx) == nil {
			return
		}
		// It was detached. Only a test that failed leaves its machine to us.
		if again, err := r.driver.Attach(ctx, vm.Record()); err == nil {
			again.Kill(ctx) // the leak table tells if it did not help
		}
	})
}

func (r *run) attach(rec hv.Record) hv.VM {
	r.Helper()
	vm, err := r.Driver(r).Attach(r.ctx, rec)
	if err != nil {
		r.Fatalf("Attach: %v", err)
	}
	return vm
}

// call sends a request to the agent and returns the answer's body.
func (r *run) call(vm hv.VM, method, path string, body []byte) ([]byte, error) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Agent().Dial(ctx) },
	}}
	req, err := http.NewRequestWithContext(r.ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return b, err
}

func (r *run) post(vm hv.VM, path string) {
	r.Helper()
	if _, err := r.call(vm, http.MethodPost, path, nil); err != nil {
		r.Fatalf("POST %s: %v", path, err)
	}
}

// echo checks that the agent answers.
func (r *run) echo(vm hv.VM, size int) {
	r.Helper()
	want := bytes.Repeat([]byte("volant. "), size/8)
	got, err := r.call(vm, http.MethodPost, "/echo", want)
	if err != nil {
		r.Errorf("POST /echo: %v", err)
	} else if !bytes.Equal(got, want) {
		r.Errorf("POST /echo of %d bytes returned %d other bytes", len(want), len(got))
	}
}

func (r *run) wantState(vm hv.VM, want hv.State) {
	r.Helper()
	if got, err := vm.State(r.ctx); got != want || err != nil {
		r.Errorf("State() = %q, %v, want %q", got, err, want)
	}
}

// wantExit waits for the end and checks all that must follow it.
func (r *run) wantExit(vm hv.VM, want hv.ExitReason) {
	r.Helper()
	exit, err := vm.Wait(r.ctx)
	if err != nil || exit.Reason != want {
		r.Fatalf("Wait() = %+v, %v, want %s", exit, err, want)
	}
	if exit.Detail == "" {
		r.Errorf("exit %s has no detail", exit.Reason)
	}
	if again, err := vm.Wait(r.ctx); again != exit || err != nil {
		r.Errorf("second Wait() = %+v, %v, want %+v", again, err, exit)
	}
	r.wantState(vm, hv.StateExited)
	for op, f := range map[string]func(context.Context) error{"Pause": vm.Pause, "Resume": vm.Resume, "PowerButton": vm.PowerButton} {
		if err := f(r.ctx); !errors.Is(err, hv.ErrGone) {
			r.Errorf("%s after the end: %v, want ErrGone", op, err)
		}
	}
	if err := vm.Kill(r.ctx); err != nil {
		r.Errorf("Kill after the end: %v", err)
	}
	var gone *hv.GoneError
	if _, err := r.Driver(r).Attach(r.ctx, vm.Record()); !errors.As(err, &gone) || !errors.Is(err, hv.ErrGone) || gone.Exit != exit {
		r.Errorf("Attach after the end: %v, want a GoneError with %+v", err, exit)
	}
	if _, err := r.Driver(r).Find(r.ctx, vm.Record().Dir); !errors.Is(err, hv.ErrGone) {
		r.Errorf("Find after the end: %v, want ErrGone", err)
	}
}

// wantEvents reads the events, which must be closed or about to be, and wants
// these in this order among them, the last being the very last.
func (r *run) wantEvents(vm hv.VM, want ...hv.EventType) {
	r.Helper()
	var got []hv.EventType
	for {
		select {
		case e, ok := <-vm.Events():
			if ok {
				got = append(got, e.Type)
				continue
			}
		case <-r.ctx.Done():
			r.Fatalf("events not closed; got %q", got)
		}
		break
	}
	rest := got
	for _, w := range want {
		i := slices.Index(rest, w)
		if i < 0 {
			r.Errorf("events = %q, want %q among them", got, want)
			return
		}
		rest = rest[i+1:]
	}
	if len(rest) > 0 {
		r.Errorf("events = %q, want %q at the end", got, want)
	}
}

func testLife(r *run) {
	caps, err := r.driver.Probe(r.ctx)
	if err != nil {
		r.Fatalf("Probe: %v", err)
	}
	if caps.Driver != r.driver.Name() || caps.Version == "" || caps.Binary == "" || caps.MaxVCPUs < 1 || caps.MaxDisks < 1 || caps.MaxNICs < 1 {
		r.Errorf("Probe() = %+v: fields are missing", caps)
	}
	if caps.Accel == hv.AccelTCG && caps.Notice == "" && caps.Driver != FakeName {
		r.Errorf("Probe() = %+v: want a notice that machines are emulated", caps)
	}
	spec := r.spec()
	vm := r.launch(spec)
	r.wantState(vm, hv.StateRunning)

	rec := vm.Record()
	if rec.Driver != r.driver.Name() || rec.ID != spec.ID || rec.Dir != spec.Dir || rec.PID <= 0 || rec.StartTime == 0 || rec.BootID == "" || rec.ArgvSHA256 == "" {
		r.Errorf("Record() = %+v: fields are missing", rec)
	}
	if got, err := vmm.ReadRecord(spec.Dir); got != rec || err != nil {
		r.Errorf("record on disk = %+v, %v, want %+v", got, err, rec)
	}
	if got, err := r.Driver(r).Find(r.ctx, spec.Dir); got != rec || err != nil {
		r.Errorf("Find() = %+v, %v, want %+v", got, err, rec)
	}
	if n := len(r.Alive(r, spec.Dir)); n != 1 {
		r.Errorf("%d processes run for the machine, want 1", n)
	}
	r.echo(vm, 64)

	brief, cancel := context.WithTimeout(r.ctx, 10*time.Millisecond)
	defer cancel()
	if exit, err := vm.Wait(brief); !errors.Is(err, context.DeadlineExceeded) {
		r.Errorf("Wait for a running machine = %+v, %v, want DeadlineExceeded", exit, err)
	}
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	if alive := r.Alive(r, spec.Dir); len(alive) > 0 {
		r.Errorf("after Kill %q is still there", alive)
	}
	r.wantExit(vm, hv.ExitKilled)
	r.wantEvents(vm, hv.EventExited)
	if _, err := vm.Agent().Dial(r.ctx); err == nil {
		r.Error("Dial after the end succeeded")
	}
	if err := vm.Detach(); err != nil {
		r.Errorf("Detach after the end: %v", err)
	}
	for range 20 { // not only now and then
		if err := vm.Kill(r.ctx); err != nil {
			r.Errorf("Kill after the end and Detach: %v", err)
		}
	}
}

// pauseAndResume wants both to be idempotent, and a paused agent to be silent.
// wantConsole waits for text in the console log: it comes by another way than
// the agent's answer.
