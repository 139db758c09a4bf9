package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// attachPatience is how long an attach may take until it is answered: the
// daemon waits a while for a VM that is on its way.
const attachPatience = 3 * time.Minute

// Session is a connection with the standard streams of a process in a VM. Its
// methods are safe for concurrent use, but that only one of them reads: Copy,
// once. Closing the session ends a command of Exec, and leaves the workload of
// Attach as it is.
type Session struct {
	vm   string
	ctx  context.Context // of Exec or Attach, whose end closes the session
	conn io.ReadWriteCloser
	w    *stdio.Writer
	r    *stdio.Reader

	mu     sync.Mutex
	credit int           // bytes of input that may be sent; guarded by mu
	taken  chan struct{} // one place; receives when credit has grown
	over   chan struct{} // closed when the session is

	closeOnce sync.Once
	closeErr  error
	stop      func() bool // of the watch on ctx
}

// Exec runs a command in a VM. The session ends when ctx does. A command that
// cannot be started is no error here: its exit status says why. Codes:
// not_found, invalid, too_large, conflict (the VM or its workload does not run),
// unsupported (the VM has no agent), exhausted (api.MaxExecs), unavailable.
func (c *Client) Exec(ctx context.Context, vm string, e api.Exec) (*Session, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return c.session(ctx, vm, patience, request{
		method: http.MethodPost, path: vmPath(vm, "/exec"), body: bytes.NewReader(body), size: int64(len(body)),
		header: http.Header{"Content-Type": {"application/json"}},
	})
}

// Attach connects with the workload of a VM, which begins with the latest that
// it wrote. A VM that is on its way is waited for. What is written to it arrives
// when its workload has a terminal or an open standard input. The session ends
// when ctx does, and with the workload's status when that ended for good.
// Codes: not_found, conflict (the VM does not run), unsupported (it has no
// agent), exhausted, timeout, unavailable.
func (c *Client) Attach(ctx context.Context, vm string) (*Session, error) {
	return c.session(ctx, vm, attachPatience, request{method: http.MethodPost, path: vmPath(vm, "/attach"), header: http.Header{}})
}

// session does the request and switches its connection to stdio.Protocol.
func (c *Client) session(ctx context.Context, vm string, limit time.Duration, r request) (*Session, error) {
	r.header.Set("Connection", "Upgrade")
	r.header.Set("Upgrade", stdio.Protocol)
	silent := api.Errorf(api.CodeUnavailable, "%s did not answer within %v", c.Addr(), limit).WithHint("is it volantd that listens there? see its log")
	asking, cancel := context.WithTimeoutCause(ctx, limit, silent)
	defer cancel()
	resp, err := c.roundTrip(asking, r)
	if err != nil {
		return nil, c.cause(asking, err)
	}
	if resp.StatusCode/100 != 2 && resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(readError(resp), resp.Body.Close())
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != stdio.Protocol {
		err := api.Errorf(api.CodeInternal, "volantd answered %s to %s %s and did not switch to %s", resp.Status, r.method, r.path, stdio.Protocol).
			WithHint("is volantd of the same version?")
		return nil, errors.Join(err, resp.Body.Close())
	}
	s := &Session{vm: vm, ctx: ctx, conn: conn, w: stdio.NewWriter(conn), r: stdio.NewReader(bufio.NewReaderSize(conn, 32<<10)),
		credit: stdio.Window, taken: make(chan struct{}, 1), over: make(chan struct{})}
	s.stop = context.AfterFunc(ctx, func() { s.close() })
	return s, nil
}

// Stdin returns a writer to the process's standard input, for one goroutine. It
// blocks while the process does not read, which Copy learns: without one under
// way no more than stdio.Window bytes can be written. Close ends the input.
func (s *Session) Stdin() io.WriteCloser { return stdin{s} }

type stdin struct{ s *Session }

func (in stdin) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n, err := in.s.spend(len(p))
		if err != nil {
			return written, err
		}
		if err := in.s.w.Write(stdio.Frame{Type: stdio.Stdin, Data: p[:n]}); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

func (in stdin) Close() error { return in.s.w.Write(stdio.Frame{Type: stdio.StdinClose}) }

// spend waits until input may be sent and takes up to n bytes of the credit.
func (s *Session) spend(n int) (int, error) {
	for {
		s.mu.Lock()
		got := min(n, s.credit)
		s.credit -= got
		s.mu.Unlock()
		if got > 0 {
			return got, nil
		}
		select {
		case <-s.taken:
		case <-s.over:
			return 0, io.ErrClosedPipe
		}
	}
}

// earn adds to the credit what the guest has taken.
func (s *Session) earn(n int) {
	s.mu.Lock()
	s.credit = min(s.credit+n, stdio.Window) // whatever the guest says
	s.mu.Unlock()
	select {
	case s.taken <- struct{}{}:
	default:
	}
}

// Resize tells the process's terminal its size; without a terminal it does
// nothing.
func (s *Session) Resize(rows, cols uint16) error {
	return s.w.Write(stdio.Frame{Type: stdio.Resize, Size: stdio.Size{Rows: rows, Cols: cols}})
}

// Signal sends a signal, by its name ("SIGINT"), to the process's group. A name
// that the guest does not know does nothing.
func (s *Session) Signal(name string) error {
	return s.w.Write(stdio.Frame{Type: stdio.Signal, Name: name})
}

// Copy passes on what the process writes until it has ended, and returns its
// status once everything was written. In the meantime it sends what stdin
// yields and then its end; nil sends neither. A Read of stdin may still be
// under way when Copy returns, and what it yields is lost. Copy returns the
// error of a writer, ctx's own when that ended, and one of CodeUnavailable when
// the connection was lost: the process may then go on.
func (s *Session) Copy(stdin io.Reader, stdout, stderr io.Writer) (api.ExitStatus, error) {
	if stdin != nil {
		go s.send(stdin)
	}
	for {
		f, err := s.r.Next()
		if err != nil {
			return api.ExitStatus{}, s.lost(err)
		}
		switch f.Type {
		case stdio.Stdout:
			_, err = stdout.Write(f.Data)
		case stdio.Stderr:
			_, err = stderr.Write(f.Data)
		case stdio.Taken:
			s.earn(f.N)
		case stdio.Exit:
			return f.Exit, nil
		default:
			err = api.Errorf(api.CodeInternal, "VM %s sent a frame of %v", s.vm, f.Type)
		}
		if err != nil {
			return api.ExitStatus{}, err
		}
	}
}

// send sends an input and its end. An error of the connection is Copy's to
// find; one of the input ends it as the end would.
func (s *Session) send(from io.Reader) {
	to := s.Stdin()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

func (s *Session) lost(err error) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if errors.Is(err, stdio.ErrMalformed) {
		return api.Errorf(api.CodeInternal, "VM %s broke the protocol: %v", s.vm, err)
	}
	return api.Errorf(api.CodeUnavailable, "the connection with VM %s was lost before its process ended", s.vm).
		WithHint("volar ps shows whether the VM runs; volantd may have ended, or the VM")
}

// Close ends the session.
func (s *Session) Close() error {
	s.stop()
	return s.close()
}

func (s *Session) close() error {
	s.closeOnce.Do(func() {
		close(s.over)
		s.closeErr = s.conn.Close()
	})
	return s.closeErr
}
