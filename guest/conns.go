package guest

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conns are the connections of the agent, those included that were switched to
// another protocol, which the server forgets. The zero value is ready for use,
// and safe for concurrent use.
type conns struct {
	mu   sync.Mutex
	open map[*agentConn]struct{}
}

// agentConn is a connection that conns knows until it is closed.
type agentConn struct {
	net.Conn
	of   *conns
	over atomic.Bool // endOthers has ended it: nothing more is written
}

// listener makes the connections that l accepts known.
func (c *conns) listener(l net.Listener) net.Listener { return connsListener{l, c} }

type connsListener struct {
	net.Listener
	conns *conns
}

func (l connsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.conns.add(conn), nil
}

func (c *conns) add(conn net.Conn) *agentConn {
	ac := &agentConn{Conn: conn, of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[*agentConn]struct{})
	}
	c.open[ac] = struct{}{}
	return ac
}

// Write refuses what a handler says at its end, which began to wind up because
// the connection was cut off: its peer would take a torn answer for a whole one.
func (ac *agentConn) Write(b []byte) (int, error) {
	if ac.over.Load() {
		return 0, net.ErrClosed
	}
	return ac.Conn.Write(b)
}

func (ac *agentConn) Close() error {
	ac.of.mu.Lock()
	delete(ac.of.open, ac)
	ac.of.mu.Unlock()
	return ac.Conn.Close()
}

// endOthers ends every connection but the one that a request of ctx came by, and
// returns how many. Who reads or writes one returns.
func (c *conns) endOthers(ctx context.Context) int {
	own, _ := ctx.Value(connKey{}).(*agentConn)
	c.mu.Lock()
	var others []*agentConn
	for ac := range c.open {
		if ac != own {
			others = append(others, ac)
		}
	}
	c.mu.Unlock()
	for _, ac := range others {
		ac.over.Store(true)
		// A stream of the serial port that is closed could still be read for as
		// long as the host leaves it open.
		_ = ac.SetDeadline(time.Now())
		ac.Close()
	}
	return len(others)
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}
