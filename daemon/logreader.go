package daemon

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
)

// logReader reads a log that consists of several files as one, while others
// write to it, rotate it and remove its oldest file. Where it ended it goes on
// when more was written.
type logReader struct {
	// files lists the log's files, oldest first; some may not exist.
	files func() ([]string, error)
	// longest is the longest line, in bytes; longer ones come in pieces.
	longest int
	// pieces is set for a log that is not rotated between lines: a line that
	// has no end comes when its file has a successor, or is asked for by rest.
	pieces bool

	f    *os.File
	path string // what f was opened as
	off  int64  // of the first byte that was not yielded
	buf  []byte
}

func (r *logReader) close() {
	if r.f != nil {
		r.f.Close() //nolint:errcheck // was only read
		r.f = nil
	}
}

// lines calls yield with each line that was not read before; whole is false for
// a piece of one that goes on. The line is valid until yield returns.
func (r *logReader) lines(yield func(line []byte, whole bool) error) error {
	for {
		// Look before reading: what was written to this file before it got a
		// successor is then surely read.
		after, err := r.successor()
		if err != nil {
			return err
		}
		if r.f != nil {
			if err := r.read(yield, after != nil && r.pieces); err != nil {
				if after != nil {
					after.Close() //nolint:errcheck // was only read
				}
				return err
			}
		}
		if after == nil {
			return nil
		}
		r.close()
		r.f, r.path, r.off = after, after.Name(), 0
	}
}

// rest yields the piece of a line that the log ends with, if there is one.
func (r *logReader) rest(yield func(line []byte, whole bool) error) error {
	if r.f == nil {
		return nil
	}
	return r.read(yield, true)
}

// successor opens the file to read when the present one has been read, nil when
// there is none yet. Of a reader that is so slow that its file was removed, that
// is the oldest one.
func (r *logReader) successor() (*os.File, error) {
	const tries = 100 // a log is not rotated that often while it is looked at
	for range tries {
		files, err := r.files()
		if err != nil {
			return nil, err
		}
		next := ""
		for _, path := range files {
			fi, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			switch mine, err := r.at(fi); {
			case err != nil:
				return nil, err
			case mine:
				next = "" // the one after it
				continue
			case next == "":
				next = path
			}
		}
		if next == "" {
			return nil, nil
		}
		f, err := os.Open(next)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Is it still the one that was looked for? A rotation in between gives
		// its path to a later one.
		if ok, err := r.follows(f, files); ok || err != nil {
			if err != nil {
				err = errors.Join(err, f.Close())
				f = nil
			}
			return f, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the log is rotated faster than it is read")
}

// at reports whether fi is the file that is being read.
func (r *logReader) at(fi os.FileInfo) (bool, error) {
	if r.f == nil {
		return false, nil
	}
	mine, err := r.f.Stat()
	return err == nil && os.SameFile(mine, fi), err
}

// follows reports whether f is the first of files, or the one after the
// present.
func (r *logReader) follows(f *os.File, files []string) (bool, error) {
	want, err := f.Stat()
	if err != nil {
		return false, err
	}
	first, found := true, false
	for _, path := range files {
		fi, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		mine, err := r.at(fi)
		switch {
		case err != nil:
			return false, err
		case mine:
			found, first = false, true
		case first:
			found, first = os.SameFile(fi, want), false
		}
	}
	return found, nil
}

// read yields the lines from off on; with rest set also what is left then.
func (r *logReader) read(yield func(line []byte, whole bool) error, rest bool) error {
	if r.buf == nil {
		r.buf = make([]byte, r.longest+1)
	}
	if fi, err := r.f.Stat(); err != nil {
		return err
	} else if fi.Size() < r.off {
		r.off = 0 // it was cut off, and begun anew
	}
	for {
		n, err := r.f.ReadAt(r.buf, r.off)
		if err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare
			return err
		}
		b := r.buf[:n]
		for {
			line, after, whole := bytes.Cut(b, []byte{'\n'})
			if !whole {
				break
			}
			b = after
			r.off += int64(len(line)) + 1
			if err := yield(line, true); err != nil {
				return err
			}
		}
		ended := err != nil
		if len(b) == len(r.buf) || ended && rest && len(b) > 0 {
			b = b[:min(len(b), r.longest)]
			r.off += int64(len(b))
			if err := yield(b, false); err != nil {
				return err
			}
			continue
		}
		if ended {
			return nil
		}
	}
}
