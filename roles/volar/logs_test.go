package volar

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

func TestLogPrinter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	entries := []api.LogEntry{
		{Seq: 1, Incarnation: 1, Time: at, Stream: "stdout", Line: "a"},
		{Seq: 2, Incarnation: 1, Time: at, Stream: "stdout", Line: "long ", Partial: true},
		{Seq: 3, Incarnation: 1, Time: at, Stream: "stdout", Line: "line"},
		{Seq: 4, Incarnation: 1, Time: at, Stream: "stdout", Line: "name? ", Partial: true},
		{Seq: 5, Incarnation: 1, Time: at, Stream: "stderr", Line: "oh"},
		{Seq: 6, Incarnation: 1, Time: at, Stream: "volant", Line: "3 lines lost", Lost: 3},
		{Seq: 7, Incarnation: 2, Time: at, Stream: "stdout", Line: "b", Partial: true},
	}
	for _, tc := range []struct {
		times bool
		want  string
	}{
		{false, "a\nlong line\nname? \noh\n-- 3 lines lost --\nb\n"},
		{true, "T a\nT long line\nT name? \nT oh\nT -- 3 lines lost --\nT b\n"},
	} {
		var stdout, stderr bytes.Buffer
		p := logPrinter{c: &cli{stderr: &stderr}, out: bufio.NewWriter(&stdout), name: "web", times: tc.times, end: "\n"}
		for _, e := range entries {
			p.print(e)
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(stdout.String(), at.Format(time.RFC3339Nano), "T"); got != tc.want {
			t.Errorf("with times %v: %q, want %q", tc.times, got, tc.want)
		}
		if got, want := stderr.String(), "volar: web was started again (start 2)\n"; got != want {
			t.Errorf("stderr = %q, want %q", got, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	c := &cli{now: noon}
	for _, tc := range []struct {
		in   string
		want time.Time // zero for an error
	}{
		{"90m", noon().Add(-90 * time.Minute)},
		{"0s", noon()},
		{"2026-01-31T15:04:05.5+01:00", time.Date(2026, 1, 31, 14, 4, 5, 5e8, time.UTC)},
		{"2026-01-31T15:04:05", time.Date(2026, 1, 31, 15, 4, 5, 0, time.Local)},
		{"2026-01-31", time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local)},
		{"10", time.Time{}},
		{"-1s", time.Time{}},
		{"2026-02-30", time.Time{}},
	} {
		got, err := c.parseTime("--since", tc.in)
		if !got.Equal(tc.want) || (err != nil) != tc.want.IsZero() {
			t.Errorf("parseTime(%q) = %v, %v, want %v", tc.in, got, err, tc.want)
		}
	}
}

// TestConsoleKeys watches a console from a terminal, and leaves it by each of the
// ways.
func TestConsoleKeys(t *testing.T) {
	host := withVM(t, &httpapitest.Service{Logs: []api.LogEntry{{Seq: 1, Stream: "console", Line: "booted"}, {Seq: 2, Stream: "stdout", Line: "out"}}}, false)
	for _, keys := range []string{"abc\x10\x11", "\x1d", "\x10\x10\x11", "\x03"} {
		near, far := openTerminal(t)
		before := modes(t, far)
		var stderr bytes.Buffer
		pr, pw := io.Pipe()
		c := &cli{ctx: t.Context(), stdin: far, stdout: pw, stderr: &stderr, version: "1.2.3", now: noon, progressAfter: time.Minute}
		status := make(chan int, 1)
		go func() { status <- c.run([]string{"--host", host, "vms", "console", "web"}) }()
		if line, err := bufio.NewReader(pr).ReadString('\n'); err != nil || line != "booted\r\n" {
			t.Fatalf("the console shows %q, %v", line, err)
		}
		if now := modes(t, far); now.Lflag == before.Lflag {
			t.Error("the terminal is not raw: it takes lines, not keys")
		}
		fmt.Fprint(near, keys)
		select {
		case s := <-status:
			if s != 0 || !strings.Contains(stderr.String(), "takes no input") || !strings.Contains(stderr.String(), "left: web goes on") {
				t.Errorf("%q: status %d, %q", keys, s, stderr.String())
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q does not leave", keys)
		}
		if modes(t, far) != before {
			t.Errorf("%q: the terminal is not as before", keys)
		}
	}
}

// TestConsoleNoTerminal watches a console where there is nobody to type.
func TestConsoleNoTerminal(t *testing.T) {
	host := withVM(t, &httpapitest.Service{
		Logs: []api.LogEntry{{Seq: 1, Stream: "console", Line: "booted"}}, Err: map[string]error{"VMLogs": io.ErrUnexpectedEOF},
	}, false)
	var stdout, stderr bytes.Buffer
	c := &cli{ctx: t.Context(), stdin: strings.NewReader("\x10\x11"), stdout: &stdout, stderr: &stderr, version: "1.2.3", now: noon, progressAfter: time.Minute}
	if s := c.run([]string{"--host", host, "vms", "console", "web"}); s != 1 || stdout.String() != "booted\n" || stderr.Len() == 0 {
		t.Errorf("status %d, stdout %q, stderr %q; want what was said, and that the connection was lost", s, stdout.String(), stderr.String())
	}
}
