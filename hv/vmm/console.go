package vmm

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
)

// DefaultConsoleLimit is the size of one console log file when the Spec names
// none, in bytes.
const DefaultConsoleLimit = 1 << 20

// Console is the bounded log of a guest's console: the file at its path and,
// once that has been full, its predecessor at path + ".1". Together they never
// hold more than twice the limit. It is safe for concurrent use.
//
// The output is the guest's, byte for byte: whoever shows it must quote it.
type Console struct {
	path  string
	limit int64

	mu     sync.Mutex
	file   *os.File // guarded by mu; nil after Close, and while it cannot be opened
	size   int64    // guarded by mu
	closed bool     // guarded by mu
}

// OpenConsole opens the log at path for appending. A limit of 0 means
// DefaultConsoleLimit bytes.
func OpenConsole(path string, limit int64) (*Console, error) {
	if limit == 0 {
		limit = DefaultConsoleLimit
	}
	c := &Console{path: path, limit: limit}
	if err := c.open(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Console) open() error {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	c.file, c.size = f, fi.Size()
	return nil
}

// Write appends b, moving full files out of the way. Of a write longer than
// the limit both files keep the end. After an error (a full disk) the next
// Write tries again.
func (c *Console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, fs.ErrClosed
	}
	if c.file == nil {
		if err := c.open(); err != nil {
			return 0, err
		}
	}
	var n int
	for n < len(b) {
		if c.size >= c.limit {
			if err := c.rotate(); err != nil {
				return n, err
			}
		}
		end := min(int64(len(b)), int64(n)+c.limit-c.size)
		w, err := c.file.Write(b[n:end])
		n += w
		c.size += int64(w)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// rotate moves the full file to path.1 and begins a new one.
func (c *Console) rotate() error {
	err := c.file.Close()
	c.file = nil
	if err != nil {
		return err
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.open()
}

// Close closes the file. It may be called twice.
func (c *Console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}

// Tail returns at most n bytes from the end of the file at path, and nothing
// when it cannot be read: it is meant for the text of an error.
func Tail(path string, n int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, fi.Size()-n), n))
	if err != nil {
		return nil
	}
	return b
}
