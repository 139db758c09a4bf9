package client

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

func readAll(s string) (out []message, err error) {
	r := newSSEReader(strings.NewReader(s))
	for {
		m, err := r.next(func() {})
		if err != nil {
			return out, err
		}
		out = append(out, m)
	}
}

func TestSSEReader(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []message
	}{
		"event":          {"id: 7\nevent: X\ndata: {}\n\n", []message{{"7", "X", "{}"}}},
		"two":            {"data: a\n\ndata: b\n\n", []message{{data: "a"}, {data: "b"}}},
		"CRLF":           {"data: a\r\n\r\n", []message{{data: "a"}}},
		"several lines":  {"data: a\ndata:b\ndata\n\n", []message{{data: "a\nb\n"}}},
		"comment":        {": alive\n\n: x\ndata: a\n\n", []message{{data: "a"}}},
		"no data":        {"event: X\n\ndata: a\n\n", []message{{data: "a"}}},
		"unknown fields": {"retry: 5\nfoo: bar\ndata: a\n\n", []message{{data: "a"}}},
		"cut short":      {"data: a\n\ndata: b\n", []message{{data: "a"}}},
		"empty":          {"", nil},
	} {
		got, err := readAll(c.in)
		if !reflect.DeepEqual(got, c.want) || !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %q %v, want %q", name, got, err, c.want)
		}
	}
	if _, err := readAll("data: " + strings.Repeat("x", maxLine) + "\n\n"); !errors.Is(err, bufio.ErrTooLong) {
		t.Errorf("a line too long = %v", err)
	}
	if _, err := readAll(strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", maxLine/1000+1) + "\n"); !errors.Is(err, bufio.ErrTooLong) {
		t.Errorf("an event too long = %v", err)
	}
}

// FuzzSSEReader checks that no input makes the reader loop or panic, and that
// what was read survives being written again.
func FuzzSSEReader(f *testing.F) {
	f.Add("id: 7\nevent: X\ndata: {}\n\n")
	f.Add(": alive\n\ndata\n\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		got, _ := readAll(in)
		var b strings.Builder
		for _, m := range got {
			fmt.Fprintf(&b, "id: %s\nevent: %s\n", m.id, m.event)
			for line := range strings.SplitSeq(m.data, "\n") {
				fmt.Fprintf(&b, "data: %s\n", line)
			}
			b.WriteString("\n")
		}
		again, _ := readAll(b.String())
		if len(got) > 0 && !reflect.DeepEqual(got, again) && !strings.Contains(in, "\r") {
			t.Errorf("%q read as %q, written and read again as %q", in, got, again)
		}
	})
}
