package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/testdata/need"
)

// TestReapFor is an init on this machine, which real orphans do not come to.
func TestReapFor(t *testing.T) {
	tests := []struct {
		name, script string
		send         syscall.Signal
		want         int
	}{
		{"exits", "exit 7", 0, 7},
		{"killed", "kill -9 $$", 0, 137},
		{"handles a signal", "trap 'exit 9' TERM; echo up > $0; while :; do sleep 0.01; done", syscall.SIGTERM, 9},
		{"does not", "echo up > $0; exec sleep 60", syscall.SIGTERM, 143},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			need.Root(t, "starting a process as another user")
			up := filepath.Join(t.TempDir(), "up")
			began := false
			if tt.send != 0 {
				go func() {
					for {
						if b, _ := os.ReadFile(up); len(b) > 0 {
							_ = syscall.Kill(os.Getpid(), tt.send)
							return
						}
						time.Sleep(5 * time.Millisecond)
					}
				}()
			}
			p := Process{Path: "/bin/sh", Args: []string{"sh", "-c", tt.script, up}, Env: os.Environ(), Dir: "/"}
			status, err := reapFor(processes{}, p, func() { began = true })
			if status != tt.want || err != nil || !began {
				t.Errorf("reapFor() = %d, %v, began %v, want %d", status, err, began, tt.want)
			}
		})
	}
	if _, err := reapFor(processes{}, Process{Path: "/nonexistent", Args: []string{"x"}, Dir: "/"}, func() { t.Error("it began") }); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("reapFor() of nothing = %v, want ENOENT", err)
	}
}

func TestGuardInit(t *testing.T) {
	tests := []struct {
		name    string
		pid     int
		cmdline string
		fd      string
		want    string
	}{
		{"a workload's", 1, guestCmdline, "/memfd:volant-workload (deleted)", ""},
		{"not process 1", 4711, guestCmdline, "/memfd:volant-workload (deleted)", "this is process 4711"},
		{"in a container of a host", 1, "root=/dev/sda1", "/memfd:volant-workload (deleted)", "volant.vm= is not"},
		{"process 1 of the guest", 1, guestCmdline, "", "process 1 of no workload"},
		{"with another file", 1, guestCmdline, "/etc/passwd", "file 3 is /etc/passwd"},
	}
	for _, tt := range tests {
		sys := newFakeSys(t)
		sys.pid = tt.pid
		sys.put(t, procCmdline, tt.cmdline, 0o444)
		if tt.fd != "" {
			if err := sys.MkdirAll("/proc/self/fd", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(tt.fd, sys.at("/proc/self/fd/3")); err != nil {
				t.Fatal(err)
			}
		}
		err := guardInit(sys)
		if (err == nil) != (tt.want == "") || err != nil && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: guardInit() = %v, want %q", tt.name, err, tt.want)
		}
		if tt.want == "" {
			continue // file 3 of this process is something else
		}
		if _, is := Init(sys); is || len(sys.called()) > 0 {
			t.Errorf("%s: it became an init, or did %q", tt.name, sys.called())
		}
	}
}

func TestForkReport(t *testing.T) {
	tests := []struct {
		name string
		said []byte
		want string
		is   error
	}{
		{"it runs", nil, "", nil},
		{"no such program", forkMessage(forkExec, syscall.ENOENT), "no such file or directory", syscall.ENOENT},
		{"no /proc", forkMessage(forkMount, syscall.EPERM), "mount /proc: operation not permitted", syscall.EPERM},
		{"of another age", forkMessage(99, syscall.EPERM), "step 99: operation not permitted", syscall.EPERM},
		{"cut short", []byte("x"), "did not begin", nil},
	}
	for _, tt := range tests {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(tt.said); err != nil {
			t.Fatal(err)
		}
		w.Close()
		err = forkReport(r)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: forkReport() = %v, want %q", tt.name, err, tt.want)
		}
		r.Close()
	}
}

func TestNamespacesEnd(t *testing.T) {
	if _, err := openNamespaces(rooted("/"), 1<<30); err == nil {
		t.Error("those of no process could be opened")
	}
	n, err := openNamespaces(rooted("/"), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.use(func(pid, mnt int) error {
		if pid <= 0 || mnt <= 0 || pid == mnt {
			t.Errorf("files %d and %d", pid, mnt)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	n.close()
	n.close()
	(*Namespaces)(nil).close()
	if err := n.use(func(int, int) error { return nil }); !errors.Is(err, errNamespaceGone) {
		t.Errorf("after the end use() = %v", err)
	}
}

// TestNamespacesAreForGuests asks for namespaces on this machine.
func TestNamespacesAreForGuests(t *testing.T) {
	sys := NewSys()
	p := Process{Path: "/bin/true", Args: []string{"true"}, Dir: "/", Files: []uintptr{0, 1, 2}}
	own, init, join := p, p, p
	own.Own, init.Own, init.Init, join.Join = true, true, true, new(Namespaces)
	for _, p := range []Process{own, init, join} {
		if _, err := sys.Spawn(p); !errors.Is(err, ErrRefused) {
			t.Errorf("Spawn(%+v) = %v, want it refused", p, err)
		}
	}
}
