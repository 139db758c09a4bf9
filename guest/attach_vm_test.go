package guest_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

// session is one with the agent of a real guest.
type session struct {
	t    *testing.T
	conn io.ReadWriteCloser
	r    *stdio.Reader
	w    *stdio.Writer
	out  strings.Builder
}

func (m *machine) open(path, body string) *session {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.context(), http.MethodPost, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", stdio.Protocol)
	resp, err := m.client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		m.t.Fatalf("POST %s = %s: %s", path, resp.Status, b)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	watchdog := time.AfterFunc(vmTimeout, func() { conn.Close() })
	m.t.Cleanup(func() { watchdog.Stop(); conn.Close() })
	return &session{t: m.t, conn: conn, r: stdio.NewReader(bufio.NewReader(conn)), w: stdio.NewWriter(conn)}
}

func (s *session) send(f stdio.Frame) {
	s.t.Helper()
	if err := s.w.Write(f); err != nil {
		s.t.Fatal(err)
	}
}

// until reads until the output has text, or with "" to the exit status.
func (s *session) until(text string) stdio.ExitStatus {
	s.t.Helper()
	for text == "" || !strings.Contains(s.out.String(), text) {
		f, err := s.r.Next()
		if err != nil {
			s.t.Fatalf("%v; output %q", err, s.out.String())
		}
		s.out.Write(f.Data)
		if f.Type == stdio.Exit {
			if text != "" {
				s.t.Fatalf("exit %+v; output %q", f.Exit, s.out.String())
			}
			return f.Exit
		}
	}
	return stdio.ExitStatus{}
}

// TestVMTerminal has a workload on a terminal, clients that come and go, and a
// command on a terminal beside it.
func TestVMTerminal(t *testing.T) {
	m := boot(t, encode(t, sampleConfig(wire.WorkloadConfig{Args: []string{"workload", "terminal"}, User: "web", TTY: true, Stdin: true})))
	m.dial()
	s := m.open(wire.PathAttach, "")
	s.until("size 24 80 errno 0, tty <nil>, TERM xterm\r\n")
	s.send(stdio.Frame{Type: stdio.Resize, Size: stdio.Size{Rows: 40, Cols: 132}})
	s.until("size 40 132 errno 0")
	s.send(stdio.Frame{Type: stdio.Stdin, Data: []byte("one\n")})
	s.until("<one>\r\n")
	s.conn.Close()

	command := m.open(wire.PathExec, `{"args":["workload","terminal"],"tty":true,"stdin":true,"rows":5,"cols":6,"term":"vt52","user":"root"}`)
	command.until("size 5 6 errno 0, tty <nil>, TERM vt52\r\n")
	command.send(stdio.Frame{Type: stdio.StdinClose})
	if exit := command.until(""); exit.Code != 7 {
		t.Errorf("the command ends with %+v, want 7", exit)
	}

	s = m.open(wire.PathAttach, "")
	s.until("<one>\r\n") // what it has missed, and what it has not
	s.send(stdio.Frame{Type: stdio.Stdin, Data: []byte("end\n")})
	if exit := s.until(""); exit.Code != 6 {
		t.Errorf("the workload ends with %+v, want 6", exit)
	}
	st := m.await("final", func(st wire.Status) bool { return st.Workload == wire.WorkloadExited })
	if st.Exit == nil || st.Exit.Code != 6 {
		t.Errorf("status = %+v", st)
	}
	m.awaitOff()
}
