package hvtest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

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
	stranger := vm.Record()
	stranger.StartTime++
	if err := r.driver.End(r.ctx, stranger); err != nil {
		r.Errorf("End with another start time: %v", err)
	}
	again := r.attach(vm.Record())
	r.wantState(again, hv.StateRunning)
	if err := again.Detach(); err != nil {
		r.Fatalf("Detach: %v", err)
	}

	// Without its directory nobody can take it up, but it is found and can be ended.
	if err := os.RemoveAll(spec.Dir); err != nil {
		r.Fatal(err)
	}
	if recs, err := r.driver.Machines(r.ctx, spec.Dir); err != nil || len(recs) > 0 {
		r.Errorf("Machines() below the machine's own directory = %+v, %v, want none", recs, err)
	}
	if recs, err := r.driver.Machines(r.ctx, filepath.Dir(spec.Dir)); err != nil || !slices.Contains(recs, vm.Record()) {
		r.Errorf("Machines() = %+v, %v, want %+v among them", recs, err, vm.Record())
	}
	for range 2 {
		if err := r.driver.End(r.ctx, vm.Record()); err != nil {
			r.Errorf("End: %v", err)
		}
	}
	if recs, err := r.driver.Machines(r.ctx, filepath.Dir(spec.Dir)); err != nil || slices.Contains(recs, vm.Record()) {
		r.Errorf("Machines() after End = %+v, %v", recs, err)
	}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil { // for the check of what is left
		r.Fatal(err)
	}
}
