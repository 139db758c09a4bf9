package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/transport"
)

// port is the guest's end of a virtio-serial port as QEMU offers it: one pipe,
// behind a Unix socket that serves one client at a time. Reading is io.EOF, and
// writing waits, while there is none.
type port struct {
	l        *net.UnixListener
	connects atomic.Int32
	stuck    int32 // so many connections, from the first, hear nothing

	mu     sync.Mutex
	cond   sync.Cond
	conn   net.Conn // guarded by mu
	closed bool     // guarded by mu
}

func newPort(t *testing.T) *port { return newStuckPort(t, 0) }

func newStuckPort(t *testing.T, stuck int32) *port {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "agent.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	p := &port{l: l, stuck: stuck}
	p.cond.L = &p.mu
	go p.accept()
	t.Cleanup(func() { p.Close() })
	return p
}

func (p *port) path() string { return p.l.Addr().String() }

func (p *port) accept() {
	for {
		conn, err := p.l.Accept()
		if err != nil {
			return
		}
		if p.connects.Add(1) <= p.stuck {
			io.Copy(io.Discard, conn)
			conn.Close()
			continue
		}
		p.mu.Lock()
		p.conn = conn
		p.cond.Broadcast()
		for p.conn != nil {
			p.cond.Wait() // the next client waits in the backlog
		}
		p.mu.Unlock()
	}
}

func (p *port) current() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

func (p *port) drop(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == conn {
		p.conn = nil
		p.cond.Broadcast()
	}
}

func (p *port) Read(b []byte) (int, error) {
	conn := p.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(b)
	if err != nil {
		p.drop(conn)
		return n, io.EOF
	}
	return n, nil
}

func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	for p.conn == nil && !p.closed {
		p.cond.Wait()
	}
	conn, closed := p.conn, p.closed
	p.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	if _, err := conn.Write(b); err != nil {
		p.drop(conn)
	}
	return len(b), nil // what a vanished host did not read is lost
}

func (p *port) Close() error {
	p.mu.Lock()
	p.closed = true
	conn := p.conn
	p.cond.Broadcast()
	p.mu.Unlock()
	if conn != nil {
		p.drop(conn)
	}
	return p.l.Close()
}

// guest serves an echo on every stream of a port.
type guest struct {
	*port
	acceptor *wire.Acceptor

	mu      sync.Mutex
	session *yamux.Session // guarded by mu; the latest
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{port: newPort(t)}
	g.boot(t)
	return g
}

func (g *guest) boot(t *testing.T) {
	g.acceptor = wire.NewAcceptor(g.port)
	t.Cleanup(func() { g.acceptor.Close() })
	go func() {
		for {
			link, err := g.acceptor.Accept(context.Background())
			if err != nil {
				return
			}
			config := yamux.DefaultConfig()
			config.EnableKeepAlive = false
			config.LogOutput = io.Discard
			s, err := yamux.Server(link, config)
			if err != nil {
				return
			}
			g.mu.Lock()
			g.session = s
			g.mu.Unlock()
			go func() {
				for {
					c, err := s.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						io.Copy(c, c)
					}()
				}
			}()
		}
	}()
}

func (g *guest) latest() *yamux.Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.session
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// echo opens a stream and sends n bytes over it and back.
func echo(ctx context.Context, dial func(context.Context) (net.Conn, error), n int) error {
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	go c.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes came back")
	}
	return nil
}

func TestSerialSharesOneLink(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t)
	s := transport.NewSerial(g.path())
	defer s.Close()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := echo(ctx, s.Dial, 128<<10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := g.connects.Load(); n != 1 {
		t.Errorf("%d connections for 20 streams, want 1", n)
	}
}

func TestSerialMakesLinkAnew(t *testing.T) {
	breaks := []struct {
		name string
		do   func(*guest, *transport.Serial)
	}{
		{"reset", func(_ *guest, s *transport.Serial) { s.Reset() }},
		{"guest closed the session", func(g *guest, _ *transport.Serial) { g.latest().Close() }},
		{"connection lost", func(g *guest, _ *transport.Serial) { g.current().Close() }},
		// A guest has no business opening streams, and loses the link for it.
		{"guest opened a stream", func(g *guest, _ *transport.Serial) { g.latest().Open() }},
		// Nor has it pinging.
		{"guest pinged", func(g *guest, _ *transport.Serial) { g.latest().Ping() }},
	}
	for _, b := range breaks {
		t.Run(b.name, func(t *testing.T) {
			ctx := testContext(t)
			g := newGuest(t)
			s := transport.NewSerial(g.path())
			defer s.Close()
			if err := echo(ctx, s.Dial, 16); err != nil {
				t.Fatal(err)
			}
			c, err := s.Dial(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b.do(g, s)
			if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read on a stream of the old link: %v, want its end", err)
			}
			if err := echo(ctx, s.Dial, 16); err != nil {
				t.Errorf("over the new link: %v", err)
			}
			if n := g.connects.Load(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

// TestSerialWaitsForGuest dials before the guest has opened its port.
func TestSerialWaitsForGuest(t *testing.T) {
	ctx := testContext(t)
	g := &guest{port: newPort(t)}
	s := transport.NewSerial(g.path())
	defer s.Close()
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Dial(brief); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("Dial of a guest that is not up: %v after %v, want DeadlineExceeded after 50 ms", err, time.Since(start))
	}
	done := make(chan error, 3)
	for range cap(done) {
		go func() { done <- echo(ctx, s.Dial, 16) }()
	}
	time.Sleep(50 * time.Millisecond)
	g.boot(t)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSerialBeginsAgain meets a port that throttles its output until the client
// goes away.
func TestSerialBeginsAgain(t *testing.T) {
	g := &guest{port: newStuckPort(t, 2)}
	g.boot(t)
	s := transport.NewSerial(g.path())
	defer s.Close()
	if err := echo(testContext(t), s.Dial, 16); err != nil {
		t.Error(err)
	}
	if n := g.connects.Load(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

func TestSerialCloseEndsDial(t *testing.T) {
	ctx := testContext(t)
	p := newPort(t)
	s := transport.NewSerial(p.path())
	done := make(chan error, 1)
	go func() {
		_, err := s.Dial(ctx)
		done <- err
	}()
	for p.connects.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Dial under way at Close: %v, want closed", err)
	}
	if _, err := s.Dial(ctx); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Dial after Close: %v, want closed", err)
	}
}

func TestSerialNoSocket(t *testing.T) {
	s := transport.NewSerial(filepath.Join(t.TempDir(), "missing.sock"))
	defer s.Close()
	if _, err := s.Dial(testContext(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Dial without a socket: %v, want ErrNotExist at once", err)
	}
}
