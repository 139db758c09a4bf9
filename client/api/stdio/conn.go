package stdio

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// ErrEnded is returned for frames after Exit.
var ErrEnded = errors.New("the exit status was sent")

// Writer sends frames, each with one Write. It is safe for concurrent use:
// frames are whole, and those of one goroutine stay in order.
type Writer struct {
	mu    sync.Mutex
	w     io.Writer // guarded by mu, as are the rest
	buf   []byte
	err   error // of a Write; the frame may be torn, so nothing may follow
	ended bool
}

// NewWriter returns a Writer on w, which the caller closes.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends a frame; Data that is too long for one is split. It blocks while
// the connection does. After an error of the connection every call returns that.
func (w *Writer) Write(f Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := f.Data; ; {
		f.Data = rest[:min(len(rest), MaxPayload)]
		rest = rest[len(f.Data):]
		if err := w.send(f); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
	}
}

func (w *Writer) send(f Frame) error {
	if w.err != nil {
		return w.err
	}
	if w.ended {
		return ErrEnded
	}
	b, err := appendFrame(w.buf[:0], f)
	if err != nil {
		return err
	}
	w.buf = b
	w.ended = f.Type == Exit
	_, w.err = w.w.Write(b)
	return w.err
}

// Stream returns a writer of frames of type t, which is Stdin, Stdout or Stderr.
func (w *Writer) Stream(t Type) io.Writer { return stream{w, t} }

type stream struct {
	w *Writer
	t Type
}

func (s stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.w.Write(Frame{Type: s.t, Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Reader receives frames. It is not safe for concurrent use.
type Reader struct {
	r      io.Reader
	header [HeaderLen]byte
	buf    []byte
}

// NewReader returns a Reader of r. It reads no further than the frame that it
// returns; r is better buffered.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame. Its Data is valid until the call after. The
// error is io.EOF when the connection ended between two frames,
// io.ErrUnexpectedEOF within one, and wraps ErrMalformed when the peer does
// not speak this protocol; nothing can be read after it.
func (r *Reader) Next() (Frame, error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return Frame{}, err
	}
	t, size := Type(r.header[0]), binary.BigEndian.Uint32(r.header[1:])
	if err := checkHeader(t, size); err != nil {
		return Frame{}, err
	}
	if int(size) > cap(r.buf) {
		r.buf = make([]byte, size)
	}
	payload := r.buf[:size]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return decode(t, payload)
}
