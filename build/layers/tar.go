package layers

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"strconv"
	"strings"
)

// Sizes of the tar format, in bytes.
const (
	blockSize  = 512
	maxSpecial = 1 << 20 // of a pax header or a long name, as Go's archive/tar has it
)

// Entry types, "Typeflag Field" of POSIX pax and GNU's additions.
const (
	typeRegular    = '0'
	typeRegularOld = 0
	typeLink       = '1'
	typeSymlink    = '2'
	typeChar       = '3'
	typeBlock      = '4'
	typeDir        = '5'
	typeFIFO       = '6'
	typeContiguous = '7'
	typePAX        = 'x'
	typePAXGlobal  = 'g'
	typeGNUName    = 'L'
	typeGNULink    = 'K'
	typeGNUSparse  = 'S'
)

// header is one entry of a layer.
type header struct {
	typ            byte
	name, link     string
	mode           uint32 // without type
	uid, gid       int64
	sec            int64
	nsec           uint32
	major, minor   int64
	xattrs         []Xattr
	size           int64 // of the file
	offset, length int64 // of its content in the layer
	sparse         bool
	extents        []Extent // of a sparse file; at is the offset in the layer
}

// tarReader walks the headers of a tar archive and knows where the content is.
// archive/tar does not say where a file's content lies, nor where its holes are.
type tarReader struct {
	r    io.ReaderAt
	size int64
	pos  int64  // of the next header
	buf  []byte // what was read ahead, from offset at
	at   int64
	mem  []byte // backs buf
	used *usage // bounds what sparse maps may take
}

// readAhead is what is read of a layer at once: headers of small files lie
// close together.
const readAhead = 64 << 10

func newTarReader(r io.ReaderAt, size int64, used *usage) *tarReader {
	return &tarReader{r: r, size: size, mem: make([]byte, readAhead), used: used}
}

// read returns n bytes at off, n being at most maxSpecial. The bytes are valid
// until the next read.
func (t *tarReader) read(off, n int64) ([]byte, error) {
	if off < 0 || off > t.size || n > t.size-off {
		return nil, fmt.Errorf("%w: it ends after %d bytes, %d before it should", ErrFormat, t.size, n-max(0, t.size-off))
	}
	if off < t.at || off+n > t.at+int64(len(t.buf)) {
		want := min(max(n, readAhead), t.size-off)
		if want > int64(len(t.mem)) {
			t.mem = make([]byte, want)
		}
		t.buf, t.at = t.mem[:want], off
		if got, err := t.r.ReadAt(t.buf, off); got < len(t.buf) {
			t.buf = nil
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return t.buf[off-t.at:][:n], nil
}

func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// next returns the next entry, or io.EOF behind the last.
func (t *tarReader) next() (*header, error) {
	var (
		pax              []record
		longName, longLn string
	)
	for {
		if t.pos == t.size && pax == nil && longName == "" && longLn == "" {
			return nil, io.EOF // without a trailer, as some write it
		}
		b, err := t.read(t.pos, blockSize)
		if err != nil {
			return nil, err
		}
		if isZero(b) {
			// Two zero blocks end an archive; one at its very end does as well.
			if t.pos+blockSize == t.size {
				return nil, io.EOF
			}
			if b, err = t.read(t.pos+blockSize, blockSize); err != nil {
				return nil, err
			}
			if !isZero(b) {
				return nil, fmt.Errorf("%w: a lone zero block at offset %d", ErrFormat, t.pos)
			}
			return nil, io.EOF
		}
		if !checksum(b) {
			return nil, fmt.Errorf("%w: no tar header at offset %d", ErrFormat, t.pos)
		}
		typ := b[156]
		switch typ {
		case typePAX, typePAXGlobal, typeGNUName, typeGNULink:
			size, err := number(b[124:136])
			if err != nil || size < 0 || size > maxSpecial {
				return nil, fmt.Errorf("%w: an extended header of %d bytes at offset %d, at most %d", ErrFormat, size, t.pos, maxSpecial)
			}
			data, err := t.read(t.pos+blockSize, size)
			if err != nil {
				return nil, err
			}
			switch typ {
			case typePAX:
				if pax, err = parsePAX(data); err != nil {
					return nil, err
				}
			case typeGNUName:
				longName = cString(data)
			case typeGNULink:
				longLn = cString(data)
			}
			t.pos += blockSize + padded(size)
			continue
		}
		return t.entry(bytes.Clone(b), pax, longName, longLn)
	}
}

// entry reads the header in b, amended by what stood before it.
func (t *tarReader) entry(b []byte, pax []record, longName, longLink string) (*header, error) {
	h := &header{typ: b[156], name: cString(b[:100]), link: cString(b[157:257])}
	numbers := parser{}
	h.mode = uint32(numbers.number(b[100:108])) & (0o7777)
	h.uid, h.gid = numbers.number(b[108:116]), numbers.number(b[116:124])
	length := numbers.number(b[124:136])
	h.sec = numbers.number(b[136:148])
	gnu := false
	switch magic := string(b[257:265]); {
	case magic[:6] == "ustar\x00":
		prefix := b[345:500]
		if string(b[508:512]) == "tar\x00" { // Schily's star
			prefix = b[345:476]
		}
		if p := cString(prefix); p != "" {
			h.name = p + "/" + h.name
		}
	case magic == "ustar  \x00":
		gnu = true
		// Go's writer once put a prefix where GNU tar has times.
		if _, err := number(b[345:357]); err != nil {
			if p := cString(b[345:500]); p != "" && isASCII(p) {
				h.name = p + "/" + h.name
			}
		}
	}
	if h.typ == typeChar || h.typ == typeBlock {
		h.major, h.minor = numbers.number(b[329:337]), numbers.number(b[337:345])
	}
	if numbers.err != nil {
		return nil, fmt.Errorf("%w: header at offset %d: %w", ErrFormat, t.pos, numbers.err)
	}
	h.size = length
	sp, err := h.applyPAX(pax, &length)
	if err != nil {
		return nil, err
	}
	if longName != "" {
		h.name = longName
	}
	if longLink != "" {
		h.link = longLink
	}
	if sp.name != "" && sp.sparse() {
		h.name = sp.name
	}
	switch h.typ {
	case typeRegular, typeRegularOld, typeContiguous:
		h.typ = typeRegular
		if strings.HasSuffix(h.name, "/") { // how tar had it before directories had a type
			h.typ = typeDir
		}
	case typeLink, typeSymlink, typeChar, typeBlock, typeDir, typeFIFO:
		length, h.size = 0, 0
	}
	if length < 0 || h.size < 0 {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrFormat, quote(h.name), min(length, h.size))
	}
	h.offset, h.length = t.pos+blockSize, length
	switch {
	case h.typ == typeGNUSparse && gnu:
		h.typ = typeRegular
		err = t.oldSparse(h, b)
	case h.typ == typeRegular && sp.sparse():
		err = t.paxSparse(h, sp)
	case h.typ == typeRegular && h.length > t.size-min(h.offset, t.size):
		err = fmt.Errorf("%w: %s is cut short: %d of %d bytes are there", ErrFormat, quote(h.name), t.size-h.offset, h.length)
	}
	if err != nil {
		return nil, err
	}
	if h.typ == typeDir {
		h.size = 0 // bytes behind a directory are skipped
	}
	end := h.offset + padded(h.length)
	if end > t.size && h.offset+h.length <= t.size {
		end = t.size // the last padding is missing, as some write it
	}
	if end > t.size || end < h.offset {
		return nil, fmt.Errorf("%w: %s is cut short", ErrFormat, quote(h.name))
	}
	t.pos = end
	return h, nil
}

// applyPAX takes what a pax header says of the next entry. length is the bytes
// in the archive.
func (h *header) applyPAX(pax []record, length *int64) (paxSparse, error) {
	var sp paxSparse
	for _, r := range pax {
		if r.value == "" {
			continue // means: as the header says
		}
		var err error
		switch r.key {
		case "path":
			h.name = r.value
		case "linkpath":
			h.link = r.value
		case "size":
			*length, err = strconv.ParseInt(r.value, 10, 64)
			h.size = *length
		case "uid":
			h.uid, err = strconv.ParseInt(r.value, 10, 64)
		case "gid":
			h.gid, err = strconv.ParseInt(r.value, 10, 64)
		case "mtime":
			h.sec, h.nsec, err = parseTime(r.value)
		default:
			if name, ok := strings.CutPrefix(r.key, "SCHILY.xattr."); ok {
				h.setXattr(name, r.value, true)
			} else if name, ok := strings.CutPrefix(r.key, "LIBARCHIVE.xattr."); ok {
				err = h.setLibarchive(name, r.value)
			} else if key, ok := strings.CutPrefix(r.key, "GNU.sparse."); ok {
				err = sp.set(key, r.value)
			}
		}
		if err != nil {
			return sp, fmt.Errorf("%w: pax record %s of %s: %w", ErrFormat, quote(r.key), quote(h.name), err)
		}
	}
	return sp, nil
}

// setXattr adds an attribute; one that is there already stays, unless the new
// one is of the form that wins.
func (h *header) setXattr(name, value string, wins bool) {
	for i := range h.xattrs {
		if h.xattrs[i].Name == name {
			if wins {
				h.xattrs[i].Value = value
			}
			return
		}
	}
	h.xattrs = append(h.xattrs, Xattr{strings.Clone(name), strings.Clone(value)})
}

// setLibarchive decodes bsdtar's form: the name URL-encoded, the value base64
// without padding.
func (h *header) setLibarchive(name, value string) error {
	name, err := url.PathUnescape(name)
	if err != nil {
		return err
	}
	v, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return err
	}
	h.setXattr(name, string(v), false)
	return nil
}

// record is one line of a pax header.
type record struct{ key, value string }

// parsePAX splits "length key=value\n" lines; length counts the whole line.
func parsePAX(b []byte) ([]record, error) {
	s := string(b)
	var out []record
	for s != "" {
		digits, _, ok := strings.Cut(s, " ")
		n, err := strconv.ParseInt(digits, 10, 32)
		if !ok || err != nil || n <= int64(len(digits))+1 || n > int64(len(s)) || s[n-1] != '\n' {
			return nil, fmt.Errorf("%w: pax header line %s", ErrFormat, quote(s))
		}
		key, value, ok := strings.Cut(s[len(digits)+1:n-1], "=")
		if !ok || key == "" || strings.IndexByte(key, 0) >= 0 {
			return nil, fmt.Errorf("%w: pax record %s", ErrFormat, quote(s[:n-1]))
		}
		out = append(out, record{key, value})
		s = s[n:]
	}
	if out == nil {
		out = []record{}
	}
	return out, nil
}

// parseTime reads seconds with a fraction, negative ones too.
func parseTime(s string) (sec int64, nsec uint32, err error) {
	whole, frac, _ := strings.Cut(s, ".")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return 0, 0, err
	}
	if frac == "" {
		return sec, 0, nil
	}
	for _, c := range frac {
		if c < '0' || c > '9' {
			return 0, 0, errors.New("no decimal number")
		}
	}
	n, _ := strconv.ParseUint((frac + "000000000")[:9], 10, 32)
	if n > 0 && strings.HasPrefix(whole, "-") {
		if sec == math.MinInt64 {
			return 0, 0, strconv.ErrRange
		}
		return sec - 1, uint32(1e9 - n), nil
	}
	return sec, uint32(n), nil
}

// parser keeps the first error of many fields.
type parser struct{ err error }

func (p *parser) number(b []byte) int64 {
	n, err := number(b)
	if p.err == nil {
		p.err = err
	}
	return n
}

// number reads a field: octal, or base 256 when the first bit is set.
func number(b []byte) (int64, error) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		inv := byte(0)
		if b[0]&0x40 != 0 {
			inv = 0xff // negative, two's complement
		}
		var x uint64
		for i, c := range b {
			c ^= inv
			if i == 0 {
				c &= 0x7f
			}
			if x>>56 > 0 {
				return 0, errors.New("a number is too large")
			}
			x = x<<8 | uint64(c)
		}
		if x>>63 > 0 {
			return 0, errors.New("a number is too large")
		}
		if inv != 0 {
			return ^int64(x), nil
		}
		return int64(x), nil
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, nil
	}
	x, err := strconv.ParseUint(cString([]byte(s)), 8, 63)
	if err != nil {
		return 0, fmt.Errorf("%s is no octal number", quote(s))
	}
	return int64(x), nil
}

// checksum compares the header's checksum, which some writers summed signed.
func checksum(b []byte) bool {
	want, err := number(b[148:156])
	if err != nil {
		return false
	}
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return want == unsigned || want == signed
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}

// cString is what stands before the first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
