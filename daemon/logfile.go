package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

const (
	// logLimit is the most bytes that one file of the workload's log holds, of
	// which there are two. A line of 50 bytes takes 160.
	logLimit = 4 << 20
	// logTail is how much of a log's end is read to go on with it, at first.
	logTail = 64 << 10
	// logRate is how fast lines are taken from a guest in the long run, in bytes
	// a second, and logBurst how many at once: more than is kept. It bounds what
	// a flood costs the daemon to about a tenth of a processor; a guest whose
	// buffer runs over meanwhile loses lines, which its log tells.
	logRate  = 4 << 20
	logBurst = 2 * logLimit
	// logLineCost is what a line counts beside its text.
	logLineCost = 80
	// maxClockAhead is how far a guest's clock may be ahead of the host's.
	maxClockAhead = time.Minute
)

// logLine is one line of workloadLog, as JSON.
type logLine struct {
	Incarnation int `json:"n"`
	// From is the guest's own number, 1 for the first line of an incarnation,
	// to go on from. Seq is the daemon's, which has no gaps and does not
	// believe the guest anything.
	From    uint64    `json:"from"`
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Stream  string    `json:"stream"`
	Line    string    `json:"line"`
	Partial bool      `json:"partial,omitempty"`
	Lost    uint64    `json:"lost,omitempty"`
	// End is set in the last line of an incarnation. When the guest said itself
	// that there is no more, that line has no Stream, a Seq that the one before
	// has too, and is not shown.
	End bool `json:"end,omitempty"`
}

// logFile appends the lines of one incarnation to the VM's log. What is on the
// disk is what counts: after a failure it finds out anew how far that goes. One
// goroutine writes at a time.
type logFile struct {
	path        string
	incarnation int
	limit       int64            // bytes of one file
	now         func() time.Time // of the host
	news        func()           // called after each change

	mu     sync.Mutex
	f      *os.File // guarded by mu; nil before the first use and after a failure
	closed bool     // guarded by mu
	size   int64    // guarded by mu; those below hold while f is open
	seq    uint64   // guarded by mu; the last line's
	last   uint64   // guarded by mu; highest From of this incarnation, 0 for none
	ended  bool     // guarded by mu; the last line is this incarnation's end
}

// logError says that lines could not be written: the disk is full, or worse.
// They stay in the guest's buffer for as long as that has room.
type logError struct{ err error }

func (e *logError) Error() string { return "write log: " + e.err.Error() }
func (e *logError) Unwrap() error { return e.err }

// newLog makes the log of an incarnation. Nothing is done before it is used.
func (d *Daemon) newLog(id string, incarnation int) *logFile {
	return &logFile{
		path: filepath.Join(d.dataDir(id), workloadLog), incarnation: incarnation, limit: logLimit, now: d.cfg.Now,
		news: func() { d.logNews.notify(id, false) },
	}
}

// position returns the guest's number of the last line that is kept, 0 before
// the first.
func (l *logFile) position() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return 0, &logError{err}
	}
	return l.last, nil
}

// ready opens the file, if it is not open, to go on with it. What is not a line
// at its end, since a daemon was killed or the disk was full, is cut off. The
// caller holds mu.
func (l *logFile) ready() error {
	switch {
	case l.closed:
		return fs.ErrClosed
	case l.f != nil:
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	end, err := findEnd(f)
	if err == nil {
		err = f.Truncate(end.whole)
	}
	if err == nil && !end.found {
		var older logEnd
		if older, err = findEndOf(l.path + oldLog); err == nil {
			end.found, end.line, end.damaged = older.found, older.line, end.damaged+older.damaged
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, end.whole
	l.seq, l.last, l.ended = end.line.Seq+end.damaged, 0, false // readers tell that the numbers between are missing
	if end.found && end.line.Incarnation == l.incarnation {
		l.last, l.ended = end.line.From, end.line.End
	}
	return nil
}

// logEnd is what findEnd found.
type logEnd struct {
	whole   int64   // bytes up to the end of the last line
	found   bool    // there is a line
	line    logLine // the last one that can be read
	damaged uint64  // lines after it that cannot, since the host crashed
}

func findEndOf(path string) (logEnd, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return logEnd{}, nil
	}
	if err != nil {
		return logEnd{}, err
	}
	end, err := findEnd(f)
	return end, errors.Join(err, f.Close())
}

// findEnd finds the last line of a log. It reads no more of it than it must.
func findEnd(f *os.File) (logEnd, error) {
	fi, err := f.Stat()
	if err != nil {
		return logEnd{}, err
	}
	for n := int64(logTail); ; n *= 4 {
		n = min(n, fi.Size())
		b := make([]byte, n)
		if _, err := f.ReadAt(b, fi.Size()-n); err != nil {
			return logEnd{}, err
		}
		to := bytes.LastIndexByte(b, '\n') + 1
		end := logEnd{whole: fi.Size() - n + int64(to)}
		for to > 0 {
			from := bytes.LastIndexByte(b[:to-1], '\n') + 1
			if from == 0 && n < fi.Size() {
				break // its beginning was not read
			}
			if json.Unmarshal(b[from:to-1], &end.line) == nil {
				end.found = true
				return end, nil
			}
			end.line, to = logLine{}, from
			end.damaged++
		}
		if n == fi.Size() {
			return end, nil
		}
	}
}

// keep appends entries. Those that were kept before are passed over; entries
// from a guest are taken for what they say but bounded. Where the guest's
// numbers have a gap, a line says so. With a *logError the log is as it was, or
// holds some of them.
func (l *logFile) keep(entries []wire.LogEntry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return &logError{err}
	}
	now := l.now()
	lines := make([]logLine, 0, len(entries))
	seq, last := l.seq, l.last
	for _, e := range entries {
		if e.Seq <= last {
			continue
		}
		line := logLine{Incarnation: l.incarnation, From: e.Seq, Time: e.Time, Stream: string(e.Stream), Partial: e.Partial}
		line.Line = strings.ReplaceAll(clip(e.Data, wire.MaxLogLine), "\n", "\uFFFD")
		switch e.Stream {
		case wire.Stdout, wire.Stderr, wire.Agent:
		default:
			line.Stream = api.StreamAgent
		}
		if line.Time.Unix() <= 0 || line.Time.After(now.Add(maxClockAhead)) {
			line.Time = now
		}
		line.Time = line.Time.UTC()
		if lost := e.Seq - last - 1; lost > 0 {
			seq++
			lines = append(lines, logLine{
				Incarnation: l.incarnation, From: e.Seq - 1, Seq: seq, Time: line.Time, Stream: api.StreamVolant, Lost: lost,
				Line: linesLost(lost) + ": they did not fit into the guest's buffer",
			})
		}
		seq++
		line.Seq, last = seq, e.Seq
		lines = append(lines, line)
	}
	return l.append(lines, last)
}

// linesLost says how many lines are missing.
func linesLost(n uint64) string {
	if n == 1 {
		return "1 line lost"
	}
	return fmt.Sprintf("%d lines lost", n)
}

// end notes that no more lines will come: in good order, or else with words that
// say what may be missing. Noting it twice changes nothing.
func (l *logFile) end(orderly bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return &logError{err}
	}
	if l.ended {
		return nil
	}
	line := logLine{Incarnation: l.incarnation, From: l.last, Seq: l.seq, Time: l.now().UTC(), End: true}
	if !orderly {
		line.Seq++
		line.Stream, line.Line = api.StreamVolant, "the VM ended before its log was read to the end: lines may be missing"
	}
	return l.append([]logLine{line}, l.last)
}

// append writes lines, the last of which has the guest's number last. The caller
// holds mu and has called ready.
func (l *logFile) append(lines []logLine, last uint64) error {
	if len(lines) == 0 {
		return nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for i := range lines {
		if err := enc.Encode(&lines[i]); err != nil {
			return &logError{err}
		}
	}
	err := l.write(buf.Bytes())
	if err != nil {
		l.drop()
		return &logError{err}
	}
	end := lines[len(lines)-1]
	l.seq, l.last, l.ended = end.Seq, last, end.End
	l.news()
	return nil
}

// write appends b, to a new file when it does not fit into this one.
func (l *logFile) write(b []byte) error {
	if l.size > 0 && l.size+int64(len(b)) > l.limit {
		// In this order even a full disk has room.
		if err := os.Rename(l.path, l.path+oldLog); err != nil {
			return err
		}
		f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		err = l.f.Close()
		l.f, l.size = f, 0
		if err != nil {
			return err
		}
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return err
}

// drop closes the file, to find out at the next use what is in it.
func (l *logFile) drop() {
	if l.f != nil {
		l.f.Close() //nolint:errcheck // what was written before is on the disk or is not
		l.f = nil
	}
}

// close lets go of the log; it cannot be used any more.
func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.drop()
}
