// Package superblock reads what a disk image says of itself: the superblock of
// the three read-only root file systems that Volant boots. It mounts nothing and
// reads no file.
//
// # Sources
//
// Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h, the ext4 page
// Documentation/filesystems/ext4/super.rst, and fs/squashfs/squashfs_fs.h of
// Linux 6.12. All fields are little-endian.
package superblock

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// Types of file systems.
const (
	Erofs    = "erofs"
	Ext4     = "ext4"
	Squashfs = "squashfs"
)

// Superblock is what a file system says of itself.
type Superblock struct {
	Type      string
	Size      int64  // bytes of the file system; the image has at least as many
	BlockSize int64  // bytes
	Inodes    uint64 // in use: files, directories and all else
	Label     string // empty if there is none; squashfs has no place for one
	UUID      string // 8-4-4-4-12 hex digits; empty as above
	// Compression is the algorithm of squashfs; erofs names those of its
	// files elsewhere, ext4 has none.
	Compression string
}

// ErrUnknown: the image begins with no superblock that this package knows.
var ErrUnknown = errors.New("no erofs, ext4 or squashfs")

const (
	erofsMagic    = 0xE0F5E1E2
	ext4Magic     = 0xEF53
	squashfsMagic = 0x73717368 // "hsqs"

	// superOffset is where erofs and ext4 put theirs, past a boot sector.
	superOffset = 1024
	headLength  = superOffset + 512
)

// Read reads the superblock of an image of size bytes. The error wraps
// ErrUnknown, or says why a superblock cannot be: it is in conflict with itself
// or the image is shorter than the file system.
func Read(r io.ReaderAt, size int64) (Superblock, error) {
	head := make([]byte, headLength)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return Superblock{}, err
	}
	clear(head[n:])
	le := binary.LittleEndian
	super := head[superOffset:]
	var s Superblock
	switch {
	case le.Uint32(head) == squashfsMagic: // first: the others' places lie in its data
		s, err = readSquashfs(head)
	case le.Uint32(super) == erofsMagic:
		s, err = readErofs(super)
	case le.Uint16(super[56:]) == ext4Magic:
		s, err = readExt4(super)
	default:
		return s, ErrUnknown
	}
	if err != nil {
		return s, err
	}
	if s.Size > size {
		return s, fmt.Errorf("truncated: the %s file system has %d bytes, the image %d", s.Type, s.Size, size)
	}
	return s, nil
}

// readErofs reads struct erofs_super_block.
func readErofs(b []byte) (Superblock, error) {
	le := binary.LittleEndian
	s := Superblock{
		Type: Erofs, Inodes: le.Uint64(b[16:]), UUID: uuid(b[48:64]), Label: label(b[64:80]),
	}
	if b[12] < 9 || b[12] > 16 { // EROFS_MIN_BLOCK_BITS, and 64 KiB pages
		return s, fmt.Errorf("erofs: block size 2^%d", b[12])
	}
	s.BlockSize = 1 << b[12]
	s.Size = int64(le.Uint32(b[36:])) << b[12]
	return s, nil
}

// readExt4 reads struct ext4_super_block.
func readExt4(b []byte) (Superblock, error) {
	le := binary.LittleEndian
	s := Superblock{Type: Ext4, UUID: uuid(b[104:120]), Label: label(b[120:136])}
	logBlock := le.Uint32(b[24:])
	if logBlock > 6 { // EXT4_MAX_BLOCK_LOG_SIZE 16, over 10
		return s, fmt.Errorf("ext4: block size 2^(10+%d)", logBlock)
	}
	s.BlockSize = 1024 << logBlock
	blocks := uint64(le.Uint32(b[4:]))
	const has64bit = 0x80 // EXT4_FEATURE_INCOMPAT_64BIT
	if le.Uint32(b[96:])&has64bit != 0 {
		blocks |= uint64(le.Uint32(b[336:])) << 32
	}
	if hi, lo := bits.Mul64(blocks, uint64(s.BlockSize)); hi == 0 && lo <= 1<<62 {
		s.Size = int64(lo)
	} else {
		return s, fmt.Errorf("ext4: %d blocks of %d bytes", blocks, s.BlockSize)
	}
	total, free := le.Uint32(b), le.Uint32(b[16:])
	if free > total {
		return s, fmt.Errorf("ext4: %d of %d inodes are free", free, total)
	}
	s.Inodes = uint64(total - free)
	return s, nil
}

// readSquashfs reads struct squashfs_super_block.
func readSquashfs(b []byte) (Superblock, error) {
	le := binary.LittleEndian
	s := Superblock{Type: Squashfs, BlockSize: int64(le.Uint32(b[12:])), Inodes: uint64(le.Uint32(b[4:]))}
	if s.BlockSize < 4<<10 || s.BlockSize > 1<<20 || s.BlockSize&(s.BlockSize-1) != 0 {
		return s, fmt.Errorf("squashfs: block size %d", s.BlockSize)
	}
	if major, minor := le.Uint16(b[28:]), le.Uint16(b[30:]); major != 4 || minor != 0 {
		return s, fmt.Errorf("squashfs: version %d.%d, not 4.0", major, minor)
	}
	used := le.Uint64(b[40:])
	if used > 1<<62 {
		return s, fmt.Errorf("squashfs: %d bytes used", used)
	}
	s.Size = int64(used)
	names := []string{1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
	id := int(le.Uint16(b[20:]))
	if id < 1 || id >= len(names) {
		return s, fmt.Errorf("squashfs: compression %d", id)
	}
	s.Compression = names[id]
	return s, nil
}

func label(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	if h == "00000000000000000000000000000000" {
		return ""
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
