package guest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

func runAttachable(t *testing.T, w wire.WorkloadConfig) *guestRun {
	t.Helper()
	return runGuest(t, w, func(s *fakeSys) {
		for _, p := range []string{"/bin/cat", "/bin/sleep", "/usr/bin/seq"} {
			s.linkProgram(t, p)
		}
	})
}

func attach(t *testing.T, g *guestRun) *clientSession {
	t.Helper()
	s := open(t, g.client, wire.PathAttach, nil)
	go s.read()
	return s
}

// TestAttachTerminal has a client that comes late, leaves, and comes back.
func TestAttachTerminal(t *testing.T) {
	script := `stty size; echo first; while read -r line; do echo "<$line>"; [ "$line" = size ] && stty size; [ "$line" = end ] && exit 6; done`
	g := runAttachable(t, wire.WorkloadConfig{Args: sh(script).Args, TTY: true, Stdin: true})
	g.await(t, wire.WorkloadRunning)
	time.Sleep(50 * time.Millisecond)

	s := attach(t, g)
	s.until(t, "24 80\r\nfirst\r\n")
	s.send(t, stdio.Frame{Type: stdio.Resize, Size: stdio.Size{Rows: 33, Cols: 99}})
	s.send(t, stdio.Frame{Type: stdio.Stdin, Data: []byte("size\n")})
	s.until(t, "<size>\r\n33 99\r\n")
	s.conn.Close()

	s, other := attach(t, g), attach(t, g)
	s.until(t, "first\r\n")
	s.send(t, stdio.Frame{Type: stdio.Stdin, Data: []byte("two\n")})
	s.until(t, "<two>\r\n")
	other.until(t, "<two>\r\n")
	other.send(t, stdio.Frame{Type: stdio.Stdin, Data: []byte("end\n")})
	for _, s := range []*clientSession{s, other} {
		if exit := s.wait(t); exit != (stdio.ExitStatus{Code: 6}) || !strings.HasSuffix(s.out.String(), "<end>\r\n") {
			t.Errorf("exit = %+v, output %q", exit, s.out.String())
		}
	}
	// And once more when all is over.
	s = attach(t, g)
	if exit := s.wait(t); exit.Code != 6 || !strings.Contains(s.out.String(), "<two>") {
		t.Errorf("after the end: exit = %+v, output %q", exit, s.out.String())
	}
	var logs []string
	resp, err := g.client.Get("http://agent" + wire.PathLogs)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	for line := range strings.Lines(string(b)) {
		logs = append(logs, line)
	}
	if !strings.Contains(strings.Join(logs, ""), `"data":"<two>"`) {
		t.Errorf("the logs have no line <two>: %q", logs)
	}
	g.over(t)
}

func TestAttachPipes(t *testing.T) {
	t.Run("filter", func(t *testing.T) {
		g := runAttachable(t, wire.WorkloadConfig{Args: sh("echo err >&2; cat; exit 9").Args, Stdin: true})
		s := attach(t, g)
		data := bytes.Repeat([]byte("\x00\xff0123456789\r\n"), 20_000)
		s.sendAll(t, data)
		if exit := s.wait(t); exit.Code != 9 || !bytes.Equal(s.out.Bytes(), data) || s.errOut.String() != "err\n" {
			t.Errorf("exit = %+v, %d bytes of %d came back, err %q", exit, s.out.Len(), len(data), s.errOut.String())
		}
		g.over(t)
	})
	t.Run("without input", func(t *testing.T) {
		g := runAttachable(t, wire.WorkloadConfig{Args: sh("cat; echo eof; sleep 0.5; exit 1").Args})
		s := attach(t, g)
		s.sendAll(t, make([]byte, 3*stdio.Window))
		if exit := s.wait(t); exit.Code != 1 || s.out.String() != "eof\n" {
			t.Errorf("exit = %+v, output %q", exit, s.out.String())
		}
	})
	t.Run("signal", func(t *testing.T) {
		g := runAttachable(t, wire.WorkloadConfig{Args: sh("trap 'echo int; exit 130' INT; echo up; while :; do sleep 0.01; done").Args})
		s := attach(t, g)
		s.until(t, "up\n")
		s.send(t, stdio.Frame{Type: stdio.Signal, Name: "SIGINT"})
		if exit := s.wait(t); exit.Code != 130 || s.out.String() != "up\nint\n" {
			t.Errorf("exit = %+v, output %q", exit, s.out.String())
		}
	})
	t.Run("restarts", func(t *testing.T) {
		counter := t.TempDir() + "/n"
		g := runAttachable(t, wire.WorkloadConfig{
			Args:    sh(`echo x >>` + counter + `; n=0; while read -r l; do n=$((n+1)); done <` + counter + `; echo run $n; [ $n = 3 ] && exit 0; exit 1`).Args,
			Restart: wire.RestartOnFailure,
		})
		s := attach(t, g)
		if exit := s.wait(t); exit.Code != 0 || s.out.String() != "run 1\nrun 2\nrun 3\n" {
			t.Errorf("exit = %+v, output %q", exit, s.out.String())
		}
	})
	t.Run("that cannot be started", func(t *testing.T) {
		g := runAttachable(t, wire.WorkloadConfig{Args: []string{"nope"}})
		s := attach(t, g)
		if exit := s.wait(t); exit.Code != 127 || !strings.Contains(exit.Error, `"nope"`) {
			t.Errorf("exit = %+v", exit)
		}
	})
}

// TestAttachSeesEverything has a workload that was made for a client and writes
// more than is kept before that comes, and one that reads slowly.
func TestAttachSeesEverything(t *testing.T) {
	g := runAttachable(t, wire.WorkloadConfig{Args: sh("seq 100000; exit 2").Args, Stdin: true})
	g.await(t, wire.WorkloadRunning)
	time.Sleep(300 * time.Millisecond)
	s := open(t, g.client, wire.PathAttach, nil)
	time.Sleep(300 * time.Millisecond)
	s.read()
	if exit := s.wait(t); exit.Code != 2 || strings.Count(s.out.String(), "\n") != 100000 || !strings.HasPrefix(s.out.String(), "1\n2\n") {
		t.Errorf("exit = %+v, %d lines", exit, strings.Count(s.out.String(), "\n"))
	}
}

func TestAttachRefusals(t *testing.T) {
	g := runAttachable(t, wire.WorkloadConfig{Args: sh("sleep 600").Args})
	for range wire.MaxAttached {
		attach(t, g)
	}
	s, resp := ask(t, g.client, wire.PathAttach, nil)
	if s != nil || resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one more = %s", resp.Status)
	}
}

// newTestHub is a hub and clients of it that read when told to.
func newTestHub() *hub { return newHub(discardLog(), func(int, syscall.Signal) error { return nil }) }

// TestHubKeepsTheLatest checks what a late client sees of much output, in big
// and in small pieces.
func TestHubKeepsTheLatest(t *testing.T) {
	for _, size := range []int{1, 100, 5000, 16 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			h := newTestHub()
			var all []byte
			for i := 0; len(all) < 4*hubBytes; i++ {
				p := bytes.Repeat([]byte{byte(i)}, size)
				h.add(stdio.Stdout, p)
				all = append(all, p...)
			}
			h.end(stdio.ExitStatus{Code: 3})
			c, err := h.join()
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for {
				_, data, exit := h.next(c, nil)
				if exit != nil {
					if exit.Code != 3 {
						t.Errorf("exit = %+v", exit)
					}
					break
				}
				got = append(got, data...)
				h.advance(c, len(data))
			}
			if !bytes.HasSuffix(all, got) || len(got) < hubBytes/2 || len(got) > hubBytes+16<<10 {
				t.Errorf("of %d bytes %d are kept, the latest: %v", len(all), len(got), bytes.HasSuffix(all, got))
			}
		})
	}
}

// TestHubCutsOff has a client that reads nothing: the workload waits so long
// and no longer, while another client reads all.
func TestHubCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestHub()
		near, far := net.Pipe()
		defer far.Close()
		slow, err := h.join()
		if err != nil {
			t.Fatal(err)
		}
		slow.conn = near
		quick, err := h.join()
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan int)
		go func() {
			n := 0
			for {
				_, data, exit := h.next(quick, nil)
				if exit != nil {
					got <- n
					return
				}
				n += len(data)
				h.advance(quick, len(data))
			}
		}()
		start := time.Now()
		for range 64 {
			h.add(stdio.Stdout, make([]byte, 16<<10))
		}
		if took := time.Since(start); took != stallTimeout {
			t.Errorf("the workload waited %v, want %v", took, stallTimeout)
		}
		h.end(stdio.ExitStatus{})
		if n := <-got; n != 1<<20 {
			t.Errorf("the client that reads got %d bytes, want %d", n, 1<<20)
		}
		if stream, data, exit := h.next(slow, nil); data != nil || exit != nil {
			t.Errorf("the client that was cut off is given %v, %d bytes, %v", stream, len(data), exit)
		}
		if _, err := near.Write([]byte{1}); err == nil {
			t.Error("a write to the client that was cut off still waits")
		}
		near.Close()
	})
}

// TestHubHolds has a workload that was made for a client: it waits for the
// first, but not for ever, and not when it has ended.
func TestHubHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestHub()
		h.interactive()
		start := time.Now()
		for range 16 {
			h.add(stdio.Stdout, make([]byte, 16<<10))
		}
		if took := time.Since(start); took != holdTimeout {
			t.Errorf("without a client the workload waited %v, want %v", took, holdTimeout)
		}

		h = newTestHub()
		h.interactive()
		start = time.Now()
		time.AfterFunc(time.Second, h.finish)
		for range 16 {
			h.add(stdio.Stdout, make([]byte, 16<<10))
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("a workload that ends waited %v, want %v", took, time.Second)
		}
	})
}

// TestHubExpects has a workload whose maker is about to attach: nothing of what
// it wrote is lost until then, also when it has ended meanwhile.
func TestHubExpects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestHub()
		h.expect()
		time.AfterFunc(time.Second, h.finish)
		want := 16 * 16 << 10
		for range 16 {
			h.add(stdio.Stdout, make([]byte, 16<<10))
		}
		h.end(stdio.ExitStatus{})
		c, err := h.join()
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for {
			_, data, over := h.next(c, nil)
			if over != nil {
				break
			}
			got += len(data)
			h.advance(c, len(data))
		}
		if got != want {
			t.Errorf("who came late was given %d bytes, want all %d", got, want)
		}
	})
}
