package netdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClaimed says that another volantd runs in this network namespace.
var ErrClaimed = errors.New("another volantd runs in this network namespace")

// claimName is an abstract Unix socket (unix(7)). Such names belong to the network namespace, as bridge, taps and tables
// do, leave no file, and end with the process that has them.
const claimName = "@volant/netdev"

// Claim takes the network namespace of the process until the result is closed or the process ends, so that two programs with different
// folders do not sweep each other's taps and replace each other's rules. The error wraps ErrClaimed and names the holder.
//
// Any user may bind the name. A holder that is not root is no volantd, and is not allowed to keep one from starting: then
// nothing is claimed.
func Claim(ctx context.Context) (io.Closer, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", claimName)
	if errors.Is(err, unix.EADDRINUSE) {
		if pid := rootHolder(ctx); pid != 0 {
			return nil, fmt.Errorf("%w, as process %d", ErrClaimed, pid)
		}
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim the network namespace: %w", err)
	}
	c := &claim{ln: ln, done: make(chan struct{})}
	go c.answer()
	return c, nil
}

// rootHolder returns the process id of the name's holder if that is root's, else 0.
func rootHolder(ctx context.Context) int {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", claimName)
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil || cred.Uid != 0 {
		return 0
	}
	return int(cred.Pid)
}

type claim struct {
	ln   net.Listener
	done chan struct{}
}

// answer hangs up on whoever looks who we are.
func (c *claim) answer() {
	defer close(c.done)
	for {
		conn, err := c.ln.Accept()
		if err != nil {
			return
		}
		_ = conn.Close()
	}
}

// Close gives the namespace up.
func (c *claim) Close() error {
	err := c.ln.Close()
	<-c.done
	return err
}
