package volar

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
	"github.com/volantvm/volant/testdata/need"
)

// withVM runs a daemon with a VM called web, and returns its address.
func withVM(t *testing.T, svc *httpapitest.Service, tty bool) (host string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "v.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ln, err := httpapi.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- httpapi.New(httpapi.Config{Service: svc, Version: "1.2.3"}).Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	cl, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("archive")))
	if _, err := cl.PutBlob(t.Context(), sum, strings.NewReader("archive"), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.InstallPlugin(t.Context(), api.Manifest{
		Name: "hello", Version: "1", Initramfs: &api.Initramfs{URL: "app.cpio", Checksum: sum},
		Resources: api.Resources{CPUCores: 1, MemoryMB: 64}, Workload: &api.Workload{Type: api.WorkloadExec, Entrypoint: []string{"/app"}},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.CreateVM(t.Context(), api.VMCreate{Name: "web", Plugin: "hello", TTY: tty, Stdin: tty}, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	return socket
}

// terminal is a user's: what is typed into near is read from far.
func openTerminal(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { near.Close() })
	conn, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var errno syscall.Errno
	if err := conn.Control(func(n uintptr) {
		if errno, _ = unix.IoctlSetPointerInt(int(n), unix.TIOCSPTLCK, 0).(syscall.Errno); errno == 0 {
			var r uintptr
			r, _, errno = unix.Syscall(unix.SYS_IOCTL, n, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK)
			fd = int(r)
		}
	}); err != nil || errno != 0 {
		need.Missing(t, "pseudo-terminals: %v, %v", err, errno)
	}
	far = os.NewFile(uintptr(fd), "tty")
	t.Cleanup(func() { far.Close() })
	return near, far
}

// modes returns a terminal's settings.
func modes(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Termios
	if err := conn.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			now = *v
		}
	}); err != nil {
		t.Fatal(err)
	}
	return now
}

func setSize(t *testing.T, f *os.File, rows, cols uint16) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}); err != nil {
		t.Fatal(err)
	}
}

// guestOfKeys records what a session is told, and ends with the input "end".
type guestOfKeys struct {
	mu    sync.Mutex
	keys  []byte
	sizes []stdio.Size
	names []string
	exec  *api.Exec
}

func (g *guestOfKeys) session(_ string, e *api.Exec, r *stdio.Reader, w *stdio.Writer) {
	g.mu.Lock()
	g.exec = e
	g.mu.Unlock()
	_ = w.Write(stdio.Frame{Type: stdio.Stdout, Data: []byte("ready")})
	for {
		f, err := r.Next()
		if err != nil {
			return
		}
		g.mu.Lock()
		over := false
		switch f.Type {
		case stdio.Stdin:
			g.keys = append(g.keys, f.Data...)
			over = bytes.HasSuffix(g.keys, []byte("end"))
		case stdio.Resize:
			g.sizes = append(g.sizes, f.Size)
		case stdio.Signal:
			g.names = append(g.names, f.Name)
			over = f.Name == "SIGQUIT"
		}
		g.mu.Unlock()
		if f.Type == stdio.Stdin {
			_ = w.Write(stdio.Frame{Type: stdio.Taken, N: len(f.Data)})
		}
		if over {
			_ = w.Write(stdio.Frame{Type: stdio.Exit, Exit: stdio.ExitStatus{Code: 42, Error: "said\x1b[2J"}})
			return
		}
	}
}

func (g *guestOfKeys) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		done := ok()
		g.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s; keys %q, sizes %v, signals %v", what, g.keys, g.sizes, g.names)
		}
	}
}

// syncWriter is a stream that is read while it is written.
type syncWriter struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *syncWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestTerminalSession types keys into a session: all of them reach the process,
// but the detach keys, and the terminal is afterwards as it was.
func TestTerminalSession(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		typed  string
		keys   string // that the process got
		status int
		stderr string
	}{
		"exec":             {[]string{"exec", "-it", "web", "sh"}, "\x03\x1a\r\x10\x11 end", "\x03\x1a\r\x10\x11 end", 42, "volar: said\uFFFD[2J\n"},
		"attach":           {[]string{"attach", "web"}, "\x03a\x10b\x10\x10\x10 end", "\x03a\x10b\x10\x10\x10 end", 42, "volar: said\uFFFD[2J\n"},
		"attach and leave": {[]string{"attach", "web"}, "ls\r\x10\x11more", "ls\r", 0, "volar: detached: web goes on; volar attach web goes back to it\n"},
	} {
		t.Run(name, func(t *testing.T) {
			g := &guestOfKeys{}
			host := withVM(t, &httpapitest.Service{Session: g.session}, true)
			near, far := openTerminal(t)
			setSize(t, near, 31, 97)
			before := modes(t, far)
			var out, errOut syncWriter
			status := make(chan int, 1)
			go func() {
				status <- Main(t.Context(), append([]string{"--host", host}, tc.args...), far, &out, &errOut, "1.2.3")
			}()
			g.eventually(t, "the size", func() bool { return len(g.sizes) > 0 && g.sizes[0] == stdio.Size{Rows: 31, Cols: 97} })
			if now := modes(t, far); now.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
				t.Error("the terminal is not in raw mode")
			}
			setSize(t, near, 40, 120)
			if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
				t.Fatal(err)
			}
			g.eventually(t, "the new size", func() bool { return g.sizes[len(g.sizes)-1] == stdio.Size{Rows: 40, Cols: 120} })
			if _, err := near.Write([]byte(tc.typed)); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-status:
				if got != tc.status {
					t.Errorf("exit status %d, want %d", got, tc.status)
				}
			case <-time.After(time.Minute):
				t.Fatal("the session is not over within a minute")
			}
			g.eventually(t, "the keys "+tc.keys, func() bool { return string(g.keys) == tc.keys })
			if out.String() != "ready" || errOut.String() != tc.stderr {
				t.Errorf("stdout %q, stderr %q, want %q", out.String(), errOut.String(), tc.stderr)
			}
			if after := modes(t, far); after != before {
				t.Errorf("the terminal was left as %+v, was %+v", after, before)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.exec != nil && (!g.exec.TTY || !g.exec.Stdin || g.exec.Cols != 97) {
				t.Errorf("asked for %+v", g.exec)
			}
		})
	}
}

// TestAttachWithoutInput leaves a workload that takes no input by the keys all the
// same; what else is typed is nobody's.
func TestAttachWithoutInput(t *testing.T) {
	g := &guestOfKeys{}
	host := withVM(t, &httpapitest.Service{Session: g.session}, false)
	near, far := openTerminal(t)
	before := modes(t, far)
	var out, errOut syncWriter
	status := make(chan int, 1)
	go func() {
		status <- Main(t.Context(), []string{"--host", host, "attach", "web"}, far, &out, &errOut, "1.2.3")
	}()
	g.eventually(t, "what it writes", func() bool { return out.String() == "ready" })
	if now := modes(t, far); now.Lflag&unix.ECHO != 0 || now.Lflag&unix.ISIG == 0 {
		t.Errorf("the terminal is %+v, want it to show nothing and to make signals", now)
	}
	if _, err := near.Write([]byte("ls\r\x10x\x10\x11more")); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-status:
		if want := "volar: detached: web goes on; volar attach web goes back to it\n"; got != 0 || errOut.String() != want {
			t.Errorf("exit status %d, stderr %q, want %q", got, errOut.String(), want)
		}
	case <-time.After(time.Minute):
		t.Fatal("the session is not over within a minute")
	}
	if after := modes(t, far); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.keys) > 0 {
		t.Errorf("the workload was given %q", g.keys)
	}
}

// TestSessionSignals sends signals to volar: they are the command's, and a second
// interrupt ends the session.
func TestSessionSignals(t *testing.T) {
	for name, tc := range map[string]struct {
		sigs   []unix.Signal
		want   string
		status int
	}{
		"passed on":   {[]unix.Signal{unix.SIGUSR1, unix.SIGINT, unix.SIGQUIT}, "SIGUSR1 SIGINT SIGQUIT", 42},
		"interrupted": {[]unix.Signal{unix.SIGINT, unix.SIGINT}, "SIGINT", exitInterrupted},
	} {
		t.Run(name, func(t *testing.T) {
			g := &guestOfKeys{}
			host := withVM(t, &httpapitest.Service{Session: g.session}, false)
			var out, errOut syncWriter
			status := make(chan int, 1)
			go func() {
				status <- Main(t.Context(), []string{"--host", host, "exec", "web", "true"}, strings.NewReader(""), &out, &errOut, "1.2.3")
			}()
			for out.String() != "ready" {
				time.Sleep(time.Millisecond)
			}
			for i, sig := range tc.sigs {
				if err := unix.Kill(os.Getpid(), sig); err != nil {
					t.Fatal(err)
				}
				if i < len(tc.sigs)-1 {
					g.eventually(t, "a signal", func() bool { return len(g.names) == i+1 })
				}
			}
			if got := <-status; got != tc.status {
				t.Errorf("exit status %d, want %d; stderr %q", got, tc.status, errOut.String())
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if got := strings.Join(g.names, " "); got != tc.want {
				t.Errorf("the command got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestDetachReader feeds keys one by one and all at once.
func TestDetachReader(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		"abc":               "abc",
		"a\x10b":            "a\x10b",
		"\x10\x10\x10b":     "\x10\x10\x10b",
		"a\x10\x11b":        "a",
		"\x10\x10\x11b":     "\x10",
		"\x11\x10a\x10\x11": "\x11\x10a",
	} {
		for _, size := range []int{1, 2, 100} {
			left := false
			d := &detachReader{r: strings.NewReader(in), leave: func() { left = true }}
			var got []byte
			for buf := make([]byte, size); ; {
				n, err := d.Read(buf)
				got = append(got, buf[:n]...)
				if err == io.EOF { //nolint:errorlint // it is bare
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if string(got) != want || left != strings.Contains(in, "\x10\x11") {
				t.Errorf("%q in pieces of %d became %q, left %v; want %q", in, size, got, left, want)
			}
		}
	}
}
