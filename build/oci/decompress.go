package oci

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd stream may ask for. The format's
// recommendation is 8 MiB; zstd's highest common level uses 32.
const maxWindow = 64 << 20

// Forms of compressed data, by their magic numbers.
const (
	formPlain = "tar"
	formGzip  = "gzip"
	formZstd  = "zstd"
)

// decodeError is a decompressor's, to be told from those of reading and writing.
type decodeError struct {
	format string
	err    error
}

func (e *decodeError) Error() string { return e.format + ": " + e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// sniff says how data that begins with head is compressed. Media types and
// file names are not asked: they are often wrong.
func sniff(head []byte) (string, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return formGzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}): // a skippable frame
		return formZstd, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return "", errorf(ErrInvalid, "xz compression is not supported: use gzip, zstd or none")
	case bytes.HasPrefix(head, []byte("BZh")) && len(head) > 9 && bytes.Equal(head[4:10], []byte{0x31, 0x41, 0x59, 0x26, 0x53, 0x59}):
		return "", errorf(ErrInvalid, "bzip2 compression is not supported: use gzip, zstd or none")
	}
	return formPlain, nil
}

// decompress reads the uncompressed form of src. Its Close does not close src.
func decompress(src io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(&sourceReader{r: src}, copyBuffer)
	head, err := br.Peek(10)
	if err != nil && err != io.EOF {
		return nil, err
	}
	format, err := sniff(head)
	if err != nil {
		return nil, err
	}
	switch format {
	case formGzip:
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, wrapDecode(format, err)
		}
		return &decoder{format, zr, func() { zr.Close() }}, nil
	case formZstd:
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, wrapDecode(format, err)
		}
		return &decoder{format, zr, zr.Close}, nil
	default:
		return io.NopCloser(br), nil
	}
}

type decoder struct {
	format string
	r      io.Reader
	close  func()
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = wrapDecode(d.format, err)
	}
	return n, err
}

func (d *decoder) Close() error {
	d.close()
	return nil
}

// wrapDecode leaves errors of the source alone.
func wrapDecode(format string, err error) error {
	var se *sourceError
	if errors.As(err, &se) {
		return se.err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return errorf(ErrLimit, "the zstd data asks for a window of more than %d MiB: compress with --ultra -22 at most, without --long", maxWindow>>20)
	}
	return &decodeError{format, err}
}

// sourceReader marks the errors of reading, so that they are not taken for
// damaged data.
type sourceReader struct{ r io.Reader }

type sourceError struct{ err error }

func (e *sourceError) Error() string { return fmt.Sprint("read: ", e.err) }
func (e *sourceError) Unwrap() error { return e.err }

func (r *sourceReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}
