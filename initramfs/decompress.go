package initramfs

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdMaxWindow is the window the kernel allocates at most for an initramfs
// (1 << ZSTD_WINDOWLOG_MAX, lib/decompress_unzstd.c).
const zstdMaxWindow = 128 << 20

// decompress returns a reader of one segment that begins at src and, after it
// has returned io.EOF, has consumed exactly that segment. The caller closes it.
func decompress(c Compression, src *bufio.Reader) (io.ReadCloser, error) {
	switch c {
	case Gzip:
		// src is an io.ByteReader, so nothing past the member is read.
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return z, nil
	case Zstd:
		d, err := zstd.NewReader(&zstdFrame{src: src}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdMaxWindow), zstd.WithDecoderMaxMemory(1<<40))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case LZ4:
		return &lz4Reader{src: src}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", string(c))
}

// lz4Reader unpacks a legacy lz4 stream as lib/decompress_unlz4.c does: it
// ends at the end of input or at a zero block length, which it leaves unread.
type lz4Reader struct {
	src    *bufio.Reader
	begun  bool
	packed []byte
	chunk  []byte
	rest   []byte
}

func (z *lz4Reader) Close() error { return nil }

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Reader) next() error {
	head, err := z.src.Peek(4)
	if len(head) < 4 {
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !z.begun {
			return io.ErrUnexpectedEOF
		}
		return io.EOF // up to three bytes of padding may remain
	}
	n := binary.LittleEndian.Uint32(head)
	switch {
	case n == lz4Magic:
		z.begun = true
		_, err := z.src.Discard(4)
		return err
	case n == 0:
		return io.EOF
	case int64(n) > int64(lz4.CompressBlockBound(lz4Chunk)):
		return fmt.Errorf("lz4 block of %d bytes, at most %d", n, lz4.CompressBlockBound(lz4Chunk))
	}
	if _, err := z.src.Discard(4); err != nil {
		return err
	}
	// The length is hostile until that much has arrived: grow by what comes.
	z.packed = z.packed[:0]
	for uint32(len(z.packed)) < n {
		k := min(int(n)-len(z.packed), 1<<20)
		z.packed = append(z.packed, make([]byte, k)...)
		if _, err := io.ReadFull(z.src, z.packed[len(z.packed)-k:]); err != nil {
			return noEOF(err)
		}
	}
	if z.chunk == nil {
		z.chunk = make([]byte, lz4Chunk)
	}
	got, err := lz4.UncompressBlock(z.packed, z.chunk)
	if err != nil {
		return fmt.Errorf("lz4: %w", err)
	}
	z.rest = z.chunk[:got]
	return nil
}

// zstdFrame passes on the bytes of the first zstd frame of src and not one
// more, so that a decoder which reads ahead cannot eat what follows. It walks
// the frame's block headers (RFC 8878 section 3.1.1) and decodes nothing.
type zstdFrame struct {
	src   *bufio.Reader
	left  int64 // bytes of the current piece still to pass on
	state zstdState
	sum   bool // the frame ends with a checksum
}

type zstdState int

const (
	zstdHead zstdState = iota
	zstdBlock
	zstdLast
	zstdEnd
)

func (f *zstdFrame) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for f.left == 0 {
		if err := f.advance(); err != nil {
			return 0, err
		}
	}
	n, err := f.src.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, noEOF(err)
}

// advance sets left to the length of the next piece, header included.
func (f *zstdFrame) advance() error {
	switch f.state {
	case zstdHead:
		b, err := f.src.Peek(5) // magic and descriptor
		if len(b) < 5 {
			return noEOF(err)
		}
		desc := b[4]
		n := int64(5)
		single := desc&0x20 != 0
		if !single {
			n++ // window descriptor
		}
		switch desc & 3 { // dictionary ID
		case 1:
			n++
		case 2:
			n += 2
		case 3:
			n += 4
		}
		switch desc >> 6 { // content size
		case 0:
			if single {
				n++
			}
		case 1:
			n += 2
		case 2:
			n += 4
		case 3:
			n += 8
		}
		f.sum = desc&4 != 0
		f.left, f.state = n, zstdBlock
		return nil
	case zstdBlock:
		b, err := f.src.Peek(3)
		if len(b) < 3 {
			return noEOF(err)
		}
		h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		size := int64(h >> 3)
		switch h >> 1 & 3 {
		case 1:
			size = 1 // one byte, repeated
		case 3:
			return errors.New("zstd: reserved block type")
		}
		f.left = 3 + size
		if h&1 != 0 {
			f.state = zstdLast
		}
		return nil
	case zstdLast:
		f.state = zstdEnd
		if f.sum {
			f.left = 4
			return nil
		}
		return io.EOF
	}
	return io.EOF
}

// noEOF turns an end of input inside something into the error it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
