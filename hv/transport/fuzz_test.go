package transport_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/transport"
)

// FuzzSerial lets a guest write what it likes on its port, at once or after it
// has made an honest link. The host's Dial, and what it reads and writes then,
// end in time, and cost a bounded amount of memory.
func FuzzSerial(f *testing.F) {
	f.Add([]byte("garbage"), false, byte(1))
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}, true, byte(9))         // a stream that the guest opens
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}, true, byte(200))       // pings
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255}, true, byte(3)) // a frame of 4 GiB
	f.Add([]byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true, byte(1))         // goodbye
	f.Fuzz(func(t *testing.T, b []byte, honest bool, times byte) {
		dir, err := os.MkdirTemp("", "fuzz") // t.TempDir's paths are too long for sockets
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					var to io.ReadWriter = conn
					if honest {
						link, err := wire.NewAcceptor(conn).Accept(ctx)
						if err != nil {
							return
						}
						to = link
					}
					for range int(times) {
						if _, err := to.Write(b); err != nil {
							return
						}
					}
					_, _ = io.Copy(io.Discard, to) // until the host has had enough
				}()
			}
		}()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		s := transport.NewSerial(l.Addr().String())
		if conn, err := s.Dial(ctx); err == nil {
			_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			_, _ = io.CopyN(io.Discard, conn, 1<<20)
			_ = conn.Close()
		}
		_ = s.Close()
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
			t.Errorf("it cost %d MiB", grown>>20)
		}
	})
}
