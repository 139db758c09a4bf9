package transport

import (
	"encoding/binary"
	"errors"
	"io"
)

// Frames of yamux (its spec.md): version, type, flags in two bytes, stream id
// and length in four bytes each, all big-endian. Only a data frame has a body,
// of as many bytes as its length says.
const (
	frameHeader = 12
	frameData   = 0
	framePing   = 2
	flagSYN     = 1
)

// errNotAnAnswer is why a link to a guest that begins something itself is
// dropped.
var errNotAnAnswer = errors.New("the guest sent what only a host sends: a ping or a new stream")

// answers passes on what a guest may send: data on the host's streams and
// answers. Agents neither open streams nor ping. A session would hold a window
// for each stream, and starts a goroutine for each ping, which waits as long as
// the guest does not read: a few bytes of a hostile guest for some KiB of the
// host's memory, without end.
type answers struct {
	io.ReadWriteCloser

	header [frameHeader]byte
	have   int    // bytes of header
	body   uint32 // bytes of the frame's body that are still to come
}

// Read is called by the session's only reader.
func (a *answers) Read(p []byte) (int, error) {
	n, err := a.ReadWriteCloser.Read(p)
	for b := p[:n]; len(b) > 0; {
		if a.body > 0 {
			k := min(a.body, uint32(len(b)))
			a.body -= k
			b = b[k:]
			continue
		}
		k := copy(a.header[a.have:], b)
		a.have += k
		b = b[k:]
		if a.have < frameHeader {
			break
		}
		a.have = 0
		typ, flags := a.header[1], binary.BigEndian.Uint16(a.header[2:])
		if flags&flagSYN != 0 || typ == framePing {
			return 0, errNotAnAnswer
		}
		if typ == frameData {
			a.body = binary.BigEndian.Uint32(a.header[8:])
		}
	}
	return n, err
}
