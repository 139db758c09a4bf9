package httpapitest

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

func (s *Service) VMWorkload(_ context.Context, name string) (http.Handler, error) {
	s.lock()
	defer s.mu.Unlock()
	_, err := s.up("VMWorkload", name, "only a running VM's workload can be called")
	return s.Workload, err
}

func (s *Service) VMExec(_ context.Context, name string, e api.Exec) (io.ReadWriteCloser, error) {
	return s.session("VMExec", name, &e)
}

func (s *Service) VMAttach(_ context.Context, name string) (io.ReadWriteCloser, error) {
	return s.session("VMAttach", name, nil)
}

func (s *Service) session(method, name string, e *api.Exec) (io.ReadWriteCloser, error) {
	s.lock()
	defer s.mu.Unlock()
	vm, err := s.up(method, name, "commands run in a VM that is running")
	if err != nil {
		return nil, err
	}
	play := s.Session
	if play == nil {
		play = DefaultSession
	}
	near, far := net.Pipe()
	go func(vm string) {
		defer far.Close()
		if s.Connect != nil {
			s.Connect(far)
			return
		}
		play(vm, e, stdio.NewReader(far), stdio.NewWriter(far))
	}(vm.Name)
	return near, nil
}

// DefaultSession is a program that prints its arguments, or for an attach that
// it is one, and then what it reads until the end. Its status is 0, or 128 and
// the signal's number for SIGINT and SIGTERM.
func DefaultSession(vm string, e *api.Exec, r *stdio.Reader, w *stdio.Writer) {
	hello := "attached to " + vm
	if e != nil {
		hello = strings.Join(e.Args, " ")
	}
	send := func(f stdio.Frame) { _ = w.Write(f) } // or the client has gone
	send(stdio.Frame{Type: stdio.Stdout, Data: []byte(hello + "\n")})
	if e != nil && !e.Stdin {
		send(stdio.Frame{Type: stdio.Exit})
		return
	}
	for {
		f, err := r.Next()
		if err != nil {
			return
		}
		switch {
		case f.Type == stdio.Stdin && len(f.Data) > 0:
			n := len(f.Data)
			send(stdio.Frame{Type: stdio.Stdout, Data: f.Data})
			send(stdio.Frame{Type: stdio.Taken, N: n})
		case f.Type == stdio.StdinClose:
			send(stdio.Frame{Type: stdio.Exit})
			return
		case f.Type == stdio.Signal && f.Name == "SIGINT":
			send(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 130, Signal: f.Name}})
			return
		case f.Type == stdio.Signal && f.Name == "SIGTERM":
			send(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 143, Signal: f.Name}})
			return
		}
	}
}
