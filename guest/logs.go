package guest

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// logRingBytes bounds the memory of the log ring, entries included.
	logRingBytes = 1 << 20
	// logEntryBytes is what an entry costs beside its data.
	logEntryBytes = 80
	// partialAfter is how long an unfinished line is held back.
	partialAfter = 200 * time.Millisecond
)

// logRing keeps the latest output of the workload and of kestrel. Adding never
// blocks: the oldest entries make room. It is safe for concurrent use.
type logRing struct {
	mu      sync.Mutex
	entries []wire.LogEntry // without gaps, the last one has seq
	bytes   int
	limit   int
	seq     uint64
	more    chan struct{} // closed by the next add; nil while nobody waits
}

func newLogRing(limit int) *logRing { return &logRing{limit: limit} }

func (r *logRing) add(stream wire.LogStream, line []byte, partial bool) {
	data := strings.ToValidUTF8(string(line), "\uFFFD")
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	r.entries = append(r.entries, wire.LogEntry{Seq: r.seq, Time: now, Stream: stream, Data: data, Partial: partial})
	r.bytes += logEntryBytes + len(data)
	for r.bytes > r.limit && len(r.entries) > 1 {
		r.bytes -= logEntryBytes + len(r.entries[0].Data)
		r.entries[0] = wire.LogEntry{}
		r.entries = r.entries[1:]
	}
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// since returns up to limit entries after seq, and a channel that is closed
// when there are more than what the ring holds now.
func (r *logRing) since(seq uint64, limit int) ([]wire.LogEntry, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.more == nil {
		r.more = make(chan struct{})
	}
	skip := 0
	if n := len(r.entries); n > 0 && seq >= r.entries[0].Seq {
		skip = int(min(seq-r.entries[0].Seq+1, uint64(n)))
	}
	rest := r.entries[skip:]
	return append([]wire.LogEntry(nil), rest[:min(len(rest), limit)]...), r.more
}

// appendEntry appends e as json.Marshal has it, and a newline. It costs a seventh:
// a workload that writes much shares its processor with this.
func appendEntry(b []byte, e *wire.LogEntry) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, e.Seq, 10)
	b = append(b, `,"time":"`...)
	b = e.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","stream":"`...)
	b = append(b, e.Stream...)
	b = append(b, `","data":"`...)
	b = appendEscaped(b, e.Data)
	b = append(b, '"')
	if e.Partial {
		b = append(b, `,"partial":true`...)
	}
	return append(b, '}', '\n')
}

// appendEscaped appends s, which is UTF-8, as the inside of a JSON string (RFC
// 8259 section 7).
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if c >= ' ' {
			b = append(b, '\\', c)
			continue
		}
		b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
	}
	return append(b, s[from:]...)
}

// capture turns what a process writes into lines, until end of file or until f
// is closed. It never waits for a reader of the ring. raw is given everything
// as it came, and must not keep it; it may wait. Lines of a terminal end in CR
// LF, and lose both.
func capture(f *os.File, stream wire.LogStream, ring *logRing, tty bool, raw func([]byte)) {
	buf := make([]byte, wire.MaxLogLine)
	held := 0 // bytes of an unfinished line at the front of buf
	// A deadline is set while a line is unfinished; each line gets its own.
	set, sameLine := false, false
	for {
		switch {
		case held == 0 && set:
			_ = f.SetReadDeadline(time.Time{})
			set = false
		case held > 0 && !(set && sameLine):
			set = f.SetReadDeadline(time.Now().Add(partialAfter)) == nil
		}
		sameLine = true
		n, err := readOutput(f, buf[held:])
		if n > 0 {
			raw(buf[held : held+n])
		}
		rest := buf[:held+n]
		for {
			line, after, ok := bytes.Cut(rest, []byte{'\n'})
			if !ok {
				break
			}
			if tty {
				line = bytes.TrimSuffix(line, []byte{'\r'})
			}
			ring.add(stream, line, false)
			rest = after
			sameLine = false
		}
		switch {
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			if len(rest) > 0 {
				ring.add(stream, rest, false)
			}
			return
		case len(rest) == len(buf) || err != nil && len(rest) > 0:
			cut := wholeRunes(rest)
			ring.add(stream, rest[:cut], true)
			rest = rest[cut:]
			sameLine = false
		}
		held = copy(buf, rest)
	}
}

// wholeRunes returns how much of b can be cut off without splitting a UTF-8
// sequence at its end.
func wholeRunes(b []byte) int {
	for i := len(b) - 1; i > 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if utf8.FullRune(b[i:]) {
				return len(b)
			}
			return i
		}
	}
	return len(b)
}
