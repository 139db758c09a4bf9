package transport_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/transport"
	"github.com/volantvm/volant/testdata/need"
)

// hybrid is a VMM's vsock socket whose nth connection is answered by the nth
// script, and all later ones by the last.
func hybrid(t *testing.T, scripts ...func(net.Conn)) (path string, tries *atomic.Int32) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "vsock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	tries = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := int(tries.Add(1))
			go func() {
				defer c.Close()
				line, err := bufio.NewReader(c).ReadString('\n')
				if err != nil || line != "CONNECT 1024\n" {
					t.Errorf("the client says %q, %v, want CONNECT 1024", line, err)
					return
				}
				scripts[min(n, len(scripts))-1](c)
			}()
		}
	}()
	return path, tries
}

// say answers with text, and then echoes.
func say(text string) func(net.Conn) {
	return func(c net.Conn) {
		io.WriteString(c, text)
		io.Copy(c, c)
	}
}

func hangUp(net.Conn) {}

func silent(c net.Conn) { io.Copy(io.Discard, c) }

// TestHybridListen: where the guest tells that it listens, it is not asked every
// few milliseconds, and answers at once.
func TestHybridListen(t *testing.T) {
	var up atomic.Bool
	path, tries := hybrid(t, func(c net.Conn) {
		if up.Load() {
			say("OK 5\n")(c)
		}
	})
	h := transport.NewHybridVsock(path)
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if fi, err := os.Stat(path + "_1025"); err != nil || fi.Mode()&os.ModeSocket == 0 || fi.Mode().Perm() != 0o666 {
		t.Errorf("the socket: %v, %v", fi, err)
	}
	told := make(chan time.Time, 1)
	time.AfterFunc(time.Second, func() {
		up.Store(true)
		told <- time.Now()
		if c, err := net.Dial("unix", transport.ReadySocket(path)); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	t.Logf("%d tries, %v after it was told", tries.Load(), time.Since(<-told))
	if n := tries.Load(); n < 2 || n > 12 { // every 20 ms would be 50 in the second
		t.Errorf("%d tries until the guest listened, want a few", n)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(transport.ReadySocket(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after Close: %v, want it gone", err)
	}
	// What a daemon left that was killed is no obstacle.
	if err := os.WriteFile(transport.ReadySocket(path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := transport.NewHybridVsock(path)
	if err := errors.Join(again.Listen(), again.Close()); err != nil {
		t.Error(err)
	}
}

// TestHybridFlood: a guest that tells without end makes nobody busy.
func TestHybridFlood(t *testing.T) {
	path, tries := hybrid(t, hangUp)
	h := transport.NewHybridVsock(path)
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if c, err := net.Dial("unix", transport.ReadySocket(path)); err == nil {
				c.Close()
			}
		}
	}()
	if _, err := h.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v, want DeadlineExceeded", err)
	}
	if n := tries.Load(); n > 60 {
		t.Errorf("%d tries in half a second, want one in 10 ms at most", n)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestHybridDial(t *testing.T) {
	tests := []struct {
		name    string
		scripts []func(net.Conn)
		first   string // what the stream begins with
		refused string
	}{
		{"accepted", []func(net.Conn){say("OK 5\n")}, "", ""},
		{"payload right behind the answer", []func(net.Conn){say("OK 5\nhello")}, "hello", ""},
		{"carriage return", []func(net.Conn){say("OK 5\r\nhello")}, "hello", ""},
		{"no listener yet", []func(net.Conn){hangUp, hangUp, say("OK 5\n")}, "", ""},
		{"device not active yet", []func(net.Conn){silent, say("OK 5\n")}, "", ""},
		{"refused", []func(net.Conn){say("NO\n")}, "", `"NO"`},
		{"endless answer", []func(net.Conn){say(strings.Repeat("O", 100))}, "", "longer than 32"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path, tries := hybrid(t, test.scripts...)
			h := transport.NewHybridVsock(path)
			defer h.Close()
			c, err := h.Dial(testContext(t))
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("Dial: %v, want %s in it", err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if n := int(tries.Load()); n != len(test.scripts) {
				t.Errorf("%d tries, want %d", n, len(test.scripts))
			}
			time.Sleep(20 * time.Millisecond) // a deadline left over would strike
			if _, err := io.WriteString(c, "!"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(test.first)+1)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != test.first+"!" {
				t.Errorf("stream = %q, %v, want %q", got, err, test.first+"!")
			}
		})
	}
}

func TestHybridGivesUp(t *testing.T) {
	for name, script := range map[string]func(net.Conn){"silent": silent, "no listener": hangUp} {
		path, _ := hybrid(t, script)
		h := transport.NewHybridVsock(path)
		defer h.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		if _, err := h.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial of a %s guest: %v, want DeadlineExceeded", name, err)
		}
	}
}

func TestHybridReset(t *testing.T) {
	path, _ := hybrid(t, say("OK 5\n"))
	h := transport.NewHybridVsock(path)
	ctx := testContext(t)
	c, err := h.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h.Reset()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a stream survived Reset")
	}
	c.Close()
	if err := echo(ctx, h.Dial, 1<<20); err != nil {
		t.Error(err)
	}
	h.Close()
	if _, err := h.Dial(ctx); err == nil {
		t.Error("Dial after Close succeeded")
	}
}

func TestVsock(t *testing.T) {
	const local = 1 // VMADDR_CID_LOCAL of vsock(7), served by the module vsock_loopback
	l, err := vsock.ListenContextID(local, wire.AgentPort, nil)
	if err != nil {
		need.Elsewhere(t, "this kernel has no vsock loopback: %v", err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	v := transport.NewVsock(local)
	defer v.Close()
	if err := echo(testContext(t), v.Dial, 1<<20); err != nil {
		t.Error(err)
	}
}
