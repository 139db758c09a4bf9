package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// Names of log files in a VM's data directory. Those of workload and console are
// accompanied by an older part with the suffix oldLog, and both together are
// bounded. What the VMM says has a file for each of the last two incarnations,
// vmm.N.log, which the driver bounds.
const (
	workloadLog = "workload.log"
	consoleLog  = "console.log"
	oldLog      = ".1"
	vmmPrefix   = "vmm."
	vmmSuffix   = ".log"
	// consoleLimit is the most bytes that one of the console's files holds.
	consoleLimit = 1 << 20
)

const (
	// pollPause is how often a followed log is looked at that a driver writes,
	// which tells nobody.
	pollPause = 200 * time.Millisecond
	// logBatch and logBatchBytes bound how much is yielded at once.
	logBatch      = 256
	logBatchBytes = 64 << 10
)

// VMLogs yields the lines of a log of the VM that q selects, oldest first, in
// batches that are valid until yield returns. They are kept when the VM has
// ended, also those of earlier incarnations: of the workload's 4 to 8 MiB, of
// the console's 1 to 2 MiB. With Follow it goes on, from one incarnation to the
// next, until the VM has ended for good, ctx ends (no error) or yield fails. A
// reader that is slower than the log is rotated, or that goes on after lines
// that are not kept any more, is told how many it missed. Codes: not_found,
// invalid, unavailable (the daemon stops).
func (d *Daemon) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func([]api.LogEntry) error) error {
	vm, err := d.find(ctx, name)
	if err != nil {
		return err
	}
	if q.Log != "" && q.Log != api.LogWorkload && !(q.Since.IsZero() && q.Until.IsZero()) {
		return api.Errorf(api.CodeInvalid, "the lines of the %s log have no times to select them by", q.Log).WithHint("select the last ones instead (tail)")
	}
	if q.Follow && !q.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.Until.Sub(d.cfg.Now()))
		defer cancel()
	}
	s := d.openLogSource(vm.ID, q)
	defer s.reader.close()
	batch := logYield{yield: yield}
	// In this order nothing is missed: first what would wake us, then whether
	// the VM has ended, then what is there.
	state, news := d.bus.subscribe(vm.ID), d.logNews.subscribe(vm.ID)
	defer d.bus.unsubscribe(state)
	defer d.logNews.unsubscribe(news)
	over := !q.Follow || d.hasEnded(ctx, vm.ID)
	var poll <-chan time.Time
	if s.polled && !over {
		ticker := time.NewTicker(pollPause)
		defer ticker.Stop()
		poll = ticker.C
	}
	if q.Tail != 0 {
		err = s.skip(q.Tail, batch.add)
	}
	for {
		if err == nil {
			err = s.read(over, batch.add)
		}
		if err == nil {
			err = batch.flush()
		}
		switch {
		case batch.err != nil:
			return batch.err
		case err != nil:
			return d.publicError("read log", err)
		case over:
			return nil
		}
		select {
		case <-news.wake:
		case <-poll:
		case <-state.wake:
			over = d.hasEnded(ctx, vm.ID)
		case <-ctx.Done():
			return nil
		case <-d.stopping:
			return api.Errorf(api.CodeUnavailable, "volantd is stopping").WithHint("connect again and go on after line %d", s.seq)
		}
	}
}

// hasEnded reports whether no more lines will come.
func (d *Daemon) hasEnded(ctx context.Context, id string) bool {
	vm, err := d.store.VMByID(ctx, id)
	return errors.Is(err, row.ErrNotFound) || err == nil && vm.Ended() && vm.Desired != api.DesiredRunning
}

// logYield collects entries into batches.
type logYield struct {
	yield   func([]api.LogEntry) error
	entries []api.LogEntry
	bytes   int
	err     error // of yield
}

func (b *logYield) add(e api.LogEntry) error {
	b.entries = append(b.entries, e)
	b.bytes += len(e.Line)
	if len(b.entries) < logBatch && b.bytes < logBatchBytes {
		return nil
	}
	return b.flush()
}

func (b *logYield) flush() error {
	if len(b.entries) == 0 || b.err != nil {
		return b.err
	}
	b.err = b.yield(b.entries)
	clear(b.entries)
	b.entries, b.bytes = b.entries[:0], 0
	return b.err
}

// logSource reads one log as entries.
type logSource struct {
	reader *logReader
	q      api.LogQuery
	polled bool // nobody tells of new lines
	// parse makes an entry of a line, or says that it is none. A Seq of 0 is
	// given by the source.
	parse func(line []byte, whole bool) (keptLine, bool)
	seq   uint64 // the last that was read, q.After before
	shown uint64 // likewise, of a log that is numbered as it is read
	from  uint64 // keptLine.from of the last that was read, 0 for unknown
	start int    // its incarnation
	held  int    // how many rounds the piece that the log ends with has been there
}

// keptLine is a line of a log that is kept.
type keptLine struct {
	api.LogEntry
	from uint64 // the guest's number of it, 0 for unknown; of a line that tells of lost ones, that of the last
}

// before returns the guest's number of the line before it, and before those that
// it tells to be lost.
func (k *keptLine) before() uint64 {
	if k.Stream == api.StreamVolant {
		return k.from - min(k.Lost, k.from)
	}
	return k.from - min(1, k.from)
}

func (d *Daemon) openLogSource(id string, q api.LogQuery) *logSource {
	dir := d.dataDir(id)
	s := &logSource{q: q, seq: q.After}
	two := func(name string) func() ([]string, error) {
		path := filepath.Join(dir, name)
		return func() ([]string, error) { return []string{path + oldLog, path}, nil }
	}
	switch q.Log {
	case api.LogConsole:
		s.reader = &logReader{files: two(consoleLog), longest: wire.MaxLogLine, pieces: true}
		s.parse = func(line []byte, whole bool) (keptLine, bool) {
			return textEntry(api.StreamConsole, line, whole), true
		}
		s.polled = true
	case api.LogVMM:
		s.reader = &logReader{files: func() ([]string, error) { return vmmLogs(dir) }, longest: wire.MaxLogLine, pieces: true}
		s.parse = func(line []byte, whole bool) (keptLine, bool) {
			e := textEntry(api.StreamVMM, line, whole)
			e.Incarnation, _ = vmmIncarnation(s.reader.path)
			return e, true
		}
		s.polled = true
	default:
		s.reader = &logReader{files: two(workloadLog), longest: 2 * maxLogLine}
		s.parse = parseLogLine
	}
	return s
}

// skip reads what is there, and yields the last n entries of it, none for
// api.TailNone.
func (s *logSource) skip(n int, yield func(api.LogEntry) error) error {
	var tail []api.LogEntry
	n = max(n, 0)
	err := s.read(true, func(e api.LogEntry) error {
		if len(tail) >= 2*n {
			tail = append(tail[:0], tail[len(tail)-n:]...)
		}
		tail = append(tail, e)
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range tail[max(0, len(tail)-n):] {
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}

// read yields the entries that were not read before. A line without an end is
// yielded once it is the second time there, or over says that it is the last.
func (s *logSource) read(over bool, yield func(api.LogEntry) error) error {
	before := s.reader.off
	pass := func(line []byte, whole bool) error { return s.pass(line, whole, yield) }
	if err := s.reader.lines(pass); err != nil || !s.reader.pieces {
		return err
	}
	if s.held++; s.reader.off != before {
		s.held = 0
	}
	if over || s.held > 1 {
		return s.reader.rest(pass)
	}
	return nil
}

// pass yields the entry of a line, and before it one that tells what is missing
// between the last one and this.
func (s *logSource) pass(line []byte, whole bool, yield func(api.LogEntry) error) error {
	e, ok := s.parse(line, whole)
	if !ok {
		return nil
	}
	if e.Seq == 0 {
		s.shown++
		e.Seq = s.shown
	}
	last, from, start := s.seq, s.from, s.start
	if e.Seq <= last {
		return nil
	}
	s.seq, s.from, s.start = e.Seq, e.from, e.Incarnation
	if last > 0 && e.Seq-last > 1 && s.selects(e.Time) {
		lost := e.Seq - last - 1
		if before := e.before(); from > 0 && e.Incarnation == start && before > from {
			lost = max(lost, before-from) // some that are gone told themselves of lost ones
		}
		gap := api.LogEntry{
			Seq: e.Seq - 1, Incarnation: e.Incarnation, Time: e.Time, Stream: api.StreamVolant, Lost: lost,
			Line: linesLost(lost) + ": they are not kept any more",
		}
		if err := yield(gap); err != nil {
			return err
		}
	}
	if !s.selects(e.Time) {
		return nil
	}
	return yield(e.LogEntry)
}

func (s *logSource) selects(t time.Time) bool {
	return (s.q.Since.IsZero() || !t.Before(s.q.Since)) && (s.q.Until.IsZero() || t.Before(s.q.Until))
}

// parseLogLine reads a line of workloadLog. One that cannot be read was damaged
// by a crash of the host, and is missed by its number.
func parseLogLine(line []byte, whole bool) (keptLine, bool) {
	var l logLine
	if !whole || json.Unmarshal(line, &l) != nil || l.Stream == "" {
		return keptLine{}, false
	}
	return keptLine{from: l.From, LogEntry: api.LogEntry{
		Seq: l.Seq, Incarnation: l.Incarnation, Time: l.Time, Stream: l.Stream, Line: l.Line, Partial: l.Partial, Lost: l.Lost,
	}}, true
}

// textEntry is the entry of a line that somebody else wrote.
func textEntry(stream string, line []byte, whole bool) keptLine {
	text := string(line)
	if whole {
		text = strings.TrimRight(text, "\r")
	}
	return keptLine{LogEntry: api.LogEntry{Stream: stream, Line: strings.ToValidUTF8(text, "\uFFFD"), Partial: !whole}}
}

// vmmLog is where the driver keeps what the VMM of an incarnation says.
func vmmLog(dir string, incarnation int) string {
	return filepath.Join(dir, vmmPrefix+strconv.Itoa(incarnation)+vmmSuffix)
}

// vmmIncarnation is the inverse of vmmLog.
func vmmIncarnation(path string) (int, bool) {
	s, ok := strings.CutPrefix(filepath.Base(path), vmmPrefix)
	if !ok {
		return 0, false
	}
	if s, ok = strings.CutSuffix(s, vmmSuffix); !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n > 0
}

// vmmLogs lists those that are there, oldest first.
func vmmLogs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if n, ok := vmmIncarnation(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	paths := make([]string, len(numbers))
	for i, n := range numbers {
		paths[i] = vmmLog(dir, n)
	}
	return paths, nil
}

// beginLogs prepares the logs that the driver goes on with: a line in the
// console's that separates the incarnations, and a file for the VMM's words, of
// which the two newest are kept.
func (d *Daemon) beginLogs(vm string, incarnation int) error {
	dir := d.dataDir(vm)
	if err := d.markConsole(vm, fmt.Sprintf("%s%d", consoleMark, incarnation)); err != nil {
		return err
	}
	files, err := vmmLogs(dir)
	if err != nil {
		return err
	}
	for _, path := range files[:max(0, len(files)-1)] {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(vmmLog(dir, incarnation), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// consoleMark begins the line that separates the consoles of two incarnations.
const consoleMark = "=== volant: incarnation "

// consoleLost says that what a console said while no daemon was there is lost.
const consoleLost = "=== volant: what the console said while volantd was away is lost"

// markConsole writes a line with the time, before the driver goes on with the
// file.
func (d *Daemon) markConsole(vm, text string) error {
	f, err := os.OpenFile(filepath.Join(d.dataDir(vm), consoleLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s, %s ===\n", text, d.cfg.Now().UTC().Format(time.RFC3339))
	return errors.Join(err, f.Close())
}

// lastWords returns the end of the present incarnation's console as one line of
// text, for the reason of a VM that did not come up; "" when there is none.
func (d *Daemon) lastWords(id string) string {
	const lines, most = 5, 600 // bytes; a reason is one message, not a log
	s := d.openLogSource(id, api.LogQuery{Log: api.LogConsole})
	defer s.reader.close()
	var tail []string
	err := s.read(true, func(e api.LogEntry) error {
		text := strings.TrimSpace(strings.Map(printable, clip(e.Line, most)))
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
	})
	if err != nil {
		return ""
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
