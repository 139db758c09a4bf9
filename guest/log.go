package guest

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/volantvm/volant/guest/wire"
)

// Keys of log attributes.
const (
	keyErr    = "err"
	keyStep   = "step"
	keyPID    = "pid"
	keySignal = "signal"
	keyExit   = "exit"
	keyDelay  = "delay"
	keyEpoch  = "epoch"
)

// logSink is where kestrel's own words go: the ring that the host reads, and
// the kernel's log once that is open. The kernel prints them on the console as
// its log level has it.
type logSink struct {
	ring *logRing

	mu   sync.Mutex
	kmsg io.Writer // nil before it is open
}

func (s *logSink) open(kmsg io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kmsg = kmsg
}

// logHandler formats records as logfmt, without time and level: both the ring
// and the kernel's log have their own.
type logHandler struct {
	slog.Handler // writes to buf
	sink         *logSink
	mu           *sync.Mutex
	buf          *bytes.Buffer // guarded by mu
}

func newLogger(sink *logSink, level slog.Leveler) *slog.Logger {
	var buf bytes.Buffer
	text := slog.NewTextHandler(&buf, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return slog.New(&logHandler{text, sink, new(sync.Mutex), &buf})
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.Handler.WithAttrs(attrs), h.sink, h.mu, h.buf}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.Handler.WithGroup(name), h.sink, h.mu, h.buf}
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	line := bytes.TrimRight(h.buf.Bytes(), "\n")
	h.sink.ring.add(wire.Agent, line, false)
	h.sink.mu.Lock()
	defer h.sink.mu.Unlock()
	if h.sink.kmsg == nil {
		return nil
	}
	// One write is one record of the kernel's log, of 1 KiB at most.
	record := append([]byte(kmsgPrefix(r.Level)), line[:min(len(line), 900)]...)
	_, err := h.sink.kmsg.Write(append(record, '\n'))
	return err
}

// kmsgPrefix gives the level as syslog(2) numbers it.
func kmsgPrefix(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>kestrel: "
	case l >= slog.LevelWarn:
		return "<4>kestrel: "
	case l >= slog.LevelInfo:
		return "<6>kestrel: "
	}
	return "<7>kestrel: "
}
