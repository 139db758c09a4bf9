package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"crypto/sha256"

	"github.com/ulikunitz/xz/lzma"
)

const xzMagic = "\xfd7zXZ\x00"

// Filter IDs, xz file format 1.2.1 section 5.3.
const (
	xzFilterX86   = 0x04
	xzFilterLZMA2 = 0x21
)

var errXZ = errors.New("xz: malformed stream")

// xzReader reads one xz stream. The container is read here because Linux packs
// x86 kernels with the x86 branch filter in front of LZMA2 (scripts/xz_wrap.sh), which
// the Go libraries lack; LZMA2 itself is the library's. Each block's check is
// verified; the index after the last block holds nothing that is needed.
type xzReader struct {
	r     *countingReader
	begun bool
	check byte      // kind of check, from the stream's flags
	block io.Reader // of the current block, nil between blocks
	begin int64     // where the current block's compressed data begins
	sum   hash.Hash // of the current block, nil if it has no check
}

func newXZReader(r io.Reader) *xzReader {
	return &xzReader{r: &countingReader{r: bufio.NewReaderSize(r, 64<<10)}}
}

func (x *xzReader) Read(p []byte) (int, error) {
	for {
		if x.block == nil {
			if err := x.nextBlock(); err != nil {
				return 0, err
			}
		}
		n, err := x.block.Read(p)
		if x.sum != nil {
			x.sum.Write(p[:n])
		}
		if err == io.EOF {
			if err := x.endBlock(); err != nil {
				return n, err
			}
			err = nil
		}
		if err != nil {
			return n, fmt.Errorf("xz: %w", err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// nextBlock reads up to the next block's data. It returns io.EOF at the index.
func (x *xzReader) nextBlock() error {
	if !x.begun {
		var h [12]byte // magic, flags, their CRC32
		if _, err := io.ReadFull(x.r, h[:]); err != nil {
			return fmt.Errorf("xz: header: %w", noEOF(err))
		}
		if string(h[:6]) != xzMagic || h[6] != 0 || h[7] > 15 ||
			crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
			return errXZ
		}
		x.begun, x.check = true, h[7]
	}
	size, err := x.r.ReadByte()
	if err != nil {
		return fmt.Errorf("xz: block: %w", noEOF(err))
	}
	if size == 0 { // index indicator
		return io.EOF
	}
	h := make([]byte, (int(size)+1)*4)
	h[0] = size
	if _, err := io.ReadFull(x.r, h[1:]); err != nil {
		return fmt.Errorf("xz: block: %w", noEOF(err))
	}
	body, crc := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(crc) {
		return errXZ
	}
	branches, dict, err := parseXZFilters(body[1:])
	if err != nil {
		return err
	}
	switch x.check {
	case 0:
		x.sum = nil
	case 1:
		x.sum = crc32.NewIEEE()
	case 4:
		x.sum = crc64.New(crc64.MakeTable(crc64.ECMA))
	case 10:
		x.sum = sha256.New()
	default:
		return fmt.Errorf("xz: check of unknown kind %d", x.check)
	}
	x.begin = x.r.n
	lz, err := lzma.Reader2Config{DictCap: dict}.NewReader2(x.r)
	if err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	x.block = lz
	if branches {
		x.block = &branchReader{r: lz}
	}
	return nil
}

// parseXZFilters reads a block header from its flags on: whether the x86 branch filter
// comes before LZMA2, and LZMA2's dictionary size in bytes.
func parseXZFilters(h []byte) (branches bool, dict int, err error) {
	flags := h[0]
	h = h[1:]
	if flags&0x3c != 0 {
		return false, 0, errXZ
	}
	varint := func() uint64 {
		v, n := binary.Uvarint(h) // the same coding, section 1.2
		if n <= 0 {
			err = errXZ
			return 0
		}
		h = h[n:]
		return v
	}
	if flags&0x40 != 0 {
		varint() // compressed size: LZMA2 marks its own end
	}
	if flags&0x80 != 0 {
		varint() // uncompressed size
	}
	filters := int(flags&3) + 1
	for i := 0; i < filters; i++ {
		id, propSize := varint(), varint()
		if err != nil || propSize > uint64(len(h)) {
			return false, 0, errXZ
		}
		props := h[:propSize]
		h = h[propSize:]
		last := i == filters-1
		switch {
		case id == xzFilterX86 && !last && !branches && len(bytes.Trim(props, "\x00")) == 0:
			branches = true
		case id == xzFilterLZMA2 && last && len(props) == 1 && props[0] <= 40:
			size := uint64(2|props[0]&1) << (props[0]/2 + 11) // section 5.3.1
			if size > maxWindow {
				return false, 0, fmt.Errorf("xz: dictionary: %w: %d bytes, at most %d", ErrTooLarge, size, maxWindow)
			}
			dict = int(size)
		default:
			return false, 0, fmt.Errorf("xz: filter %#x is not supported", id)
		}
	}
	if len(bytes.Trim(h, "\x00")) > 0 {
		return false, 0, errXZ
	}
	return branches, dict, nil
}

// endBlock skips the padding and verifies the check after a block's data.
func (x *xzReader) endBlock() error {
	x.block = nil
	pad := make([]byte, -(x.r.n-x.begin)&3)
	if _, err := io.ReadFull(x.r, pad); err != nil {
		return fmt.Errorf("xz: padding: %w", noEOF(err))
	}
	if len(bytes.Trim(pad, "\x00")) > 0 {
		return errXZ
	}
	if x.sum == nil {
		return nil
	}
	got := make([]byte, x.sum.Size())
	if _, err := io.ReadFull(x.r, got); err != nil {
		return fmt.Errorf("xz: check: %w", noEOF(err))
	}
	want := x.sum.Sum(nil) // Go's CRCs are big-endian, the format's little-endian
	if x.check != 10 {
		for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
			want[i], want[j] = want[j], want[i]
		}
	}
	if !bytes.Equal(got, want) {
		return errors.New("xz: data does not match its check")
	}
	return nil
}

// countingReader counts what is read, which gives the padding. The LZMA2 reader
// takes no byte beyond its end mark.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}
