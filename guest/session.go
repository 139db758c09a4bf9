package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
)

// session is one connection that was switched to stdio.Protocol.
type session struct {
	conn net.Conn
	r    *stdio.Reader
	w    *stdio.Writer
	in   *input

	gone    chan struct{} // closed when the client has gone or broke the protocol
	reading sync.WaitGroup
}

// wantsSession reports whether a request asks for stdio.Protocol.
func wantsSession(r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), stdio.Protocol) {
		return fmt.Errorf("this route takes the header Upgrade: %s", stdio.Protocol)
	}
	return nil
}

// newSession switches the connection of a request. The caller calls begin, and
// close in the end.
func newSession(w http.ResponseWriter, r *http.Request) (*session, error) {
	// What is left of the body would be taken for frames.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, err
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, r: stdio.NewReader(buf), w: stdio.NewWriter(conn), in: newInput(), gone: make(chan struct{})}
	_ = conn.SetDeadline(time.Time{}) // one that cannot is seen to below
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+stdio.Protocol+"\r\n\r\n")
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// begin reads what the client sends: input goes to s.in, all else to control.
func (s *session) begin(control func(stdio.Frame)) {
	s.reading.Go(func() {
		defer close(s.gone)
		for {
			f, err := s.r.Next()
			if err == nil {
				switch f.Type {
				case stdio.Stdin:
					err = s.in.put(f.Data)
				case stdio.StdinClose:
					s.in.end()
				case stdio.Resize, stdio.Signal:
					control(f)
				default:
					err = errNotAClient
				}
			}
			if err != nil {
				s.hangUp() // who writes must not wait for a client that is no more
				return
			}
		}
	})
}

// errNotAClient and errWindow end a session; errEnding refuses one.
var (
	errEnding     = errors.New("the guest is ending")
	errNotAClient = errors.New("a client sent what only a guest sends")
	errWindow     = errors.New("a client sent more input than the window takes")
)

// exit sends the exit status. Nothing may be sent after it.
func (s *session) exit(e stdio.ExitStatus) {
	_ = s.w.Write(stdio.Frame{Type: stdio.Exit, Exit: e}) // or there is nobody to tell
}

// close closes the connection and waits for its reader.
func (s *session) close() {
	s.hangUp()
	s.reading.Wait()
}

// hangUp closes the connection. A stream of the serial port that is closed could
// still be read for as long as the host leaves it open, hence the deadline.
func (s *session) hangUp() {
	_ = s.conn.SetReadDeadline(time.Now())
	s.conn.Close()
}

// input is what a client sent and its process has not taken yet, at most
// stdio.Window bytes. It is safe for concurrent use.
type input struct {
	mu      sync.Mutex
	pending []byte
	taking  int // bytes that run has and has not given away
	ended   bool
	wake    chan struct{} // one place
}

func newInput() *input { return &input{wake: make(chan struct{}, 1)} }

// put adds input; that of a client that heeds the window always fits.
func (in *input) put(p []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return nil // who sends after the end has no reader
	}
	if len(in.pending)+in.taking+len(p) > stdio.Window {
		return errWindow
	}
	in.pending = append(in.pending, p...)
	in.signal()
	return nil
}

// end ends the input.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = true
	in.signal()
}

func (in *input) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// run gives the input to write until done is closed, and says how much of it by
// taken; then it calls end. What write does not want is thrown away. A write
// that blocks is to be ended by whoever closes done.
func (in *input) run(done <-chan struct{}, write func([]byte) error, end func(), taken func(n int)) {
	for {
		select {
		case <-in.wake:
		case <-done:
			return
		}
		in.mu.Lock()
		p, ended := in.pending, in.ended
		in.pending, in.taking = nil, len(p)
		in.mu.Unlock()
		if len(p) > 0 {
			_ = write(p)
			in.mu.Lock()
			in.taking = 0
			in.mu.Unlock()
			taken(len(p))
		}
		if ended {
			end()
			return
		}
	}
}

// sessions counts the sessions that are open, for those who wait for their end.
// The zero value is ready for use, and safe for concurrent use.
type sessions struct {
	mu    sync.Mutex
	n     int
	ended bool
	idle  chan struct{} // closed when the last has left; nil before wait
}

// enter begins a session, unless wait was called.
func (s *sessions) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.n++
	return true
}

func (s *sessions) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n--
	if s.n == 0 && s.ended {
		close(s.idle)
	}
}

// wait waits until all sessions have left, or ctx is over. It is called once.
func (s *sessions) wait(ctx context.Context) {
	s.mu.Lock()
	s.ended, s.idle = true, make(chan struct{})
	if s.n == 0 {
		close(s.idle)
	}
	s.mu.Unlock()
	select {
	case <-s.idle:
	case <-ctx.Done():
	}
}
