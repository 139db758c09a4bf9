package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

// read collects what VMLogs yields as "seq stream line".
func (in *instance) read(name string, q api.LogQuery) string {
	in.w.t.Helper()
	var out []string
	err := in.VMLogs(context.Background(), name, q, func(entries []api.LogEntry) error {
		for _, e := range entries {
			out = append(out, fmt.Sprintf("%d %s %s", e.Seq, e.Stream, e.Line))
		}
		return nil
	})
	if err != nil {
		in.w.t.Fatalf("VMLogs(%+v): %v", q, err)
	}
	return strings.Join(out, "\n")
}

func TestVMLogs(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip(d.manifest("exit", "3"))
	vm := d.create("web", "exit")
	d.must("web", api.WaitStopped)
	// The workload exited at once; its words are kept all the same.
	first := "1 stdout hello from web\n2 stderr bye"
	if got := d.read("web", api.LogQuery{}); got != first {
		t.Errorf("logs = %q, want %q", got, first)
	}
	d.settle()
	d.stop()

	// Numbers go on in the next incarnation, under another daemon.
	d = w.start(options{})
	if _, err := d.StartVM(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	for vm.Incarnation < 2 {
		vm = d.must("web", api.WaitStopped)
	}
	all := first + "\n3 stdout hello from web\n4 stderr bye"
	for _, tc := range []struct {
		q    api.LogQuery
		want string
	}{
		{api.LogQuery{}, all},
		{api.LogQuery{Follow: true}, all}, // it has ended: there is nothing to wait for
		{api.LogQuery{After: 2}, "3 stdout hello from web\n4 stderr bye"},
		{api.LogQuery{Tail: 1}, "4 stderr bye"},
		{api.LogQuery{Tail: 9, After: 3}, "4 stderr bye"},
		{api.LogQuery{After: 99}, ""},
	} {
		if got := d.read("web", tc.q); got != tc.want {
			t.Errorf("logs %+v = %q, want %q", tc.q, got, tc.want)
		}
	}
	if err := d.VMLogs(ctx, "none", api.LogQuery{}, nil); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("logs of an unknown VM = %v, want not_found", err)
	}
	if err := d.VMLogs(ctx, "web", api.LogQuery{}, func([]api.LogEntry) error { return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("logs to a reader that went away = %v, want its error", err)
	}
}

func TestFollowLogs(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	lines := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- d.VMLogs(context.Background(), "web", api.LogQuery{Follow: true}, func(entries []api.LogEntry) error {
			for _, e := range entries {
				lines <- e.Line
			}
			return nil
		})
	}()
	next := func() string {
		select {
		case l := <-lines:
			return l
		case <-time.After(patience):
			t.Fatal("no line came")
			return ""
		}
	}
	if l := next(); l != "hello from web" {
		t.Errorf("first line = %q", l)
	}
	for i := range 3 {
		w.guest(vm.ID).print(wire.Stdout, fmt.Sprintf("line %d", i))
		if l := next(); l != fmt.Sprintf("line %d", i) {
			t.Errorf("followed line = %q, want line %d", l, i)
		}
	}
	if _, err := d.StopVM(context.Background(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if l := next(); l != "stopping" {
		t.Errorf("last line = %q", l)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("following a stopped VM does not end")
	}
}

func TestConsole(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	w.hv.Machine(vm.ID).Print("Linux version 6.12\r\nlogin: ")
	wantLines := func(q api.LogQuery, want ...string) {
		t.Helper()
		lines := strings.Split(d.read("web", q), "\n")
		ok := len(lines) == len(want)
		for i := range min(len(lines), len(want)) {
			ok = ok && strings.HasPrefix(lines[i], want[i])
		}
		if !ok {
			t.Errorf("console = %q, want lines that begin with %q", lines, want)
		}
	}
	begin := "1 console === volant: incarnation 1,"
	wantLines(api.LogQuery{Log: api.LogConsole}, begin, "2 console Linux version 6.12", "3 console login: ")
	wantLines(api.LogQuery{Log: api.LogConsole, Tail: 1}, "3 console login: ")

	// A prompt comes although its line has no end; so does what follows it.
	ctx, leave := context.WithTimeout(t.Context(), patience)
	defer leave()
	var got []string
	err := d.VMLogs(ctx, "web", api.LogQuery{Log: api.LogConsole, Follow: true}, func(entries []api.LogEntry) error {
		for _, e := range entries {
			got = append(got, fmt.Sprintf("%s %v", e.Line, e.Partial))
			switch e.Line {
			case "login: ":
				w.hv.Machine(vm.ID).Print("root\n")
			case "root":
				leave()
			}
		}
		return nil
	})
	if err != nil || len(got) != 4 || got[2] != "login:  true" || got[3] != "root false" {
		t.Errorf("followed %q, %v", got, err)
	}

	// What was said while nobody listened is missing, and that is said.
	d.stop()
	w.hv.Machine(vm.ID).Print("unheard\n")
	d = w.start(options{})
	d.settle()
	w.hv.Machine(vm.ID).Print("heard\n")
	wantLines(api.LogQuery{Log: api.LogConsole, Tail: 2}, "4 console === volant: what the console said while volantd was away is lost,", "5 console heard")
}

// TestFollowRestarts follows a log through the VM's incarnations.
func TestFollowRestarts(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	var got []string
	done := make(chan error, 1)
	go func() {
		done <- d.VMLogs(ctx, "web", api.LogQuery{Follow: true, Tail: 1}, func(entries []api.LogEntry) error {
			for _, e := range entries {
				got = append(got, fmt.Sprintf("%d/%d %s", e.Incarnation, e.Seq, e.Line))
			}
			return nil
		})
	}()
	for range 2 {
		if _, err := d.RestartVM(ctx, "web", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must("web", api.WaitHealthy)
	}
	w.guest(vm.ID).print(wire.Stdout, "third")
	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// It may have begun when the first stop was under way.
	want := []string{"1/1 hello from web", "1/2 stopping", "2/3 hello from web", "2/4 stopping", "3/5 hello from web", "3/6 third", "3/7 stopping"}
	if len(got) < 6 || !slices.Equal(got, want[7-len(got):]) {
		t.Errorf("followed %q, want %q", got, want)
	}
}

// TestLogsSelected selects lines by time and number.
func TestLogsSelected(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	noon := time.Now().Add(-time.Hour)
	g.mu.Lock()
	g.logs = nil // the hello has number 1
	g.mu.Unlock()
	var entries []wire.LogEntry
	for i := range 5 {
		entries = append(entries, wire.LogEntry{Seq: uint64(i + 2), Time: noon.Add(time.Duration(i) * time.Minute), Stream: wire.Stdout, Data: fmt.Sprintf("minute %d", i)})
	}
	if err := d.worker(vm.ID).live.logs.keep(entries); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		q    api.LogQuery
		want string
	}{
		{"since", api.LogQuery{Since: noon.Add(3 * time.Minute), Until: noon.Add(time.Hour / 2)}, "5 stdout minute 3\n6 stdout minute 4"},
		{"until", api.LogQuery{Until: noon.Add(time.Minute)}, "2 stdout minute 0"},
		{"between, the last", api.LogQuery{Since: noon, Until: noon.Add(4 * time.Minute), Tail: 1}, "5 stdout minute 3"},
		{"between, after", api.LogQuery{Since: noon, Until: noon.Add(4 * time.Minute), After: 4}, "5 stdout minute 3"},
		{"none", api.LogQuery{Tail: api.TailNone}, ""},
		{"followed until a time that has passed", api.LogQuery{Until: noon.Add(time.Minute), Follow: true}, "2 stdout minute 0"},
	} {
		if got := d.read("web", tc.q); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, log := range []api.LogName{api.LogConsole, api.LogVMM} {
		if err := d.VMLogs(t.Context(), "web", api.LogQuery{Log: log, Since: noon}, nil); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s since a time = %v, want invalid", log, err)
		}
	}
}

// TestLogsDaemonRestarts lets daemons come and go, in good order and killed,
// while a guest writes: each line is kept once.
func TestLogsDaemonRestarts(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	stop := make(chan struct{})
	written := make(chan int)
	go func() {
		n := 0
		defer func() { written <- n }()
		for {
			select {
			case <-stop:
				return
			default:
				g.print(wire.Stdout, fmt.Sprintf("line %d", n))
				if n++; n%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}
	}()
	for i := range 8 {
		time.Sleep(30 * time.Millisecond)
		if i%2 == 0 {
			d.kill()
		} else {
			d.stop()
		}
		d = w.start(options{})
		d.settle()
	}
	close(stop)
	n := <-written
	d.wantLine(fmt.Sprintf(" line %d", n-1))
	if _, err := d.StopVM(t.Context(), "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	var got []api.LogEntry
	if err := d.VMLogs(t.Context(), "web", api.LogQuery{}, func(es []api.LogEntry) error { got = append(got, es...); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) < 2 || got[len(got)-1].Line != "stopping" || got[len(got)-1].Seq != uint64(n+2) {
		t.Fatalf("%d lines end with %+v, want number %d", len(got), got[len(got)-1], n+2)
	}
	t.Logf("%d lines written, %d kept in files of %d bytes", n, len(got), logLimit)
	for i, e := range got[:len(got)-1] {
		if want := got[0].Seq + uint64(i); e.Seq != want || e.Seq > 1 && e.Line != fmt.Sprintf("line %d", want-2) {
			t.Fatalf("line %d = %+v, want number %d", i, e, want)
		}
	}
}

// TestLogsEndUnread wants to be told when a VM ended and nobody read its log to
// the end.
func TestLogsEndUnread(t *testing.T) {
	const told = "the VM ended before its log was read to the end: lines may be missing"
	for _, tc := range []struct {
		name string
		end  func(w *world, d *instance, id string) *instance
		want string
	}{
		{"crashed", func(w *world, d *instance, id string) *instance { w.hv.Machine(id).Crash(); return d }, told},
		{"ended while no daemon was there", func(w *world, d *instance, id string) *instance {
			d.stop()
			w.guest(id).print(wire.Stdout, "nobody reads this")
			w.hv.Machine(id).Crash()
			return w.start(options{})
		}, told},
		{"ended in good order", func(w *world, d *instance, id string) *instance {
			w.guest(id).shutdown(wire.Shutdown{})
			return d
		}, "stopping"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{})
			d.equip()
			vm := d.create("web", "serve")
			d.must("web", api.WaitHealthy)
			d.wantLine("hello from web")
			d = tc.end(w, d, vm.ID)
			d.wait("web", api.WaitStopped) //nolint:errcheck // it crashed
			if got := d.read("web", api.LogQuery{Tail: 1}); !strings.HasSuffix(got, tc.want) {
				t.Errorf("the log ends with %q, want %q", got, tc.want)
			}
		})
	}
}

// wantLine waits until VM web has logged it.
func (in *instance) wantLine(line string) {
	in.w.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(in.read("web", api.LogQuery{Tail: 10}), line); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			in.w.t.Fatalf("%q was not logged", line)
		}
	}
}

// TestLogsUnwritable takes a VM's log away while it runs, as a full disk would:
// the VM and its daemon go on, and what the guest still holds is kept later.
func TestLogsUnwritable(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	d.wantLine("hello from web")
	g := w.guest(vm.ID)
	d.stop()
	path := filepath.Join(d.dataDir(vm.ID), workloadLog)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		g.print(wire.Stdout, fmt.Sprintf("line %d", i))
	}
	g.drop(3) // the guest's buffer runs over: the hello and two lines
	d = w.start(options{})
	d.settle()
	// At once, or the daemon would make a new one in between.
	if err := unix.Renameat2(unix.AT_FDCWD, path+".away", unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	d.wantLine("line 4")
	want := "1 stdout hello from web\n2 volant 2 lines lost: they did not fit into the guest's buffer\n3 stdout line 2\n4 stdout line 3\n5 stdout line 4"
	if got := d.read("web", api.LogQuery{}); got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
}

// TestLogsPaced wants a guest that floods to be read no faster than is needed to
// keep what can be kept.
func TestLogsPaced(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	g := w.guest(vm.ID)
	begin := time.Now()
	text := strings.Repeat("x", wire.MaxLogLine)
	for size := 0; size < logBurst+logRate; size += len(text) {
		g.print(wire.Stdout, text)
	}
	g.print(wire.Stdout, "the last")
	d.wantLine("the last")
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("%d MiB were read in %v", (logBurst+logRate)>>20, took)
	}
}

func TestVMMLog(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("web", "serve")
	for i := range 3 {
		if i > 0 {
			if _, err := d.StartVM(ctx, "web"); err != nil {
				t.Fatal(err)
			}
		}
		d.must("web", api.WaitHealthy)
		if err := w.hv.Machine(vm.ID).Say(fmt.Sprintf("warning %d\nno end", i)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
			t.Fatal(err)
		}
		d.must("web", api.WaitStopped)
	}
	var got []string
	if err := d.VMLogs(ctx, "web", api.LogQuery{Log: api.LogVMM}, func(es []api.LogEntry) error {
		for _, e := range es {
			got = append(got, fmt.Sprintf("%d %d %s %s %v", e.Seq, e.Incarnation, e.Stream, e.Line, e.Partial))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 2 vmm warning 1 false", "2 2 vmm no end true", "3 3 vmm warning 2 false", "4 3 vmm no end true"}
	if !slices.Equal(got, want) {
		t.Errorf("VMM's log = %q, want that of the last two starts, %q", got, want)
	}
}
