package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// fakeSys is a kernel that records what it is asked and does none of it. Its
// files are those of a temporary directory; its processes are real.
type fakeSys struct {
	rooted
	processes
	pid   int
	magic int64
	start time.Time

	mu         sync.Mutex
	calls      []string
	fail       map[string]error // by the call's text
	panicOn    string           // a call's text
	port       io.ReadWriteCloser
	shim       string       // Config.Shim
	vsock      net.Listener // nil for a machine without
	pressed    func()
	onMount    func(Mount)
	onUnmount  func(target string) error
	mounts     []Mount
	failMounts []error       // of the next mounts
	poweroff   chan struct{} // closed by PowerOff
}

func newFakeSys(t *testing.T) *fakeSys {
	return &fakeSys{
		rooted: rooted(t.TempDir()), pid: 1, magic: unix.RAMFS_MAGIC, start: time.Now(),
		fail: make(map[string]error), poweroff: make(chan struct{}),
	}
}

// put writes a file of the fake's root.
func (s *fakeSys) put(t *testing.T, path, content string, perm fs.FileMode) {
	t.Helper()
	if err := s.WriteFile(path, []byte(content), perm); err != nil {
		t.Fatal(err)
	}
}

func (s *fakeSys) content(t *testing.T, path string) string {
	t.Helper()
	b, err := s.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func (s *fakeSys) call(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, text)
	if text == s.panicOn {
		panic("boom")
	}
	return s.fail[text]
}

func (s *fakeSys) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *fakeSys) did(prefix string) bool {
	return slices.ContainsFunc(s.called(), func(c string) bool { return strings.HasPrefix(c, prefix) })
}

func (s *fakeSys) Getpid() int                   { return s.pid }
func (s *fakeSys) FSMagic(string) (int64, error) { return s.magic, nil }
func (s *fakeSys) Uptime() time.Duration         { return time.Since(s.start) + time.Second }
func (s *fakeSys) Release() string               { return "6.12.0-fake" }
func (s *fakeSys) Detach(target string) error    { return s.call("detach %s", target) }
func (s *fakeSys) RaiseLimits() error            { return s.call("limits") }
func (s *fakeSys) LoadModule(path string) error  { return s.call("module %s", path) }
func (s *fakeSys) SetClock(t time.Time) error {
	return s.call("clock %s", t.UTC().Format(time.DateOnly))
}
func (s *fakeSys) SetHostname(name string) error      { return s.call("hostname %s", name) }
func (s *fakeSys) AddEntropy(seed []byte) error       { return s.call("entropy %d", len(seed)) }
func (s *fakeSys) Loopback() error                    { return s.call("loopback") }
func (s *fakeSys) Network(c wire.NetworkConfig) error { return s.call("network %s", c.MAC) }
func (s *fakeSys) Rewire(from string, to *wire.NetworkConfig) error {
	if to == nil {
		return s.call("rewire %s", from)
	}
	return s.call("rewire %s %s", from, to.MAC)
}
func (s *fakeSys) KillAll() { _ = s.call("kill all") }
func (s *fakeSys) Sync()    { _ = s.call("sync") }

func (s *fakeSys) Unmount(target string) error {
	if err := s.call("unmount %s", target); err != nil || s.onUnmount == nil {
		return err
	}
	return s.onUnmount(target)
}

func (s *fakeSys) Mount(m Mount) error {
	if err := s.call("mount %s %s", m.Type, m.Target); err != nil {
		return err
	}
	s.mounts = append(s.mounts, m)
	if len(s.failMounts) > 0 {
		err := s.failMounts[0]
		s.failMounts = s.failMounts[1:]
		if err != nil {
			return err
		}
	}
	if s.onMount != nil {
		s.onMount(m)
	}
	return nil
}

// SwitchRoot makes the directory the root of the fake's files. What kestrel
// mounts there besides is linked to.
func (s *fakeSys) SwitchRoot(path string) (func(string) error, error) {
	if err := s.call("switch root %s", path); err != nil {
		return nil, err
	}
	old := s.rooted
	s.rooted = rooted(old.at(path))
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := errors.Join(os.RemoveAll(s.at(dir)), os.Symlink(old.at(dir), s.at(dir))); err != nil {
			return nil, err
		}
	}
	return func(at string) error {
		s.rooted = old
		return s.call("leave root for %s", at)
	}, nil
}

// Symlink records, since the targets of /dev are links already.
func (s *fakeSys) Symlink(target, path string) error { return s.call("symlink %s %s", target, path) }

func (s *fakeSys) PowerOff() error {
	err := s.call("power off")
	close(s.poweroff)
	return err
}

func (s *fakeSys) OpenPort(path string) (io.ReadWriteCloser, error) {
	if err := s.call("port %s", path); err != nil {
		return nil, err
	}
	return s.port, nil
}

func (s *fakeSys) Vsock(uint32) (net.Listener, error) {
	if s.vsock == nil {
		return nil, fs.ErrNotExist
	}
	return s.vsock, nil
}

func (s *fakeSys) Nudge(port uint32) { s.call("nudge %d", port) }

func (s *fakeSys) Processors() error { return nil }

func (s *fakeSys) PowerButton(pressed func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pressed = pressed
	return nil
}

func (s *fakeSys) hasButton() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pressed != nil
}

// Spawn has no control group to offer, whose directory is not one, and makes no
// namespaces on this machine.
func (s *fakeSys) Spawn(p Process) (int, error) {
	p.Cgroup, p.Own, p.Join = nil, false, nil
	return s.processes.Spawn(p)
}

func (s *fakeSys) Nice(pid, value int) error {
	return s.call("nice %d", value)
}

func (s *fakeSys) Namespaces(pid int) (*Namespaces, error) { return nil, fs.ErrNotExist }

// linkProgram makes the fake believe that a program of the host is in its image.
func (s *fakeSys) linkProgram(t *testing.T, path string) {
	t.Helper()
	if err := s.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, s.at(path)); err != nil {
		t.Fatal(err)
	}
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

var _ Sys = (*fakeSys)(nil)
