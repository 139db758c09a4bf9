package stdio_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/volantvm/volant/client/api/stdio"
)

func frames() []stdio.Frame {
	return []stdio.Frame{
		{Type: stdio.Stdin, Data: []byte("a\x00\xff\n")},
		{Type: stdio.Stdin, Data: []byte{}},
		{Type: stdio.StdinClose},
		{Type: stdio.Resize, Size: stdio.Size{Rows: 24, Cols: 65535}},
		{Type: stdio.Signal, Name: "SIGRTMIN+15"},
		{Type: stdio.Stdout, Data: bytes.Repeat([]byte("x"), stdio.MaxPayload)},
		{Type: stdio.Stderr, Data: []byte("no")},
		{Type: stdio.Taken, N: stdio.Window},
		{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 137, Signal: "SIGKILL", Error: "why \"not\""}},
	}
}

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	w := stdio.NewWriter(&b)
	for _, f := range frames() {
		if err := w.Write(f); err != nil {
			t.Fatalf("Write(%v) = %v", f.Type, err)
		}
	}
	if err := w.Write(stdio.Frame{Type: stdio.Stdout}); !errors.Is(err, stdio.ErrEnded) {
		t.Errorf("Write after Exit = %v, want ErrEnded", err)
	}
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(b.Bytes()), "byte by byte": iotest.OneByteReader(bytes.NewReader(b.Bytes()))} {
		rd := stdio.NewReader(r)
		for _, want := range frames() {
			if got, err := rd.Next(); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: Next() = %+v, %v; want %+v", name, got, err, want)
			}
		}
		if _, err := rd.Next(); err != io.EOF { //nolint:errorlint // it is bare
			t.Errorf("%s: Next() at the end = %v, want io.EOF", name, err)
		}
	}
}

func TestLongDataIsSplit(t *testing.T) {
	var b bytes.Buffer
	data := bytes.Repeat([]byte("0123456789"), 20_000)
	if n, err := stdio.NewWriter(&b).Stream(stdio.Stdout).Write(data); n != len(data) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	rd := stdio.NewReader(&b)
	var got []byte
	for {
		f, err := rd.Next()
		if err == io.EOF { //nolint:errorlint // it is bare
			break
		}
		if err != nil || f.Type != stdio.Stdout {
			t.Fatalf("Next() = %v, %v", f.Type, err)
		}
		got = append(got, f.Data...)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes became %d others", len(data), len(got))
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"nothing":              {"", io.EOF},
		"a torn header":        {"\x10\x00", io.ErrUnexpectedEOF},
		"a torn payload":       {"\x10\x00\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"no payload":           {"\x10\x00\x00\x00\x05", io.ErrUnexpectedEOF},
		"an unknown type":      {"\x00\x00\x00\x00\x00", stdio.ErrMalformed},
		"a huge length":        {"\x10\xff\xff\xff\xff", stdio.ErrMalformed},
		"one byte too many":    {"\x10\x00\x01\x00\x01", stdio.ErrMalformed},
		"an end with data":     {"\x02\x00\x00\x00\x01x", stdio.ErrMalformed},
		"half a size":          {"\x03\x00\x00\x00\x02xx", stdio.ErrMalformed},
		"a signal of nothing":  {"\x04\x00\x00\x00\x00", stdio.ErrMalformed},
		"a signal of a shell":  {"\x04\x00\x00\x00\x04$(a)", stdio.ErrMalformed},
		"a long signal":        {"\x04\x00\x00\x00\x11AAAAAAAAAAAAAAAAA", stdio.ErrMalformed},
		"an exit of garbage":   {"\x12\x00\x00\x00\x02[]", stdio.ErrMalformed},
		"an exit out of range": {"\x12\x00\x00\x00\x0c{\"code\":256}", stdio.ErrMalformed},
		"an exit by no signal": {"\x12\x00\x00\x00\x0e{\"signal\":\"a\"}", stdio.ErrMalformed},
		"nothing taken":        {"\x13\x00\x00\x00\x04\x00\x00\x00\x00", stdio.ErrMalformed},
		"too much taken":       {"\x13\x00\x00\x00\x04\xff\x00\x00\x00", stdio.ErrMalformed},
		"http":                 {"HTTP/1.1 500 no\r\n", stdio.ErrMalformed},
	} {
		if f, err := stdio.NewReader(strings.NewReader(tc.in)).Next(); !errors.Is(err, tc.want) {
			t.Errorf("%s: Next() = %+v, %v; want %v", name, f, err, tc.want)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, f := range map[string]stdio.Frame{
		"unknown type":        {Type: 9},
		"signal":              {Type: stdio.Signal, Name: "sigint"},
		"exit code":           {Type: stdio.Exit, Exit: stdio.ExitStatus{Code: -1}},
		"exit's signal":       {Type: stdio.Exit, Exit: stdio.ExitStatus{Signal: "a b"}},
		"a signal of nothing": {Type: stdio.Signal},
		"nothing taken":       {Type: stdio.Taken},
		"too much taken":      {Type: stdio.Taken, N: stdio.Window + 1},
	} {
		var b bytes.Buffer
		w := stdio.NewWriter(&b)
		if err := w.Write(f); !errors.Is(err, stdio.ErrMalformed) || b.Len() != 0 {
			t.Errorf("%s: Write = %v and %d bytes, want ErrMalformed and none", name, err, b.Len())
		}
		if err := w.Write(stdio.Frame{Type: stdio.StdinClose}); err != nil || b.Len() != stdio.HeaderLen {
			t.Errorf("%s: the frame after it: %v", name, err)
		}
	}
}

// TestLongError has an exit status with more to say than fits.
func TestLongError(t *testing.T) {
	var b bytes.Buffer
	if err := stdio.NewWriter(&b).Write(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Error: strings.Repeat("\x00<é", 5000)}}); err != nil {
		t.Fatal(err)
	}
	f, err := stdio.NewReader(&b).Next()
	if err != nil || !strings.HasPrefix(f.Exit.Error, "\x00<é") || len(f.Exit.Error) > 1100 {
		t.Errorf("Next() = %d bytes of error, %v", len(f.Exit.Error), err)
	}
}

// TestTornFrame has a connection that fails within a frame: nothing may follow.
func TestTornFrame(t *testing.T) {
	boom := errors.New("boom")
	calls := 0
	w := stdio.NewWriter(writerFunc(func(p []byte) (int, error) {
		calls++
		return len(p) / 2, boom
	}))
	for range 2 {
		if err := w.Write(stdio.Frame{Type: stdio.Stdout, Data: []byte("abc")}); !errors.Is(err, boom) {
			t.Errorf("Write = %v, want boom", err)
		}
	}
	if calls != 1 {
		t.Errorf("%d writes, want one", calls)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestConcurrentWriters checks that frames stay whole and in each one's order.
func TestConcurrentWriters(t *testing.T) {
	pr, pw := io.Pipe()
	w := stdio.NewWriter(pw)
	var wg sync.WaitGroup
	for _, typ := range []stdio.Type{stdio.Stdout, stdio.Stderr} {
		wg.Go(func() {
			for i := range 1000 {
				if err := w.Write(stdio.Frame{Type: typ, Data: []byte{byte(i), byte(i >> 8)}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	go func() {
		wg.Wait()
		pw.Close()
	}()
	next := map[stdio.Type]int{}
	rd := stdio.NewReader(pr)
	for {
		f, err := rd.Next()
		if err == io.EOF { //nolint:errorlint // it is bare
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := int(f.Data[0]) | int(f.Data[1])<<8; got != next[f.Type] {
			t.Fatalf("%v: number %d, want %d", f.Type, got, next[f.Type])
		}
		next[f.Type]++
	}
	if next[stdio.Stdout] != 1000 || next[stdio.Stderr] != 1000 {
		t.Errorf("received %v", next)
	}
}

// FuzzReader reads anything, and checks that what it accepted is written as it
// was read.
func FuzzReader(f *testing.F) {
	for _, fr := range frames()[:5] {
		var b bytes.Buffer
		if err := stdio.NewWriter(&b).Write(fr); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x13\x00\x00\x00\x04\x00\x00\x00\x01"))
	f.Add([]byte("\x12\x00\x00\x00\x0a{\"code\":3}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		rd := stdio.NewReader(bytes.NewReader(in))
		for {
			got, err := rd.Next()
			if err != nil {
				return
			}
			var b bytes.Buffer
			if err := stdio.NewWriter(&b).Write(got); err != nil {
				t.Fatalf("Write(%+v) = %v", got, err)
			}
			again, err := stdio.NewReader(&b).Next()
			if len(got.Exit.Error) > 1000 {
				again.Exit.Error = got.Exit.Error // shortened
			}
			same := bytes.Equal(again.Data, got.Data)
			again.Data, got.Data = nil, nil // no bytes may be nil or not
			if err != nil || !same || !reflect.DeepEqual(again, got) {
				t.Fatalf("%+v became %+v, %v", got, again, err)
			}
		}
	})
}
