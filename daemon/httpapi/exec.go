package httpapi

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

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// spliceBuffer is how much is copied at once, in bytes; each direction of each
// session has one.
const spliceBuffer = 32 << 10

func (s *Server) execVM(w http.ResponseWriter, r *http.Request) error {
	name, err := sessionName(r)
	if err != nil {
		return err
	}
	var e api.Exec
	if err := decode(w, r, &e); err != nil {
		return err
	}
	if err := e.Validate(); err != nil {
		return err
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	guest, err := s.svc.VMExec(ctx, name, e)
	if err != nil {
		return s.orClosing(ctx, err)
	}
	return s.join(w, guest)
}

func (s *Server) attachVM(w http.ResponseWriter, r *http.Request) error {
	name, err := sessionName(r)
	if err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return api.Errorf(api.CodeInvalid, "this route takes no body")
	}
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	guest, err := s.svc.VMAttach(ctx, name)
	if err != nil {
		return s.orClosing(ctx, err)
	}
	return s.join(w, guest)
}

// sessionName returns the VM of a request that asks for a session.
func sessionName(r *http.Request) (string, error) {
	name, err := pathName("VM", r)
	if err == nil && !strings.EqualFold(r.Header.Get("Upgrade"), stdio.Protocol) {
		err = api.Errorf(api.CodeInvalid, "this route switches to another protocol").WithHint("send the headers Connection: Upgrade and Upgrade: %s", stdio.Protocol)
	}
	return name, err
}

// orClosing makes the error of a context that the daemon's end ended say so.
func (s *Server) orClosing(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errClosing) {
		return errClosing
	}
	return err
}

// join switches the client's connection to stdio.Protocol and passes bytes in
// both directions until either end is closed, or the server ends. It closes
// guest.
func (s *Server) join(w http.ResponseWriter, guest io.ReadWriteCloser) error {
	defer guest.Close()
	s.joined.Add(1) // while Shutdown still waits for this connection
	defer s.joined.Done()
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", stdio.Protocol)
	w.WriteHeader(http.StatusSwitchingProtocols)
	client, buffered, err := rc.Hijack()
	if err != nil {
		return fmt.Errorf("switch protocols: %w", err)
	}
	defer client.Close()
	if err := errors.Join(buffered.Flush(), client.SetDeadline(time.Time{})); err != nil {
		return err
	}
	s.splice(client, buffered, guest)
	return nil
}

// splice copies until either end is closed. Each end that does not read stops
// the other; only a guest that does not for writeTimeout is given up, since
// meanwhile nobody would notice that the client has gone. One that keeps the
// protocol always reads.
func (s *Server) splice(client net.Conn, fromClient io.Reader, guest io.ReadWriteCloser) {
	over := make(chan struct{})
	cut := sync.OnceFunc(func() {
		close(over)
		client.Close()
		guest.Close()
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cut()
		buf := make([]byte, spliceBuffer)
		for {
			n, err := fromClient.Read(buf)
			if n > 0 {
				late := time.AfterFunc(writeTimeout, cut)
				_, werr := guest.Write(buf[:n])
				late.Stop()
				err = errors.Join(err, werr)
			}
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		defer cut()
		_, _ = io.CopyBuffer(onlyWriter{client}, onlyReader{guest}, make([]byte, spliceBuffer)) // either end may go at any time
	})
	wg.Go(func() {
		select {
		case <-s.closing:
			cut()
		case <-over:
		}
	})
	wg.Wait()
}

// onlyWriter and onlyReader hide the shortcuts of package io, which would take
// buffers of their own.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
