package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

// testLogFile makes the log of an incarnation in dir. Its files are small.
func testLogFile(dir string, incarnation int) *logFile {
	return &logFile{
		path: filepath.Join(dir, workloadLog), incarnation: incarnation, limit: 64 << 10, now: time.Now, news: func() {},
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stdout(seq uint64, text string) wire.LogEntry {
	return wire.LogEntry{Seq: seq, Time: time.Unix(1, 0), Stream: wire.Stdout, Data: text}
}

// logEntries reads the log in dir after a number, as "incarnation/seq stream
// line", the line shortened.
func logEntries(t testing.TB, dir string, after uint64) []string {
	t.Helper()
	s := testSource(dir, after)
	defer s.reader.close()
	var out []string
	must(t, s.read(true, func(e api.LogEntry) error {
		out = append(out, fmt.Sprintf("%d/%d %s %.24s", e.Incarnation, e.Seq, e.Stream, e.Line))
		return nil
	}))
	return out
}

func testSource(dir string, after uint64) *logSource {
	path := filepath.Join(dir, workloadLog)
	return &logSource{
		reader: &logReader{files: func() ([]string, error) { return []string{path + oldLog, path}, nil }, longest: 2 * maxLogLine},
		parse:  parseLogLine, seq: after,
	}
}

func TestLogFile(t *testing.T) {
	dir := t.TempDir()
	l := testLogFile(dir, 1)
	must(t, l.keep([]wire.LogEntry{stdout(1, "a"), stdout(2, "b"), stdout(2, "b again"), stdout(5, "c")}))
	must(t, l.keep([]wire.LogEntry{stdout(4, "late"), stdout(6, "d")}))
	must(t, l.end(true))
	must(t, l.end(true))
	l.close()
	if err := l.keep([]wire.LogEntry{stdout(7, "e")}); err == nil {
		t.Error("a closed log keeps lines")
	}
	l = testLogFile(dir, 1)
	if n, err := l.position(); n != 6 || err != nil {
		t.Errorf("position = %d, %v, want 6", n, err)
	}
	l.close()
	// The next incarnation counts on, although its guest begins with 1, of which
	// the first two never came.
	l = testLogFile(dir, 2)
	if n, err := l.position(); n != 0 || err != nil {
		t.Errorf("position in the next incarnation = %d, %v, want 0", n, err)
	}
	must(t, l.keep([]wire.LogEntry{stdout(3, "f")}))
	must(t, l.end(false))
	must(t, l.end(false))
	l.close()
	want := []string{"1/1 stdout a", "1/2 stdout b", "1/3 volant 2 lines lost: they did n", "1/4 stdout c", "1/5 stdout d",
		"2/6 volant 2 lines lost: they did n", "2/7 stdout f", "2/8 volant the VM ended before its "}
	if got := logEntries(t, dir, 0); !slices.Equal(got, want) {
		t.Errorf("log = %q, want %q", got, want)
	}
	if got := logEntries(t, dir, 5); !slices.Equal(got, want[5:]) {
		t.Errorf("log after 5 = %q, want %q", got, want[5:])
	}
}

// TestLogFileHostile keeps what no honest guest sends.
func TestLogFileHostile(t *testing.T) {
	dir := t.TempDir()
	l := testLogFile(dir, 1)
	far := time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC) // JSON cannot hold it
	must(t, l.keep([]wire.LogEntry{
		{Seq: 0, Stream: wire.Stdout, Data: "number 0"},
		{Seq: 1, Time: far, Stream: "kernel", Data: "an unknown stream"},
		{Seq: 2, Time: time.Now().Add(time.Hour), Stream: wire.Stderr, Data: strings.Repeat("é", 2*wire.MaxLogLine)},
		{Seq: 3, Stream: wire.Stdout, Data: "2 lines\nin one\x1b[2J\x00"},
		{Seq: math.MaxUint64, Time: time.Unix(-1<<40, 0), Stream: wire.Stdout, Data: "the last number"},
		stdout(4, "too late"),
	}))
	must(t, l.end(false))
	l.close()
	l = testLogFile(dir, 2)
	must(t, l.keep([]wire.LogEntry{stdout(1, "next")}))
	l.close()
	s := testSource(dir, 0)
	defer s.reader.close()
	var got []string
	must(t, s.read(true, func(e api.LogEntry) error {
		if d := time.Since(e.Time); e.Stream != api.StreamVolant && e.Incarnation == 1 && (d < -time.Second || d > time.Minute) {
			t.Errorf("line %d has time %v", e.Seq, e.Time)
		}
		if len(e.Line) > wire.MaxLogLine+4 || strings.Contains(e.Line, "\n") {
			t.Errorf("line %d has %d bytes", e.Seq, len(e.Line))
		}
		got = append(got, fmt.Sprintf("%d %s %.12s %d", e.Seq, e.Stream, e.Line, e.Lost))
		return nil
	}))
	want := []string{"1 agent an unknown s 0", "2 stderr éééééé 0", "3 stdout 2 lines\uFFFDin 0",
		"4 volant 184467440737 18446744073709551611", "5 stdout the last num 0", "6 volant the VM ended 0", "7 stdout next 0"}
	for i := range min(len(got), len(want)) {
		if !strings.HasPrefix(got[i], want[i][:8]) || got[i][len(got[i])-2:] != want[i][len(want[i])-2:] {
			t.Errorf("line %q, want %q", got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("log = %q, want %q", got, want)
	}
}

// TestLogFileRepaired goes on with logs that a killed daemon, a full disk or a
// crash of the host left.
func TestLogFileRepaired(t *testing.T) {
	for _, tc := range []struct {
		name    string
		damage  func(path string) error
		want    []string
		started uint64 // the guest's number to go on after
	}{
		{"half a line", appendTo(`{"n":1,"from":`), []string{"1/1 stdout a", "1/2 stdout b", "1/3 stdout new"}, 2},
		{"zeros", appendTo(strings.Repeat("\x00", 300_000)), []string{"1/1 stdout a", "1/2 stdout b", "1/3 stdout new"}, 2},
		{"garbage lines", appendTo("x\n\x00\x01\n"), []string{"1/1 stdout a", "1/2 stdout b", "1/4 volant 2 lines lost: they are n", "1/5 stdout new"}, 2},
		{"much garbage", appendTo(strings.Repeat(strings.Repeat("x", 999)+"\n", 200)), []string{"1/1 stdout a", "1/2 stdout b", "1/202 volant 200 lines lost: they are", "1/203 stdout new"}, 2},
		{"gone", os.Remove, []string{"1/1 stdout new"}, 0},
		{"just rotated", func(path string) error { return os.Rename(path, path+oldLog) }, []string{"1/1 stdout a", "1/2 stdout b", "1/3 stdout new"}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l := testLogFile(dir, 1)
			must(t, l.keep([]wire.LogEntry{stdout(1, "a"), stdout(2, "b")}))
			l.close()
			must(t, tc.damage(filepath.Join(dir, workloadLog)))
			l = testLogFile(dir, 1)
			defer l.close()
			n, err := l.position()
			must(t, err)
			if n != tc.started {
				t.Errorf("goes on after %d, want %d", n, tc.started)
			}
			must(t, l.keep([]wire.LogEntry{stdout(n+1, "new")}))
			if got := logEntries(t, dir, 0); !slices.Equal(got, tc.want) {
				t.Errorf("log = %q, want %q", got, tc.want)
			}
		})
	}
}

func appendTo(text string) func(path string) error {
	return func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
}

// TestLogFileFails makes a write fail, and then no more: nothing is lost that is
// offered again.
func TestLogFileFails(t *testing.T) {
	dir := t.TempDir()
	l := testLogFile(dir, 1)
	defer l.close()
	must(t, l.keep([]wire.LogEntry{stdout(1, "a")}))
	must(t, l.f.Close())
	var unwritten *logError
	if err := l.keep([]wire.LogEntry{stdout(2, "b")}); !errors.As(err, &unwritten) {
		t.Errorf("keep = %v, want a *logError", err)
	}
	if n, err := l.position(); n != 1 || err != nil {
		t.Errorf("position = %d, %v, want 1", n, err)
	}
	must(t, l.keep([]wire.LogEntry{stdout(2, "b")}))
	if got, want := logEntries(t, dir, 0), []string{"1/1 stdout a", "1/2 stdout b"}; !slices.Equal(got, want) {
		t.Errorf("log = %q, want %q", got, want)
	}
}

// TestLogRotated writes far more than is kept, while a reader keeps up, one
// reads slowly, and one lost its place long ago. What they miss they are told.
func TestLogRotated(t *testing.T) {
	dir := t.TempDir()
	l := testLogFile(dir, 1)
	defer l.close()
	const total, batch = 20_000, 50
	done := make(chan struct{})
	go func() {
		defer close(done)
		for seq := uint64(1); seq <= total; {
			var entries []wire.LogEntry
			for range batch {
				entries = append(entries, stdout(seq, fmt.Sprintf("line %d %s", seq, strings.Repeat("x", int(seq)%200))))
				seq++
			}
			if err := l.keep(entries); err != nil {
				t.Error(err)
			}
			if seq%2000 == 1 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	follow := func(pause time.Duration) (seen, lost uint64) {
		s := testSource(dir, 0)
		defer s.reader.close()
		last := uint64(0)
		for over := false; !over; {
			select {
			case <-done:
				over = true
			default:
			}
			err := s.read(over, func(e api.LogEntry) error {
				switch {
				case e.Lost > 0 && e.Seq == last+e.Lost:
					lost += e.Lost
				case last == 0 || e.Seq == last+1 && strings.HasPrefix(e.Line, fmt.Sprintf("line %d ", e.Seq)):
					seen++
					if last == 0 {
						lost = e.Seq - 1
					}
				default:
					return fmt.Errorf("after %d comes %+v", last, e)
				}
				last = e.Seq
				if e.Seq%100 == 0 {
					time.Sleep(pause)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
				return seen, lost
			}
		}
		if last != total || seen+lost != total {
			t.Errorf("read up to %d: %d lines, %d told to be lost; want %d", last, seen, lost, total)
		}
		return seen, lost
	}
	slow := make(chan uint64)
	go func() {
		_, lost := follow(10 * time.Millisecond)
		slow <- lost
	}()
	seen, _ := follow(0)
	lost := <-slow
	t.Logf("the fast reader saw %d of %d lines, the slow one missed %d", seen, total, lost)
	if lost == 0 {
		t.Error("the slow reader missed nothing: nothing was shown")
	}
	var size int64
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		fi, err := f.Info()
		must(t, err)
		size += fi.Size()
	}
	if len(files) != 2 || size > 2*l.limit {
		t.Errorf("%d files with %d bytes, want 2 with %d at most", len(files), size, 2*l.limit)
	}
	if got := logEntries(t, dir, 7); len(got) < 2 || !strings.HasPrefix(got[0][strings.Index(got[0], " "):], " volant ") {
		t.Errorf("going on after line 7 begins with %.60q, want the number of lines that are gone", got[0])
	}
}

// TestLogLostTwice has a reader miss the very line that tells of others that are
// lost: it is told of all.
func TestLogLostTwice(t *testing.T) {
	dir := t.TempDir()
	l := testLogFile(dir, 1)
	defer l.close()
	s := testSource(dir, 0)
	defer s.reader.close()
	lines, lost := uint64(0), uint64(0)
	read := func() {
		t.Helper()
		must(t, s.read(true, func(e api.LogEntry) error {
			if lost += e.Lost; e.Stream != api.StreamVolant {
				lines++
			}
			return nil
		}))
	}
	const gap = 1000
	must(t, l.keep([]wire.LogEntry{stdout(1, "a"), stdout(2, "b")}))
	read()
	seq := uint64(2)
	fill := func() { // more than is kept, of which the reader has only the file that it has open
		for range 3 * l.limit / 100 {
			seq++
			must(t, l.keep([]wire.LogEntry{stdout(seq, strings.Repeat("x", 100))}))
		}
	}
	fill()
	seq += gap
	fill()
	read()
	if lines+lost != seq || lost <= gap {
		t.Errorf("read %d lines and was told of %d lost, together %d; the guest had %d, and lost %d", lines, lost, lines+lost, seq, gap)
	}
}

// TestConsoleReader reads what is rotated in the middle of lines.
func TestConsoleReader(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, consoleLog)
	must(t, os.WriteFile(path+oldLog, []byte("one\r\ntwo be"), 0o600))
	must(t, os.WriteFile(path, []byte("gun\r\n"+strings.Repeat("é", wire.MaxLogLine)+"\nlast"), 0o600))
	d := &Daemon{}
	d.cfg.DataDir = dir
	must(t, os.MkdirAll(d.dataDir("x"), 0o700))
	for _, name := range []string{consoleLog, consoleLog + oldLog} {
		must(t, os.Rename(filepath.Join(dir, name), filepath.Join(d.dataDir("x"), name)))
	}
	s := d.openLogSource("x", api.LogQuery{Log: api.LogConsole})
	defer s.reader.close()
	var got strings.Builder
	must(t, s.read(true, func(e api.LogEntry) error {
		got.WriteString(e.Line)
		if !e.Partial {
			got.WriteByte('\n')
		}
		return nil
	}))
	if want := "one\ntwo begun\n" + strings.Repeat("é", wire.MaxLogLine) + "\nlast"; got.String() != want {
		t.Errorf("console has %d bytes, %.40q; want %d", got.Len(), got.String(), len(want))
	}
}

// dialer is a way to the agent of a test.
type dialer struct{ addr string }

func (d dialer) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", d.addr)
}
func (dialer) Reset()       {}
func (dialer) Close() error { return nil }

// TestAgentLogsHostile reads streams that no agent sends.
func TestAgentLogsHostile(t *testing.T) {
	good := `{"seq":1,"time":"2026-01-01T00:00:00Z","stream":"stdout","data":"good"}` + "\n"
	for _, tc := range []struct {
		name, body string
		odd        bool
		kept       int
	}{
		{"nothing", "", false, 0},
		{"ends in good order", good + good, false, 2},
		{"garbage", good + "\x00\xffnonsense\n" + good, true, 1},
		{"empty lines", good + "\n" + good, true, 1},
		{"half a line at the end", good + `{"seq":2`, false, 1},
		{"another type", good + `{"seq":"two"}` + "\n", true, 1},
		{"a number below 0", good + `{"seq":-1}` + "\n", true, 1},
		{"a huge line", good + strings.Repeat("x", 10<<20), true, 1},
		{"the longest line", `{"seq":1,"data":"` + strings.Repeat(`\u0001`, wire.MaxLogLine) + `"}` + "\n", false, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(tc.body)) }))
			defer srv.Close()
			a := newAgent(dialer{srv.Listener.Addr().String()})
			defer a.close()
			kept := 0
			err := a.logs(t.Context(), 0, func(es []wire.LogEntry) error { kept += len(es); return nil })
			var odd *streamError
			if errors.As(err, &odd) != tc.odd || !tc.odd && err != nil || kept != tc.kept {
				t.Errorf("logs = %v with %d lines kept; want odd %v, %d lines", err, kept, tc.odd, tc.kept)
			}
		})
	}
}

// FuzzLogFile goes on with any file: it never fails, and what is kept then is
// read back.
func FuzzLogFile(f *testing.F) {
	f.Add([]byte("{\"n\":1,\"from\":3,\"seq\":9,\"stream\":\"stdout\",\"line\":\"x\"}\n"), []byte("x"))
	f.Add([]byte("\n\n{}\n{"), []byte("{\"seq\":18446744073709551615}\n"))
	f.Fuzz(func(t *testing.T, old, now []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, workloadLog)
		must(t, os.WriteFile(path+oldLog, old, 0o600))
		must(t, os.WriteFile(path, now, 0o600))
		l := testLogFile(dir, 7)
		defer l.close()
		from, err := l.position()
		must(t, err)
		if from == math.MaxUint64 {
			return // its guest's numbers are used up
		}
		must(t, l.keep([]wire.LogEntry{stdout(from+1, "new")}))
		fi, err := os.Stat(path)
		must(t, err)
		b, err := os.ReadFile(path)
		must(t, err)
		sc := bufio.NewScanner(strings.NewReader(string(b)))
		sc.Buffer(nil, len(b)+1)
		var last string
		for sc.Scan() {
			last = sc.Text()
		}
		if e, ok := parseLogLine([]byte(last), true); !ok || e.Line != "new" || e.Incarnation != 7 {
			t.Errorf("the last of %d bytes is %q", fi.Size(), last)
		}
	})
}
