package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Offsets in the setup header and their meaning: Documentation/arch/x86/boot.rst,
// "The Real-Mode Kernel Header".
const (
	offSetupSects    = 0x1f1 // u8: size of the setup code in sectors, 0 means 4
	offBootFlag      = 0x1fe // u16: 0xaa55
	offHeaderMagic   = 0x202 // "HdrS"
	offProtocol      = 0x206 // u16: boot protocol, major<<8 | minor
	offPayloadOffset = 0x248 // u32: of the payload in the protected-mode code, protocol 2.08+
	offPayloadLength = 0x24c // u32

	headerSize       = 0x250 // as much of the header as is read
	sectorSize       = 512
	defaultSects     = 4
	protocolPayload  = 0x0208 // the first protocol that tells where the payload is
	sizeTrailerBytes = 4      // see payload
)

// bzImage is the place of the payload in a bzImage.
type bzImage struct {
	offset, length int64 // bytes, within the file
}

// parseBzImage reads the setup header of a file of size bytes.
func parseBzImage(src io.ReaderAt, size int64) (bzImage, error) {
	h := make([]byte, headerSize)
	if size < headerSize {
		return bzImage{}, fmt.Errorf("%w: %d bytes are too few for a bzImage", ErrNotKernel, size)
	}
	if _, err := src.ReadAt(h, 0); err != nil && err != io.EOF {
		return bzImage{}, err
	}
	le := binary.LittleEndian
	if le.Uint16(h[offBootFlag:]) != 0xaa55 || string(h[offHeaderMagic:offHeaderMagic+4]) != "HdrS" {
		return bzImage{}, fmt.Errorf("%w: neither a bzImage nor an ELF file", ErrNotKernel)
	}
	if p := le.Uint16(h[offProtocol:]); p < protocolPayload {
		return bzImage{}, fmt.Errorf("%w: boot protocol %d.%02d is older than 2.08 (Linux 2.6.26)", ErrNotKernel, p>>8, p&0xff)
	}
	sects := int64(h[offSetupSects])
	if sects == 0 {
		sects = defaultSects
	}
	b := bzImage{
		offset: (sects+1)*sectorSize + int64(le.Uint32(h[offPayloadOffset:])),
		length: int64(le.Uint32(h[offPayloadLength:])),
	}
	if b.length <= sizeTrailerBytes {
		return bzImage{}, fmt.Errorf("%w: bzImage has no payload", ErrNotKernel)
	}
	if b.offset+b.length > size { // both below 2^33: no overflow
		return bzImage{}, fmt.Errorf("%w: bzImage is cut short: its payload ends at byte %d, the file at %d", ErrNotKernel, b.offset+b.length, size)
	}
	return b, nil
}

// payload returns a reader of the uncompressed payload, which boot.rst promises to
// be an ELF file. The kernel's relocation table follows the ELF file's own bytes and
// is kept: loaders ignore it.
//
// For every compression but gzip the kernel build appends the uncompressed size as a
// little-endian u32 (scripts/Makefile.lib, size_append), because only gzip has it at
// its end anyway. The reader fails if the size is another one.
func (b bzImage) payload(src io.ReaderAt) (io.ReadCloser, string, error) {
	magic := make([]byte, magicSize)
	n, err := src.ReadAt(magic[:min(magicSize, b.length)], b.offset)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	c := sniff(magic[:n])
	if c == elfImage {
		return io.NopCloser(io.NewSectionReader(src, b.offset, b.length)), "none", nil
	}
	length := b.length
	if c != gzipStream {
		length -= sizeTrailerBytes
	}
	r, err := decompress(c, io.NewSectionReader(src, b.offset, length))
	if err != nil {
		return nil, "", err
	}
	var trailer [sizeTrailerBytes]byte
	if _, err := src.ReadAt(trailer[:], b.offset+b.length-sizeTrailerBytes); err != nil && err != io.EOF {
		return nil, "", errors.Join(err, r.Close())
	}
	want := int64(binary.LittleEndian.Uint32(trailer[:]))
	if want > MaxImageSize {
		r.Close()
		return nil, "", fmt.Errorf("unpacked: %w: %d bytes, at most %d", ErrTooLarge, want, MaxImageSize)
	}
	return &exactReader{r: r, left: want}, c.String(), nil
}

// exactReader fails unless r ends after exactly left bytes.
type exactReader struct {
	r    io.ReadCloser
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if e.left < 0 || (err == io.EOF && e.left != 0) {
		return n, fmt.Errorf("%w: the payload is not as long as the image says", ErrNotKernel)
	}
	return n, err
}

func (e *exactReader) Close() error { return e.r.Close() }
