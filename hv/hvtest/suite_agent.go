package hvtest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

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

func (r *run) wantConsole(path, text string) {
	r.Helper()
	for !bytes.Contains(vmm.Tail(path, 1<<20), []byte(text)) {
		if r.ctx.Err() != nil {
			r.Fatalf("%q is not in the console log", text)
		}
		time.Sleep(5 * time.Millisecond)
	}
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
