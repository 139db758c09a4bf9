package guest

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

const (
	// hubBytes is how much of the workload's output is kept for those who
	// attach, in bytes.
	hubBytes = 64 << 10
	// hubOverrun is how much more is kept for those who are attached when the
	// workload has ended, so that its end need not wait for them.
	hubOverrun = 1 << 20
	// chunkBytes is what a new chunk has room for: a program that writes byte
	// by byte is not to cost many times what it writes.
	chunkBytes = 1 << 10
	// The workload waits for an attached client that reads nothing for
	// stallTimeout, or stallInteractive when it was made for one (terminal or
	// open input), and then goes on without it.
	stallTimeout     = 10 * time.Second
	stallInteractive = time.Minute
	// holdTimeout is how long such a workload, or one whose maker said so, waits
	// for the first client once hubBytes are full.
	holdTimeout = 10 * time.Second
)

// hub connects the workload's streams with those who are attached. It keeps the
// latest output from the first byte on, so that who attaches later begins with
// that. Output waits for clients as the constants above say; a client that is
// cut off leaves the workload as it was. Their input is joined; input that comes
// while no process runs is thrown away. It is safe for concurrent use.
type hub struct {
	log   *slog.Logger
	kill  func(pid int, sig syscall.Signal) error // to the process's group
	stall time.Duration                           // set before use, as is hold
	hold  time.Duration                           // for the first client; 0 for not at all

	mu      sync.Mutex
	chunks  []chunk // without gaps; guarded by mu, as is all below
	bytes   int     // room of chunks
	changed chan struct{}
	moved   chan struct{}
	clients map[*attached]struct{}
	seen    bool              // somebody was attached once
	hurried bool              // the process has ended: output waits for nobody
	io      *streams          // of the process; nil without one
	pid     int               // of the process
	size    stdio.Size        // of its terminal, as the last client said
	over    *stdio.ExitStatus // the workload has ended for good

	typing chan struct{} // one place, taken while input is written
}

// chunk is output of one stream.
type chunk struct {
	start  uint64 // bytes of output before it
	stream stdio.Type
	data   []byte // grows within its capacity
}

func (c chunk) end() uint64 { return c.start + uint64(len(c.data)) }

// attached is a client of the hub. The hub's mu guards it.
type attached struct {
	pos  uint64   // bytes of output that it has
	cut  bool     // it was too slow
	conn net.Conn // nil before serve
}

func newHub(log *slog.Logger, kill func(int, syscall.Signal) error) *hub {
	return &hub{
		log: log, kill: kill, stall: stallTimeout,
		changed: make(chan struct{}), moved: make(chan struct{}), clients: make(map[*attached]struct{}),
		typing: make(chan struct{}, 1),
	}
}

// interactive makes the hub that of a workload that was made for a client.
func (h *hub) interactive() { h.stall, h.hold = stallInteractive, holdTimeout }

// expect makes the hub that of a workload whose maker is about to attach.
func (h *hub) expect() { h.hold = holdTimeout }

// begin says that a process was started.
func (h *hub) begin(io *streams, pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.io, h.pid, h.hurried = io, pid, false
}

// finish says that the process has ended; some of its output may be to come.
func (h *hub) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.io, h.pid, h.hurried = nil, 0, true
	h.wakeWriters()
}

// end says that the workload has ended for good, and how. The first call counts.
func (h *hub) end(e stdio.ExitStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over == nil {
		h.over = &e
		h.wakeClients()
	}
}

func (h *hub) wakeClients() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *hub) wakeWriters() {
	close(h.moved)
	h.moved = make(chan struct{})
}

// sink returns what takes the output of a stream.
func (h *hub) sink(stream stdio.Type) func([]byte) {
	return func(p []byte) { h.add(stream, p) }
}

// add keeps output, and waits until there is room for it.
func (h *hub) add(stream stdio.Type, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put(stream, p)
	h.wakeClients()
	for begun := time.Now(); h.bytes > hubBytes && len(h.chunks) > 1; {
		slow, pos := h.slowest()
		switch first := h.chunks[0]; {
		case slow == nil && !h.seen && h.hold > 0 && h.hurried && h.bytes <= hubBytes+hubOverrun:
			return // whoever was expected may still come
		case slow != nil && pos < first.end() && h.hurried:
			if h.bytes <= hubBytes+hubOverrun {
				return
			}
			h.drop(slow)
		case slow != nil && pos < first.end():
			if !h.wait(h.stall, func() bool { return slow.pos > pos || !h.has(slow) }) {
				h.drop(slow)
			}
		case slow == nil && !h.seen && h.hold > 0 && !h.hurried:
			if !h.wait(h.hold-time.Since(begun), func() bool { return h.seen }) {
				h.hold = 0
			}
		default:
			h.bytes -= cap(first.data)
			h.chunks[0] = chunk{}
			h.chunks = h.chunks[1:]
		}
	}
}

// put appends output; mu is held.
func (h *hub) put(stream stdio.Type, p []byte) {
	start := uint64(0)
	if n := len(h.chunks); n > 0 {
		last := &h.chunks[n-1]
		if last.stream == stream && cap(last.data)-len(last.data) >= len(p) {
			last.data = append(last.data, p...) // clients have parts before its length
			return
		}
		start = last.end()
	}
	data := append(make([]byte, 0, max(chunkBytes, len(p))), p...)
	h.chunks = append(h.chunks, chunk{start, stream, data})
	h.bytes += cap(data)
}

// slowest returns the client that has the least, nil without one; mu is held.
func (h *hub) slowest() (slow *attached, pos uint64) {
	for c := range h.clients {
		if slow == nil || c.pos < pos {
			slow, pos = c, c.pos
		}
	}
	return slow, pos
}

func (h *hub) has(c *attached) bool { _, ok := h.clients[c]; return ok }

// wait waits until done, which is asked with mu held, or the process has ended.
// It reports false when d is over before. mu is held, but not meanwhile.
func (h *hub) wait(d time.Duration, done func() bool) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for !done() && !h.hurried {
		moved := h.moved
		h.mu.Unlock()
		late := false
		select {
		case <-moved:
		case <-t.C:
			late = true
		}
		h.mu.Lock()
		if late {
			return done() || h.hurried
		}
	}
	return true
}

// drop cuts a client off; mu is held.
func (h *hub) drop(c *attached) {
	c.cut = true
	delete(h.clients, c)
	h.wakeClients()
	if c.conn != nil {
		// It is in the middle of a frame that nobody reads: there is no telling
		// it why.
		_ = c.conn.SetDeadline(time.Now())
	}
	h.log.Warn("an attached client does not read; the workload goes on without it")
}

// join adds a client, unless there are too many.
func (h *hub) join() (*attached, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) >= wire.MaxAttached {
		return nil, fmt.Errorf("%d clients are attached; one has to leave first", wire.MaxAttached)
	}
	c := new(attached)
	if len(h.chunks) > 0 {
		c.pos = h.chunks[0].start
	}
	h.clients[c] = struct{}{}
	h.seen = true
	h.wakeWriters()
	return c, nil
}

func (h *hub) leave(c *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	h.wakeWriters()
}

// idle waits until nobody is attached, at most d.
func (h *hub) idle(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hurried = false // wait waits
	h.wait(d, func() bool { return len(h.clients) == 0 })
}

// next returns output that c does not have; or how the workload ended, once c
// has everything. It returns neither when c was cut off or gone is closed.
func (h *hub) next(c *attached, gone <-chan struct{}) (stdio.Type, []byte, *stdio.ExitStatus) {
	for {
		h.mu.Lock()
		for _, ch := range h.chunks {
			if !c.cut && ch.end() > c.pos {
				h.mu.Unlock()
				return ch.stream, ch.data[c.pos-ch.start:], nil
			}
		}
		over, changed, cut := h.over, h.changed, c.cut
		h.mu.Unlock()
		if cut || over != nil {
			if cut {
				over = nil
			}
			return 0, nil, over
		}
		select {
		case <-changed:
		case <-gone:
			return 0, nil, nil
		}
	}
}

// advance says that c has n more bytes.
func (h *hub) advance(c *attached, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.pos += uint64(n)
	h.wakeWriters()
}

// typed calls f with the streams of the process that runs now, if that takes
// input, while no other client's input is written, and before done is closed.
func (h *hub) typed(done <-chan struct{}, f func(io *streams) error) error {
	select {
	case h.typing <- struct{}{}:
	case <-done:
		return nil
	}
	defer func() { <-h.typing }()
	h.mu.Lock()
	io := h.io
	h.mu.Unlock()
	if io == nil || io.in == nil {
		return nil
	}
	finished := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-done:
			_ = io.in.SetWriteDeadline(time.Now()) // who leaves does not wait for a workload that does not read
		case <-finished:
		}
	})
	err := f(io)
	close(finished)
	watch.Wait()
	_ = io.in.SetWriteDeadline(time.Time{}) // for the next
	return err
}

// pass gives the input of a client to the process, whichever runs, until done
// is closed.
func (h *hub) pass(s *session, done <-chan struct{}) {
	s.in.run(done, func(p []byte) error {
		return h.typed(done, func(io *streams) error {
			_, err := io.in.Write(p)
			return err
		})
	}, func() {
		_ = h.typed(done, func(io *streams) error { io.endInput(); return nil }) // nothing can fail
	}, s.took)
}

// resize gives the terminal of a process that is about to start the size that
// the last client said.
func (h *hub) resize(io *streams) {
	h.mu.Lock()
	defer h.mu.Unlock()
	io.resize(h.size)
}

// control does what a client asks beside input.
func (h *hub) control(f stdio.Frame) {
	h.mu.Lock()
	io, pid := h.io, h.pid
	if f.Type == stdio.Resize {
		h.size = f.Size
	}
	h.mu.Unlock()
	if io == nil {
		return
	}
	if f.Type == stdio.Resize {
		io.resize(f.Size)
	} else if sig, err := parseSignal(f.Name); err == nil {
		_ = h.kill(pid, sig) // or it has just ended
	}
}

// serve serves a client, from its session's begin to its end.
func (h *hub) serve(s *session, c *attached) {
	h.mu.Lock()
	c.conn = s.conn
	h.mu.Unlock()
	s.begin(h.control)
	over := make(chan struct{})
	var input sync.WaitGroup
	input.Go(func() { h.pass(s, over) })
	exit := h.stream(s, c)
	close(over)
	if exit == nil {
		s.hangUp() // and whoever writes to it
	}
	input.Wait()
	if exit != nil {
		s.exit(*exit)
	}
	s.close()
}

// stream sends output until the workload is over, and returns how it ended, or
// until the client is cut off or has gone, and returns nil.
func (h *hub) stream(s *session, c *attached) *stdio.ExitStatus {
	for {
		stream, data, exit := h.next(c, s.gone)
		if data == nil {
			return exit
		}
		for len(data) > 0 {
			p := data[:min(len(data), stdio.MaxPayload)]
			if s.w.Write(stdio.Frame{Type: stream, Data: p}) != nil {
				return nil
			}
			h.advance(c, len(p))
			data = data[len(p):]
		}
	}
}

// postAttach connects a client with the workload.
func (a *agent) postAttach(w http.ResponseWriter, r *http.Request) {
	if err := wantsSession(r); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if !a.sessions.enter() {
		writeError(w, http.StatusConflict, errEnding)
		return
	}
	defer a.sessions.leave()
	c, err := a.hub.join()
	if err != nil {
		writeError(w, http.StatusTooManyRequests, err)
		return
	}
	defer a.hub.leave(c)
	s, err := newSession(w, r)
	if err != nil {
		a.log.Debug("switch protocols", keyErr, err)
		return
	}
	a.hub.serve(s, c)
}
