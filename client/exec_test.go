package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// against returns a client of a daemon that is only this handler.
func against(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "v.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(ln) //nolint:errcheck // ends with the test
	t.Cleanup(func() { srv.Close() })
	c, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// switched answers with the other protocol and lets talk have the connection.
func switched(talk func(r *stdio.Reader, w *stdio.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", stdio.Protocol)
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		talk(stdio.NewReader(buf), stdio.NewWriter(conn))
	}
}

func TestExecSession(t *testing.T) {
	data := bytes.Repeat([]byte("0\x00\n\xff"), 100_000)
	var control []stdio.Frame
	c := against(t, switched(func(r *stdio.Reader, w *stdio.Writer) {
		for {
			f, err := r.Next()
			if err != nil {
				t.Errorf("the far end reads %v", err)
				return
			}
			switch f.Type {
			case stdio.Stdin:
				_ = w.Write(stdio.Frame{Type: stdio.Stdout, Data: f.Data})
				_ = w.Write(stdio.Frame{Type: stdio.Taken, N: len(f.Data)})
			case stdio.StdinClose:
				_ = w.Write(stdio.Frame{Type: stdio.Stderr, Data: []byte("bye")})
				_ = w.Write(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 143, Signal: "SIGTERM"}})
				return
			default:
				control = append(control, f)
			}
		}
	}))
	s, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := errors.Join(s.Resize(24, 80), s.Signal("SIGWINCH")); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	exit, err := s.Copy(bytes.NewReader(data), &out, &errOut)
	if err != nil || exit.Code != 143 || exit.Signal != "SIGTERM" {
		t.Errorf("Copy = %+v, %v", exit, err)
	}
	if !bytes.Equal(out.Bytes(), data) || errOut.String() != "bye" {
		t.Errorf("%d bytes out, err %q; want %d and bye", out.Len(), errOut.String(), len(data))
	}
	if len(control) != 2 || control[0].Size != (stdio.Size{Rows: 24, Cols: 80}) || control[1].Name != "SIGWINCH" {
		t.Errorf("control frames: %+v", control)
	}
}

// TestInputWindow has a process that takes nothing, and then is no more.
func TestInputWindow(t *testing.T) {
	var got int
	end := make(chan struct{})
	c := against(t, switched(func(r *stdio.Reader, w *stdio.Writer) {
		for got < stdio.Window {
			f, err := r.Next()
			if err != nil {
				t.Error(err)
				return
			}
			got += len(f.Data)
		}
		<-end
		if f, err := r.Next(); err != nil || f.Type != stdio.Signal {
			t.Errorf("behind the input that was not taken comes %v, %v; want the signal", f.Type, err)
		}
		_ = w.Write(stdio.Frame{Type: stdio.Exit})
	}))
	s, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"sleep"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Stdin().Write(make([]byte, stdio.Window+1))
		wrote <- err
	}()
	select {
	case err := <-wrote:
		t.Fatalf("Write beyond the window = %v, want it to wait", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := s.Signal("SIGINT"); err != nil {
		t.Fatal(err)
	}
	close(end)
	if _, err := s.Copy(nil, io.Discard, io.Discard); err != nil {
		t.Errorf("Copy = %v", err)
	}
	s.Close()
	if err := <-wrote; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write on a session that was closed = %v", err)
	}
}

func TestSessionEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		talk func(r *stdio.Reader, w *stdio.Writer)
		code api.Code
		want string
	}{
		"cut":             {func(_ *stdio.Reader, w *stdio.Writer) { _ = w.Write(stdio.Frame{Type: stdio.Stdout}) }, api.CodeUnavailable, "lost before its process ended"},
		"a client's word": {func(_ *stdio.Reader, w *stdio.Writer) { _ = w.Write(stdio.Frame{Type: stdio.Stdin}) }, api.CodeInternal, "frame of stdin"},
		"garbage":         {nil, api.CodeInternal, "broke the protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			h := switched(tc.talk)
			if tc.talk == nil {
				h = garbage
			}
			c := against(t, h)
			s, err := c.Attach(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Copy(nil, io.Discard, io.Discard); api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Copy = %v, want %s: %s", err, tc.code, tc.want)
			}
		})
	}
}

// garbage switches, and speaks another protocol then.
func garbage(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: "+stdio.Protocol+"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
}

func TestSessionIsCancelled(t *testing.T) {
	gone := make(chan error, 1)
	c := against(t, switched(func(r *stdio.Reader, _ *stdio.Writer) {
		_, err := r.Next()
		gone <- err
	}))
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Attach(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := s.Copy(nil, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy = %v, want context.Canceled", err)
	}
	select {
	case err := <-gone:
		if err == nil {
			t.Error("the far end got a frame")
		}
	case <-time.After(10 * time.Second):
		t.Error("the far end was not told")
	}
}

func TestExecIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		code api.Code
		want string
	}{
		"an error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"error":{"code":"conflict","message":"VM web is stopped"}}`)
		}, api.CodeConflict, "is stopped"},
		"no switch": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, api.CodeInternal, "did not switch"},
		"another protocol": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "other/1")
			w.WriteHeader(http.StatusSwitchingProtocols)
			_ = http.NewResponseController(w).Flush()
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				conn.Close()
			}
		}, api.CodeInternal, "did not switch"},
	} {
		t.Run(name, func(t *testing.T) {
			c := against(t, tc.h)
			if _, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"x"}}); api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Exec = %v, want %s: %s", err, tc.code, tc.want)
			}
		})
	}
}
