package initramfs

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compression says how a segment of an image is stored. Its text form is the
// one used in recipes.
type Compression string

const (
	None Compression = "none" // the fastest to boot, see the package comment
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	LZ4  Compression = "lz4" // legacy frames, the only ones the kernel reads
)

// ParseCompression reads the text form; the empty string is None.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case "":
		return None, nil
	case None, Gzip, Zstd, LZ4:
		return c, nil
	}
	return "", fmt.Errorf("unknown compression %q: use none, gzip, zstd or lz4", s)
}

// NewWriter returns a writer that compresses to w. Equal input gives equal
// output for one version of Volant, on any machine: the streams hold no time,
// no name, and nothing that depends on the number of processors. Close ends
// the stream and does not close w.
func (c Compression) NewWriter(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case None, "":
		return nopCloser{w}, nil
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	case Zstd:
		// Level 3 of zstd keeps the window at 4 MiB, far below the 128 MiB
		// the kernel takes. One frame: the kernel stops after the first.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(4<<20), zstd.WithZeroFrames(true))
	case LZ4:
		return &lz4Writer{w: w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", string(c))
}

// detect names the compression of a segment by its first bytes; ok is false
// when they are none the kernel knows. Formats that the kernel may know and
// this package does not unpack are named with an error.
func detect(b []byte) (c Compression, ok bool, err error) {
	has := func(magic string) bool { return len(b) >= len(magic) && string(b[:len(magic)]) == magic }
	switch {
	case has("\x1f\x8b"):
		return Gzip, true, nil
	case has("\x28\xb5\x2f\xfd"):
		return Zstd, true, nil
	case has("\x02\x21\x4c\x18"):
		return LZ4, true, nil
	case has("\xfd7zXZ\x00"):
		return "", false, fmt.Errorf("xz segment: %w", ErrUnsupported)
	case has("BZh"):
		return "", false, fmt.Errorf("bzip2 segment: %w", ErrUnsupported)
	case has("\x5d\x00\x00"):
		return "", false, fmt.Errorf("lzma segment: %w", ErrUnsupported)
	case has("\x89LZO"):
		return "", false, fmt.Errorf("lzo segment: %w", ErrUnsupported)
	case has("\x04\x22\x4d\x18"):
		return "", false, fmt.Errorf("lz4 segment in the frame format, which no kernel unpacks (use lz4 -l): %w", ErrUnsupported)
	}
	return "", false, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// The legacy lz4 stream: a magic number, then blocks of a 4-byte little-endian
// compressed length and that many bytes, each at most 8 MiB unpacked
// (LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE in lib/decompress_unlz4.c).
const (
	lz4Magic = 0x184C2102
	lz4Chunk = 8 << 20
)

type lz4Writer struct {
	w      io.Writer
	c      lz4.Compressor
	chunk  []byte
	packed []byte
	begun  bool
	err    error
}

func (z *lz4Writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 && z.err == nil {
		if z.chunk == nil {
			z.chunk = make([]byte, 0, lz4Chunk)
		}
		k := min(len(p), lz4Chunk-len(z.chunk))
		z.chunk = append(z.chunk, p[:k]...)
		p, n = p[k:], n+k
		if len(z.chunk) == lz4Chunk {
			z.flush()
		}
	}
	return n, z.err
}

func (z *lz4Writer) flush() {
	if !z.begun {
		z.begun = true
		if _, z.err = z.w.Write(binary.LittleEndian.AppendUint32(nil, lz4Magic)); z.err != nil {
			return
		}
	}
	if len(z.chunk) == 0 {
		return
	}
	if z.packed == nil {
		// With room for the bound, incompressible input becomes literals;
		// the legacy stream has no mark for a stored block.
		z.packed = make([]byte, 4+lz4.CompressBlockBound(lz4Chunk))
	}
	// The fast compressor: on 51 MB of programs it took 0.4 s for 29 MB, the
	// high one 1.8 to 2.3 s for 25 MB at any level.
	n, err := z.c.CompressBlock(z.chunk, z.packed[4:])
	if err != nil {
		z.err = fmt.Errorf("lz4: %w", err)
		return
	}
	binary.LittleEndian.PutUint32(z.packed, uint32(n))
	_, z.err = z.w.Write(z.packed[:4+n])
	z.chunk = z.chunk[:0]
}

func (z *lz4Writer) Close() error {
	if z.err == nil {
		z.flush()
	}
	z.chunk, z.packed = nil, nil
	return z.err
}
