package guest

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

// clientSession is a session as its client sees it.
type clientSession struct {
	conn io.ReadWriteCloser
	r    *stdio.Reader
	w    *stdio.Writer

	mu     sync.Mutex
	taken  int
	out    bytes.Buffer
	errOut bytes.Buffer
	more   chan struct{} // one place
	end    chan struct{} // closed after exit and err were set
	exit   stdio.ExitStatus
	err    error
}

// ask asks for a session and returns the response, which is no switch when s is
// nil.
func ask(t testing.TB, c *http.Client, path string, body any) (s *clientSession, resp *http.Response) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://agent"+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", stdio.Protocol)
	resp, err = c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Cleanup(func() { resp.Body.Close() })
		return nil, resp
	}
	conn := resp.Body.(io.ReadWriteCloser)
	t.Cleanup(func() { conn.Close() })
	return &clientSession{
		conn: conn, r: stdio.NewReader(bufio.NewReader(conn)), w: stdio.NewWriter(conn),
		more: make(chan struct{}, 1), end: make(chan struct{}),
	}, resp
}

// open is ask for a session that is granted; read reads it.
func open(t testing.TB, c *http.Client, path string, body any) *clientSession {
	t.Helper()
	s, resp := ask(t, c, path, body)
	if s == nil {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("POST %s = %s: %s", path, resp.Status, b)
	}
	return s
}

// read reads to the end.
func (s *clientSession) read() {
	defer close(s.end)
	for {
		f, err := s.r.Next()
		if err != nil {
			s.err = err
			return
		}
		s.mu.Lock()
		switch f.Type {
		case stdio.Stdout:
			s.out.Write(f.Data)
		case stdio.Stderr:
			s.errOut.Write(f.Data)
		case stdio.Taken:
			s.taken += f.N
		case stdio.Exit:
			s.exit = f.Exit
			// It is the last thing sent.
			if f, err := s.r.Next(); err == nil {
				s.err = fmt.Errorf("after the exit status comes %v", f.Type)
			}
		default:
			s.err = fmt.Errorf("the guest sent %v", f.Type)
		}
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
		if f.Type == stdio.Exit {
			return
		}
	}
}

// wait waits for the end and returns the status.
func (s *clientSession) wait(t testing.TB) stdio.ExitStatus {
	t.Helper()
	select {
	case <-s.end:
	case <-time.After(time.Minute):
		t.Fatal("the session is not over within a minute")
	}
	if s.err != nil {
		t.Errorf("the session broke: %v", s.err)
	}
	return s.exit
}

// until waits until stdout has text.
func (s *clientSession) until(t testing.TB, text string) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		s.mu.Lock()
		got := s.out.String()
		s.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-s.more:
		case <-s.end:
			t.Fatalf("the session ended with %+v, %v; output %q has no %q", s.exit, s.err, got, text)
		case <-late:
			t.Fatalf("after a minute the output %q has no %q", got, text)
		}
	}
}

func (s *clientSession) send(t testing.TB, f stdio.Frame) {
	t.Helper()
	if err := s.w.Write(f); err != nil {
		t.Fatal(err)
	}
}

// sendAll sends input with respect for the window, and its end.
func (s *clientSession) sendAll(t testing.TB, data []byte) {
	t.Helper()
	sent := 0
	for sent < len(data) {
		s.mu.Lock()
		room := stdio.Window - (sent - s.taken)
		s.mu.Unlock()
		n := min(room, len(data)-sent)
		if n == 0 {
			select {
			case <-s.more:
			case <-s.end:
				t.Errorf("the session ended after %d bytes of input", sent)
				return
			}
			continue
		}
		if err := s.w.Write(stdio.Frame{Type: stdio.Stdin, Data: data[sent : sent+n]}); err != nil {
			t.Error(err)
			return
		}
		sent += n
	}
	if err := s.w.Write(stdio.Frame{Type: stdio.StdinClose}); err != nil {
		t.Error(err)
	}
}

// runIdle runs a guest with programs of the host beside an idle workload.
func runIdle(t *testing.T) *guestRun {
	t.Helper()
	g := runGuest(t, wire.WorkloadConfig{
		Args: []string{"sh", "-c", "exec sleep 600"}, Env: []string{"FROM=workload", "WHO=workload"}, Workdir: "/tmp",
	}, func(s *fakeSys) {
		for _, p := range []string{"/bin/cat", "/bin/sleep", "/usr/bin/seq"} {
			s.linkProgram(t, p)
		}
		s.put(t, "/bin/data", "no program", 0o644)
		s.put(t, "/etc/passwd", "web:x:12:34::/home/web:/bin/sh\n", 0o644)
	})
	g.await(t, wire.WorkloadRunning)
	return g
}

func run(t testing.TB, g *guestRun, e wire.Exec) (out, errOut string, exit stdio.ExitStatus) {
	t.Helper()
	s := open(t, g.client, wire.PathExec, e)
	s.read()
	exit = s.wait(t)
	return s.out.String(), s.errOut.String(), exit
}

func sh(script string) wire.Exec { return wire.Exec{Args: []string{"sh", "-c", script}} }

func TestExec(t *testing.T) {
	g := runIdle(t)
	for _, tc := range []struct {
		name        string
		e           wire.Exec
		out, errOut string
		exit        stdio.ExitStatus
	}{
		{"success", sh("echo out; echo err >&2"), "out\n", "err\n", stdio.ExitStatus{}},
		{"status", sh("exit 3"), "", "", stdio.ExitStatus{Code: 3}},
		{"signal", sh("kill -9 $$"), "", "", stdio.ExitStatus{Code: 137, Signal: "SIGKILL"}},
		{"not found", wire.Exec{Args: []string{"nope"}}, "", "", stdio.ExitStatus{Code: 127, Error: `command "nope" is in none`}},
		{"no such file", wire.Exec{Args: []string{"/nope"}}, "", "", stdio.ExitStatus{Code: 127, Error: `command "/nope"`}},
		{"not executable", wire.Exec{Args: []string{"/bin/data"}}, "", "", stdio.ExitStatus{Code: 126, Error: "not executable"}},
		{"a directory", wire.Exec{Args: []string{"/bin"}}, "", "", stdio.ExitStatus{Code: 126, Error: "is a directory"}},
		{"unknown user", wire.Exec{Args: []string{"sh"}, User: "bob"}, "", "", stdio.ExitStatus{Code: 125, Error: `user "bob"`}},
		{"no such workdir", wire.Exec{Args: []string{"sh"}, Workdir: "/nowhere"}, "", "", stdio.ExitStatus{Code: 125, Error: "working directory /nowhere"}},
		{"the workload's surroundings", sh("pwd; echo $FROM $WHO $HOSTNAME ${TERM-none}"), "/tmp\nworkload workload web none\n", "", stdio.ExitStatus{}},
		{"its own surroundings", wire.Exec{Args: sh("pwd; echo $FROM $WHO $HOME; id -u; id -g").Args, Env: []string{"WHO=exec"}, User: "web", Workdir: "/etc"},
			"/etc\nworkload exec /home/web\n12\n34\n", "", stdio.ExitStatus{}},
		{"no input", sh("cat; echo done"), "done\n", "", stdio.ExitStatus{}},
		{"a session of its own", sh("read -r pid comm state ppid pgrp sid rest </proc/$$/stat; [ $pid = $sid ] && echo yes"), "yes\n", "", stdio.ExitStatus{}},
		{"a terminal", wire.Exec{Args: sh("stty size; tty >/dev/null && echo $TERM; echo err >&2; : </dev/tty").Args, TTY: true}, "24 80\r\nxterm\r\nerr\r\n", "", stdio.ExitStatus{}},
		{"a terminal with a size", wire.Exec{Args: sh("stty size; echo $TERM").Args, TTY: true, Rows: 50, Cols: 132, Term: "vt220"}, "50 132\r\nvt220\r\n", "", stdio.ExitStatus{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, errOut, exit := run(t, g, tc.e)
			if out != tc.out || errOut != tc.errOut {
				t.Errorf("output %q and %q, want %q and %q", out, errOut, tc.out, tc.errOut)
			}
			if exit.Code != tc.exit.Code || exit.Signal != tc.exit.Signal || !strings.Contains(exit.Error, tc.exit.Error) || (tc.exit.Error == "") != (exit.Error == "") {
				t.Errorf("exit = %+v, want %+v", exit, tc.exit)
			}
		})
	}
}

func TestExecRefusals(t *testing.T) {
	g := runIdle(t)
	for _, tc := range []struct {
		name, want string
		code       int
		e          any
	}{
		{"no command", "args", http.StatusBadRequest, wire.Exec{}},
		{"variable", "env", http.StatusBadRequest, wire.Exec{Args: []string{"sh"}, Env: []string{"=x"}}},
		{"garbage", "body", http.StatusBadRequest, "x"},
		{"too long", "too large", http.StatusBadRequest, wire.Exec{Args: []string{strings.Repeat("x", wire.MaxExec)}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, resp := ask(t, g.client, wire.PathExec, tc.e)
			if s != nil {
				t.Fatal("it was granted")
			}
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.code || !bytes.Contains(b, []byte(tc.want)) {
				t.Errorf("answer = %s: %s, want %d with %q", resp.Status, b, tc.code, tc.want)
			}
		})
	}
	t.Run("no upgrade", func(t *testing.T) {
		for _, path := range []string{wire.PathExec, wire.PathAttach} {
			resp, err := g.client.Post("http://agent"+path, "", strings.NewReader(`{"args":["sh"]}`))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(b, []byte(stdio.Protocol)) {
				t.Errorf("%s = %s: %s", path, resp.Status, b)
			}
		}
	})
	t.Run("too many", func(t *testing.T) {
		var open []*clientSession
		for range wire.MaxExecs {
			s, resp := ask(t, g.client, wire.PathExec, wire.Exec{Args: []string{"cat"}, Stdin: true})
			if s == nil {
				t.Fatalf("number %d: %s", len(open), resp.Status)
			}
			open = append(open, s)
		}
		if s, resp := ask(t, g.client, wire.PathExec, sh("exit 0")); s != nil || resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("one more = %s", resp.Status)
		}
		for _, s := range open {
			go s.read()
			s.send(t, stdio.Frame{Type: stdio.StdinClose})
		}
		for _, s := range open {
			if exit := s.wait(t); exit.Code != 0 {
				t.Errorf("exit = %+v", exit)
			}
		}
		if _, _, exit := run(t, g, sh("exit 7")); exit.Code != 7 {
			t.Errorf("after they have ended, exit = %+v", exit)
		}
	})
}

// TestExecBinary sends bytes of every kind through a process, in both
// directions at once.
func TestExecBinary(t *testing.T) {
	g := runIdle(t)
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data) // never fails
	s := open(t, g.client, wire.PathExec, wire.Exec{Args: []string{"cat"}, Stdin: true})
	go s.read()
	s.sendAll(t, data)
	if exit := s.wait(t); exit != (stdio.ExitStatus{}) {
		t.Errorf("exit = %+v", exit)
	}
	if sha256.Sum256(s.out.Bytes()) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back as %d others", len(data), s.out.Len())
	}
}

// TestExecUnwantedInput sends input to a process that closes its own, and to
// one that has none: nobody waits for ever.
func TestExecUnwantedInput(t *testing.T) {
	g := runIdle(t)
	for name, e := range map[string]wire.Exec{
		"closed": {Args: sh("exec <&-; sleep 0.3; echo end").Args, Stdin: true},
		"none":   sh("sleep 0.3; echo end"),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, g.client, wire.PathExec, e)
			go s.read()
			time.Sleep(100 * time.Millisecond)
			s.sendAll(t, make([]byte, 4*stdio.Window))
			if exit := s.wait(t); exit.Code != 0 || s.out.String() != "end\n" {
				t.Errorf("exit = %+v, output %q", exit, s.out.String())
			}
		})
	}
}

// TestExecBackpressure has a client that reads nothing for a while: the process
// must have been held up, and nothing lost.
func TestExecBackpressure(t *testing.T) {
	g := runIdle(t)
	mark := filepath.Join(t.TempDir(), "done")
	s := open(t, g.client, wire.PathExec, sh("seq 400000; touch "+mark))
	time.Sleep(500 * time.Millisecond)
	if _, err := os.Stat(mark); err == nil {
		t.Error("the process wrote everything though nobody read")
	}
	s.read()
	if exit := s.wait(t); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	if got := s.out.String(); !strings.HasSuffix(got, "\n399999\n400000\n") || strings.Count(got, "\n") != 400000 {
		t.Errorf("%d lines came, want 400000", strings.Count(got, "\n"))
	}
}

// TestExecSignals signals a process, behind input that it does not take.
func TestExecSignals(t *testing.T) {
	g := runIdle(t)
	s := open(t, g.client, wire.PathExec, wire.Exec{Args: sh("trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.01; done").Args, Stdin: true})
	go s.read()
	s.until(t, "up\n")
	s.send(t, stdio.Frame{Type: stdio.Stdin, Data: make([]byte, stdio.Window)}) // as much as a pipe holds
	s.send(t, stdio.Frame{Type: stdio.Signal, Name: "SIGNOTHING"})
	s.send(t, stdio.Frame{Type: stdio.Signal, Name: "SIGUSR1"})
	if exit := s.wait(t); exit.Code != 5 || s.out.String() != "up\ngot\n" {
		t.Errorf("exit = %+v, output %q", exit, s.out.String())
	}
}

func TestExecTerminal(t *testing.T) {
	g := runIdle(t)
	// No trap for the signal of a new size: it would end the shell's read.
	script := `echo up; while read -r line; do echo "<$line>"; stty size; done; echo end`
	s := open(t, g.client, wire.PathExec, wire.Exec{Args: sh(script).Args, TTY: true, Stdin: true})
	go s.read()
	s.until(t, "up\r\n")
	s.send(t, stdio.Frame{Type: stdio.Resize, Size: stdio.Size{Rows: 40, Cols: 100}})
	s.send(t, stdio.Frame{Type: stdio.Stdin, Data: []byte("hello\n")})
	s.until(t, "<hello>\r\n")
	s.until(t, "40 100\r\n")
	s.send(t, stdio.Frame{Type: stdio.StdinClose})
	if exit := s.wait(t); exit.Code != 0 || !strings.HasSuffix(s.out.String(), "end\r\n") {
		t.Errorf("exit = %+v, output %q", exit, s.out.String())
	}

	s = open(t, g.client, wire.PathExec, wire.Exec{Args: sh("echo up; exec cat").Args, TTY: true, Stdin: true})
	go s.read()
	s.until(t, "up\r\n")
	s.send(t, stdio.Frame{Type: stdio.Stdin, Data: []byte{3}}) // ctrl-c
	if exit := s.wait(t); exit.Signal != "SIGINT" || exit.Code != 130 {
		t.Errorf("after ctrl-c, exit = %+v", exit)
	}
}

// TestExecLeavesChildren has processes that leave their output to a child.
func TestExecLeavesChildren(t *testing.T) {
	g := runIdle(t)
	for _, tty := range []bool{false, true} {
		e := sh("trap '' HUP; sleep 60 & echo $!; exit 4")
		e.TTY = tty
		start := time.Now()
		out, _, exit := run(t, g, e)
		if exit.Code != 4 || time.Since(start) > 20*time.Second {
			t.Errorf("tty %v: exit = %+v after %v", tty, exit, time.Since(start))
		}
		var pid int
		if n, err := fmt.Sscan(out, &pid); n != 1 || err != nil {
			t.Fatalf("tty %v: output %q", tty, out)
		}
		if err := unix.Kill(pid, 0); err != nil {
			t.Errorf("tty %v: the child is gone", tty)
		}
		_ = processes{}.Kill(pid, unix.SIGKILL)
	}
	// And one whose child never stops writing.
	s := open(t, g.client, wire.PathExec, sh("(while :; do echo y; done) & echo pid $!; exit 4"))
	s.read()
	if exit := s.wait(t); exit.Code != 4 {
		t.Errorf("exit = %+v", exit)
	}
}

// TestExecDisconnect leaves processes alone: they must go, soon or by force.
func TestExecDisconnect(t *testing.T) {
	g := runIdle(t)
	for name, e := range map[string]wire.Exec{
		"hangs up":        sh("echo $$; sleep 600"),
		"on a terminal":   {Args: sh("echo $$; sleep 600").Args, TTY: true},
		"while it writes": sh("echo $$; while :; do echo yyyyyyyyyyyyyyyyyyyyyyyy; done"),
		"with its input":  {Args: sh("echo $$; exec sleep 600").Args, Stdin: true},
		"ignores SIGHUP":  sh("trap '' HUP; echo $$; while :; do sleep 0.05; done"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, g.client, wire.PathExec, e)
			var pid int
			f, err := s.r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Sscan(string(f.Data), &pid); err != nil {
				t.Fatal(err)
			}
			s.conn.Close()
			for deadline := time.Now().Add(time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the process is still there")
				}
			}
		})
	}
}

// TestExecAtTheEnd has a guest that ends while a command runs.
func TestExecAtTheEnd(t *testing.T) {
	g := runIdle(t)
	s := open(t, g.client, wire.PathExec, sh("trap '' TERM HUP; echo up; while :; do sleep 0.05; done"))
	go s.read()
	s.until(t, "up\n")
	resp, err := g.client.Post("http://agent"+wire.PathShutdown, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if exit := s.wait(t); exit.Code != 137 {
		t.Errorf("exit = %+v, want 137", exit)
	}
	g.over(t)
}

func TestExecWithoutWorkload(t *testing.T) {
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "exit 3"}}, nil)
	g.await(t, wire.WorkloadExited)
	s, resp := ask(t, g.client, wire.PathExec, sh("exit 0"))
	if s != nil {
		t.Fatal("a command was run")
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusConflict || !bytes.Contains(b, []byte("the workload is exited")) {
		t.Errorf("answer = %s: %s", resp.Status, b)
	}
}

// TestHostileSession sends what no client sends: the session ends, the guest
// goes on.
func TestHostileSession(t *testing.T) {
	g := runIdle(t)
	for name, send := range map[string]func(*clientSession) error{
		"garbage":         func(s *clientSession) error { _, err := io.WriteString(s.conn, "GET / HTTP/1.1\r\n\r\n"); return err },
		"a guest's frame": func(s *clientSession) error { return s.w.Write(stdio.Frame{Type: stdio.Stdout}) },
		"beyond its window": func(s *clientSession) error {
			// The pipe takes 64 KiB, the window as much; the process none.
			return s.w.Write(stdio.Frame{Type: stdio.Stdin, Data: make([]byte, 4*stdio.Window)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, g.client, wire.PathExec, wire.Exec{Args: []string{"sleep", "600"}, Stdin: true})
			if err := send(s); err != nil && name != "beyond its window" {
				t.Fatal(err)
			}
			s.read()
			if <-s.end; s.err == nil {
				t.Errorf("the session ended in order: %+v", s.exit)
			}
		})
	}
	if _, _, exit := run(t, g, sh("exit 9")); exit.Code != 9 {
		t.Errorf("afterwards, exit = %+v", exit)
	}
}

// TestExecSoak runs commands from many clients at once; no status may be lost
// or another's.
func TestExecSoak(t *testing.T) {
	g := runIdle(t)
	total := 600
	if os.Getenv("VOLANT_BENCH") != "" {
		total = 10_000
	}
	const clients = 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	start := time.Now()
	for c := range clients {
		wg.Go(func() {
			for i := c; i < total; i += clients {
				s := open(t, g.client, wire.PathExec, sh(fmt.Sprintf("echo %d; exit %d", i, i%200)))
				s.read()
				if s.err != nil || s.exit.Code != i%200 || s.out.String() != fmt.Sprintf("%d\n", i) {
					mu.Lock()
					failed = append(failed, fmt.Errorf("number %d: %+v, %q, %w", i, s.exit, s.out.String(), errors.Join(s.err)))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d commands by %d clients in %v", total, clients, time.Since(start))
	if len(failed) > 0 {
		t.Errorf("%d of %d failed, such as %v", len(failed), total, failed[0])
	}
}

// TestTerminalsLastWords wants what is written to a terminal just before its end.
func TestTerminalsLastWords(t *testing.T) {
	lost := 0
	for i := range 2000 {
		near, far, err := processes{}.Terminal(0)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = far.WriteString("now ") // has the other side read
			for range 50 * (i % 100) {
				runtime.KeepAlive(i)
			}
			_, _ = far.WriteString("the end")
			far.Close()
		}()
		var got []byte
		if err := copyOutput(near, func(b []byte) error { got = append(got, b...); return nil }); err != nil {
			t.Fatal(err)
		}
		if string(got) != "now the end" {
			lost++
		}
		near.Close()
	}
	if lost > 0 {
		t.Errorf("of 2,000 terminals %d lost what was written last", lost)
	}
}
