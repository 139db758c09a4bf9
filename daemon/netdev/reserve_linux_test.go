package netdev_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/daemon/netdev"
)

// TestReserve keeps ports and sees whether others can have them.
func TestReserve(t *testing.T) {
	listen := func(t *testing.T, network, addr string) (io.Closer, error) {
		t.Helper()
		if network == "udp4" {
			return net.ListenPacket(network, addr)
		}
		return net.Listen(network, addr)
	}
	for _, protocol := range []string{"tcp", "udp"} {
		t.Run(protocol, func(t *testing.T) {
			n := newNetwork(t, testConfig())
			network := protocol + "4"
			ctx := t.Context()
			p := everywhere(8080, 80, protocol)
			reserve := func(vm string, ps ...netdev.Publish) {
				t.Helper()
				if err := n.Reserve(ctx, vm, ps); err != nil {
					t.Fatal(err)
				}
			}
			free := func(what, addr string) {
				t.Helper()
				c, err := listen(t, network, addr)
				if err != nil {
					t.Errorf("%s: listen on %s: %v", what, addr, err)
					return
				}
				c.Close()
			}
			taken := func(what, addr string) {
				t.Helper()
				if c, err := listen(t, network, addr); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("%s: listen on %s = %v, want %v", what, addr, err, unix.EADDRINUSE)
					if err == nil {
						c.Close()
					}
				}
			}
			inUse := func(err error, text string) {
				t.Helper()
				if !errors.Is(err, netdev.ErrPortInUse) || !strings.Contains(err.Error(), text) {
					t.Errorf("error is %v, want %v with %q", err, netdev.ErrPortInUse, text)
				}
			}

			free("before", "127.0.0.1:8080")
			reserve("a", p)
			reserve("a", p) // again
			taken("reserved everywhere", "127.0.0.1:8080")
			taken("reserved everywhere", "0.0.0.0:8080")
			inUse(n.Reserve(ctx, "b", []netdev.Publish{on("127.0.0.1", 8080, 81, protocol)}), "publish 127.0.0.1:8080/"+protocol+": in use on the host, by VM a")
			inUse(n.CheckPort(p), "by VM a")
			if protocol == "tcp" {
				if _, err := net.DialTimeout("tcp4", "127.0.0.1:8080", askTimeout); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("dial of a kept port without rules = %v, want %v", err, unix.ECONNREFUSED)
				}
			}
			reserve("a", everywhere(8080, 81, protocol), everywhere(8081, 81, protocol))
			taken("with another port", "127.0.0.1:8080")
			taken("with another port", "127.0.0.1:8081")
			reserve("a", everywhere(8081, 81, protocol))
			free("one given up", "127.0.0.1:8080")
			taken("one kept", "127.0.0.1:8081")

			other, err := listen(t, network, "127.0.0.1:8082")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			inUse(n.CheckPort(everywhere(8082, 1, protocol)), "publish 8082/"+protocol+": in use on the host, by another program")
			inUse(n.Reserve(ctx, "a", []netdev.Publish{everywhere(8083, 1, protocol), everywhere(8082, 1, protocol)}), "8082")
			free("after a refusal", "127.0.0.1:8083")
			taken("after a refusal", "127.0.0.1:8081")
			if err := n.CheckPort(on("192.168.127.9", 8084, 1, protocol)); !errors.Is(err, netdev.ErrNoAddress) {
				t.Errorf("CheckPort of a stranger's address = %v, want %v", err, netdev.ErrNoAddress)
			}
			var six io.Closer // dual stack, as Go's and most other servers listen
			if protocol == "tcp" {
				six, err = net.Listen("tcp", "[::]:8085")
			} else {
				six, err = net.ListenPacket("udp", "[::]:8085")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer six.Close()
			inUse(n.CheckPort(everywhere(8085, 1, protocol)), "8085")

			reserve("b", on("127.0.0.1", 8086, 1, protocol))
			reserve("a")
			free("all given up", "127.0.0.1:8081")
			taken("the other VM's", "127.0.0.1:8086")
			if err := n.Teardown(ctx); err != nil {
				t.Fatal(err)
			}
			free("after Teardown", "127.0.0.1:8086")
		})
	}
	t.Run("refused", func(t *testing.T) {
		n := newNetwork(t, testConfig())
		for _, tt := range []struct {
			text string
			p    netdev.Publish
		}{
			{"ports are", everywhere(0, 80, "tcp")},
			{"ports are", everywhere(80, 0, "tcp")},
			{"neither tcp nor udp", everywhere(80, 80, "sctp")},
			{"neither tcp nor udp", everywhere(80, 80, "")},
			{"only IPv4", on("::1", 80, 80, "tcp")},
			{"not a unicast", on("224.0.0.1", 80, 80, "udp")},
			{"not a unicast", on("255.255.255.255", 80, 80, "udp")},
		} {
			if err := n.Reserve(t.Context(), "a", []netdev.Publish{tt.p}); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Reserve(%v) = %v, want %q", tt.p, err, tt.text)
			}
			if err := n.CheckPort(tt.p); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("CheckPort(%v) = %v, want %q", tt.p, err, tt.text)
			}
		}
		twice := []netdev.Publish{everywhere(80, 80, "tcp"), everywhere(80, 81, "tcp")}
		if err := n.Reserve(t.Context(), "a", twice); err == nil || !strings.Contains(err.Error(), "named twice") {
			t.Errorf("Reserve of one port twice = %v, want a refusal", err)
		}
		if err := n.CheckPort(everywhere(80, 80, "tcp")); err != nil {
			t.Errorf("a refused port is kept: %v", err)
		}
	})
}

// TestReserveAfterServer takes the port of a server that has just ended, whose connections linger.
func TestReserveAfterServer(t *testing.T) {
	n := newNetwork(t, testConfig())
	ln, err := net.Listen("tcp4", "127.0.0.1:8090")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.DialTimeout("tcp4", "127.0.0.1:8090", askTimeout)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // first, so that it is its end that waits
	if _, err := io.ReadAll(client); err != nil {
		t.Fatal(err)
	}
	client.Close()
	ln.Close()
	waits := func() bool {
		b, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), fmt.Sprintf(":%04X 0100007F:", 8090)) && strings.Contains(string(b), " 06 ")
	}
	for range 100 {
		if waits() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !waits() {
		t.Fatal("no connection lingers: this test shows nothing")
	}
	if err := n.Reserve(t.Context(), "a", []netdev.Publish{everywhere(8090, 80, "tcp")}); err != nil {
		t.Errorf("Reserve = %v, want ok", err)
	}
}
