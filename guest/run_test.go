package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

// safeBuffer is a console that may be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// guestRun is a guest that runs in this process, on a fake kernel.
type guestRun struct {
	sys     *fakeSys
	console safeBuffer
	client  *http.Client
	done    chan error
	cancel  context.CancelFunc
}

func runGuest(t *testing.T, w wire.WorkloadConfig, edit func(*fakeSys)) *guestRun {
	t.Helper()
	return runGuestConfig(t, bootConfig(w), edit)
}

func runGuestConfig(t *testing.T, cfg wire.BootConfig, edit func(*fakeSys)) *guestRun {
	t.Helper()
	need.Root(t, "starting a process as another user")
	host, port := net.Pipe()
	sys := newFakeSys(t)
	sys.port = port
	sys.put(t, procCmdline, guestCmdline, 0o444)
	sys.put(t, "/proc/self/mounts", "rootfs / rootfs rw 0 0\n/dev/vdb /data ext4 rw 0 0\n", 0o444)
	sys.put(t, "/sys/class/virtio-ports/vport0p1/name", wire.SerialPort+"\n", 0o444)
	sys.put(t, "/sys/block/vda/serial", wire.ConfigSerial, 0o444)
	image, err := wire.EncodeBoot(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sys.put(t, "/dev/vda", string(image), 0o600)
	sys.linkProgram(t, "/bin/sh")
	if edit != nil {
		edit(sys)
	}
	g := &guestRun{sys: sys, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go func() {
		defer close(g.done)
		g.done <- Run(ctx, Config{Sys: sys, Version: "t", Console: &g.console, Shim: sys.shim})
	}()

	dialing, stop := context.WithTimeout(t.Context(), time.Minute)
	var session *yamux.Session
	var once sync.Once
	g.client = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		once.Do(func() {
			if link, err := wire.Connect(dialing, host); err == nil {
				cfg := yamuxConfig()
				session, _ = yamux.Client(link, cfg)
			}
		})
		if session == nil {
			return nil, net.ErrClosed
		}
		return session.Open()
	}}}
	t.Cleanup(func() {
		cancel()
		stop()
		// Its reaper would take the next guest's processes.
		select {
		case <-g.done:
		case <-time.After(time.Minute):
		}
		if session != nil {
			session.Close()
		}
		host.Close()
	})
	return g
}

// over waits for the power-off.
func (g *guestRun) over(t *testing.T) {
	t.Helper()
	select {
	case err := <-g.done:
		if err != nil {
			t.Errorf("Run() = %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("the guest is still up after a minute; console: %s", g.console.String())
	}
}

func (g *guestRun) get(t *testing.T, path string, v any) {
	t.Helper()
	resp, err := g.client.Get("http://agent" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v in %s", path, err, b)
	}
}

// await polls until the workload is in a state.
func (g *guestRun) await(t *testing.T, want wire.WorkloadState) wire.Status {
	t.Helper()
	var st wire.Status
	for range 100 {
		seq := st.Seq
		g.get(t, wire.PathStatus+"?wait=10s&after="+itoa(seq), &st)
		if st.Workload == want {
			return st
		}
	}
	t.Fatalf("the workload never was %s: %+v", want, st)
	return st
}

func itoa(n uint64) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func TestRunToTheWorkloadsEnd(t *testing.T) {
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "echo hi; exit 3"}}, nil)
	var hello wire.Hello
	g.get(t, wire.PathHello, &hello)
	if hello.VM != "vm-1" || hello.Version != "t" || hello.Kernel != "6.12.0-fake" {
		t.Errorf("hello = %+v", hello)
	}
	st := g.await(t, wire.WorkloadExited)
	if st.Exit == nil || st.Exit.Code != 3 {
		t.Errorf("status = %+v", st)
	}
	g.over(t)
	calls := strings.Join(g.sys.called(), "\n")
	for _, want := range []string{"hostname web", "entropy 32", "loopback", "kill all\nsync\nunmount /data\npower off"} {
		if !strings.Contains(calls, want) {
			t.Errorf("the guest did not %q:\n%s", want, calls)
		}
	}
	if got := g.console.String(); got != "kestrel t: vm vm-1\n" {
		t.Errorf("console = %q", got)
	}
}

func TestRunUntilAskedToStop(t *testing.T) {
	tests := []struct {
		name string
		stop func(*testing.T, *guestRun)
	}{
		{"by the host", func(t *testing.T, g *guestRun) {
			resp, err := g.client.Post("http://agent"+wire.PathShutdown, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}},
		{"by the power button", func(t *testing.T, g *guestRun) {
			for !g.sys.hasButton() {
				time.Sleep(time.Millisecond)
			}
			g.sys.pressed()
			g.sys.pressed() // an impatient operator
		}},
		{"by its context", func(t *testing.T, g *guestRun) { g.cancel() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "exec sleep 60"}, Restart: wire.RestartAlways}, nil)
			g.await(t, wire.WorkloadRunning)
			start := time.Now()
			tt.stop(t, g)
			g.over(t)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("the end took %v", took)
			}
			if !g.sys.did("power off") {
				t.Errorf("the machine is still on: %q", g.sys.called())
			}
		})
	}
}

func TestRunReportsFailures(t *testing.T) {
	tests := []struct {
		name string
		edit func(*fakeSys)
		want string
	}{
		{"fatal step", func(s *fakeSys) { s.fail["loopback"] = unix.EPERM }, "network: loopback: operation not permitted"},
		{"panic in a step", func(s *fakeSys) { s.panicOn = "hostname web" }, "identity: panic: boom"},
		{"no program", func(s *fakeSys) { _ = s.Remove("/bin/sh") }, `workload: command "sh"`},
		{"no executable", func(s *fakeSys) { _ = s.Remove("/bin/sh"); _ = s.WriteFile("/bin/sh", nil, 0o644) }, `workload: command "sh": /bin/sh is not executable`},
	}
	codes := []int{0, 0, 127, 126}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "exit 0"}}, tt.edit)
			st := g.await(t, wire.WorkloadFailed)
			if (st.Exit != nil) != (codes[i] != 0) || st.Exit != nil && st.Exit.Code != codes[i] {
				t.Errorf("exit = %+v, want code %d", st.Exit, codes[i])
			}
			if !strings.Contains(st.Error, tt.want) {
				t.Errorf("error = %q, want %q", st.Error, tt.want)
			}
			g.over(t)
			if got := g.console.String(); !strings.Contains(got, "kestrel: "+tt.want) {
				t.Errorf("console = %q, want %q", got, tt.want)
			}
			if !g.sys.did("power off") {
				t.Error("the machine is still on")
			}
		})
	}
}

func TestRunWithoutMountsPowersOff(t *testing.T) {
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh"}}, func(s *fakeSys) { s.fail["mount sysfs /sys"] = unix.ENODEV })
	g.over(t)
	if got := g.console.String(); !strings.Contains(got, "kestrel: mounts: no such device") || !g.sys.did("power off") {
		t.Errorf("console = %q, did %q", got, g.sys.called())
	}
}

func TestLinger(t *testing.T) {
	tests := []struct {
		name      string
		delivered time.Duration // when the host is told; 0 for never
		stop      time.Duration // when it asks for the end; 0 for never
		want      time.Duration
	}{
		{"nobody asks", 0, 0, lingerUnread},
		{"told", 2 * time.Second, 0, 2*time.Second + lingerRead},
		{"told and dismissed", 2 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond},
		{"dismissed", 0, time.Second, time.Second + lingerAsked},
		{"dismissed and told", 1200 * time.Millisecond, time.Second, 1200 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKestrel(Config{Sys: newFakeSys(t)})
				k.status.finish(func(*wire.Status) {})
				if tt.delivered > 0 {
					time.AfterFunc(tt.delivered, func() { k.status.sent(k.status.get().Seq) })
				}
				if tt.stop > 0 {
					time.AfterFunc(tt.stop, k.askToStop)
				}
				start := time.Now()
				k.linger(t.Context())
				if took := time.Since(start); took != tt.want {
					t.Errorf("lingered %v, want %v", took, tt.want)
				}
			})
		})
	}
}

func TestPanicInBackgroundEndsTheGuest(t *testing.T) {
	k := newKestrel(Config{Sys: newFakeSys(t)})
	k.background(func() { panic("boom") })
	if err := <-k.failed; !strings.Contains(err.Error(), "panic: boom") {
		t.Errorf("failed with %v", err)
	}
}
