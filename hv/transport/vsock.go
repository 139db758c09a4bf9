package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
)

// Vsock is the transport over AF_VSOCK of the host's kernel. It is safe for
// concurrent use.
type Vsock struct {
	cid uint32
	set connSet
}

var _ hv.Transport = (*Vsock)(nil)

// NewVsock returns the transport to the agent in the guest with this context
// id. It does not connect.
func NewVsock(cid uint32) *Vsock { return &Vsock{cid: cid} }

// Dial opens a stream to the agent, trying again until ctx ends while nothing
// listens in the guest.
func (t *Vsock) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for {
		conn, err := vsock.DialContext(ctx, t.cid, wire.AgentPort, nil)
		if err == nil {
			return t.set.add(conn)
		}
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPERM) || t.set.isClosed() {
			return nil, fmt.Errorf("dial vsock %d:%d: %w", t.cid, wire.AgentPort, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial vsock %d:%d: %w: last try: %w", t.cid, wire.AgentPort, ctx.Err(), err)
		case <-time.After(retryPause):
		}
	}
}

// Reset breaks all streams.
func (t *Vsock) Reset() { t.set.reset(false) }

// Close breaks all streams; later Dials fail.
func (t *Vsock) Close() error {
	t.set.reset(true)
	return nil
}

// connSet remembers the open connections of a transport without a link, for
// Reset and Close. Its zero value is empty and open.
type connSet struct {
	mu     sync.Mutex
	conns  map[*setConn]bool // guarded by mu
	closed bool              // guarded by mu
}

// setConn leaves its set when closed.
type setConn struct {
	net.Conn
	set *connSet
}

func (c *setConn) Close() error {
	c.set.mu.Lock()
	delete(c.set.conns, c)
	c.set.mu.Unlock()
	return c.Conn.Close()
}

// add takes over conn; it closes conn when the set is closed.
func (s *connSet) add(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(errClosed, conn.Close())
	}
	if s.conns == nil {
		s.conns = make(map[*setConn]bool)
	}
	c := &setConn{Conn: conn, set: s}
	s.conns[c] = true
	return c, nil
}

func (s *connSet) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *connSet) reset(last bool) {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.closed = s.closed || last
	s.mu.Unlock()
	for c := range conns {
		c.Conn.Close() // what the streams carried is given up
	}
}
