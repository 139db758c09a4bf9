package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
)

const (
	// firstTry and lastTry bound one attempt: a VMM whose guest has not
	// activated its vsock device accepts the connection and never answers, so
	// each try is given longer than the one before.
	firstTry = 100 * time.Millisecond
	lastTry  = time.Second
	// retryPause lies between two tries when the guest has no listener yet,
	// which the VMM tells at once by closing the connection. Where the guest is
	// listened for it grows up to lastPause.
	retryPause = 20 * time.Millisecond
	lastPause  = 320 * time.Millisecond
	// nudgePause lies between two words of the guest that are heard, however often
	// it says them.
	nudgePause = 10 * time.Millisecond
	// maxAnswer bounds the line that answers CONNECT, in bytes.
	maxAnswer = 32
)

// HybridVsock is the transport over the Unix socket of a VMM that implements
// vsock by itself: a client writes "CONNECT port\n" and reads "OK port\n", and
// the rest is the stream. It is safe for concurrent use.
type HybridVsock struct {
	path string
	set  connSet

	mu       sync.Mutex
	listener net.Listener  // guarded by mu; nil before Listen
	heard    chan struct{} // guarded by mu; closed, and made anew, when the guest says that it listens
	over     chan struct{} // closed when listen returns; set by Listen
}

var _ hv.Transport = (*HybridVsock)(nil)

// NewHybridVsock returns the transport over the VMM's vsock socket at path. It
// does not connect.
func NewHybridVsock(path string) *HybridVsock { return &HybridVsock{path: path} }

// Listen has the guest tell when its agent listens, which saves Dial from trying
// every few milliseconds. The VMM hands on what the guest connects to on the host's
// wire.ReadyPort to the socket with that number behind its own's name. It is to be
// called before the guest runs, by the one who may remove what an earlier daemon
// left there, and once. Close removes the socket.
func (t *HybridVsock) Listen() error {
	path := ReadySocket(t.path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := letConnect(path); err != nil {
		return errors.Join(err, l.Close())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listener, t.heard, t.over = l, make(chan struct{}), make(chan struct{})
	go t.listen(l, t.over)
	return nil
}

// letConnect lets everybody connect to a socket of ours: the VMM may be another
// user, and who reaches its directory can tell us no more than to try again. That
// VMM can also put something else in the socket's place: what is changed is what
// was looked at.
func letConnect(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return fmt.Errorf("%s is not the socket that was made there", path)
	}
	// There is no fchmod(2) of such a descriptor before Linux 6.6 (fchmodat2).
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o666)
}

// ReadySocket returns the socket that Listen makes for the VMM's vsock socket at
// path.
func ReadySocket(path string) string { return fmt.Sprintf("%s_%d", path, wire.ReadyPort) }

func (t *HybridVsock) listen(l net.Listener, over chan<- struct{}) {
	defer close(over)
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(nudgePause) // out of descriptors
			continue
		}
		conn.Close() // that it came is all
		t.mu.Lock()
		close(t.heard)
		t.heard = make(chan struct{})
		t.mu.Unlock()
		time.Sleep(nudgePause)
	}
}

// nudge returns what is closed when the guest says that it listens; nil, which
// never is, where it is not listened for.
func (t *HybridVsock) nudge() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heard
}

// Dial opens a stream to the agent, trying again until ctx ends while nothing
// listens in the guest.
func (t *HybridVsock) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pause := retryPause
	for limit := firstTry; ; limit = min(2*limit, lastTry) {
		heard := t.nudge() // before the try: what comes in it is for the next
		conn, err := t.try(ctx, limit)
		if err == nil {
			return t.set.add(conn)
		}
		var refused *refusal
		if errors.As(err, &refused) || t.set.isClosed() {
			return nil, fmt.Errorf("dial %s: %w", t.path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s: %w: last try: %w", t.path, ctx.Err(), err)
		case <-heard:
		case <-time.After(pause):
		}
		if heard != nil {
			pause = min(2*pause, lastPause)
		}
	}
}

// refusal is an answer that trying again will not change.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }

func (t *HybridVsock) try(ctx context.Context, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", t.path)
	if err != nil {
		return nil, err
	}
	if err := handshake(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func handshake(ctx context.Context, conn net.Conn) error {
	deadline, _ := ctx.Deadline() // try set one
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", wire.AgentPort); err != nil {
		return err
	}
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "OK ") {
		return &refusal{fmt.Sprintf("answer to CONNECT is %q, want OK", line)}
	}
	if !stop() {
		return ctx.Err()
	}
	return conn.SetDeadline(time.Time{})
}

// readLine reads up to the newline and not a byte beyond it: what follows is
// the stream.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxAnswer; {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(bytes.TrimSuffix(line, []byte{'\r'})), nil
		}
		line = append(line, b[0])
	}
	return "", &refusal{fmt.Sprintf("answer to CONNECT is longer than %d bytes: %q", maxAnswer, line)}
}

// Reset breaks all streams.
func (t *HybridVsock) Reset() { t.set.reset(false) }

// Close breaks all streams; later Dials fail.
func (t *HybridVsock) Close() error {
	t.set.reset(true)
	t.mu.Lock()
	l, over := t.listener, t.over
	t.listener = nil
	t.mu.Unlock()
	if l == nil {
		return nil
	}
	err := l.Close()
	<-over
	return err
}
