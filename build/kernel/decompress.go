package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// stream is a kind of data told by its first bytes.
type stream int

const (
	unknownStream stream = iota
	elfImage
	gzipStream
	lz4Stream // the legacy frame
	xzStream
	zstdStream
	bzip2Stream
	lzmaStream
	lzoStream
)

// magicSize is how many bytes sniff needs.
const magicSize = 6

// sniff tells a stream by the magic numbers of boot.rst's payload_offset.
func sniff(b []byte) stream {
	for _, m := range [...]struct {
		magic string
		s     stream
	}{
		{elfMagic, elfImage},
		{"\x1f\x8b", gzipStream},
		{"\x02\x21\x4c\x18", lz4Stream},
		{xzMagic, xzStream},
		{"\x28\xb5\x2f\xfd", zstdStream},
		{"BZh", bzip2Stream},
		{"\x5d\x00\x00", lzmaStream},
		{"\x89LZO", lzoStream},
	} {
		if bytes.HasPrefix(b, []byte(m.magic)) {
			return m.s
		}
	}
	return unknownStream
}

func (s stream) String() string {
	switch s {
	case elfImage:
		return "none"
	case gzipStream:
		return "gzip"
	case lz4Stream:
		return "lz4"
	case xzStream:
		return "xz"
	case zstdStream:
		return "zstd"
	case bzip2Stream:
		return "bzip2"
	case lzmaStream:
		return "lzma"
	case lzoStream:
		return "lzo"
	}
	return "unknown"
}

// maxWindow is the most memory a decoder may ask for as its window or dictionary, in
// bytes: kernels are packed with zstd -22 --ultra and xz dict=128MiB.
const maxWindow = 128 << 20

// decompress returns a reader of what s holds compressed in r. It does not bound how
// much that is. Closing it releases the decoder, not r.
func decompress(s stream, r io.Reader) (io.ReadCloser, error) {
	switch s {
	case gzipStream:
		z, err := gzip.NewReader(bufio.NewReader(r))
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		z.Multistream(false)
		return z, nil
	case lz4Stream:
		return io.NopCloser(newLZ4Reader(r)), nil
	case xzStream:
		return io.NopCloser(newXZReader(r)), nil
	case zstdStream:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	case bzip2Stream, lzmaStream, lzoStream:
		return nil, fmt.Errorf("%w: %s; gzip, lz4, xz and zstd are read, and an uncompressed vmlinux always is", ErrCompression, s)
	}
	return nil, fmt.Errorf("%w: payload of an unknown format", ErrCompression)
}

// lz4BlockSize is what every block of a legacy frame but the last holds, unpacked.
const lz4BlockSize = 8 << 20

// lz4Reader reads the legacy LZ4 frame (lz4_Frame_format.md, "Legacy frame") as
// Linux writes it: a magic number, then blocks, each after its compressed size, to the
// end of the data.
type lz4Reader struct {
	r     *bufio.Reader
	begun bool
	in    []byte // one compressed block
	out   []byte // one block
	rest  []byte // of out, not yet read
}

func newLZ4Reader(r io.Reader) *lz4Reader { return &lz4Reader{r: bufio.NewReader(r)} }

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if err := z.block(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Reader) block() error {
	var word [4]byte
	if !z.begun {
		if _, err := io.ReadFull(z.r, word[:]); err != nil { // checked by sniff
			return fmt.Errorf("lz4: %w", err)
		}
		z.begun = true
	}
	if _, err := io.ReadFull(z.r, word[:]); err == io.EOF {
		return io.EOF
	} else if err != nil {
		return fmt.Errorf("lz4: block size: %w", err)
	}
	size := binary.LittleEndian.Uint32(word[:])
	if size == 0 || size > uint32(lz4.CompressBlockBound(lz4BlockSize)) {
		return fmt.Errorf("lz4: block of %d bytes", size)
	}
	if z.out == nil {
		z.in = make([]byte, lz4.CompressBlockBound(lz4BlockSize))
		z.out = make([]byte, lz4BlockSize)
	}
	if _, err := io.ReadFull(z.r, z.in[:size]); err != nil {
		return fmt.Errorf("lz4: block: %w", noEOF(err))
	}
	n, err := lz4.UncompressBlock(z.in[:size], z.out)
	if err != nil {
		return fmt.Errorf("lz4: block: %w", err)
	}
	z.rest = z.out[:n]
	return nil
}

// noEOF marks an end in the middle of something.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
