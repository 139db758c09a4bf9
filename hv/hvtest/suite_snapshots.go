package hvtest

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/volantvm/volant/hv"
)

// get returns what the agent answers, "" after an error.
func (r *run) get(vm hv.VM, path string) string {
	r.Helper()
	b, err := r.call(vm, http.MethodGet, path, nil)
	if err != nil {
		r.Errorf("GET %s: %v", path, err)
	}
	return string(b)
}

// remember has the guest keep a text in its memory.
func (r *run) remember(vm hv.VM, text string) {
	r.Helper()
	if _, err := r.call(vm, http.MethodPut, "/note", []byte(text)); err != nil {
		r.Fatalf("PUT /note: %v", err)
	}
}

// snapshot pauses the machine and takes a snapshot in a directory of its own.
func (r *run) snapshot(vm hv.VM) hv.Snapshot {
	r.Helper()
	if err := vm.Pause(r.ctx); err != nil {
		r.Fatalf("Pause: %v", err)
	}
	dir := r.TempDir()
	s, err := vm.(hv.Snapshotter).Snapshot(r.ctx, dir)
	if err != nil {
		r.Fatalf("Snapshot: %v", err)
	}
	r.wantState(vm, hv.StatePaused)
	vm.Agent().Reset()
	if s.Driver != r.caps.Driver || s.Version != r.caps.Version || s.Dir != dir || s.VCPUs < 1 || s.MemoryMiB < 1 || len(s.Machine) != 64 {
		r.Errorf("Snapshot() = %+v: fields are missing", s)
	}
	b, err := os.ReadFile(filepath.Join(dir, hv.SnapshotFile))
	if err != nil {
		r.Fatal(err)
	}
	var kept hv.Snapshot
	if err := json.Unmarshal(b, &kept); err != nil || kept != s {
		r.Errorf("%s holds %+v, %v, want %+v", hv.SnapshotFile, kept, err, s)
	}
	return s
}

func (r *run) resume(vm hv.VM) {
	r.Helper()
	if err := vm.Resume(r.ctx); err != nil {
		r.Fatalf("Resume: %v", err)
	}
	vm.Agent().Reset()
}

// restore restores a machine and resumes it, having looked that it was paused.
func (r *run) restore(spec hv.Spec, s hv.Snapshot, o hv.RestoreOptions) hv.VM {
	r.Helper()
	vm, err := r.driver.Restore(r.ctx, spec, s, o)
	if err != nil {
		r.Fatalf("Restore: %v", err)
	}
	r.killAtEnd(vm)
	r.wantState(vm, hv.StatePaused)
	if rec := vm.Record(); rec.ID != spec.ID || rec.Dir != spec.Dir || rec.ConsoleLog != spec.ConsoleLog || rec.CID != spec.CID {
		r.Errorf("Record() = %+v, which is not that of what was asked for", rec)
	}
	r.resume(vm)
	r.wantState(vm, hv.StateRunning)
	return vm
}

// digests returns those of all files in a directory, or of the one file.
func (r *run) digests(path string) map[string][sha256.Size]byte {
	r.Helper()
	sums := make(map[string][sha256.Size]byte)
	err := filepath.Walk(path, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		sums[path] = [sha256.Size]byte(h.Sum(nil))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return sums
}

// copyDisk copies a disk, as its owner does while the machine is paused.
func (r *run) copyDisk(path string) string {
	r.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	return r.disk(string(b))
}

// testSnapshot takes one of a machine that goes on, restores it more than once,
// and takes one of what was restored.
func testSnapshot(r *run) {
	own, shared := r.disk(""), r.disk("shared")
	with := func(disk string) hv.Spec {
		spec := r.spec()
		spec.Disks = []hv.Disk{{Serial: "volant-upper", Path: disk}, {Serial: "volant-root", Path: shared, ReadOnly: true}}
		return spec
	}
	first := r.launch(with(own))
	if _, err := first.(hv.Snapshotter).Snapshot(r.ctx, r.TempDir()); err == nil {
		r.Error("Snapshot of a running machine: no error")
	}
	r.remember(first, "then")
	if err := r.writeDisk(first, "volant-upper", 4096, "then"); err != nil {
		r.Fatalf("write: %v", err)
	}
	nonce, ticks := r.get(first, "/nonce"), r.ticks(first)
	s := r.snapshot(first)
	if _, err := first.(hv.Snapshotter).Snapshot(r.ctx, s.Dir); err == nil {
		r.Error("Snapshot to a directory that is not empty: no error")
	}
	if s.MemoryFile != "" {
		r.Errorf("Snapshot() = %+v, which is no template's", s)
	}
	before := r.digests(s.Dir)
	copies := []string{r.copyDisk(own), r.copyDisk(own)}
	r.resume(first)
	r.remember(first, "now")
	if err := r.writeDisk(first, "volant-upper", 4096, "now!"); err != nil {
		r.Fatalf("write: %v", err)
	}

	again := make([]hv.VM, len(copies))
	for i, disk := range copies {
		vm := r.restore(with(disk), s, hv.RestoreOptions{OnDemand: i == 1 && r.caps.OnDemand})
		again[i] = vm
		if got := r.get(vm, "/nonce"); got != nonce {
			r.Errorf("restore %d has booted: its nonce is %q, want %q", i, got, nonce)
		}
		if note, now := r.get(vm, "/note"), r.ticks(vm); note != "then" || now < ticks {
			r.Errorf("restore %d remembers %q and %d ticks, want %q and at least %d", i, note, now, "then", ticks)
		}
		if got := r.readDisk(vm, "volant-upper", 4096, 4); got != "then" {
			r.Errorf("restore %d reads %q from its disk, want %q", i, got, "then")
		}
		if got := r.readDisk(vm, "volant-root", 0, 6); got != "shared" {
			r.Errorf("restore %d reads %q from the shared disk, want %q", i, got, "shared")
		}
		r.remember(vm, "mine")
		r.post(vm, "/print?bytes=0&end=after+restore")
		r.wantConsole(vm.Record().ConsoleLog, "after restore")
	}
	if note := r.get(first, "/note"); note != "now" {
		r.Errorf("the machine that the snapshot is of remembers %q, want %q", note, "now")
	}
	if after := r.digests(s.Dir); !maps.Equal(before, after) {
		r.Error("the snapshot has changed by being restored")
	}

	// A restored machine is one like any other: it is found, taken up, paused,
	// powered off, and has snapshots of its own.
	if got, err := r.Driver(r).Find(r.ctx, again[0].Record().Dir); got != again[0].Record() || err != nil {
		r.Errorf("Find() of a restored machine = %+v, %v, want %+v", got, err, again[0].Record())
	}
	if err := again[0].Detach(); err != nil {
		r.Fatalf("Detach: %v", err)
	}
	vm := r.attach(again[0].Record())
	r.killAtEnd(vm)
	second := r.snapshot(vm)
	disk := r.copyDisk(copies[0])
	r.resume(vm)
	r.post(vm, "/poweroff")
	r.wantExit(vm, hv.ExitShutdown)
	if err := again[1].Kill(r.ctx); err != nil {
		r.Errorf("Kill: %v", err)
	}
	last := r.restore(with(disk), second, hv.RestoreOptions{})
	if note, got := r.get(last, "/note"), r.get(last, "/nonce"); note != "mine" || got != nonce {
		r.Errorf("the restore of a restore remembers %q and has nonce %q, want %q and %q", note, got, "mine", nonce)
	}
	// Killed while paused, after a restore that nobody resumed.
	spec := with(r.copyDisk(disk))
	paused, err := r.driver.Restore(r.ctx, spec, second, hv.RestoreOptions{})
	if err != nil {
		r.Fatalf("Restore: %v", err)
	}
	if err := paused.Kill(r.ctx); err != nil {
		r.Errorf("Kill: %v", err)
	}
	r.wantExit(paused, hv.ExitKilled)
}

// testSnapshotRefused restores what is not whole, or not this machine's.
func testSnapshotRefused(r *run) {
	vm := r.launch(r.spec())
	r.echo(vm, 64)
	s := r.snapshot(vm)
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	refuse := func(name string, spec hv.Spec, from hv.Snapshot, o hv.RestoreOptions, want error) {
		r.Helper()
		before := names(r, spec.Dir)
		vm, err := r.driver.Restore(r.ctx, spec, from, o)
		if err == nil {
			vm.Kill(r.ctx)
		}
		if err == nil || want != nil && !errors.Is(err, want) {
			r.Errorf("Restore of %s: %v, want %v", name, err, want)
		}
		if alive, after := r.Alive(r, spec.Dir), names(r, spec.Dir); len(alive) > 0 || !slices.Equal(before, after) {
			r.Errorf("Restore of %s left the processes %q and the files %q, before %q", name, alive, after, before)
		}
	}
	for name, change := range map[string]func(spec *hv.Spec, s *hv.Snapshot){
		"another driver's":    func(_ *hv.Spec, s *hv.Snapshot) { s.Driver = "other" },
		"another version's":   func(_ *hv.Spec, s *hv.Snapshot) { s.Version += ".1" },
		"another machine's":   func(_ *hv.Spec, s *hv.Snapshot) { s.Machine = strings.Repeat("0", 64) },
		"fewer vCPUs":         func(spec *hv.Spec, _ *hv.Snapshot) { spec.VCPUs++ },
		"less memory":         func(spec *hv.Spec, _ *hv.Snapshot) { spec.MemoryMiB *= 2 },
		"a machine less disk": func(spec *hv.Spec, _ *hv.Snapshot) { spec.Disks = []hv.Disk{{Serial: "more", Path: r.disk("")}} },
	} {
		spec, from := r.spec(), s
		change(&spec, &from)
		refuse(name, spec, from, hv.RestoreOptions{}, hv.ErrUnsupported)
	}
	broken := r.spec()
	broken.NICs = []hv.NIC{{Tap: "a,script=x", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	refuse("an invalid machine", broken, s, hv.RestoreOptions{}, hv.ErrInvalidSpec)
	if !r.caps.OnDemand {
		refuse("a snapshot on demand", r.spec(), s, hv.RestoreOptions{OnDemand: true}, hv.ErrUnsupported)
	}
	// What a crash of the host, or a full disk, leaves of a snapshot.
	for _, name := range names(r, s.Dir) {
		path := filepath.Join(s.Dir, name)
		fi, err := os.Stat(path)
		if err != nil {
			r.Fatal(err)
		}
		if err := os.Rename(path, path+".away"); err != nil {
			r.Fatal(err)
		}
		refuse("a snapshot without "+name, r.spec(), s, hv.RestoreOptions{}, nil)
		if err := os.Rename(path+".away", path); err != nil {
			r.Fatal(err)
		}
		if name == hv.SnapshotFile || fi.Size() == 0 {
			continue
		}
		if err := os.Truncate(path, fi.Size()-1); err != nil {
			r.Fatal(err)
		}
		refuse("a snapshot with a short "+name, r.spec(), s, hv.RestoreOptions{}, nil)
		if err := os.Truncate(path, fi.Size()); err != nil { // whose last byte is now zero
			r.Fatal(err)
		}
	}
}

// testTemplate forks machines from one whose memory is a file.
func testTemplate(r *run) {
	spec := r.spec()
	spec.MemoryFile = filepath.Join(r.TempDir(), "memory")
	vm := r.launch(spec)
	r.remember(vm, "template")
	nonce := r.get(vm, "/nonce")
	s := r.snapshot(vm)
	if s.MemoryFile != spec.MemoryFile {
		r.Errorf("Snapshot() = %+v, want the memory file %s", s, spec.MemoryFile)
	}
	early := r.spec()
	if fork, err := r.driver.Restore(r.ctx, early, s, hv.RestoreOptions{}); err == nil {
		fork.Kill(r.ctx)
		r.Error("Restore of a template whose machine lives: no error")
	}
	if left := names(r, early.Dir); len(left) > 0 {
		r.Errorf("it left the files %q", left)
	}
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	before := r.digests(s.MemoryFile)
	forks := make([]hv.VM, 3)
	for i := range forks {
		forks[i] = r.restore(r.spec(), s, hv.RestoreOptions{})
	}
	var wg sync.WaitGroup
	for i, vm := range forks {
		wg.Go(func() {
			if note, got := r.get(vm, "/note"), r.get(vm, "/nonce"); note != "template" || got != nonce {
				r.Errorf("fork %d remembers %q and has nonce %q, want %q and %q", i, note, got, "template", nonce)
			}
			r.echo(vm, 256<<10)
		})
	}
	wg.Wait()
	r.remember(forks[0], "fork")
	if note := r.get(forks[1], "/note"); note != "template" {
		r.Errorf("a fork remembers %q, which another was told", note)
	}
	// A snapshot of a fork is its own: the template may go.
	own := r.snapshot(forks[0])
	if own.MemoryFile != "" {
		r.Errorf("Snapshot() of a fork = %+v, want none of a template", own)
	}
	for _, vm := range forks {
		if err := vm.Kill(r.ctx); err != nil {
			r.Errorf("Kill: %v", err)
		}
	}
	if after := r.digests(s.MemoryFile); !maps.Equal(before, after) {
		r.Error("the template's memory has changed by being forked")
	}
	if err := os.Remove(s.MemoryFile); err != nil {
		r.Fatal(err)
	}
	last := r.restore(r.spec(), own, hv.RestoreOptions{})
	if note, got := r.get(last, "/note"), r.get(last, "/nonce"); note != "fork" || got != nonce {
		r.Errorf("the restored fork remembers %q and has nonce %q, want %q and %q", note, got, "fork", nonce)
	}
	fresh := r.spec()
	if _, err := r.driver.Restore(r.ctx, fresh, s, hv.RestoreOptions{}); err == nil {
		r.Error("Restore of a template whose memory is gone: no error")
	}
	if left := names(r, fresh.Dir); len(left) > 0 {
		r.Errorf("it left the files %q", left)
	}
}
