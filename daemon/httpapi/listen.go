package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a Unix socket, in bytes: sun_path of
// unix(7) without its NUL.
const maxSocketPath = 107

// Modes of the socket: its user and group may use the API.
const (
	socketMode    = 0o660
	socketDirMode = 0o750
)

// ErrInUse says that another process holds a lock or a socket.
var ErrInUse = errors.New("in use")

// Listen opens the API's listener at addr, "unix:///path" or an absolute path.
// A socket that a dead daemon left behind is replaced; one that answers is not.
// The lock beside the socket ("path.lock") is held until the listener closes,
// so that of two daemons that start at once one loses. TCP is refused.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	path, err := socketPath(addr)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), socketDirMode); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if _, err := os.Lstat(path + ".lock"); errors.Is(err, fs.ErrNotExist) {
		// No volantd was here: do not leave a lock beside what is another program's.
		if _, err := stale(ctx, path); err != nil {
			return nil, err
		}
	}
	lock, err := LockFile(path + ".lock")
	if errors.Is(err, ErrInUse) {
		err = fmt.Errorf("another volantd listens there: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := listenLocked(ctx, path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &lockedListener{Listener: ln, lock: lock}, nil
}

func socketPath(addr string) (string, error) {
	path, isURL := strings.CutPrefix(addr, "unix://")
	_, _, err := net.SplitHostPort(addr)
	hostPort := err == nil && !strings.Contains(addr, "/")
	switch {
	case hostPort, strings.HasPrefix(addr, "tcp://"), strings.HasPrefix(addr, "http://"), strings.HasPrefix(addr, "https://"):
		return "", fmt.Errorf("listen on %s: listening on TCP needs TLS and tokens, which this version does not have; "+
			"use a Unix socket, and forward it with ssh -L to reach it from elsewhere", addr)
	case !isURL && strings.Contains(addr, "://"):
		return "", fmt.Errorf("listen on %s: give a socket as unix:///path", addr)
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("listen on %q: the path of the socket must be absolute", addr)
	}
	path = filepath.Clean(path)
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("listen on %s: the path has %d bytes; a socket's may have %d", path, len(path), maxSocketPath)
	}
	return path, nil
}

func listenLocked(ctx context.Context, path string) (net.Listener, error) {
	left, err := stale(ctx, path)
	if err == nil && left {
		err = os.Remove(path)
	}
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The kernel gives the socket's file the mode that the socket has at
		// bind(2), so it never exists with a wider one.
		var modeErr error
		err := c.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, modeErr)
	}}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// The umask took bits away.
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// stale reports whether there is a socket at path on which nobody listens.
// Whatever else is there is an error.
func stale(ctx context.Context, path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("listen on %s: %w", path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("listen on %s: there is a file that is not a socket; remove it or choose another path", path)
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return false, errors.Join(fmt.Errorf("listen on %s: a program answers there already: %w; stop it or choose another socket", path, ErrInUse), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, fmt.Errorf("listen on %s: cannot tell whether the socket there is in use: %w", path, err)
	}
	return true, nil
}

// lockedListener lets its lock go after its socket is gone.
type lockedListener struct {
	net.Listener
	lock *Lock
	once sync.Once
	err  error
}

func (l *lockedListener) Close() error {
	l.once.Do(func() { l.err = errors.Join(l.Listener.Close(), l.lock.Close()) })
	return l.err
}
