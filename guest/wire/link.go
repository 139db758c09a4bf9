package wire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The virtio-serial port is one byte pipe for the life of the machine. It has
// no in-band mark for a host that went away and another that came, the bytes of
// a dead host may still be under way, and a host that is killed leaves a frame
// torn in the middle. The link puts connections on it:
//
//   - The host chooses a random epoch, sends one largest frame of zeros, which
//     completes whatever torn frame the guest may be waiting for, and repeats
//     hello until it is acknowledged.
//   - Every frame carries its epoch; frames of another epoch are dropped.
//   - A hello with a new epoch ends the guest's link and begins the next.
//
// Neither end relies on half-close, and there is no flow control beyond the
// pipe's own: whoever holds a Link must keep reading it or close it.

const (
	// helloInterval is how often the host repeats hello: a hello that meets a
	// guest before it opened the port, or the end of a torn frame, is lost.
	helloInterval = 50 * time.Millisecond
	// padEvery is after how many unanswered hellos the zeros are sent again,
	// in case that the first ones came before the torn frame.
	padEvery = 20
	// unconnectedPoll is how often the guest looks for a host on a port that
	// cannot tell: every 10 ms costs 5 % of an emulated core, 100 ms 1.6 %.
	unconnectedPoll = 100 * time.Millisecond
	// maxStale is how much of an earlier connection a host reads over before it
	// gives up on the guest. The virtqueue holds at most 4 MiB.
	maxStale = 16 << 20
	// byeTimeout is how long Close of a host's link may take to say bye to a
	// guest that does not read.
	byeTimeout = 100 * time.Millisecond
)

// Link is one connection over a virtio-serial port. Read and Write may be
// called from different goroutines. When the peer closed it, or on the guest's
// side was replaced by a newer connection, Read returns io.EOF once what had
// arrived has been read, and Write io.ErrClosedPipe. A host notices at once that
// its guest is gone; a guest does not notice a host that died without a word,
// until the next one comes: its Write blocks as it would on a slow host.
type Link struct {
	p     *pipe
	epoch uint32

	rx   chan []byte // payloads that arrived
	free chan []byte // their buffers, nil until first used
	rmu  sync.Mutex
	cur  []byte // the buffer being read, guarded by rmu
	left []byte // what is unread of cur

	wmu  sync.Mutex
	wbuf []byte     // guarded by wmu, lent to the writer between out and sent
	sent chan error // the writer's verdict on wbuf

	endOnce sync.Once
	err     error         // set before done is closed
	done    chan struct{} // closed when the link is over
	local   chan struct{} // closed by Close
	closing sync.Once
}

func newLink(p *pipe, epoch uint32) *Link {
	l := &Link{
		p: p, epoch: epoch,
		rx: make(chan []byte, 2), free: make(chan []byte, 2),
		sent: make(chan error, 1),
		done: make(chan struct{}), local: make(chan struct{}),
	}
	l.free <- nil
	l.free <- nil
	return l
}

// end finishes the link; the first cause wins.
func (l *Link) end(err error) {
	l.endOnce.Do(func() {
		l.err = err
		close(l.done)
	})
}

func (l *Link) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// deliver hands a payload to Read. It waits while two are unread, unless the
// link is over.
func (l *Link) deliver(payload []byte) {
	select {
	case b := <-l.free:
		if b == nil {
			b = make([]byte, maxPayload)
		}
		l.rx <- b[:copy(b, payload)] // never blocks: there are as many places as buffers
	case <-l.done:
	}
}

// Read reads what the peer sent.
func (l *Link) Read(p []byte) (int, error) {
	l.rmu.Lock()
	defer l.rmu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	select {
	case <-l.local:
		return 0, io.ErrClosedPipe
	default:
	}
	if len(l.left) == 0 {
		if err := l.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.left)
	l.left = l.left[n:]
	if len(l.left) == 0 {
		l.free <- l.cur[:cap(l.cur)]
		l.cur = nil
	}
	return n, nil
}

// receive takes the next payload; what arrived before the end comes first.
func (l *Link) receive() error {
	select {
	case l.cur = <-l.rx:
	default:
		select {
		case l.cur = <-l.rx:
		case <-l.done:
			select {
			case l.cur = <-l.rx:
			default:
				return l.err
			}
		}
	}
	l.left = l.cur
	return nil
}

// Write sends p in frames. It blocks while the pipe is full.
func (l *Link) Write(p []byte) (int, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	written := 0
	for len(p) > 0 {
		if l.ended() {
			return written, io.ErrClosedPipe
		}
		chunk := p[:min(len(p), maxPayload)]
		l.wbuf = appendFrame(l.wbuf[:0], frame{frameData, l.epoch, chunk})
		select {
		case l.p.out <- l:
		case <-l.done:
			return written, io.ErrClosedPipe
		}
		// When the link ends here the writer keeps wbuf for as long as the
		// pipe blocks. That is safe: no Write follows on an ended link.
		select {
		case err := <-l.sent:
			if err != nil {
				return written, err
			}
		case <-l.done:
			return written, io.ErrClosedPipe
		}
		written += len(chunk)
		p = p[len(chunk):]
	}
	return written, nil
}

// Close ends the link and tells the peer, if it listens. On the host it closes
// the connection too; in the guest the port stays open for the next host.
func (l *Link) Close() error {
	l.closing.Do(func() {
		close(l.local)
		over := l.ended()
		l.end(io.ErrClosedPipe)
		l.p.closeLink(l, !over)
	})
	return nil
}

// pipe is one end of a port: a writer goroutine that owns the sending side, so
// that frames are whole and a blocked pipe holds nobody else, and a reader
// goroutine that belongs to Connect or the Acceptor.
type pipe struct {
	rw   io.ReadWriteCloser
	host bool
	out  chan *Link // links whose wbuf is to be sent

	mu     sync.Mutex
	ack    uint32 // epochs to acknowledge and to say bye for
	bye    uint32
	hasAck bool
	hasBye bool
	signal chan struct{} // there is an ack or a bye

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}
	wg        sync.WaitGroup
}

func newPipe(rw io.ReadWriteCloser, host bool) *pipe {
	p := &pipe{rw: rw, host: host, out: make(chan *Link), signal: make(chan struct{}, 1), closed: make(chan struct{})}
	p.wg.Add(1)
	go p.writer()
	return p
}

func (p *pipe) close() error {
	p.closeOnce.Do(func() {
		close(p.closed)
		p.closeErr = p.rw.Close()
	})
	return p.closeErr
}

// control queues an ack or a bye. Only the latest of each counts.
func (p *pipe) control(t frameType, epoch uint32) {
	p.mu.Lock()
	if t == frameAck {
		p.ack, p.hasAck = epoch, true
	} else {
		p.bye, p.hasBye = epoch, true
	}
	p.mu.Unlock()
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

func (p *pipe) writer() {
	defer p.wg.Done()
	for {
		select {
		case <-p.closed:
			return
		case <-p.signal:
			if done := p.writeControls(); done {
				p.close()
				return
			}
		case l := <-p.out:
			// The acknowledgement of an epoch precedes its data.
			if done := p.writeControls(); done {
				p.close()
				return
			}
			_, err := p.rw.Write(l.wbuf)
			l.sent <- err
		}
	}
}

// writeControls writes what control queued. It reports whether the pipe is done
// with: a host's pipe carries one link.
func (p *pipe) writeControls() bool {
	p.mu.Lock()
	ack, bye, hasAck, hasBye := p.ack, p.bye, p.hasAck, p.hasBye
	p.hasAck, p.hasBye = false, false
	p.mu.Unlock()
	var b []byte
	if hasAck {
		b = appendFrame(b, frame{typ: frameAck, epoch: ack})
	}
	if hasBye {
		b = appendFrame(b, frame{typ: frameBye, epoch: bye})
	}
	if len(b) > 0 {
		// An error here reaches the reader as well, which ends the link.
		_, _ = p.rw.Write(b)
	}
	return p.host && hasBye
}

func (p *pipe) closeLink(l *Link, sayBye bool) {
	if sayBye {
		p.control(frameBye, l.epoch)
	}
	if !p.host {
		return
	}
	if sayBye {
		t := time.AfterFunc(byeTimeout, func() { p.close() })
		<-p.closed
		t.Stop()
	}
	p.close()
	p.wg.Wait()
}

// Connect begins a connection to the guest over the host's end of its port, and
// blocks until the guest acknowledges or ctx is over. A guest that has not
// opened its port yet is waited for. Connect owns conn from the call on: it is
// closed with the Link, or when Connect fails.
func Connect(ctx context.Context, conn net.Conn) (*Link, error) {
	var e [4]byte
	_, _ = rand.Read(e[:]) // never fails
	l := newLink(newPipe(conn, true), binary.BigEndian.Uint32(e[:]))
	acked := make(chan struct{})
	l.p.wg.Add(1)
	go func() {
		defer l.p.wg.Done()
		l.end(l.readHost(acked))
		l.p.close()
	}()
	err := l.greet(ctx, conn, acked)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx) // and not that ctx made us close conn
	default:
		select {
		case <-acked: // and then closed at once; Read tells
			err = nil
		default:
		}
	}
	if err != nil {
		l.end(err)
		l.p.close()
		l.p.wg.Wait()
		return nil, fmt.Errorf("connect to the agent's port: %w", err)
	}
	return l, nil
}

// greet says hello until it is acknowledged. It writes past the writer
// goroutine, which has nothing to write before Connect returns.
func (l *Link) greet(ctx context.Context, conn net.Conn, acked <-chan struct{}) error {
	stop := context.AfterFunc(ctx, func() { l.p.close() })
	defer stop()
	hello := appendFrame(make([]byte, maxFrameLen), frame{typ: frameHello, epoch: l.epoch})
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for i := 0; ; i++ {
		b := hello
		if i%padEvery != 0 {
			b = hello[maxFrameLen:]
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		select {
		case <-acked:
			if !stop() { // ctx ended at the same moment and closes the pipe
				return context.Cause(ctx)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.done:
			return l.err
		case <-tick.C:
		}
	}
}

// readHost reads frames until the link is over and says why. Once the guest has
// acknowledged, the stream is contiguous, and garbage in it is an error: a guest
// must not be able to keep the host searching.
func (l *Link) readHost(acked chan<- struct{}) error {
	fr := newFrameReader(l.p.rw, maxStale)
	up := false
	for {
		f, err := fr.next()
		switch {
		case err != nil:
			return err // of no consequence after Close
		case f.epoch != l.epoch:
			// Left over from an earlier connection.
		case f.typ == frameAck && !up:
			up = true
			fr.limit = fr.skipped
			close(acked)
		case f.typ == frameData && !up:
			return errors.New("data before the acknowledgement")
		case f.typ == frameData:
			l.deliver(f.payload)
		case f.typ == frameBye:
			return io.EOF
		}
	}
}

// Acceptor is the guest's end of the port: it yields one Link after the other,
// the latest being the only one alive.
type Acceptor struct {
	p *pipe

	mu    sync.Mutex
	cur   *Link         // the live link, if any
	fresh *Link         // cur until Accept returned it
	ready chan struct{} // fresh was set, or err
	err   error
}

// NewAcceptor serves the guest's end of a port. rw.Read returning io.EOF or
// nothing means that no host is connected; it is asked again every 100 ms, or
// when its method Wait() error returns, if it has one. The Acceptor owns rw.
func NewAcceptor(rw io.ReadWriteCloser) *Acceptor {
	a := &Acceptor{p: newPipe(rw, false), ready: make(chan struct{}, 1)}
	a.p.wg.Add(1)
	go func() {
		defer a.p.wg.Done()
		a.fail(a.read())
	}()
	return a
}

// Accept waits for a host and returns its Link. Links that a newer one replaced
// before they were accepted are never seen.
func (a *Acceptor) Accept(ctx context.Context) (*Link, error) {
	for {
		a.mu.Lock()
		l, err := a.fresh, a.err
		a.fresh = nil
		a.mu.Unlock()
		switch {
		case err != nil:
			a.wake()
			return nil, err
		case l != nil && !l.ended():
			return l, nil
		}
		select {
		case <-a.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close closes the port and ends the live link. It waits for the Acceptor's
// goroutines, hence rw.Close must make a pending rw.Read and rw.Write return.
func (a *Acceptor) Close() error {
	err := a.p.close()
	a.p.wg.Wait()
	return err
}

func (a *Acceptor) wake() {
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

func (a *Acceptor) fail(err error) {
	a.mu.Lock()
	a.err = err
	a.mu.Unlock()
	a.replace(nil)
	a.p.close()
	a.wake()
}

// replace ends the live link and puts l in its place.
func (a *Acceptor) replace(l *Link) {
	a.mu.Lock()
	old := a.cur
	a.cur, a.fresh = l, l
	a.mu.Unlock()
	if old != nil {
		old.end(io.EOF)
	}
}

// read reads frames until the port fails or is closed.
func (a *Acceptor) read() error {
	fr := newFrameReader(a.p.rw, -1)
	var cur *Link
	for {
		f, err := fr.next()
		if errors.Is(err, io.EOF) {
			// That no host is connected says nothing about the link: the
			// driver learns of hosts that come and go on a queue of its own,
			// and may read the hello of the next before the end of the last.
			if err = a.await(); err == nil {
				continue
			}
		}
		if err != nil {
			select {
			case <-a.p.closed:
				return net.ErrClosed
			default:
				return fmt.Errorf("read the agent's port: %w", err)
			}
		}
		switch {
		case f.typ == frameHello && (cur == nil || f.epoch != cur.epoch):
			cur = newLink(a.p, f.epoch)
			a.p.control(frameAck, f.epoch)
			a.replace(cur)
			a.wake()
		case cur == nil || f.epoch != cur.epoch:
			// A connection that is over.
		case f.typ == frameHello:
			if !cur.ended() {
				a.p.control(frameAck, f.epoch)
			}
		case f.typ == frameData:
			cur.deliver(f.payload)
		case f.typ == frameBye:
			cur.end(io.EOF)
		}
	}
}

// await blocks until it is worth reading again.
func (a *Acceptor) await() error {
	if w, ok := a.p.rw.(interface{ Wait() error }); ok {
		return w.Wait()
	}
	t := time.NewTimer(unconnectedPoll)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-a.p.closed:
		return net.ErrClosed
	}
}
