package volar

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// spoken is a writer that calls then once text was written.
type spoken struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	text string
	then func()
}

func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Write(p)
	if s.then != nil && strings.Contains(s.buf.String(), s.text) {
		s.then()
		s.then = nil
	}
	return len(p), nil
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// TestForegroundSignals checks what becomes of signals: they are the
// workload's, until the user has no more patience.
func TestForegroundSignals(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   []string
		signal []os.Signal // when the workload says so, or at once
		on     string
		status int
		stdout string
	}{
		{"passed on", []string{"--name", "web", "alpine", "wait"}, []os.Signal{syscall.SIGTERM}, "waiting", 128 + 15, "waiting\ngot SIGTERM\n"},
		{"others too", []string{"--name", "web", "alpine", "wait"}, []os.Signal{syscall.SIGUSR1}, "waiting", 128 + 10, "waiting\ngot SIGUSR1\n"},
		{"the second kills", []string{"--rm", "--name", "web", "alpine", "wait", "stubborn"}, []os.Signal{os.Interrupt, os.Interrupt}, "waiting", 128 + 9, "waiting\n"},
		{"before there is a workload", []string{"--rm", "--name", "slow", "alpine", "wait"}, []os.Signal{os.Interrupt}, "", 128 + 2, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, cl := daemonFor(t, &httpapitest.Service{Boot: map[string]string{"slow": "starting"}})
			var to chan<- os.Signal
			send := func() {
				for _, s := range c.signal {
					to <- s
				}
			}
			cl.notify = func(ch chan<- os.Signal) func() {
				to = ch
				if c.on == "" {
					send()
				}
				return func() {}
			}
			out := &spoken{text: c.on, then: func() { send() }}
			cl.stdout = out
			status := cl.run(append([]string{"--host", cl.host, "run"}, c.args...))
			// What a stubborn workload says between two signals is its own affair.
			if got := strings.ReplaceAll(out.String(), "ignored SIGINT\n", ""); status != c.status || got != c.stdout {
				t.Errorf("run = %d, stdout %q, want %d and %q; stderr %q", status, got, c.status, c.stdout, cl.stderr)
			}
			vm, err := d.VM(t.Context(), d.request().Name)
			if d.request().AutoRemove != (api.CodeOf(err) == api.CodeNotFound) {
				t.Errorf("afterwards the VM is %+v, %v", vm, err)
			}
		})
	}
}

// TestForegroundInput checks that input reaches the workload, and that a
// workload that does not ask for it gets none.
func TestForegroundInput(t *testing.T) {
	_, c := daemonFor(t, &httpapitest.Service{})
	text := strings.Repeat("0123456789abcdef", 1<<14)
	c.stdin = strings.NewReader(text)
	if status := c.run([]string{"--host", c.host, "run", "--rm", "-i", "alpine", "cat"}); status != 0 || c.stdout.(*bytes.Buffer).String() != text {
		t.Errorf("run -i = %d, %d bytes of %d", status, c.stdout.(*bytes.Buffer).Len(), len(text))
	}
	c.stdin, c.stdout = strings.NewReader(text), &bytes.Buffer{}
	if status := c.run([]string{"--host", c.host, "run", "--rm", "alpine", "echo", "x"}); status != 0 || c.stdout.(*bytes.Buffer).String() != "x\n" {
		t.Errorf("run = %d, %q", status, c.stdout)
	}
	if rest, _ := io.ReadAll(c.stdin); len(rest) != len(text) {
		t.Errorf("run without -i reads %d bytes of input", len(text)-len(rest))
	}
}

// TestForegroundTerminal checks run -it: what is typed is the workload's, until
// the detach keys, which leave it running.
func TestForegroundTerminal(t *testing.T) {
	d, c := daemonFor(t, &httpapitest.Service{})
	master, slave := terminal(t, 80)
	out := &spoken{text: "hello", then: func() { _, _ = master.Write([]byte{0x10, 0x11}) }}
	c.stdin, c.stdout = slave, out
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	status := c.run([]string{"--host", c.host, "run", "--rm", "-it", "--name", "box", "alpine", "cat"})
	if want := "volar: detached: box goes on; volar attach box goes back to it\n"; status != 0 || c.stderr.(*bytes.Buffer).String() != want {
		t.Errorf("run -it = %d, stderr %q, want 0 and %q; stdout %q", status, c.stderr, want, out)
	}
	if vm, err := d.VM(t.Context(), "box"); err != nil || vm.Status != api.VMRunning || !vm.TTY || !vm.Stdin {
		t.Errorf("afterwards the VM is %+v, %v", vm, err)
	}
}
