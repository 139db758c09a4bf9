package volar

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client"
)

// The keys that leave a session, as docker has them: ctrl-p, then ctrl-q.
const (
	detachFirst  = 0x10
	detachSecond = 0x11
)

// attachTerminal is the terminal of a session with a workload until that has
// ended, and returns its status, or that the user left it by the detach keys.
// See terminal.
func (c *cli) attachTerminal(ctx context.Context, s *client.Session, tty, stdin bool) (status int, detached bool, err error) {
	return c.terminal(ctx, s, tty, stdin, true)
}

// terminal is the terminal of a session until its process has ended, and returns
// the process's status. An input is passed on when stdin is set. With tty as
// well, and where standard input is a terminal, that is in raw mode meanwhile:
// its keys, those that make signals included, are for the process, but for the
// detach keys where there are such. On every way out it is as before.
func (c *cli) terminal(ctx context.Context, s *client.Session, tty, stdin, detachable bool) (status int, detached bool, err error) {
	var in io.Reader
	left := new(atomic.Bool)
	if stdin {
		in = c.stdin
		if f, ok := c.stdin.(*os.File); ok && tty {
			if restore, err := makeRaw(f); err == nil { // else it is no terminal
				defer restore()
				if detachable {
					in = &detachReader{r: f, leave: func() { left.Store(true); s.Close() }}
				}
			}
		}
	}
	if tty {
		defer c.followSize(s)()
	}
	exit, err := s.Copy(in, c.stdout, c.stderr)
	switch {
	case left.Load():
		return 0, true, nil
	case ctx.Err() != nil:
		return 0, false, ctx.Err()
	case err != nil:
		return 0, false, err
	}
	if exit.Error != "" {
		c.notef("%s", printable(exit.Error))
	}
	return exit.Code, false, nil
}

// makeRaw puts a terminal into raw mode, cfmakeraw(3), and returns what undoes
// that.
func makeRaw(f *os.File) (restore func(), err error) {
	return setTerminal(f, func(t *unix.Termios) {
		t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	})
}

// makeQuiet has a terminal give each key as it is typed, without showing it, but
// for those that make signals. It fails for one whose foreground another has: to
// change it would stop us.
func makeQuiet(f *os.File) (restore func(), err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	background := false
	if err := conn.Control(func(fd uintptr) {
		group, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) // fails for one that is not ours to be stopped by
		background = err == nil && group != unix.Getpgrp()
	}); err != nil {
		return nil, err
	}
	if background {
		return nil, unix.ENOTTY
	}
	return setTerminal(f, func(t *unix.Termios) {
		t.Iflag &^= unix.IXON // it would keep ctrl-q
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN
	})
}

// setTerminal changes how a terminal reads, and returns what undoes that.
func setTerminal(f *os.File, change func(t *unix.Termios)) (restore func(), err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var before unix.Termios
	set := func(how *unix.Termios) error {
		var serr error
		err := conn.Control(func(fd uintptr) { serr = unix.IoctlSetTermios(int(fd), unix.TCSETS, how) })
		return errors.Join(err, serr)
	}
	var gerr error
	err = conn.Control(func(fd uintptr) {
		var t *unix.Termios
		if t, gerr = unix.IoctlGetTermios(int(fd), unix.TCGETS); gerr == nil {
			before = *t
		}
	})
	if err := errors.Join(err, gerr); err != nil {
		return nil, err
	}
	now := before
	change(&now)
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := set(&now); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = set(&before) }), nil // it may be gone
}

// leaveByKeys calls leave when the detach keys are typed into our terminal, of
// which nothing else is read. stop ends that; left says whether they were.
func (c *cli) leaveByKeys(leave func()) (left func() bool, stop func()) {
	f, ok := c.stdin.(*os.File)
	if !ok {
		return func() bool { return false }, func() {}
	}
	restore, err := makeQuiet(f)
	if err != nil { // it is no terminal
		return func() bool { return false }, func() {}
	}
	keys := &keyWatch{r: f, leave: leave}
	end := keys.watch(f)
	return keys.left, func() {
		end()
		restore()
	}
}

// sizeOf returns the size of a terminal, and false for anything else.
func sizeOf(stream any) (rows, cols uint16, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	_ = conn.Control(func(fd uintptr) {
		ws, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
		if err == nil && ws.Row > 0 && ws.Col > 0 {
			rows, cols, ok = ws.Row, ws.Col, true
		}
	})
	return rows, cols, ok
}

// terminalSize returns the size of our terminal, and false when there is none.
func (c *cli) terminalSize() (rows, cols uint16, ok bool) {
	if rows, cols, ok = sizeOf(c.stdout); ok {
		return rows, cols, ok
	}
	return sizeOf(c.stdin)
}

// followSize tells the process's terminal the size of ours, now and whenever it
// changes, until the function it returns is called.
func (c *cli) followSize(s *client.Session) (stop func()) {
	changed := make(chan os.Signal, 1) // signals merge, so one place is enough
	signal.Notify(changed, unix.SIGWINCH)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if rows, cols, ok := c.terminalSize(); ok {
				_ = s.Resize(rows, cols) // whoever reads from the session finds it gone
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(changed)
		close(done)
		wg.Wait()
	}
}

// detachReader passes on what a user types, until the detach keys: once all before
// them was read it calls leave, and ends. The first of them is held back until the next key.
type detachReader struct {
	r     io.Reader
	leave func()
	held  bool   // the first key was typed
	left  []byte // typed and not passed on
	over  bool
}

func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.left) == 0 {
		if d.over {
			d.leave() // what was typed before has been sent
			return 0, io.EOF
		}
		buf := make([]byte, max(len(p)/2, 1)) // a key may become two
		n, err := d.r.Read(buf)
		d.take(buf[:n])
		if len(d.left) == 0 && err != nil {
			return 0, err
		}
	}
	n := copy(p, d.left)
	d.left = d.left[n:]
	return n, nil
}

// take sorts out what was typed.
func (d *detachReader) take(keys []byte) {
	for _, k := range keys {
		switch {
		case d.held && k == detachSecond:
			d.over = true
			return
		case d.held && k == detachFirst:
			d.left = append(d.left, k) // the earlier one; this one is held
		case k == detachFirst:
			d.held = true
		default:
			if d.held {
				d.held = false
				d.left = append(d.left, detachFirst)
			}
			d.left = append(d.left, k)
		}
	}
}
