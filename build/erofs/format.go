package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/volantvm/volant/build/layers"
)

const (
	blockBits = 12
	blockSize = 1 << blockBits
	slotSize  = 32 // inodes start at multiples of it; a nid counts them

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	compatChecksum  = 0x1 // the superblock's block has a checksum
	compatMTime     = 0x2 // the times of inodes are of their modification
	incompatChunked = 0x4 // there are chunk-based files

	compactSize  = 32
	extendedSize = 64

	direntSize   = 12
	xattrHead    = 12 // in front of an inode's attributes
	xattrEntry   = 4
	maxShared    = 255
	nullBlock    = 0xFFFFFFFF // a chunk that is a hole
	maxChunks    = 1 << 16    // of a file, so that its map stays below 256 KiB
	maxChunkBits = 31         // beyond blockBits
)

// Data layouts of an inode.
const (
	layoutPlain  = 0
	layoutInline = 2
	layoutChunks = 4
)

// fileType is a directory entry's type.
func fileType(n *layers.Node) byte {
	switch n.Type() {
	case layers.ModeRegular:
		return 1
	case layers.ModeDir:
		return 2
	case layers.ModeChar:
		return 3
	case layers.ModeBlock:
		return 4
	case layers.ModeFIFO:
		return 5
	case layers.ModeSocket:
		return 6
	case layers.ModeSymlink:
		return 7
	}
	return 0
}

// xattrName splits an attribute's name into its prefix's index and the rest.
// layers keeps no other prefixes.
func xattrName(name string) (index byte, rest string) {
	switch {
	case name == "system.posix_acl_access":
		return 2, ""
	case name == "system.posix_acl_default":
		return 3, ""
	}
	prefix, rest, _ := strings.Cut(name, ".")
	switch prefix {
	case "user":
		return 1, rest
	case "trusted":
		return 4, rest
	case "security":
		return 6, rest
	}
	return 0, name
}

func xattrLen(x layers.Xattr) int {
	_, rest := xattrName(x.Name)
	return (xattrEntry + len(rest) + len(x.Value) + 3) &^ 3
}

func appendXattr(b []byte, x layers.Xattr) []byte {
	index, rest := xattrName(x.Name)
	b = append(b, byte(len(rest)), index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
	b = append(append(b, rest...), x.Value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// rdev is the kernel's new_encode_dev.
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// inode is what the two forms of an on-disk inode hold.
type inode struct {
	*layers.Inode
	compact bool
	layout  uint16
	icount  uint16
	size    int64
	union   uint32 // first block, device number or chunk format
}

func (i inode) append(b []byte) []byte {
	le := binary.LittleEndian
	format := i.layout << 1
	if !i.compact {
		format |= 1
	}
	b = le.AppendUint16(b, format)
	b = le.AppendUint16(b, i.icount)
	b = le.AppendUint16(b, uint16(i.Mode))
	if i.compact {
		b = le.AppendUint16(b, uint16(i.Nlink))
		b = le.AppendUint32(b, uint32(i.size))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, i.union)
		b = le.AppendUint32(b, i.Number+1)
		b = le.AppendUint16(b, uint16(i.UID))
		b = le.AppendUint16(b, uint16(i.GID))
		return le.AppendUint32(b, 0)
	}
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(i.size))
	b = le.AppendUint32(b, i.union)
	b = le.AppendUint32(b, i.Number+1)
	b = le.AppendUint32(b, i.UID)
	b = le.AppendUint32(b, i.GID)
	b = le.AppendUint64(b, uint64(i.ModSec))
	b = le.AppendUint32(b, i.ModNsec)
	b = le.AppendUint32(b, i.Nlink)
	return append(b, make([]byte, 16)...)
}

// superblock returns block 0.
func superblock(p *plan) []byte {
	block := make([]byte, blockSize)
	s, le := block[superOffset:][:superSize], binary.LittleEndian
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatChecksum|compatMTime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(p.slot[0]))
	le.PutUint64(s[16:], uint64(len(p.nodes)))
	le.PutUint64(s[24:], uint64(p.opts.BuildTime.Unix()))
	le.PutUint32(s[32:], uint32(p.opts.BuildTime.Nanosecond()))
	le.PutUint32(s[36:], uint32(p.blocks))
	le.PutUint32(s[40:], 0) // nids count from the image's start, so that none is 0
	le.PutUint32(s[44:], uint32(p.xattrBlock))
	copy(s[48:64], p.uuid[:])
	copy(s[64:80], p.opts.Label)
	if p.chunked {
		le.PutUint32(s[80:], incompatChunked)
	}
	// The kernel's crc32c is not inverted at its end.
	le.PutUint32(s[4:], ^crc32.Checksum(block[superOffset:], crc32.MakeTable(crc32.Castagnoli)))
	return block
}
