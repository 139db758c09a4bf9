package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/volantvm/volant/build/layers"
)

// Buffers in flight between the reader of files and the two that take them:
// with a MiB each a system call's cost is lost in the copy, and three are
// enough for all to be busy.
const (
	bufferSize  = 1 << 20
	bufferCount = 4
)

// sink is where an image goes: it counts, hashes and writes, the latter two on
// their own goroutines.
type sink struct {
	stop func() error // says why to end early
	pos  int64
	cur  *buffer
	free chan *buffer
	out  [2]chan *buffer
	hash hash.Hash
	done sync.WaitGroup
	fail atomic.Pointer[error] // first error of the writer
}

type buffer struct {
	b     []byte
	users atomic.Int32
}

func newSink(ctx context.Context, w io.Writer) *sink {
	s := &sink{stop: ctx.Err, free: make(chan *buffer, bufferCount), hash: sha256.New()}
	for range bufferCount {
		s.free <- &buffer{b: make([]byte, 0, bufferSize)}
	}
	take := func(b []byte) error { s.hash.Write(b); return nil }
	for i := range s.out {
		out, use := make(chan *buffer, bufferCount), take
		s.out[i] = out
		s.done.Go(func() {
			for buf := range out {
				if s.fail.Load() == nil {
					if err := use(buf.b); err != nil {
						s.fail.CompareAndSwap(nil, &err)
					}
				}
				if buf.users.Add(-1) == 0 {
					buf.b = buf.b[:0]
					s.free <- buf // never blocks: it has room for all
				}
			}
		})
		take = func(b []byte) error { _, err := w.Write(b); return err }
	}
	return s
}

// room returns the free part of the current buffer, which is not empty.
func (s *sink) room() ([]byte, error) {
	if s.cur != nil && len(s.cur.b) == cap(s.cur.b) {
		s.flush()
	}
	if s.cur == nil {
		if err := s.err(); err != nil {
			return nil, err
		}
		s.cur = <-s.free
	}
	return s.cur.b[len(s.cur.b):cap(s.cur.b)], nil
}

func (s *sink) err() error {
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return s.stop()
}

// advance says that n bytes of room were filled.
func (s *sink) advance(n int) {
	s.cur.b = s.cur.b[:len(s.cur.b)+n]
	s.pos += int64(n)
}

func (s *sink) flush() {
	if s.cur == nil {
		return
	}
	s.cur.users.Store(int32(len(s.out)))
	for _, out := range s.out {
		out <- s.cur
	}
	s.cur = nil
}

func (s *sink) write(p []byte) error {
	for len(p) > 0 {
		room, err := s.room()
		if err != nil {
			return err
		}
		n := copy(room, p)
		s.advance(n)
		p = p[n:]
	}
	return nil
}

// pad writes zeros up to a position, which must not lie behind.
func (s *sink) pad(to int64) error {
	if to < s.pos {
		panic(fmt.Sprintf("erofs: at byte %d, planned %d", s.pos, to))
	}
	for s.pos < to {
		room, err := s.room()
		if err != nil {
			return err
		}
		n := min(int64(len(room)), to-s.pos)
		clear(room[:n])
		s.advance(int(n))
	}
	return nil
}

// copy writes n bytes of a file from off.
func (s *sink) copy(f *layers.File, off, n int64) error {
	for n > 0 {
		room, err := s.room()
		if err != nil {
			return err
		}
		room = room[:min(int64(len(room)), n)]
		got, err := f.ReadAt(room, off)
		if got < len(room) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		s.advance(got)
		off, n = off+int64(got), n-int64(got)
	}
	return nil
}

// close waits until all is written.
func (s *sink) close() error {
	s.flush()
	for _, out := range s.out {
		close(out)
	}
	s.done.Wait()
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *sink) digest() string { return "sha256:" + hex.EncodeToString(s.hash.Sum(nil)) }
