package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

func TestLogRingDropsTheOldest(t *testing.T) {
	r := newLogRing(10 * (logEntryBytes + 4))
	for i := range 100 {
		r.add(wire.Stdout, fmt.Appendf(nil, "%04d", i), false)
	}
	entries, _ := r.since(0, 1000)
	if len(entries) != 10 || entries[0].Seq != 91 || entries[9].Data != "0099" {
		t.Errorf("the ring holds %d entries from %+v", len(entries), entries[0])
	}
	for _, tt := range []struct {
		after       uint64
		limit, want int
		first       uint64
	}{{90, 5, 5, 91}, {95, 100, 5, 96}, {99, 100, 1, 100}, {100, 100, 0, 0}, {1 << 63, 100, 0, 0}} {
		got, _ := r.since(tt.after, tt.limit)
		if len(got) != tt.want || len(got) > 0 && got[0].Seq != tt.first {
			t.Errorf("since(%d, %d) = %d entries, want %d from %d", tt.after, tt.limit, len(got), tt.want, tt.first)
		}
	}
	r.add(wire.Stdout, make([]byte, 1<<20), false)
	if entries, _ := r.since(0, 1000); len(entries) != 1 || entries[0].Seq != 101 {
		t.Errorf("after an entry beyond the limit the ring holds %d entries, want that one", len(entries))
	}
}

func TestLogRingWakes(t *testing.T) {
	r := newLogRing(1 << 20)
	_, a := r.since(0, 1)
	_, b := r.since(0, 1)
	select {
	case <-a:
		t.Fatal("woken by nothing")
	default:
	}
	r.add(wire.Agent, []byte("x"), false)
	<-a
	<-b
}

// captureAll feeds chunks to capture, with a pause between them where pause is
// set, and returns the entries as text: a "+" follows partial lines.
func captureAll(t *testing.T, pause time.Duration, chunks ...string) []string {
	t.Helper()
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	go func() {
		defer to.Close()
		for i, c := range chunks {
			if i > 0 {
				time.Sleep(pause)
			}
			_, _ = io.WriteString(to, c)
		}
	}()
	ring := newLogRing(1 << 20)
	capture(from, wire.Stderr, ring, false, func([]byte) {})
	entries, _ := ring.since(0, 1<<20)
	var lines []string
	for _, e := range entries {
		if e.Stream != wire.Stderr {
			t.Errorf("stream = %s", e.Stream)
		}
		if e.Partial {
			e.Data += "+"
		}
		lines = append(lines, e.Data)
	}
	return lines
}

func TestCapture(t *testing.T) {
	long := strings.Repeat("é", wire.MaxLogLine/2+10) // two bytes each
	odd := "x" + long
	tests := []struct {
		name   string
		pause  time.Duration
		chunks []string
		want   []string
	}{
		{"nothing", 0, nil, nil},
		{"lines", 0, []string{"a\nb\n\nc\n"}, []string{"a", "b", "", "c"}},
		{"no newline at the end", 0, []string{"a\nb"}, []string{"a", "b"}},
		{"in pieces", 10 * time.Millisecond, []string{"he", "llo\nwor", "ld\n"}, []string{"hello", "world"}},
		{"not UTF-8", 0, []string{"a\xffb\n"}, []string{"a\uFFFDb"}},
		{"long", 0, []string{long + "\n"}, []string{long[:wire.MaxLogLine] + "+", long[wire.MaxLogLine:]}},
		{"long, cut between runes", 0, []string{odd + "\n"}, []string{odd[:wire.MaxLogLine-1] + "+", odd[wire.MaxLogLine-1:]}},
		{"a prompt", 3 * partialAfter, []string{"password: ", "ok\n"}, []string{"password: +", "ok"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := captureAll(t, tt.pause, tt.chunks...)
			if strings.Join(got, "|") != strings.Join(tt.want, "|") || len(got) != len(tt.want) {
				t.Errorf("got %d entries %.80q, want %d %.80q", len(got), got, len(tt.want), tt.want)
			}
		})
	}
}

func TestCaptureLosesNothing(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	got := captureAll(t, 0, b.String())
	if len(got) != 5000 || got[4999] != "line 4999" {
		t.Errorf("got %d lines", len(got))
	}
}

func TestLogger(t *testing.T) {
	var kmsg strings.Builder
	sink := &logSink{ring: newLogRing(1 << 20)}
	log := newLogger(sink, nil)
	log.Info("early", keyPID, 7)
	sink.open(&kmsg)
	log.With(keyStep, "config").Error("bad", keyErr, "two words\nand a line")
	log.Debug("hidden")
	if want := "<3>kestrel: msg=bad step=config err=\"two words\\nand a line\"\n"; kmsg.String() != want {
		t.Errorf("kmsg got %q, want %q", kmsg.String(), want)
	}
	entries, _ := sink.ring.since(0, 10)
	if len(entries) != 2 || entries[0].Data != "msg=early pid=7" || entries[0].Stream != wire.Agent {
		t.Errorf("the ring holds %+v", entries)
	}
}

// TestLoggerAsText holds the format against slog's own, which operators know.
func TestLoggerAsText(t *testing.T) {
	sink := &logSink{ring: newLogRing(1 << 20)}
	var text strings.Builder
	theirs := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}}))
	ours := newLogger(sink, nil)
	for _, attrs := range [][]any{
		nil,
		{"n", -7, "u", uint64(1 << 63), "f", 0.5, "b", true},
		{"empty", "", "plain", "/a-b.c:1", "quoted", "a b", "equals", "a=b", "quote", `"`, "control", "\x00\n", "wide", "é", "torn", "\xc3"},
		{"dur", 1500 * time.Millisecond, "nil", nil, "err", errors.New("it is broken")},
		{slog.Group("g", "a", 1, slog.Group("h", "b", "c d")), slog.Attr{}},
	} {
		for _, log := range []*slog.Logger{ours, theirs} {
			log.With("with", 1).WithGroup("in").Info("two words", attrs...)
			log.Info("word", attrs...)
		}
	}
	var got strings.Builder
	entries, _ := sink.ring.since(0, 100)
	for _, e := range entries {
		got.WriteString(e.Data + "\n")
	}
	if got.String() != text.String() {
		t.Errorf("ours:\n%stheirs:\n%s", got.String(), text.String())
	}
}

// FuzzAppendEntry holds the encoding of entries against the decoder that the host
// uses.
func FuzzAppendEntry(f *testing.F) {
	f.Add(uint64(1), int64(1e18), "plain", false)
	f.Add(uint64(1<<64-1), int64(-1), "\x00\x1f\"\\ é\u2028\U0001f600<&>\x7f", true)
	f.Fuzz(func(t *testing.T, seq uint64, ns int64, data string, partial bool) {
		e := wire.LogEntry{Seq: seq, Time: time.Unix(0, ns).UTC(), Stream: wire.Stderr, Data: strings.ToValidUTF8(data, "\uFFFD"), Partial: partial}
		b := appendEntry(nil, &e)
		var got wire.LogEntry
		if err := json.Unmarshal(b, &got); err != nil || got != e || bytes.IndexByte(b, '\n') != len(b)-1 {
			t.Errorf("%q becomes %+v, %v; want %+v", b, got, err, e)
		}
	})
}

func BenchmarkAppendEntry(b *testing.B) {
	e := wire.LogEntry{Seq: 1e6, Time: time.Now(), Stream: wire.Stdout, Data: strings.Repeat("x", 100)}
	var buf []byte
	for b.Loop() {
		buf = appendEntry(buf[:0], &e)
	}
}
