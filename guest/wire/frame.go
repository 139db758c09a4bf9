package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame on the virtio-serial link, all numbers big-endian:
//
//	offset size
//	     0    3  'V' 'L' 'K'
//	     3    1  type: hello, ack, data or bye
//	     4    4  epoch, chosen at random by the host for each connection
//	     8    2  length of the payload, at most 16 KiB
//	    10    2  zero
//	    12    4  CRC-32 (IEEE 802.3) of bytes 0..11 and the payload
//	    16    n  payload; only data frames have one
//
// Zero bytes between frames are padding and mean nothing.
const (
	frameMagic  = "VLK"
	headerLen   = 16
	maxPayload  = 16 << 10
	maxFrameLen = headerLen + maxPayload
)

type frameType byte

const (
	frameHello frameType = 1 // host: here is a new epoch; repeated until acknowledged
	frameAck   frameType = 2 // guest: this epoch is in use now
	frameData  frameType = 3
	frameBye   frameType = 4 // either end: this epoch is over
)

type frame struct {
	typ     frameType
	epoch   uint32
	payload []byte
}

// appendFrame appends the wire form of f to b. The payload must not exceed
// maxPayload.
func appendFrame(b []byte, f frame) []byte {
	if len(f.payload) > maxPayload {
		panic("wire: payload exceeds a frame")
	}
	start := len(b)
	b = append(b, frameMagic...)
	b = append(b, byte(f.typ))
	b = binary.BigEndian.AppendUint32(b, f.epoch)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.payload)))
	b = append(b, 0, 0)
	crc := crc32.ChecksumIEEE(b[start:])
	crc = crc32.Update(crc, crc32.IEEETable, f.payload)
	b = binary.BigEndian.AppendUint32(b, crc)
	return append(b, f.payload...)
}

// errGarbage says that a reader met more bytes that are no frame than its limit.
var errGarbage = errors.New("garbage between frames")

// frameReader finds frames in a stream that may begin anywhere and hold torn
// frames. Where a frame does not check out it looks again one byte further on,
// so that it finds every whole frame that follows, whatever lies before it. It
// never holds more than one frame: what a header announces allocates nothing.
type frameReader struct {
	r          io.Reader
	buf        []byte // maxFrameLen
	start, end int    // unread bytes

	// limit is how many bytes may belong to no frame; more are errGarbage.
	// Below zero there is no limit.
	limit   int64
	skipped int64
}

func newFrameReader(r io.Reader, limit int64) *frameReader {
	return &frameReader{r: r, limit: limit, buf: make([]byte, maxFrameLen)}
}

// next returns the next whole frame. Its payload is valid until the next call.
// An error of the underlying reader loses nothing: next may be called again.
func (fr *frameReader) next() (frame, error) {
	for {
		f, n := fr.parse()
		if fr.limit >= 0 && fr.skipped > fr.limit {
			return frame{}, errGarbage
		}
		if n > 0 {
			fr.start += n
			return f, nil
		}
		if err := fr.fill(); err != nil {
			return frame{}, err
		}
	}
}

// parse looks for a frame among the unread bytes and returns it with its
// length, or a length of zero when more bytes are needed. It skips what cannot
// begin a frame.
func (fr *frameReader) parse() (frame, int) {
	for fr.start < fr.end {
		b := fr.buf[fr.start:fr.end]
		if skip := magicIndex(b); skip > 0 {
			fr.skip(skip)
			continue
		}
		if len(b) < headerLen {
			return frame{}, 0
		}
		typ, size := frameType(b[3]), int(binary.BigEndian.Uint16(b[8:]))
		if !validHeader(typ, size, b) {
			fr.skip(1)
			continue
		}
		if len(b) < headerLen+size {
			return frame{}, 0
		}
		payload := b[headerLen : headerLen+size]
		crc := crc32.Update(crc32.ChecksumIEEE(b[:12]), crc32.IEEETable, payload)
		if crc != binary.BigEndian.Uint32(b[12:]) {
			fr.skip(1)
			continue
		}
		return frame{typ: typ, epoch: binary.BigEndian.Uint32(b[4:]), payload: payload}, headerLen + size
	}
	return frame{}, 0
}

func validHeader(typ frameType, size int, b []byte) bool {
	if b[10] != 0 || b[11] != 0 {
		return false
	}
	switch typ {
	case frameData:
		return size <= maxPayload
	case frameHello, frameAck, frameBye:
		return size == 0
	}
	return false
}

// magicIndex returns where in b a frame may begin: at the magic, at a prefix of
// it at the very end, or nowhere, which is len(b).
func magicIndex(b []byte) int {
	if i := bytes.Index(b, []byte(frameMagic)); i >= 0 {
		return i
	}
	for n := min(len(frameMagic)-1, len(b)); n > 0; n-- {
		if string(b[len(b)-n:]) == frameMagic[:n] {
			return len(b) - n
		}
	}
	return len(b)
}

func (fr *frameReader) skip(n int) {
	fr.start += n
	fr.skipped += int64(n)
}

// fill reads once, moving the unread bytes to the front where there is no room.
// A read of nothing is io.EOF: that is how a virtio-serial port without a peer
// answers.
func (fr *frameReader) fill() error {
	if fr.start == fr.end {
		fr.start, fr.end = 0, 0
	}
	if fr.end == len(fr.buf) {
		fr.end = copy(fr.buf, fr.buf[fr.start:fr.end])
		fr.start = 0
	}
	n, err := fr.r.Read(fr.buf[fr.end:])
	if n < 0 || n > len(fr.buf)-fr.end {
		return fmt.Errorf("reader returned %d bytes for room of %d", n, len(fr.buf)-fr.end)
	}
	fr.end += n
	switch {
	case n > 0:
		return nil // an error that came with data comes again
	case err == nil:
		return io.EOF
	}
	return err
}
