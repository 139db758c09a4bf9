package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

// Names of log files in a VM's data directory. Each is accompanied by an older
// part with the suffix oldLog, and both together are bounded.
const (
	workloadLog = "workload.log"
	consoleLog  = "console.log"
	oldLog      = ".1"
	// logLimit is the most bytes that one log file holds.
	logLimit = 1 << 20
)

// logLine is one line of workloadLog, as JSON. Seq counts on across
// incarnations; From is the guest's own number, to go on from.
type logLine struct {
	Incarnation int            `json:"n"`
	From        uint64         `json:"from"`
	Seq         uint64         `json:"seq"`
	Time        time.Time      `json:"time"`
	Stream      wire.LogStream `json:"stream"`
	Line        string         `json:"line"`
}

// logFile appends one incarnation's log lines to the VM's log. One goroutine
// writes; any may wait for changes.
type logFile struct {
	path        string
	incarnation int

	mu      sync.Mutex
	f       *os.File      // guarded by mu
	size    int64         // guarded by mu
	base    uint64        // guarded by mu; Seq - From in this incarnation
	last    uint64        // guarded by mu; highest From kept
	changed chan struct{} // guarded by mu; closed by the next change
}

// logError says that lines could not be written (the disk is full); they are
// lost, which the gap in Seq shows.
type logError struct{ err error }

func (e *logError) Error() string { return "write log: " + e.err.Error() }
func (e *logError) Unwrap() error { return e.err }

// openLog opens the log in dir to go on with it. A line that a killed daemon
// left half written is cut off.
func openLog(dir string, incarnation int) (*logFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &logFile{path: filepath.Join(dir, workloadLog), incarnation: incarnation, changed: make(chan struct{})}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	content, err := readAtMost(f, 2*logLimit)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	whole := content[:bytes.LastIndexByte(content, '\n')+1]
	if len(whole) < len(content) {
		if err := f.Truncate(int64(len(whole))); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	last, ok := lastLine(whole)
	if !ok {
		old, err := os.ReadFile(l.path + oldLog)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, f.Close())
		}
		last, ok = lastLine(old)
	}
	switch {
	case ok && last.Incarnation == incarnation:
		l.base, l.last = last.Seq-last.From, last.From
	case ok:
		l.base = last.Seq
	}
	l.f, l.size = f, int64(len(whole))
	return l, nil
}

func lastLine(content []byte) (logLine, bool) {
	content = bytes.TrimRight(content, "\n")
	var line logLine
	err := json.Unmarshal(content[bytes.LastIndexByte(content, '\n')+1:], &line)
	return line, err == nil
}

func (l *logFile) lastSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// keep appends entries. Those that were kept before are passed over; entries
// from a guest are taken for what they say but bounded.
func (l *logFile) keep(entries []wire.LogEntry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, e := range entries {
		if e.Seq <= l.last {
			continue
		}
		l.last = e.Seq
		switch e.Stream {
		case wire.Stdout, wire.Stderr, wire.Agent:
		default:
			e.Stream = wire.Agent
		}
		if err := enc.Encode(logLine{l.incarnation, e.Seq, l.base + e.Seq, e.Time, e.Stream, clip(e.Data, wire.MaxLogLine)}); err != nil {
			return &logError{err} // a time that JSON cannot hold
		}
	}
	if buf.Len() == 0 {
		return nil
	}
	if l.size > 0 && l.size+int64(buf.Len()) > logLimit {
		if err := l.rotate(); err != nil {
			return &logError{err}
		}
	}
	n, err := l.f.Write(buf.Bytes())
	l.size += int64(n)
	if err != nil {
		// No half line may stay in front of the next one.
		if terr := l.f.Truncate(l.size - int64(n)); terr == nil {
			l.size -= int64(n)
		}
		return &logError{err}
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

func (l *logFile) rotate() error {
	f, err := os.OpenFile(l.path+".next", os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := os.Rename(l.path, l.path+oldLog); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := os.Rename(l.path+".next", l.path); err != nil {
		return errors.Join(err, f.Close())
	}
	err = l.f.Close()
	l.f, l.size = f, 0
	return err
}

// next returns a channel that is closed by the next change.
func (l *logFile) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.f.Close()
}

// logReader reads a log and its older part as one, and goes on where it ended
// when more was written, across rotations.
type logReader struct {
	path string
	f    *os.File
	rest []byte // the beginning of a line whose end is not there yet
}

func (r *logReader) close() {
	if r.f != nil {
		r.f.Close() //nolint:errcheck // was only read
	}
}

// lines calls yield with each whole line that was not read before.
func (r *logReader) lines(yield func(line []byte) error) error {
	if r.f == nil {
		for _, path := range []string{r.path + oldLog, r.path} {
			f, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if r.f != nil {
				// The older part is complete when the newer one is there.
				if err := r.read(yield); err != nil {
					return errors.Join(err, f.Close())
				}
				r.close()
				r.rest = nil
			}
			r.f = f
		}
		if r.f == nil {
			return nil
		}
	}
	for {
		// Look before reading: what was written to the old file before the
		// rotation is then surely read.
		replaced, err := r.replaced()
		if err != nil {
			return err
		}
		if err := r.read(yield); err != nil {
			return err
		}
		if !replaced {
			return nil
		}
		f, err := os.Open(r.path)
		if err != nil {
			return err
		}
		r.close()
		r.f, r.rest = f, nil
	}
}

func (r *logReader) replaced() (bool, error) {
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // in the middle of a rotation, or deleted
	}
	if err != nil {
		return false, err
	}
	mine, err := r.f.Stat()
	return err == nil && !os.SameFile(now, mine), err
}

func (r *logReader) read(yield func(line []byte) error) error {
	rd := bufio.NewReader(r.f)
	for {
		part, err := rd.ReadSlice('\n')
		r.rest = append(r.rest, part...)
		switch {
		case err == io.EOF: //nolint:errorlint // bufio returns it bare
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(r.rest) > logLimit {
				return fmt.Errorf("%s: a line of more than %d bytes", r.path, logLimit)
			}
			continue
		case err != nil:
			return err
		}
		line := r.rest[:len(r.rest)-1]
		if err := yield(line); err != nil {
			return err
		}
		r.rest = r.rest[:0]
	}
}

// consolePoll is how often a followed console is looked at: the driver writes
// it, and tells nobody.
const consolePoll = 200 * time.Millisecond

// VMLogs yields the VM's log lines that q selects, oldest first. They are kept
// when the VM has ended, also those of earlier incarnations, up to 1 to 2 MiB.
// With Follow it goes on until the VM has ended for good, ctx ends (no error)
// or yield fails. Lines of the console carry no time, and are numbered from the
// oldest that is kept. Codes: not_found.
func (d *Daemon) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func(api.LogEntry) error) error {
	vm, err := d.find(ctx, name)
	if err != nil {
		return err
	}
	r := &logReader{path: filepath.Join(d.dataDir(vm.ID), workloadLog)}
	parse := parseLogLine
	if q.Console {
		r.path = filepath.Join(d.dataDir(vm.ID), consoleLog)
		parse = consoleParser()
	}
	defer r.close()

	var yieldErr error
	pass := func(e api.LogEntry) error {
		if e.Seq <= q.After {
			return nil
		}
		yieldErr = yield(e)
		return yieldErr
	}
	if q.Tail > 0 {
		var tail []api.LogEntry
		err = r.lines(func(line []byte) error {
			if e, ok := parse(line); ok && e.Seq > q.After {
				if len(tail) >= 2*q.Tail {
					tail = append(tail[:0], tail[len(tail)-q.Tail:]...)
				}
				tail = append(tail, e)
			}
			return nil
		})
		for _, e := range tail[max(0, len(tail)-q.Tail):] {
			if err := yield(e); err != nil {
				return err
			}
		}
	}
	sub := d.bus.subscribe(vm.ID)
	defer d.bus.unsubscribe(sub)
	for {
		// In this order nothing is missed: first what would wake us, then
		// whether the VM has ended, then what is there.
		changed, poll := d.logChange(vm.ID, q.Console)
		over := !q.Follow || d.hasEnded(ctx, vm.ID)
		if err == nil {
			err = r.lines(func(line []byte) error {
				if e, ok := parse(line); ok {
					return pass(e)
				}
				return nil
			})
		}
		if yieldErr != nil {
			return yieldErr
		}
		if err != nil {
			return d.publicError("read log", err)
		}
		if over {
			return nil
		}
		select {
		case <-changed:
		case <-poll:
		case <-sub.wake:
		case <-ctx.Done():
			return nil
		case <-d.stopping:
			return nil
		}
	}
}

// logChange returns what tells of new lines: a channel that is closed, and for
// a console a timer.
func (d *Daemon) logChange(id string, console bool) (<-chan struct{}, <-chan time.Time) {
	if console {
		return nil, time.After(consolePoll)
	}
	if w := d.worker(id); w != nil {
		if l := w.logs.Load(); l != nil {
			return l.next(), nil
		}
	}
	return nil, nil
}

func (d *Daemon) hasEnded(ctx context.Context, id string) bool {
	vm, err := d.store.VMByID(ctx, id)
	return err != nil || vm.Ended() && vm.Desired != api.DesiredRunning
}

func parseLogLine(line []byte) (api.LogEntry, bool) {
	var l logLine
	if err := json.Unmarshal(line, &l); err != nil {
		return api.LogEntry{}, false // damaged by a crash of the host
	}
	return api.LogEntry{Seq: l.Seq, Time: l.Time, Stream: string(l.Stream), Line: l.Line}, true
}

func consoleParser() func(line []byte) (api.LogEntry, bool) {
	var n uint64
	return func(line []byte) (api.LogEntry, bool) {
		n++
		return api.LogEntry{Seq: n, Stream: "console", Line: clip(strings.TrimRight(string(line), "\r"), wire.MaxLogLine)}, true
	}
}

// consoleMark begins the line that separates the consoles of two incarnations.
const consoleMark = "=== volant: incarnation "

// markConsole writes that line, before the driver goes on with the file.
func (d *Daemon) markConsole(vm string, incarnation int) error {
	f, err := os.OpenFile(filepath.Join(d.dataDir(vm), consoleLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s%d, %s ===\n", consoleMark, incarnation, d.cfg.Now().UTC().Format(time.RFC3339))
	return errors.Join(err, f.Close())
}

// lastWords returns the end of the present incarnation's console as one line of
// text, for the reason of a VM that did not come up; "" when there is none.
func (d *Daemon) lastWords(id string) string {
	const lines, most = 5, 600 // bytes; a reason is one message, not a log
	r := &logReader{path: filepath.Join(d.dataDir(id), consoleLog)}
	defer r.close()
	var tail []string
	keep := func(line []byte) error {
		text := strings.TrimSpace(strings.Map(printable, clip(string(line), most)))
		switch {
		case strings.HasPrefix(text, consoleMark):
			tail = nil
			return nil
		case text == "":
			return nil
		case len(tail) == lines:
			tail = slices.Delete(tail, 0, 1)
		}
		tail = append(tail, text)
		return nil
	}
	if err := r.lines(keep); err != nil {
		return ""
	}
	if len(r.rest) > 0 {
		keep(r.rest) //nolint:errcheck // returns nil; a console's last line often has no end
	}
	text := strings.Join(tail, " | ")
	if len(text) > most {
		text = "..." + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return text
}

// printable drops what could steer a terminal.
func printable(r rune) rune {
	switch {
	case r == '\t':
		return ' '
	case r < ' ', r >= 0x7f && r < 0xa0, r == '\uFFFD':
		return -1
	}
	return r
}
