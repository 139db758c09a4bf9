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
	"strconv"
	"strings"
	"sync"
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
	// Timeout bounds each test; it has to cover a few boots on a busy host.
	Timeout time.Duration
	// Parallel is how many machines may boot at a time; 0 means 1.
	Parallel int
}

// Run runs the conformance suite: what hv's documentation promises of every
// driver. Each test ends by looking for processes and files left behind.
func Run(t *testing.T, h Harness) {
	h.run(t, []conformance{
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
	})
}

// conformance is one test of a suite.
type conformance struct {
	name string
	run  func(*run)
}

func (h Harness) run(t *testing.T, tests []conformance) {
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
			test.run(&run{T: t, suite: s, ctx: ctx, driver: h.Driver(t)})
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
}

func testShutdown(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/poweroff")
	r.wantExit(vm, hv.ExitShutdown)
	r.wantEvents(vm, hv.EventGuestShutdown, hv.EventExited)
}

func testReset(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/reset")
	r.wantExit(vm, hv.ExitReset)
	r.wantEvents(vm, hv.EventGuestReset, hv.EventExited)
}

func testPanic(r *run) {
	vm := r.launch(r.spec())
	r.post(vm, "/panic")
	r.wantExit(vm, hv.ExitPanic)
	r.wantEvents(vm, hv.EventGuestPanic, hv.EventExited)
}

func testPause(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64)
	if err := vm.Resume(r.ctx); err != nil {
		r.Errorf("Resume of a running machine: %v", err)
	}
	// More than once: links begun while nobody answers are where QEMU fails
	// now and then.
	for range 4 {
		r.pauseAndResume(vm)
	}
	before := r.ticks(vm)
	time.Sleep(100 * time.Millisecond)
	if after := r.ticks(vm); after <= before {
		r.Errorf("the resumed guest counted from %d to %d in 100 ms", before, after)
	}
	// Killed while paused: the worst moment to be asked to quit.
	if err := vm.Pause(r.ctx); err != nil {
		r.Fatalf("Pause: %v", err)
	}
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	r.wantExit(vm, hv.ExitKilled)
	r.wantEvents(vm, hv.EventPaused, hv.EventResumed, hv.EventPaused, hv.EventExited)
}

// pauseAndResume wants both to be idempotent, and a paused agent to be silent.
func (r *run) pauseAndResume(vm hv.VM) {
	r.Helper()
	for range 2 {
		if err := vm.Pause(r.ctx); err != nil {
			r.Fatalf("Pause: %v", err)
		}
		r.wantState(vm, hv.StatePaused)
	}
	vm.Agent().Reset()
	brief, cancel := context.WithTimeout(r.ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := vm.Agent().Dial(brief); !errors.Is(err, context.DeadlineExceeded) {
		r.Errorf("Dial of a paused machine: %v, want DeadlineExceeded", err)
	}
	for range 2 {
		if err := vm.Resume(r.ctx); err != nil {
			r.Fatalf("Resume: %v", err)
		}
		r.wantState(vm, hv.StateRunning)
	}
	vm.Agent().Reset()
	r.echo(vm, 64)
}

func (r *run) ticks(vm hv.VM) int {
	r.Helper()
	b, err := r.call(vm, http.MethodGet, "/ticks", nil)
	if err != nil {
		r.Fatalf("GET /ticks: %v", err)
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		r.Fatalf("GET /ticks: %v", err)
	}
	return n
}

func testPowerButton(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64) // the guest listens by now
	if err := vm.PowerButton(r.ctx); err != nil {
		r.Fatalf("PowerButton: %v", err)
	}
	r.wantExit(vm, hv.ExitShutdown)
	r.wantEvents(vm, hv.EventGuestShutdown, hv.EventExited)
}

func testAgent(r *run) {
	vm := r.launch(r.spec())
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() { r.echo(vm, 64<<10) })
	}
	wg.Wait()
	// A broken link is made anew, whoever broke it.
	conn, err := vm.Agent().Dial(r.ctx)
	if err != nil {
		r.Fatalf("Dial: %v", err)
	}
	vm.Agent().Reset()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			r.Errorf("Read on a stream after Reset: %v, want an end", err)
		}
	}
	conn.Close()
	r.echo(vm, 64)
	// Who gives up on a Dial disturbs nobody else.
	conn, err = vm.Agent().Dial(r.ctx)
	if err != nil {
		r.Fatalf("Dial: %v", err)
	}
	defer conn.Close()
	cancelled, cancel := context.WithCancel(r.ctx)
	cancel()
	if _, err := vm.Agent().Dial(cancelled); !errors.Is(err, context.Canceled) {
		r.Errorf("Dial with a cancelled context: %v, want Canceled", err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		r.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
		r.Errorf("Read on a silent stream beside a cancelled Dial: %v, want a timeout", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func testCrash(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64)
	r.Crash(r, vm.Record())
	r.wantExit(vm, hv.ExitCrashed)
	r.wantEvents(vm, hv.EventExited)
}

func testDetach(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64)
	conn, err := vm.Agent().Dial(r.ctx)
	if err != nil {
		r.Fatalf("Dial: %v", err)
	}
	for range 2 {
		if err := vm.Detach(); err != nil {
			r.Errorf("Detach: %v", err)
		}
	}
	r.wantEvents(vm) // closed, with nothing said
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		r.Error("a stream survived Detach")
	}
	conn.Close()
	if _, err := vm.State(r.ctx); err == nil || errors.Is(err, hv.ErrGone) {
		r.Errorf("State after Detach: %v, want an error that is not ErrGone", err)
	}
	if _, err := vm.Wait(r.ctx); err == nil || errors.Is(err, hv.ErrGone) {
		r.Errorf("Wait after Detach: %v, want an error that is not ErrGone", err)
	}
	if err := vm.Kill(r.ctx); err == nil {
		r.Error("Kill after Detach succeeded")
	}

	again := r.attach(vm.Record())
	if again.Record() != vm.Record() {
		r.Errorf("Record() = %+v, want %+v", again.Record(), vm.Record())
	}
	r.wantState(again, hv.StateRunning)
	r.echo(again, 64)
	r.post(again, "/print?bytes=0&end=after+attach")
	r.wantConsole(vm.Record().ConsoleLog, "after attach")
	if err := again.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	r.wantExit(again, hv.ExitKilled)
	r.wantEvents(again, hv.EventExited)
}

// wantConsole waits for text in the console log: it comes by another way than
// the agent's answer.
func (r *run) wantConsole(path, text string) {
	r.Helper()
	for !bytes.Contains(vmm.Tail(path, 1<<20), []byte(text)) {
		if r.ctx.Err() != nil {
			r.Fatalf("%q is not in the console log", text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func testUnattended(r *run) {
	for _, end := range []struct {
		path string
		want hv.ExitReason
	}{
		{"/reset", hv.ExitReset}, // which query-status cannot tell from a power-off
		{"/panic", hv.ExitPanic},
	} {
		vm := r.launch(r.spec())
		r.post(vm, end.path+"?after=300ms")
		if err := vm.Detach(); err != nil {
			r.Fatalf("Detach: %v", err)
		}
		time.Sleep(time.Second)
		again := r.attach(vm.Record())
		r.wantExit(again, end.want)
	}
}

func testOrphan(r *run) {
	spec := r.spec()
	rec := r.Orphan(r, spec)
	// The daemon may have died before it wrote anything down.
	if err := os.Remove(filepath.Join(spec.Dir, vmm.RecordFile)); err != nil {
		r.Fatal(err)
	}
	found, err := r.driver.Find(r.ctx, spec.Dir)
	if err != nil || found != rec {
		r.Fatalf("Find() without a record = %+v, %v, want %+v", found, err, rec)
	}
	vm := r.attach(found)
	r.killAtEnd(vm)
	r.wantState(vm, hv.StateRunning)
	r.echo(vm, 64)
	r.post(vm, "/poweroff")
	r.wantExit(vm, hv.ExitShutdown)
}

func testForeign(r *run) {
	spec := r.spec()
	vm := r.launch(spec)
	r.echo(vm, 64)
	if err := vm.Detach(); err != nil {
		r.Fatalf("Detach: %v", err)
	}
	for name, change := range map[string]func(*hv.Record){
		"start time": func(rec *hv.Record) { rec.StartTime++ },
		"boot id":    func(rec *hv.Record) { rec.BootID = "00000000-0000-0000-0000-000000000000" },
		"arguments":  func(rec *hv.Record) { rec.ArgvSHA256 = strings.Repeat("f", 64) },
		"process":    func(rec *hv.Record) { rec.PID = os.Getpid() },
	} {
		rec := vm.Record()
		change(&rec)
		if _, err := r.driver.Attach(r.ctx, rec); !errors.Is(err, hv.ErrGone) {
			r.Errorf("Attach with another %s: %v, want ErrGone", name, err)
		}
	}
	if _, err := r.driver.Find(r.ctx, filepath.Join(spec.Dir, "other")); !errors.Is(err, hv.ErrGone) {
		r.Errorf("Find of another directory: %v, want ErrGone", err)
	}
	again := r.attach(vm.Record())
	r.wantState(again, hv.StateRunning)
	if err := again.Kill(r.ctx); err != nil {
		r.Errorf("Kill: %v", err)
	}
}

func testCancel(r *run) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond} {
		spec := r.spec()
		ctx, cancel := context.WithTimeout(r.ctx, after)
		vm, err := r.driver.Launch(ctx, spec)
		cancel()
		if err == nil {
			// It was faster. The machine is ours then, whatever ctx says.
			r.wantState(vm, hv.StateRunning)
			if err := vm.Kill(r.ctx); err != nil {
				r.Errorf("Kill: %v", err)
			}
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			r.Errorf("Launch cancelled after %v: %v, want DeadlineExceeded", after, err)
		}
		if alive := r.Alive(r, spec.Dir); len(alive) > 0 {
			r.Errorf("Launch cancelled after %v left %q", after, alive)
		}
		if left := names(r, spec.Dir); len(left) > 0 {
			r.Errorf("Launch cancelled after %v left the files %q", after, left)
		}
	}
}

func testRefused(r *run) {
	caps, err := r.driver.Probe(r.ctx)
	if err != nil {
		r.Fatalf("Probe: %v", err)
	}
	tests := map[string]func(*hv.Spec){
		"no id":              func(s *hv.Spec) { s.ID = "" },
		"id with a slash":    func(s *hv.Spec) { s.ID = "../x" },
		"no vCPU":            func(s *hv.Spec) { s.VCPUs = 0 },
		"too many vCPUs":     func(s *hv.Spec) { s.VCPUs = caps.MaxVCPUs + 1 },
		"no memory":          func(s *hv.Spec) { s.MemoryMiB = 0 },
		"relative kernel":    func(s *hv.Spec) { s.Kernel = "vmlinux" },
		"missing kernel":     func(s *hv.Spec) { s.Kernel += ".missing" },
		"missing initramfs":  func(s *hv.Spec) { s.Initramfs = s.Kernel + ".missing" },
		"missing disk":       func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: s.Kernel + ".missing"}} },
		"long disk serial":   func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: strings.Repeat("a", 21), Path: s.Kernel}} },
		"same disk serials":  func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: s.Kernel}, {Serial: "a", Path: s.Kernel}} },
		"too many disks":     func(s *hv.Spec) { s.Disks = manyDisks(s.Kernel, caps.MaxDisks+1) },
		"missing tap":        func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "volant-none", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}} },
		"malformed tap":      func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "a,script=x", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}} },
		"group MAC":          func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "lo", MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}}} },
		"reserved CID":       func(s *hv.Spec) { s.CID = 2 },
		"missing directory":  func(s *hv.Spec) { s.Dir += "/missing" },
		"long directory":     func(s *hv.Spec) { s.Dir = longDir(r, s.Dir) },
		"parameter of two":   func(s *hv.Spec) { s.Cmdline = []string{"a b"} },
		"end of parameters":  func(s *hv.Spec) { s.Cmdline = []string{"--"} },
		"relative log":       func(s *hv.Spec) { s.ConsoleLog = "console.log" },
		"negative log limit": func(s *hv.Spec) { s.ConsoleLimit = -1 },
	}
	refuse := func(name string, spec hv.Spec) {
		before := names(r, spec.Dir)
		vm, err := r.driver.Launch(r.ctx, spec)
		if err == nil {
			vm.Kill(r.ctx)
		}
		if !errors.Is(err, hv.ErrInvalidSpec) {
			r.Errorf("Launch of %s: %v, want ErrInvalidSpec", name, err)
		}
		if after := names(r, spec.Dir); !slices.Equal(before, after) {
			r.Errorf("Launch of %s left the files %q, before %q", name, after, before)
		}
	}
	for name, change := range tests {
		spec := r.spec()
		change(&spec)
		refuse(name, spec)
	}
	if r.Broken != nil {
		for name, spec := range r.Broken(r) {
			refuse(name, spec)
		}
	}
}

func manyDisks(path string, n int) []hv.Disk {
	var disks []hv.Disk
	for i := range n {
		disks = append(disks, hv.Disk{Serial: fmt.Sprintf("disk%d", i), Path: path, ReadOnly: true})
	}
	return disks
}

// longDir makes a directory in dir whose path leaves no room for a socket's.
// It is removed with dir's parent.
func longDir(t testing.TB, dir string) string {
	t.Helper()
	dir = filepath.Join(dir, strings.Repeat("d", hv.MaxSocketPath))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testConsole(r *run) {
	spec := r.spec()
	spec.ConsoleLimit = 16 << 10
	spec.VMMLog = filepath.Join(r.TempDir(), "said")
	vm := r.launch(spec)
	if at, err := os.Readlink(filepath.Join(spec.Dir, vmm.LogFile)); err != nil || at != spec.VMMLog {
		r.Errorf("the VMM's log in the directory is at %q, %v, want %q", at, err, spec.VMMLog)
	}
	if fi, err := os.Stat(spec.VMMLog); err != nil || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		r.Errorf("the VMM's log = %v, %v, want a file for nobody else", fi, err)
	}
	r.post(vm, "/print?bytes=100000&end=the+very+last+line")
	r.post(vm, "/poweroff")
	r.wantExit(vm, hv.ExitShutdown)
	// Nothing that the guest said before its end is missing at the end.
	if tail := vmm.Tail(spec.ConsoleLog, 4096); !bytes.Contains(tail, []byte("the very last line")) {
		r.Errorf("the console log ends with %.200q, without the last line", tail)
	}
	for _, path := range []string{spec.ConsoleLog, spec.ConsoleLog + ".1"} {
		fi, err := os.Stat(path)
		if err != nil {
			r.Fatal(err)
		}
		if fi.Size() > spec.ConsoleLimit || fi.Mode().Perm()&0o077 != 0 {
			r.Errorf("%s has %d bytes and mode %v, want at most %d and nothing for others", path, fi.Size(), fi.Mode(), spec.ConsoleLimit)
		}
	}
}

// diskSize is that of the disks of testDisks, in bytes.
const diskSize = 4 << 20

// disk makes a file for a disk, beside the machine's directory.
func (r *run) disk(content string) string {
	r.Helper()
	path := filepath.Join(r.TempDir(), "disk, raw")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
	if err := os.Truncate(path, diskSize); err != nil {
		r.Fatal(err)
	}
	return path
}

// readDisk returns what the guest finds on a disk.
func (r *run) readDisk(vm hv.VM, serial string, offset int64, size int) string {
	r.Helper()
	b, err := r.call(vm, http.MethodGet, fmt.Sprintf("/disk?serial=%s&offset=%d&size=%d", serial, offset, size), nil)
	if err != nil {
		r.Errorf("read disk %s: %v", serial, err)
	}
	return string(b)
}

func (r *run) writeDisk(vm hv.VM, serial string, offset int64, text string) error {
	_, err := r.call(vm, http.MethodPut, fmt.Sprintf("/disk?serial=%s&offset=%d", serial, offset), []byte(text))
	return err
}

// testDisks shares a disk among machines, keeps one from being shared, and
// looks what is left on it when the VMM is killed.
func testDisks(r *run) {
	shared, own, others := r.disk("shared"), r.disk(""), r.disk("")
	with := func(disks ...hv.Disk) hv.Spec {
		spec := r.spec()
		spec.Disks = disks
		return spec
	}
	root := hv.Disk{Serial: "volant-root", Path: shared, ReadOnly: true}
	// The order differs: a guest goes by the serial.
	a := r.launch(with(root, hv.Disk{Serial: "volant-upper", Path: own}))
	b := r.launch(with(hv.Disk{Serial: "volant-upper", Path: others}, root))
	for _, vm := range []hv.VM{a, b} {
		if got := r.readDisk(vm, "volant-root", 0, 6); got != "shared" {
			r.Errorf("machine %s reads %q from the disk that it shares, want %q", vm.Record().Dir, got, "shared")
		}
		if err := r.writeDisk(vm, "volant-root", 0, "broken"); err == nil {
			r.Errorf("machine %s wrote to a read-only disk", vm.Record().Dir)
		}
	}

	for name, disk := range map[string]hv.Disk{
		"another's disk":                    {Serial: "x", Path: own},
		"another's disk, read-only":         {Serial: "x", Path: own, ReadOnly: true},
		"the disk of others that only read": {Serial: "x", Path: shared},
	} {
		spec := with(disk)
		vm, err := r.driver.Launch(r.ctx, spec)
		if err == nil {
			vm.Kill(r.ctx)
		}
		if !errors.Is(err, hv.ErrDiskInUse) || !strings.Contains(err.Error(), disk.Path) {
			r.Errorf("Launch with %s: %v, want ErrDiskInUse and its path", name, err)
		}
		if left := names(r, spec.Dir); len(left) > 0 {
			r.Errorf("Launch with %s left the files %q", name, left)
		}
	}

	const text, at = "what was synced", 3 << 20
	if err := r.writeDisk(a, "volant-upper", at, text); err != nil {
		r.Fatalf("write: %v", err)
	}
	r.Crash(r, a.Record())
	r.wantExit(a, hv.ExitCrashed)
	file, err := os.ReadFile(own)
	if err != nil {
		r.Fatal(err)
	}
	if got := string(file[at : at+len(text)]); got != text || len(file) != diskSize {
		r.Errorf("the disk has %d bytes and holds %q after the VMM was killed, want %d and %q", len(file), got, diskSize, text)
	}
	if file, err := os.ReadFile(shared); err != nil || string(file[:6]) != "shared" {
		r.Errorf("the shared disk holds %q, %v", file[:6], err)
	}
	// Its lock went with the process.
	again := r.launch(with(hv.Disk{Serial: "volant-upper", Path: own}))
	if got := r.readDisk(again, "volant-upper", at, len(text)); got != text {
		r.Errorf("the next machine reads %q, want %q", got, text)
	}
}
