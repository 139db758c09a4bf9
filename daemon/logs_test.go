package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

// read collects what VMLogs yields as "seq stream line".
func (in *instance) read(name string, q api.LogQuery) string {
	in.w.t.Helper()
	var out []string
	err := in.VMLogs(context.Background(), name, q, func(e api.LogEntry) error {
		out = append(out, fmt.Sprintf("%d %s %s", e.Seq, e.Stream, e.Line))
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
	if err := d.VMLogs(ctx, "web", api.LogQuery{}, func(api.LogEntry) error { return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) {
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
		done <- d.VMLogs(context.Background(), "web", api.LogQuery{Follow: true}, func(e api.LogEntry) error {
			lines <- e.Line
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
	w.hv.Machine(vm.ID).Print("Linux version 6.12\r\n")
	got := d.read("web", api.LogQuery{Console: true})
	lines := strings.Split(got, "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "1 console === volant: incarnation 1,") || lines[1] != "2 console Linux version 6.12" {
		t.Errorf("console = %q", got)
	}
}

func TestLogFile(t *testing.T) {
	dir := t.TempDir()
	entry := func(seq uint64, text string) wire.LogEntry {
		return wire.LogEntry{Seq: seq, Time: time.Unix(1, 0), Stream: wire.Stdout, Data: text}
	}
	seqs := func() (first, last uint64, n int) {
		r := &logReader{path: filepath.Join(dir, workloadLog)}
		defer r.close()
		if err := r.lines(func(line []byte) error {
			e, ok := parseLogLine(line)
			if !ok {
				t.Errorf("line %q", line)
			}
			if n++; n == 1 {
				first = e.Seq
			}
			last = e.Seq
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return first, last, n
	}

	l, err := openLog(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	odd := wire.LogEntry{Seq: 2, Stream: "kernel", Data: strings.Repeat("é", wire.MaxLogLine)}
	if err := l.keep([]wire.LogEntry{entry(1, "a"), odd, entry(2, "again"), entry(5, "three were lost")}); err != nil {
		t.Fatal(err)
	}
	if first, last, n := seqs(); first != 1 || last != 5 || n != 3 {
		t.Errorf("kept %d to %d, %d lines; want 1 to 5, 3 lines", first, last, n)
	}

	// A reader goes on across rotations, and what is kept stays bounded.
	r := &logReader{path: filepath.Join(dir, workloadLog)}
	defer r.close()
	read := 0
	count := func([]byte) error { read++; return nil }
	seq := uint64(5)
	for range 400 {
		seq++
		if err := l.keep([]wire.LogEntry{entry(seq, strings.Repeat("x", 10_000))}); err != nil {
			t.Fatal(err)
		}
		if err := r.lines(count); err != nil {
			t.Fatal(err)
		}
	}
	if read != 403 {
		t.Errorf("the reader saw %d lines, want 403", read)
	}
	var size int64
	for _, name := range []string{workloadLog, workloadLog + oldLog} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 2*logLimit || size < logLimit {
		t.Errorf("%d bytes are kept, want between %d and %d", size, logLimit, 2*logLimit)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}

	// The same incarnation goes on; half a line of a killed daemon is cut off.
	f, err := os.OpenFile(filepath.Join(dir, workloadLog), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"n":1,"from":`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = openLog(dir, 1); err != nil {
		t.Fatal(err)
	}
	if l.lastSeq() != seq {
		t.Errorf("goes on after %d, want %d", l.lastSeq(), seq)
	}
	if err := l.keep([]wire.LogEntry{entry(seq+1, "b")}); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	// The next one counts on, although its guest begins with 1.
	if l, err = openLog(dir, 2); err != nil {
		t.Fatal(err)
	}
	if l.lastSeq() != 0 {
		t.Errorf("a new incarnation goes on after %d, want 0", l.lastSeq())
	}
	if err := l.keep([]wire.LogEntry{entry(1, "c")}); err != nil {
		t.Fatal(err)
	}
	if _, last, _ := seqs(); last != seq+2 {
		t.Errorf("last number = %d, want %d", last, seq+2)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()

	// A follower that is much slower than what happens misses nothing.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var got []api.Event
	done := make(chan error, 1)
	go func() {
		done <- d.Events(ctx, api.EventFilter{}, true, func(ev api.Event) error {
			time.Sleep(time.Millisecond)
			got = append(got, ev)
			if ev.Type == api.EventVMDeleted && ev.Name == "vm9" {
				return io.EOF
			}
			return nil
		})
	}()
	for i := range 10 {
		d.create(fmt.Sprintf("vm%d", i), "serve")
	}
	for i := range 10 {
		name := fmt.Sprintf("vm%d", i)
		d.must(name, api.WaitHealthy)
		if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
	}
	if err := <-done; err != io.EOF {
		t.Fatalf("Events = %v, want the follower's error", err)
	}
	for i, ev := range got {
		if ev.Seq != uint64(i+1) {
			t.Fatalf("event %d has number %d", i+1, ev.Seq)
		}
	}
	// Taken up in the middle.
	var again []api.Event
	if err := d.Events(ctx, api.EventFilter{After: 7}, false, func(ev api.Event) error { again = append(again, ev); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(again) < len(got)-7 || again[0].Seq != 8 {
		t.Errorf("%d events after 7, from %d; want %d", len(again), again[0].Seq, len(got)-7)
	}
	// A follower ends when its request does, or the daemon.
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := d.Events(short, api.EventFilter{After: 1 << 40}, true, nil); err != nil {
		t.Errorf("Events until the request ended = %v, want ok", err)
	}
	go func() { done <- d.Events(ctx, api.EventFilter{After: 1 << 40}, true, nil) }()
	time.Sleep(10 * time.Millisecond)
	d.cancel()
	if err := <-done; api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("Events of a daemon that stops = %v, want unavailable", err)
	}
}
