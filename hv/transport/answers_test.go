package transport

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (readOnly) Close() error              { return nil }

func TestAnswers(t *testing.T) {
	const (
		ack    = "\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00" // window update
		empty  = "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"
		window = "\x00\x01\x00\x00\x00\x00\x00\x01\x00\x04\x00\x00" // its length is no body's
		fin    = "\x00\x01\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00"
		bye    = "\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		ping   = "\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07"
		pong   = "\x00\x02\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07"
		open   = "\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00"
		opened = "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00" // a stream that begins with data
	)
	data := func(body string) string {
		return "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00" + string(rune(len(body))) + body
	}
	for _, tt := range []struct {
		name, in string
		refused  bool
	}{
		{"answers", ack + data("hello") + empty + window + data("x") + fin + bye, false},
		{"a ping in the data", ack + data(ping+open) + fin, false},
		{"cut off", ack + data("hello")[:14], false},
		{"ping", ack + data("hello") + ping, true},
		{"answer to no ping", ack + pong, true},
		{"stream", ack + open, true},
		{"stream with data", opened, true},
	} {
		readers := []struct {
			name string
			r    io.Reader
		}{{"whole", strings.NewReader(tt.in)}, {"bytes", iotest.OneByteReader(strings.NewReader(tt.in))}}
		for _, r := range readers {
			t.Run(tt.name+"/"+r.name, func(t *testing.T) {
				got, err := io.ReadAll(&answers{ReadWriteCloser: readOnly{r.r}})
				if tt.refused {
					if !errors.Is(err, errNotAnAnswer) {
						t.Errorf("error = %v, want %v", err, errNotAnAnswer)
					}
					return
				}
				if err != nil || !bytes.Equal(got, []byte(tt.in)) {
					t.Errorf("read %q, %v; want %q", got, err, tt.in)
				}
			})
		}
	}
}
