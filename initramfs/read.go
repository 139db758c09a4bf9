package initramfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Errors of reading.
var (
	// ErrFormat: the input is no initramfs image the kernel would take.
	ErrFormat = errors.New("not a newc cpio archive")
	// ErrUnsupported: a compression the kernel may know and Volant does not.
	ErrUnsupported = errors.New("compression not supported")
	// ErrLimit: the image exceeds the reader's Limits.
	ErrLimit = errors.New("image exceeds the limit")
)

// Limits bound what a Reader takes from a hostile image. A zero field means
// its default.
type Limits struct {
	Entries int   // headers in all segments together, and segments; default 1 << 20
	Bytes   int64 // unpacked bytes of all segments together; default 16 GiB
}

const (
	defaultMaxEntries = 1 << 20
	defaultMaxBytes   = 16 << 30
)

// Header is one entry of an image as read.
type Header struct {
	Name         string      // clean and relative; "." is the root itself
	Mode         fs.FileMode // with its type bits
	UID, GID     uint32
	Size         int64  // bytes of content; zero for all but regular files
	MTime        uint32 // seconds since 1970
	Ino          uint32 // equal within one archive for the names of one file
	Nlink        uint32 // 2 or more: a hard-linked file; its last name may carry the content
	Linkname     string // target of a symbolic link
	Major, Minor uint32 // device number of a device
	Segment      int    // index into Reader.Segments
}

// Segment is one archive of an image. Two archives inside one compressed
// stream are one segment.
type Segment struct {
	Offset      int64 // of its first byte in the image
	Length      int64 // stored bytes, without the padding behind
	Compression Compression
	Entries     int // trailers not counted
}

// Reader walks the entries of an image in order, segment by segment. It is
// not safe for concurrent use.
type Reader struct {
	limits Limits

	raw    stream        // the image
	comp   io.ReadCloser // the decompressor of the current segment, or nil
	in     *stream       // what headers come from: &raw, or the unpacked stream
	inside bool          // between a header and its archive's trailer

	segments []Segment
	entries  int
	unpacked int64 // by earlier compressed segments
	left     int64 // content of the current entry not yet read
	pad      int64 // padding behind it
	sum      *uint32
	wantSum  uint32
	err      error
}

// NewReader returns a reader of the image r. It buffers and may read past the
// image's end.
func NewReader(r io.Reader, limits Limits) *Reader {
	if limits.Entries == 0 {
		limits.Entries = defaultMaxEntries
	}
	if limits.Bytes == 0 {
		limits.Bytes = defaultMaxBytes
	}
	rd := &Reader{limits: limits}
	src := &countReader{r: r}
	rd.raw = stream{br: bufio.NewReaderSize(src, 64<<10), src: src, max: limits.Bytes}
	rd.in = &rd.raw
	return rd
}

// Segments returns the segments seen so far; all of them once Next has
// returned io.EOF.
func (r *Reader) Segments() []Segment { return r.segments }

// Next goes to the next entry, passing over what is unread of the current one.
// It returns io.EOF behind the last segment's trailer. Other errors are final
// and wrap ErrFormat, ErrName, ErrUnsupported, ErrLimit or what the underlying
// reader returned.
func (r *Reader) Next() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.next()
	if err != nil {
		if err != io.EOF {
			err = fmt.Errorf("initramfs at byte %d: %w", r.raw.pos(), err)
		}
		r.fail(err)
		return nil, r.err
	}
	return h, nil
}

func (r *Reader) fail(err error) {
	r.err = err
	if r.comp != nil {
		r.comp.Close()
		r.comp = nil
	}
}

// Read reads the current entry's content.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 || len(p) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		return 0, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.in.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if r.sum != nil {
		for _, c := range p[:n] {
			*r.sum += uint32(c)
		}
	}
	if err != nil {
		err = fmt.Errorf("initramfs at byte %d: %w", r.raw.pos(), noEOF(err))
		r.fail(err)
	}
	return n, err
}

func (r *Reader) next() (*Header, error) {
	if err := r.finishEntry(); err != nil {
		return nil, err
	}
	for {
		if !r.inside {
			if err := r.boundary(); err != nil {
				return nil, err
			}
		}
		h, err := r.header()
		if err != nil {
			return nil, noEOF(err)
		}
		if h != nil {
			return h, nil
		}
		r.inside = false // trailer
		if r.comp == nil {
			r.endSegment()
		}
	}
}

// finishEntry skips the rest of the current entry and checks its sum.
func (r *Reader) finishEntry() error {
	if r.sum != nil { // must be read to be summed
		if _, err := io.Copy(io.Discard, readerOnly{r}); err != nil {
			return err
		}
		if *r.sum != r.wantSum {
			return fmt.Errorf("%w: content's checksum is %08x, header says %08x", ErrFormat, *r.sum, r.wantSum)
		}
		r.sum = nil
	}
	n := r.left + r.pad
	r.left, r.pad = 0, 0
	return noEOF(r.in.discard(n))
}

// boundary passes over zeros to the next archive, as the kernel does, opening
// a compressed segment when there is one. io.EOF means the image ended.
func (r *Reader) boundary() error {
	for {
		b, err := r.in.skipZeros()
		if err == io.EOF && r.comp != nil {
			// Read to its end, the compressed stream has verified itself.
			err := r.comp.Close()
			r.unpacked += r.in.pos()
			r.comp, r.in = nil, &r.raw
			r.endSegment()
			if err != nil {
				return err
			}
			continue
		}
		if err == io.EOF && len(r.segments) == 0 {
			return fmt.Errorf("%w: empty", ErrFormat)
		}
		if err != nil {
			return err
		}
		if b == '0' {
			if r.in.pos()&3 != 0 {
				return fmt.Errorf("%w: archive begins at byte %d of its stream, not at a multiple of 4", ErrFormat, r.in.pos())
			}
			if r.comp == nil {
				if err := r.beginSegment(None); err != nil {
					return err
				}
			}
			r.inside = true
			return nil
		}
		if r.comp != nil {
			return fmt.Errorf("%w: junk within a compressed segment", ErrFormat)
		}
		if err := r.open(); err != nil {
			return err
		}
	}
}

// open starts on the compressed segment at the current place.
func (r *Reader) open() error {
	head, err := r.raw.br.Peek(6)
	if err != nil && err != io.EOF {
		return err
	}
	c, ok, err := detect(head)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: unknown bytes %q", ErrFormat, head)
	}
	if err := r.beginSegment(c); err != nil {
		return err
	}
	if r.comp, err = decompress(c, r.raw.br); err != nil {
		return fmt.Errorf("%s: %w", c, noEOF(err))
	}
	src := &countReader{r: r.comp}
	r.in = &stream{br: bufio.NewReaderSize(src, 32<<10), src: src, max: r.limits.Bytes - r.unpacked}
	return nil
}

// beginSegment notes a segment at the current place. An image of nothing but
// trailers has many without any entry, so they are bounded like entries.
func (r *Reader) beginSegment(c Compression) error {
	if len(r.segments) >= r.limits.Entries {
		return fmt.Errorf("more than %d segments: %w", r.limits.Entries, ErrLimit)
	}
	r.segments = append(r.segments, Segment{Offset: r.raw.pos(), Compression: c})
	return nil
}

// endSegment notes the length of the segment that just ended.
func (r *Reader) endSegment() {
	s := &r.segments[len(r.segments)-1]
	s.Length = r.raw.pos() - s.Offset
}

// header reads one header; nil without error is the trailer.
func (r *Reader) header() (*Header, error) {
	var buf [headerSize]byte
	if _, err := io.ReadFull(r.in, buf[:]); err != nil {
		return nil, err
	}
	crc := false
	switch string(buf[:6]) {
	case magicNewc:
	case magicCRC:
		crc = true
	case "070707":
		return nil, fmt.Errorf("%w: old portable format, make it with cpio -H newc", ErrFormat)
	default:
		return nil, fmt.Errorf("%w: header begins %q", ErrFormat, buf[:6])
	}
	var f [13]uint32
	for i := range f {
		v, ok := parseHex8(buf[6+8*i:][:8])
		if !ok {
			return nil, fmt.Errorf("%w: header field %d is %q", ErrFormat, i, buf[6+8*i:][:8])
		}
		f[i] = v
	}
	ino, mode, uid, gid, nlink, mtime, size := f[0], f[1], f[2], f[3], f[4], f[5], int64(f[6])
	nameSize := int64(f[11])
	if nameSize < 2 || nameSize > MaxName+1 {
		return nil, fmt.Errorf("%w: %d bytes", ErrName, nameSize)
	}
	nameBuf := make([]byte, nameSize)
	if _, err := io.ReadFull(r.in, nameBuf); err != nil {
		return nil, err
	}
	if nameBuf[nameSize-1] != 0 {
		return nil, fmt.Errorf("%w: not ended by a NUL", ErrName)
	}
	if err := r.in.discard(-(headerSize + nameSize) & 3); err != nil {
		return nil, err
	}
	name := string(nameBuf[:nameSize-1])
	if name == trailer {
		if size != 0 {
			return nil, fmt.Errorf("%w: trailer with %d bytes of content", ErrFormat, size)
		}
		return nil, nil
	}
	if r.entries++; r.entries > r.limits.Entries {
		return nil, fmt.Errorf("more than %d entries: %w", r.limits.Entries, ErrLimit)
	}
	r.segments[len(r.segments)-1].Entries++

	h := &Header{
		UID: uid, GID: gid, MTime: mtime, Ino: ino, Nlink: nlink,
		Segment: len(r.segments) - 1,
	}
	var err error
	if h.Name, err = readName(name); err != nil {
		return nil, err
	}
	if h.Mode, err = goMode(mode); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrFormat, clip(name), err)
	}
	switch typ := h.Mode & fs.ModeType; {
	case typ == 0:
		h.Size = size
		r.left, r.pad = size, -size&3
		if crc {
			r.sum, r.wantSum = new(uint32), f[12]
			if size == 0 {
				r.sum = nil // of a hard link's earlier names the sum is of the content that comes later
			}
		}
	case typ == fs.ModeSymlink:
		if size == 0 || size > MaxLinkname {
			return nil, fmt.Errorf("%w: %q: link target of %d bytes", ErrFormat, clip(name), size)
		}
		target := make([]byte, size)
		if _, err := io.ReadFull(r.in, target); err != nil {
			return nil, err
		}
		if err := r.in.discard(-size & 3); err != nil {
			return nil, err
		}
		// Some writers count the closing NUL.
		target = bytes.TrimSuffix(target, []byte{0})
		if len(target) == 0 || bytes.IndexByte(target, 0) >= 0 {
			return nil, fmt.Errorf("%w: %q: link target %q", ErrFormat, clip(name), clip(string(target)))
		}
		h.Linkname = string(target)
	case size != 0:
		return nil, fmt.Errorf("%w: %q: %s with %d bytes of content", ErrFormat, clip(name), typeName(typ), size)
	case typ&fs.ModeDevice != 0:
		h.Major, h.Minor = f[9], f[10]
	}
	return h, nil
}

// readName checks a name as found. Unlike names to be written it may begin
// with "/" or "./" or end with "/", as other writers' do.
func readName(name string) (string, error) {
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", fmt.Errorf("%w: %q climbs out", ErrName, clip(name))
		}
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return ".", nil
	}
	if err := checkName(clean); err != nil {
		return "", fmt.Errorf("%q: %w", clip(name), err)
	}
	return clean, nil
}

func parseHex8(b []byte) (v uint32, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		v = v<<4 | uint32(c)
	}
	return v, true
}

// stream counts what has been taken from a buffered reader.
type stream struct {
	br  *bufio.Reader
	src *countReader
	max int64 // bytes it may take
}

// pos returns the bytes taken so far.
func (s *stream) pos() int64 { return s.src.n - int64(s.br.Buffered()) }

func (s *stream) Read(p []byte) (int, error) {
	if s.pos() > s.max {
		return 0, ErrLimit
	}
	return s.br.Read(p)
}

func (s *stream) discard(n int64) error {
	for n > 0 {
		if s.pos() > s.max {
			return ErrLimit
		}
		k, err := s.br.Discard(int(min(n, 1<<20)))
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}

// skipZeros passes over zero bytes and returns the byte it stands before.
func (s *stream) skipZeros() (byte, error) {
	for {
		if s.pos() > s.max {
			return 0, ErrLimit
		}
		c, err := s.br.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != 0 {
			return c, s.br.UnreadByte()
		}
	}
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// readerOnly hides every method but Read from io.Copy.
type readerOnly struct{ io.Reader }
