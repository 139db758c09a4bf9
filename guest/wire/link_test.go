package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testPort behaves as the guest's end of a virtio-serial port: one byte pipe
// for its whole life, io.EOF while no host is connected and nothing is unread,
// writes that block until a host is there, and no mark between two hosts.
type testPort struct {
	mu     sync.Mutex
	cond   *sync.Cond
	host   net.Conn
	gone   chan struct{} // closed when nothing more comes from host
	in     []byte
	closed bool
}

const testPortBuffer = 64 << 10

func newTestPort() *testPort {
	p := &testPort{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

// attach connects a host, in place of the one before.
func (p *testPort) attach(conn net.Conn) {
	gone := make(chan struct{})
	p.mu.Lock()
	if p.host != nil {
		p.host.Close()
	}
	before := p.gone
	p.host, p.gone = conn, gone
	p.cond.Broadcast()
	p.mu.Unlock()
	go func() {
		defer close(gone)
		if before != nil {
			<-before
		}
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			p.mu.Lock()
			for len(p.in) > testPortBuffer && !p.closed {
				p.cond.Wait()
			}
			p.in = append(p.in, b[:n]...)
			if err != nil && p.host == conn {
				p.host = nil
				conn.Close()
			}
			p.cond.Broadcast()
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func (p *testPort) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in) == 0 {
		if p.closed {
			return 0, os.ErrClosed
		}
		if p.host == nil {
			return 0, io.EOF
		}
		p.cond.Wait()
	}
	n := copy(b, p.in)
	p.in = p.in[n:]
	p.cond.Broadcast()
	return n, nil
}

func (p *testPort) Wait() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in) == 0 && p.host == nil {
		if p.closed {
			return os.ErrClosed
		}
		p.cond.Wait()
	}
	return nil
}

func (p *testPort) Write(b []byte) (int, error) {
	p.mu.Lock()
	for p.host == nil && !p.closed {
		p.cond.Wait()
	}
	host, closed := p.host, p.closed
	p.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	// What a host that went away did not take is lost.
	_, _ = host.Write(b)
	return len(b), nil
}

func (p *testPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.host != nil {
		p.host.Close()
	}
	p.cond.Broadcast()
	return nil
}

// dial connects a host to the port by a socket pair.
func (p *testPort) dial(t testing.TB) net.Conn {
	t.Helper()
	a, b := socketPair(t)
	p.attach(b)
	return a
}

func socketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// mortal dies after budget bytes have been written, in the middle of a frame
// as a rule.
type mortal struct {
	net.Conn
	budget int
}

func (m *mortal) Write(p []byte) (int, error) {
	if len(p) < m.budget {
		m.budget -= len(p)
		return m.Conn.Write(p)
	}
	n, _ := m.Conn.Write(p[:m.budget])
	m.budget = 0
	m.Conn.Close()
	return n, errors.New("killed")
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo accepts links and sends back what they say, until the acceptor closes.
func echo(t testing.TB, a *Acceptor) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			l, err := a.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(l, l)
				l.Close()
			})
		}
	})
	t.Cleanup(func() { a.Close(); wg.Wait() })
}

// roundTrip sends size random bytes and checks what comes back. It returns the
// error of the connection, and fails the test when a byte is wrong.
func roundTrip(t testing.TB, c io.ReadWriter, size int) error {
	t.Helper()
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	werr := make(chan error, 1)
	go func() {
		_, err := c.Write(want)
		werr <- err
	}()
	got := make([]byte, 0, size)
	b := make([]byte, 10000)
	for len(got) < size {
		n, err := c.Read(b)
		got = append(got, b[:n]...)
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("the echo differs within its first %d bytes", len(got))
		}
		if err != nil {
			return errors.Join(err, <-werr)
		}
	}
	return <-werr
}

func TestLinkCarriesBytesBothWays(t *testing.T) {
	pairs := []struct {
		name string
		pair func() (net.Conn, net.Conn)
	}{
		{"socket pair", func() (net.Conn, net.Conn) { return socketPair(t) }},
		{"net.Pipe", net.Pipe},
	}
	for _, tt := range pairs {
		t.Run(tt.name, func(t *testing.T) {
			host, guest := tt.pair()
			echo(t, NewAcceptor(guest))
			l, err := Connect(testContext(t), host)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{1, 100, maxPayload, maxPayload + 1, 1 << 20} {
				if err := roundTrip(t, l, size); err != nil {
					t.Fatalf("round trip of %d bytes: %v", size, err)
				}
			}
			if err := l.Close(); err != nil {
				t.Errorf("Close() = %v", err)
			}
			if _, err := l.Read(make([]byte, 1)); err == nil {
				t.Error("Read after Close succeeded")
			}
			if _, err := l.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("Write after Close = %v, want io.ErrClosedPipe", err)
			}
		})
	}
}

func TestLinkSurvivesKilledHosts(t *testing.T) {
	p := newTestPort()
	echo(t, NewAcceptor(p))
	worst := time.Duration(0)
	for i := range 200 {
		raw := &mortal{p.dial(t), maxFrameLen + headerLen + 1 + rand.IntN(200_000)}
		start := time.Now()
		l, err := Connect(testContext(t), raw)
		if err != nil {
			if raw.budget == 0 {
				continue // killed while it said hello
			}
			t.Fatalf("host %d: %v", i, err)
		}
		worst = max(worst, time.Since(start))
		if err := roundTrip(t, l, 256<<10); err == nil {
			t.Fatalf("host %d outlived its budget", i)
		}
		l.Close()
	}
	l, err := Connect(testContext(t), p.dial(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(t, l, 1<<20); err != nil {
		t.Errorf("after 200 killed hosts: %v", err)
	}
	l.Close()
	t.Logf("slowest reconnection: %v", worst)
}

// interrupted sends junk of another origin after the first write.
type interrupted struct {
	net.Conn
	junk []byte
}

func (c *interrupted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil {
		_, err = c.Conn.Write(c.junk)
		c.junk = nil
	}
	return n, err
}

func TestTornFrameAfterThePadding(t *testing.T) {
	p := newTestPort()
	echo(t, NewAcceptor(p))
	torn := appendFrame(nil, frame{typ: frameData, epoch: 1, payload: make([]byte, maxPayload)})[:headerLen]
	// Without the hello of the first write, the guest waits for 16 KiB.
	conn := &interrupted{&dropFirstHello{Conn: p.dial(t)}, torn}
	start := time.Now()
	l, err := Connect(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Connect took %v, want about %v", took, padEvery*helloInterval)
	}
}

type dropFirstHello struct {
	net.Conn
	once bool
}

func (c *dropFirstHello) Write(p []byte) (int, error) {
	n := len(p)
	if !c.once {
		c.once = true
		p = p[:maxFrameLen]
	}
	_, err := c.Conn.Write(p)
	return n, err
}

func TestNewHelloEndsTheLink(t *testing.T) {
	// Without an end of file in between: the guest sees one stream of bytes.
	host, guest := socketPair(t)
	a := NewAcceptor(guest)
	defer a.Close()
	send := func(f frame) {
		if _, err := host.Write(appendFrame(nil, f)); err != nil {
			t.Fatal(err)
		}
	}
	send(frame{typ: frameHello, epoch: 1})
	first, err := a.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	send(frame{typ: frameData, epoch: 1, payload: []byte("one")})
	send(frame{typ: frameHello, epoch: 2})
	send(frame{typ: frameData, epoch: 1, payload: []byte("of the dead")})
	send(frame{typ: frameData, epoch: 2, payload: []byte("two")})
	second, err := a.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(first); string(b) != "one" || err != nil {
		t.Errorf("first link read %q, %v, want %q and its end", b, err, "one")
	}
	if _, err := first.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write on a replaced link = %v, want io.ErrClosedPipe", err)
	}
	first.Close() // must not say bye for the second
	b := make([]byte, 10)
	if n, err := second.Read(b); string(b[:n]) != "two" || err != nil {
		t.Errorf("second link read %q, %v, want %q", b[:n], err, "two")
	}
	send(frame{typ: frameBye, epoch: 2})
	if _, err := second.Read(b); err != io.EOF {
		t.Errorf("Read after bye = %v, want io.EOF", err)
	}
}

// blinking says end of file before every read, as a driver does that learns
// late of the host that left and early of what the next one sent.
type blinking struct {
	net.Conn
	shut bool
}

func (b *blinking) Read(p []byte) (int, error) {
	if b.shut = !b.shut; b.shut {
		return 0, io.EOF
	}
	return b.Conn.Read(p)
}

func (b *blinking) Wait() error { return nil }

func TestEndOfFileDoesNotEndTheLink(t *testing.T) {
	host, guest := socketPair(t)
	_ = host.SetDeadline(time.Now().Add(30 * time.Second))
	echo(t, NewAcceptor(&blinking{Conn: guest}))
	l, err := Connect(testContext(t), host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := roundTrip(t, l, 100_000); err != nil {
		t.Error(err)
	}
}

func TestGuestCloseReachesTheHost(t *testing.T) {
	host, guest := socketPair(t)
	a := NewAcceptor(guest)
	defer a.Close()
	go func() {
		if l, err := a.Accept(context.Background()); err == nil {
			_, _ = l.Write([]byte("last words"))
			l.Close()
		}
	}()
	l, err := Connect(testContext(t), host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err := io.ReadAll(l); string(b) != "last words" || err != nil {
		t.Errorf("host read %q, %v, want the last words and the end", b, err)
	}
}

// TestBlockedPipeHoldsNobody has a host that does not read. The guest's Write
// blocks, yet must return as soon as the link is over.
func TestBlockedPipeHoldsNobody(t *testing.T) {
	p := newTestPort()
	a := NewAcceptor(p)
	defer a.Close()
	host, guest := net.Pipe()
	p.attach(guest)
	ctx := testContext(t)
	go func() {
		_, _ = host.Write(appendFrame(nil, frame{typ: frameHello, epoch: 3}))
		_, _ = io.ReadFull(host, make([]byte, headerLen)) // the acknowledgement
	}()
	l, err := a.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Write(make([]byte, 1<<20))
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("Write to a host that does not read = %v, want it to block", err)
	case <-time.After(50 * time.Millisecond):
	}
	l.Close()
	select {
	case err := <-done:
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write = %v, want io.ErrClosedPipe", err)
		}
	case <-ctx.Done():
		t.Error("Write still blocks after Close")
	}
}

func TestConnectGivesUp(t *testing.T) {
	ack := func(epoch uint32) []byte { return appendFrame(nil, frame{typ: frameAck, epoch: epoch}) }
	tests := []struct {
		name  string
		guest func(net.Conn) // what the far end does
		want  error
	}{
		{"silence", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, context.DeadlineExceeded},
		{"never reads", func(c net.Conn) { time.Sleep(500 * time.Millisecond) }, context.DeadlineExceeded},
		{"closed", func(c net.Conn) {}, nil},
		{"acknowledges another epoch", func(c net.Conn) {
			for range 5 {
				_, _ = c.Write(ack(1))
			}
			_, _ = io.Copy(io.Discard, c)
		}, context.DeadlineExceeded},
		{"flood of garbage", func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			b := bytes.Repeat([]byte("VLKx"), 1<<16)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}, errGarbage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, guest := socketPair(t)
			var wg sync.WaitGroup
			wg.Go(func() { tt.guest(guest); guest.Close() })
			timeout := 300 * time.Millisecond
			if tt.want == errGarbage {
				timeout = 60 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			l, err := Connect(ctx, host)
			if err == nil {
				l.Close()
				t.Fatal("Connect succeeded")
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Connect() = %v, want %v", err, tt.want)
			}
			if _, err := host.Write([]byte("x")); err == nil {
				t.Error("the connection was left open")
			}
			wg.Wait()
		})
	}
}

func TestHostRefusesGarbageOnceConnected(t *testing.T) {
	host, guest := socketPair(t)
	a := NewAcceptor(guest)
	go func() { _, _ = a.Accept(context.Background()) }()
	l, err := Connect(testContext(t), host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer a.Close()
	if _, err := guest.Write([]byte("not a frame")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, errGarbage) {
		t.Errorf("Read() = %v, want errGarbage", err)
	}
}

func TestAcceptorPollsPortsThatCannotWait(t *testing.T) {
	p := newTestPort()
	echo(t, NewAcceptor(struct{ io.ReadWriteCloser }{p}))
	for range 3 {
		l, err := Connect(testContext(t), p.dial(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(t, l, 1000); err != nil {
			t.Error(err)
		}
		l.Close()
	}
}

func TestAcceptorClose(t *testing.T) {
	p := newTestPort()
	a := NewAcceptor(p)
	errs := make(chan error, 1)
	go func() {
		_, err := a.Accept(context.Background())
		errs <- err
	}()
	a.Close()
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept() = %v, want net.ErrClosed", err)
	}
	if _, err := a.Accept(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Accept() = %v, want net.ErrClosed", err)
	}
}
