package guest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/volantvm/volant/guest/wire"
)

const (
	// portTimeout is how long the agent looks for its virtio-serial port, which
	// a module may bring late, and which the host tells the guest of on a queue
	// that it may be slow to serve when many guests boot.
	portTimeout = 2 * time.Minute
	// linkWriteTimeout ends a connection whose host does not read. A paused
	// guest does not notice the time that passes.
	linkWriteTimeout = 30 * time.Second
)

// channel serves the agent API on whatever the machine offers.
type channel struct {
	sys    Sys
	log    *slog.Logger
	server *http.Server
	conns  *conns // of the server
	// up is called once, when the first transport listens.
	up func()
}

// run serves until ctx is over. It returns when all connections are closed.
func (c *channel) run(ctx context.Context) {
	up := sync.OnceFunc(c.up)
	var wg sync.WaitGroup
	wg.Go(func() { c.serveVsock(ctx, up) })
	c.serveSerial(ctx, up)
	wg.Wait()
}

// serveVsock serves AF_VSOCK, where there is one.
func (c *channel) serveVsock(ctx context.Context, up func()) {
	l, err := c.sys.Vsock(wire.AgentPort)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		c.log.Error("listen on vsock", keyErr, err)
		return
	}
	up()
	var wg sync.WaitGroup
	wg.Go(func() { c.sys.Nudge(wire.ReadyPort) })
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	if err := c.server.Serve(c.conns.listener(l)); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		c.log.Error("serve vsock", keyErr, err)
	}
}

// serveSerial serves the virtio-serial port, where there is one: each link is
// a yamux session of which the host is the client.
func (c *channel) serveSerial(ctx context.Context, up func()) {
	port, err := c.openSerial(ctx)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Error("open the agent's port", keyErr, err)
		}
		return
	}
	up()
	a := wire.NewAcceptor(port)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer a.Close()
	for {
		link, err := a.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Error("accept on the agent's port", keyErr, err)
			}
			return
		}
		session, err := yamux.Server(link, yamuxConfig())
		if err != nil {
			c.log.Error("multiplex the agent's port", keyErr, err)
			link.Close()
			continue
		}
		// The session ends with its link, that is, before the next begins, or
		// when the server was shut down and its last responses are out.
		wg.Go(func() {
			_ = c.server.Serve(c.conns.listener(newSessionListener(session)))
			select {
			case <-session.CloseChan():
			case <-ctx.Done():
			}
			session.Close()
		})
	}
}

// sessionListener is a session whose Close ends the accepting alone, as
// http.Server wants it of a listener, and not the streams that are open.
type sessionListener struct {
	*yamux.Session
	ctx    context.Context
	cancel context.CancelFunc
}

func newSessionListener(s *yamux.Session) *sessionListener {
	ctx, cancel := context.WithCancel(context.Background())
	return &sessionListener{s, ctx, cancel}
}

func (l *sessionListener) Accept() (net.Conn, error) { return l.AcceptStreamWithContext(l.ctx) }

func (l *sessionListener) Close() error {
	l.cancel()
	return nil
}

func yamuxConfig() *yamux.Config {
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false // the link knows its end; a paused host is not dead
	cfg.ConnectionWriteTimeout = linkWriteTimeout
	cfg.LogOutput = io.Discard
	return cfg
}

// openSerial waits for the port and opens it. The error is fs.ErrNotExist when
// the machine has none.
func (c *channel) openSerial(ctx context.Context) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, portTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		err := error(fs.ErrNotExist)
		if dev := findPort(c.sys, wire.SerialPort); dev != "" {
			// The entry in sysfs precedes the device node.
			var port io.ReadWriteCloser
			if port, err = c.sys.OpenPort(dev); err == nil {
				return port, nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) || !sleep(ctx, wait) {
			return nil, err
		}
	}
}

// findPort returns the device of the virtio-serial port with a name, or "".
func findPort(files Files, name string) string {
	paths, _ := files.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range paths {
		if b, err := files.ReadFile(p); err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + path.Base(path.Dir(p))
		}
	}
	return ""
}
