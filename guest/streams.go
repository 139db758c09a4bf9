package guest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
)

// streams are the standard streams of a process: the ends that kestrel has, and
// until the process was started those that it gets.
type streams struct {
	in       *os.File // nil: the process reads /dev/null
	out, err *os.File // err is nil on a terminal
	tty      bool     // in and out are the same terminal
	far      [3]*os.File
}

// openStreams makes the streams of a process: a terminal, or pipes. They belong
// to its user, as container runtimes have it: else nobody but root could open
// /dev/stdout.
func openStreams(sys Processes, tty, stdin bool, user syscall.Credential) (*streams, error) {
	s := &streams{tty: tty}
	if tty {
		near, far, err := sys.Terminal(user.Uid)
		if err != nil {
			return nil, err
		}
		s.in, s.out, s.far = near, near, [3]*os.File{far, far, far}
		s.resize(defaultSize())
		return s, nil
	}
	err := func() (err error) {
		if stdin {
			s.far[0], s.in, err = os.Pipe()
		} else {
			s.far[0], err = os.OpenFile("/dev/null", os.O_RDONLY, 0)
		}
		if err != nil {
			return err
		}
		if s.out, s.far[1], err = os.Pipe(); err != nil {
			return err
		}
		if s.err, s.far[2], err = os.Pipe(); err != nil {
			return err
		}
		for _, f := range s.far[1:] {
			_ = f.Chown(int(user.Uid), int(user.Gid)) // root's are good for most
		}
		return nil
	}()
	if err != nil {
		s.closeFar()
		s.close()
		return nil, err
	}
	return s, nil
}

// takeStreams are those of a process that the shim has started.
func takeStreams(p *planned) (*streams, error) {
	s := new(streams)
	for fd, f := range map[int]**os.File{p.out: &s.out, p.err: &s.err} {
		syscall.CloseOnExec(fd)
		if err := syscall.SetNonblock(fd, true); err != nil {
			s.close()
			return nil, fmt.Errorf("output of the workload (file %d): %w", fd, err)
		}
		*f = os.NewFile(uintptr(fd), "|0")
	}
	return s, nil
}

// fds returns the descriptors for Process.Files.
func (s *streams) fds() []uintptr {
	return []uintptr{s.far[0].Fd(), s.far[1].Fd(), s.far[2].Fd()}
}

// closeFar closes the ends that the process has its own copies of.
func (s *streams) closeFar() {
	for _, f := range s.far {
		if f != nil {
			f.Close() // a terminal's is closed thrice, which does no harm
		}
	}
}

// close closes kestrel's ends. Those who read or write return; on a terminal
// the process gets SIGHUP.
func (s *streams) close() {
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

// resize sets the terminal's size; 0 is the default. Without a terminal it does
// nothing.
func (s *streams) resize(size stdio.Size) {
	if !s.tty {
		return
	}
	def := defaultSize()
	if size.Rows == 0 {
		size.Rows = def.Rows
	}
	if size.Cols == 0 {
		size.Cols = def.Cols
	}
	_ = resizeTerminal(s.out, size) // fails on one that is closed
}

// endInput ends what the process reads.
func (s *streams) endInput() {
	switch {
	case s.in == nil:
	case !s.tty:
		s.in.Close()
	default:
		if c, ok := endOfInput(s.in); ok {
			_, _ = s.in.Write([]byte{c}) // fails on one that is closed
		}
	}
}

// drain tells those who copy the output that the process has ended: they go on
// to the end of file, but no longer than drainTimeout, since what the process
// left behind may hold it open, and then until they have what is there.
func (s *streams) drain() {
	deadline := time.Now().Add(drainTimeout)
	for _, f := range []*os.File{s.out, s.err} {
		if f != nil {
			_ = f.SetReadDeadline(deadline)
		}
	}
}

// readOutput reads what a process wrote. The end of a terminal is EIO. The kernel
// says that too when its far end was closed just between the looks for input and
// for that (n_tty_read): then the next read has what was written last.
func readOutput(f *os.File, b []byte) (int, error) {
	n, err := f.Read(b)
	if errors.Is(err, syscall.EIO) {
		n, err = f.Read(b)
	}
	return n, err
}

// copyOutput gives what a process writes to f to send, until the end of file,
// an error of send, or f is closed, or as drain says. send must not keep what
// it is given.
func copyOutput(f *os.File, send func([]byte) error) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := readOutput(f, buf)
		if n > 0 {
			if serr := send(buf[:n]); serr != nil {
				return serr
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return copyRest(f, buf, send)
		}
		if err != nil {
			return nil // the end
		}
	}
}

// copyRest copies what is in the pipe now, and not what comes while it does.
func copyRest(f *os.File, buf []byte, send func([]byte) error) error {
	_ = f.SetReadDeadline(time.Time{}) // the reads below do not wait
	for rest := unread(f); rest > 0; {
		n, err := readOutput(f, buf[:min(rest, len(buf))])
		if n > 0 {
			if serr := send(buf[:n]); serr != nil {
				return serr
			}
		}
		if err != nil {
			return nil
		}
		rest -= n
	}
	return nil
}
