package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
)

const (
	// connectTimeout bounds the making of a link when Dial's context has no
	// earlier end: a guest under emulation on a busy host takes a minute to
	// come to its agent.
	connectTimeout = 2 * time.Minute
	// firstAnswer and lastAnswer bound one attempt at a link; each is given
	// longer than the one before. A guest that is up answers in milliseconds,
	// on a host with ten emulated machines for each processor in seconds.
	firstAnswer = 500 * time.Millisecond
	lastAnswer  = 8 * time.Second
	// backlog is how many streams may wait for the agent to accept them; more
	// Dials wait.
	backlog = 64
	// writeTimeout is yamux's limit on one write. It exceeds what a paused or
	// starved guest usually needs; longer pauses end with Reset.
	writeTimeout = 30 * time.Second
	// openTimeout ends the session when the agent leaves a stream unaccepted.
	openTimeout = time.Minute
	// lingerTimeout bounds how long a stream that only the host has closed
	// holds its buffer.
	lingerTimeout = 10 * time.Second
)

// errClosed is what Dial says after Close.
var errClosed = errors.New("transport closed")

// Serial is the transport over the Unix socket of a virtio-serial port. The
// link is made by the first Dial and shared by all streams; when it is found
// dead it is made anew, once per Dial. It is safe for concurrent use.
//
// The socket serves one client: while a Serial holds a link, no other process
// can have one.
type Serial struct {
	path string
	turn chan struct{} // holds one token: who has it may make a link

	mu      sync.Mutex
	session *yamux.Session // guarded by mu; nil without a link
	closed  bool           // guarded by mu
	done    chan struct{}  // closed by Close
}

var _ hv.Transport = (*Serial)(nil)

// NewSerial returns the transport over the socket at path. It does not connect.
func NewSerial(path string) *Serial {
	t := &Serial{path: path, turn: make(chan struct{}, 1), done: make(chan struct{})}
	t.turn <- struct{}{}
	return t
}

// Dial opens a stream to the agent. It waits for a guest that has not opened
// its port yet until ctx ends.
func (t *Serial) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-t.done:
			cancel()
		case <-over:
		}
	}()
	conn, fresh, err := t.dial(ctx)
	if err != nil && !fresh && ctx.Err() == nil {
		// The link had died since it was last used.
		conn, _, err = t.dial(ctx)
	}
	if err != nil {
		select {
		case <-t.done:
			err = errClosed
		default:
		}
		return nil, fmt.Errorf("dial %s: %w", t.path, err)
	}
	return conn, nil
}

// dial opens a stream on the session, making one if need be; fresh says that
// it did.
func (t *Serial) dial(ctx context.Context) (conn net.Conn, fresh bool, err error) {
	s, fresh, err := t.link(ctx)
	if err != nil {
		return nil, fresh, err
	}
	conn, err = open(ctx, s)
	if err != nil && ctx.Err() == nil {
		t.drop(s)
	}
	return conn, fresh, err
}

// link returns the live session or makes one. One caller at a time makes it,
// within its own context; the others wait for the outcome within theirs.
func (t *Serial) link(ctx context.Context) (s *yamux.Session, fresh bool, err error) {
	if s := t.live(); s != nil {
		return s, false, nil
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		return nil, true, ctx.Err()
	}
	defer func() { t.turn <- struct{}{} }()
	if s := t.live(); s != nil {
		return s, true, nil
	}
	link, err := t.connect(ctx)
	if err != nil {
		return nil, true, err
	}
	s, err = yamux.Client(&answers{ReadWriteCloser: link}, &yamux.Config{
		AcceptBacklog:          backlog,
		KeepAliveInterval:      time.Hour, // must be positive; keep-alives are off, for a paused guest is silent
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    256 << 10, // the least that yamux allows, and what a stream may hold unread
		StreamOpenTimeout:      openTimeout,
		StreamCloseTimeout:     lingerTimeout,
		LogOutput:              io.Discard,
	})
	if err != nil {
		return nil, true, errors.Join(err, link.Close())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		go s.Close() // it waits for its goroutines, which the lock must not
		return nil, true, errClosed
	}
	t.session = s
	return s, true, nil
}

// connect makes a link, beginning again with a new connection when the guest
// does not answer for a while. QEMU can leave a port throttled: when a write of
// the guest is what tells it that the client has gone, it forgets the port's
// output until the next client goes as well (seen with 7.2, in 1 of 5
// connections begun while the machine was paused).
func (t *Serial) connect(ctx context.Context) (*wire.Link, error) {
	for limit := firstAnswer; ; limit = min(2*limit, lastAnswer) {
		link, err := t.attempt(ctx, limit)
		switch {
		case err == nil:
			return link, nil
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, syscall.EAGAIN):
			// QEMU has not noticed yet that clients before this one have gone;
			// one more can wait for it, connect(2).
			time.Sleep(retryPause)
		case !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
	}
}

func (t *Serial) attempt(ctx context.Context, limit time.Duration) (*wire.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", t.path)
	if err != nil {
		return nil, err
	}
	return wire.Connect(ctx, conn)
}

func (t *Serial) live() *yamux.Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session != nil && t.session.IsClosed() {
		t.session = nil
	}
	return t.session
}

// drop ends the session s, unless another has taken its place.
func (t *Serial) drop(s *yamux.Session) {
	t.mu.Lock()
	if t.session == s {
		t.session = nil
	}
	t.mu.Unlock()
	s.Close() // it returns nil always
}

// open opens a stream within ctx, which yamux does not know.
func open(ctx context.Context, s *yamux.Session) (net.Conn, error) {
	type result struct {
		stream *yamux.Stream
		err    error
	}
	c := make(chan result, 1)
	go func() {
		stream, err := s.OpenStream()
		c <- result{stream, err}
	}()
	select {
	case r := <-c:
		if r.err != nil {
			return nil, r.err
		}
		return r.stream, nil
	case <-ctx.Done():
		go func() {
			if r := <-c; r.err == nil {
				r.stream.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// Reset drops the link; streams on it break.
func (t *Serial) Reset() {
	t.mu.Lock()
	s := t.session
	t.session = nil
	t.mu.Unlock()
	if s != nil {
		s.Close() // it returns nil always
	}
}

// Close drops the link for good. Dials under way fail.
func (t *Serial) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.done)
	}
	t.mu.Unlock()
	t.Reset()
	return nil
}
