package transport_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/transport"
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
		t.Skipf("this kernel has no vsock loopback: %v", err)
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
