package guest

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"unicode/utf8"

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
// and the kernel's log have their own. It is not slog's text handler, of which
// the first line costs an emulated guest 30 ms, while its workload comes up.
type logHandler struct {
	sink  *logSink
	level slog.Leveler
	attrs string // of WithAttrs, formatted
	group string // before the keys that follow: "" or "name."
}

func newLogger(sink *logSink, level slog.Leveler) *slog.Logger {
	if level == nil {
		level = slog.LevelInfo
	}
	return slog.New(&logHandler{sink: sink, level: level})
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	b := []byte(h.attrs)
	for _, a := range attrs {
		b = appendAttr(b, h.group, a)
	}
	with.attrs = string(b)
	return &with
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.group += name + "."
	return &with
}

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	line := append(appendValue([]byte("msg="), r.Message), h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = appendAttr(line, h.group, a)
		return true
	})
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

// appendAttr appends " key=value". The members of a group have its name before
// theirs.
func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			b = appendAttr(b, group, member)
		}
		return b
	}
	if a.Equal(slog.Attr{}) {
		return b
	}
	b = append(append(append(append(b, ' '), group...), a.Key...), '=')
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return appendValue(b, err.Error())
		}
	}
	return appendValue(b, v.String())
}

// appendValue appends a value, in quotes where it has to be told from what
// follows.
func appendValue(b []byte, s string) []byte {
	for _, c := range s {
		if c <= ' ' || c == '"' || c == '=' || c == utf8.RuneError || !strconv.IsPrint(c) {
			return strconv.AppendQuote(b, s)
		}
	}
	if s == "" {
		return append(b, '"', '"')
	}
	return append(b, s...)
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
