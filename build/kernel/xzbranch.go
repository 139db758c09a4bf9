package kernel

import (
	"encoding/binary"
	"io"
)

// branchReader undoes the x86 branch filter of xz: the packer turned the relative
// targets of CALL (e8) and JMP (e9) into absolute ones, which repeat and so pack
// better. An operand counts only if its top byte is 00 or ff, and one that overlaps an
// earlier e8 or e9 byte is judged by which of those bytes looked like an opcode: that
// history is the mask.
type branchReader struct {
	r    io.Reader
	err  error
	buf  [64 << 10]byte
	done int    // buf[:done] is converted
	from int    // buf[from:done] is not yet read
	end  int    // buf[:end] is filled
	pos  uint32 // of buf[done] in the stream
	mask uint32 // bit n: an opcode byte that was not converted lies n+1 bytes back
}

func (b *branchReader) Read(p []byte) (int, error) {
	for b.from == b.done {
		if b.err != nil {
			return 0, b.err
		}
		b.end = copy(b.buf[:], b.buf[b.done:b.end])
		b.from, b.done = 0, 0
		var n int
		n, b.err = b.r.Read(b.buf[b.end:])
		b.end += n
		converted := b.convert(b.buf[:b.end])
		if b.err != nil {
			converted = b.end // the last bytes are too few for an operand
		}
		b.done = converted
		b.pos += uint32(converted)
	}
	n := copy(p, b.buf[b.from:b.done])
	b.from += n
	return n, nil
}

// convert converts branches in buf, whose first byte is at b.pos, and returns how many
// bytes are final. Up to four at the end may belong to an operand not yet read.
func (b *branchReader) convert(buf []byte) int {
	// For each mask: may an operand here be one at all, and which of its bytes, counted
	// from the top, an earlier opcode's operand ends in.
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	overlap := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	sign := func(c byte) bool { return c == 0 || c == 0xff }

	i, last := 0, -1 // last: where the previous opcode byte was, one before buf at first
	for ; i+4 < len(buf); i++ {
		if buf[i]&0xfe != 0xe8 {
			continue
		}
		if back := i - last; back > 3 {
			b.mask = 0
		} else {
			b.mask = b.mask << (back - 1) & 7
		}
		last = i
		if b.mask != 0 && (!allowed[b.mask] || sign(buf[i+4-int(overlap[b.mask])])) {
			b.mask = b.mask<<1 | 1
			continue
		}
		operand := buf[i+1 : i+5]
		if !sign(operand[3]) {
			b.mask = b.mask<<1 | 1
			continue
		}
		v := binary.LittleEndian.Uint32(operand)
		for {
			v -= b.pos + uint32(i) + 5
			if b.mask == 0 {
				break
			}
			shift := overlap[b.mask] * 8
			if !sign(byte(v >> (24 - shift))) {
				break
			}
			v ^= 1<<(32-shift) - 1
		}
		v &= 0x01ffffff // 25 bits, sign-extended
		v |= -(v & 0x01000000)
		binary.LittleEndian.PutUint32(operand, v)
		i += 4
	}
	if back := i - last; back > 3 {
		b.mask = 0
	} else {
		b.mask <<= back - 1
	}
	return i
}
