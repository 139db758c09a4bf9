package guest

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// TestNudge: once the agent listens on vsock, the host is told, and once only.
func TestNudge(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "exec sleep 60"}}, func(s *fakeSys) { s.vsock = l })
	for deadline := time.Now().Add(time.Minute); !g.sys.did("nudge 1025"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the host was not told: %q", g.sys.called())
		}
	}
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatalf("the agent does not listen: %v", err)
	}
	conn.Close()
	g.cancel()
	g.over(t)
	n := 0
	for _, call := range g.sys.called() {
		if call == "nudge 1025" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the host was told %d times, want once", n)
	}
}
