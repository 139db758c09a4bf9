// Package ext4 makes empty ext4 file systems in sparse files: the writable
// disks of VMs and the volumes. It formats and does nothing else.
//
// What it makes has a journal, checksums on all metadata and 64-bit block
// numbers, as mke2fs would, and differs on purpose in three things. Groups that
// hold nothing are marked as not initialized and nothing of them is written: a
// file system of any size takes a few blocks, and a millisecond or so, so there
// is no template to be made, kept and copied. There is no lost+found: programs
// that want an empty directory for their data find one. No block is reserved
// for root: what runs in a VM mostly is root.
//
// The layout is that of Linux, Documentation/filesystems/ext4; names and
// offsets of fields are from its "Super Block", "Block Group Descriptors",
// "Index Nodes", "Directory Entries" and "Journal (jbd2)".
package ext4

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"time"
)

// Sizes that Format accepts, in bytes.
const (
	MinSize = 8 << 20
	MaxSize = 16 << 40
)

const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // as many as one block of bitmap has bits
	inodeSize      = 256
	descSize       = 64
	superOffset    = 1024

	rootInode    = 2
	journalInode = 8
	firstInode   = 11 // that is not reserved

	extraSize = 32 // of an inode beyond the 128 bytes of old, in use
)

// Features, by the word that they are in.
const (
	compat   = 0x4 | 0x8 | 0x20                          // has_journal, ext_attr, dir_index
	incompat = 0x2 | 0x40 | 0x80                         // filetype, extents, 64bit
	roCompat = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400     // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
	groupNew = groupNoInodes | groupNoBlocks | tableZero // a group that holds nothing
)

// Flags of a group.
const (
	groupNoInodes = 0x1 // its inode bitmap is not initialized
	groupNoBlocks = 0x2 // its block bitmap is not initialized
	tableZero     = 0x4 // its inode table is zeroed
)

// Options are what a file system is told.
type Options struct {
	UUID  [16]byte
	Label string // at most 16 bytes
	Now   time.Time
}

// layout is where things are.
type layout struct {
	blocks         uint64
	groups         uint64
	inodesPerGroup uint64
	tableBlocks    uint64 // of a group's inode table
	descBlocks     uint64 // of the group descriptors
	journalBlocks  uint64
	rootBlock      uint64
	journalBlock   uint64
}

// Format makes f, which should be new and empty, an empty file system of size
// bytes. It neither syncs nor closes f. The same options give the same bytes.
func Format(f *os.File, size int64, opt Options) error {
	if size < MinSize || size > MaxSize {
		return fmt.Errorf("ext4: a file system of %d bytes: want %d to %d", size, int64(MinSize), int64(MaxSize))
	}
	if len(opt.Label) > 16 {
		return fmt.Errorf("ext4: label %q has %d bytes, at most 16 are allowed", opt.Label, len(opt.Label))
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	w := &writer{f: f, opt: opt, l: plan(size), seed: checksum(^uint32(0), opt.UUID[:])}
	w.groups()
	w.root()
	w.journal()
	w.inodes()
	w.supers()
	if w.err != nil {
		return fmt.Errorf("ext4: %w", w.err)
	}
	return nil
}

// plan lays a file system out.
func plan(size int64) layout {
	l := layout{blocks: uint64(size) / blockSize}
	// One inode for so many bytes, as mke2fs.conf(5) has it.
	ratio := uint64(16384)
	if size < 512<<20 {
		ratio = 4096
	}
	for {
		l.groups = (l.blocks + blocksPerGroup - 1) / blocksPerGroup
		perGroup := (l.blocks*blockSize/ratio + l.groups - 1) / l.groups
		// Whole blocks of the table, and so whole bytes of the bitmap.
		const inTable = blockSize / inodeSize
		l.tableBlocks = (perGroup + inTable - 1) / inTable
		l.inodesPerGroup = l.tableBlocks * inTable
		l.descBlocks = (l.groups*descSize + blockSize - 1) / blockSize
		// A last group that could hold hardly more than its own metadata is left
		// out.
		last := l.groups - 1
		if last == 0 || l.groupBlocks(last) >= l.overhead(last)+64 {
			break
		}
		l.blocks = last * blocksPerGroup
	}
	// Sizes of e2fsprogs, ext2fs_default_journal_size, up to 64 MiB.
	switch {
	case l.blocks < 32768:
		l.journalBlocks = 1024
	case l.blocks < 256<<10:
		l.journalBlocks = 4096
	case l.blocks < 512<<10:
		l.journalBlocks = 8192
	default:
		l.journalBlocks = 16384
	}
	l.rootBlock = l.overhead(0)
	l.journalBlock = l.rootBlock + 1
	return l
}

// groupBlocks is how many blocks group g has.
func (l *layout) groupBlocks(g uint64) uint64 {
	return min(l.blocks-g*blocksPerGroup, blocksPerGroup)
}

// hasSuper reports whether group g begins with a copy of superblock and
// descriptors: 0, 1, and the powers of 3, 5 and 7.
func hasSuper(g uint64) bool {
	if g <= 1 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < g {
			n *= base
		}
		if n == g {
			return true
		}
	}
	return false
}

// bitmaps is the block number of group g's block bitmap; the inode bitmap and
// the inode table follow.
func (l *layout) bitmaps(g uint64) uint64 {
	at := g * blocksPerGroup
	if hasSuper(g) {
		at += 1 + l.descBlocks
	}
	return at
}

// overhead is how many blocks of group g its own metadata takes.
func (l *layout) overhead(g uint64) uint64 {
	return l.bitmaps(g) - g*blocksPerGroup + 2 + l.tableBlocks
}

// used is how many blocks of group g are in use.
func (l *layout) used(g uint64) uint64 {
	n := l.overhead(g)
	if g == 0 {
		n += 1 + l.journalBlocks
	}
	return n
}

// writer writes blocks and keeps the first error.
type writer struct {
	f     *os.File
	opt   Options
	l     layout
	seed  uint32 // of all checksums
	descs []byte // the group descriptors, set by groups
	free  uint64 // blocks, set by groups
	err   error
}

func (w *writer) write(b []byte, offset uint64) {
	if w.err == nil {
		_, w.err = w.f.WriteAt(b, int64(offset))
	}
}

// checksum is CRC-32C without the inversions at its beginning and end, which is
// how ext4 chains it.
func checksum(seed uint32, b []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), b)
}

func (w *writer) seconds() uint32 { return uint32(w.opt.Now.Unix()) }

// groups makes the descriptors, and writes the bitmaps of the groups that have
// one: the first, which holds everything, and the last, whose end must be
// marked as not there.
func (w *writer) groups() {
	l := &w.l
	w.descs = make([]byte, l.descBlocks*blockSize)
	bitmap := make([]byte, blockSize)
	for g := range l.groups {
		d := w.descs[g*descSize:][:descSize]
		free := l.groupBlocks(g) - l.used(g)
		w.free += free
		flags, inodes := uint16(groupNew), l.inodesPerGroup
		if g == 0 || g == l.groups-1 {
			flags &^= groupNoBlocks
			mark(bitmap, l.used(g), l.groupBlocks(g))
			w.write(bitmap, l.bitmaps(g)*blockSize)
			put32(d, 0x18, 0x38, checksum(w.seed, bitmap))
		}
		if g == 0 {
			flags &^= groupNoInodes
			inodes -= firstInode - 1
			mark(bitmap, firstInode-1, l.inodesPerGroup)
			w.write(bitmap, (l.bitmaps(g)+1)*blockSize)
			put32(d, 0x1a, 0x3a, checksum(w.seed, bitmap[:l.inodesPerGroup/8]))
			put16(d, 0x10, 1) // directories
		}
		put64(d, 0x0, 0x20, l.bitmaps(g))
		put64(d, 0x4, 0x24, l.bitmaps(g)+1)
		put64(d, 0x8, 0x28, l.bitmaps(g)+2)
		put32(d, 0xc, 0x2c, uint32(free))
		put32(d, 0xe, 0x2e, uint32(inodes))
		put16(d, 0x12, flags)
		put32(d, 0x1c, 0x32, uint32(inodes)) // never used
		number := binary.LittleEndian.AppendUint32(nil, uint32(g))
		put16(d, 0x1e, uint16(checksum(checksum(w.seed, number), d))) // over its own place as zeros
	}
}

// mark makes a bitmap with the first used bits set, and those from size on.
func mark(bitmap []byte, used, size uint64) {
	clear(bitmap)
	set := func(from, to uint64) {
		for i := from; i < to; {
			if i%8 == 0 && to-i >= 8 {
				bitmap[i/8] = 0xff
				i += 8
				continue
			}
			bitmap[i/8] |= 1 << (i % 8)
			i++
		}
	}
	set(0, used)
	set(size, uint64(len(bitmap))*8)
}

// root writes the only block of the root directory.
func (w *writer) root() {
	b := make([]byte, blockSize)
	const dir, tail = 2, 12
	entry := func(at, length int, name string) {
		put32(b, at, -1, rootInode)
		put16(b, at+4, uint16(length))
		b[at+6], b[at+7] = byte(len(name)), dir
		copy(b[at+8:], name)
	}
	entry(0, 12, ".")
	entry(12, blockSize-12-tail, "..")
	put16(b, blockSize-tail+4, tail)
	b[blockSize-tail+7] = 0xde // the file type of a checksum
	put32(b, blockSize-4, -1, checksum(w.inodeSeed(rootInode), b[:blockSize-tail]))
	w.write(b, w.l.rootBlock*blockSize)
}

// journal writes the journal's superblock, which is big-endian.
func (w *writer) journal() {
	b := make([]byte, blockSize)
	be := binary.BigEndian
	be.PutUint32(b[0x0:], 0xc03b3998)
	be.PutUint32(b[0x4:], 4) // superblock, version 2
	be.PutUint32(b[0xc:], blockSize)
	be.PutUint32(b[0x10:], uint32(w.l.journalBlocks))
	be.PutUint32(b[0x14:], 1) // first block of the log
	be.PutUint32(b[0x18:], 1) // first commit id
	copy(b[0x30:], w.opt.UUID[:])
	be.PutUint32(b[0x40:], 1) // users
	w.write(b, w.l.journalBlock*blockSize)
}

// inodeSeed begins the checksums of what belongs to an inode of generation 0.
func (w *writer) inodeSeed(ino uint32) uint32 {
	return checksum(checksum(w.seed, binary.LittleEndian.AppendUint32(nil, ino)), make([]byte, 4))
}

// inodes writes those of the root directory and the journal.
func (w *writer) inodes() {
	w.inode(rootInode, w.makeInode(0o40755, 2, w.l.rootBlock, 1))
	w.inode(journalInode, w.makeInode(0o100600, 1, w.l.journalBlock, w.l.journalBlocks))
}

// makeInode makes one whose content is blocks contiguous blocks.
func (w *writer) makeInode(mode, links uint16, block, blocks uint64) []byte {
	n := make([]byte, inodeSize)
	put16(n, 0x0, mode)
	put64(n, 0x4, 0x6c, blocks*blockSize)
	for _, at := range []int{0x8, 0xc, 0x10, 0x90} { // access, change, modification, creation
		put32(n, at, -1, w.seconds())
	}
	put16(n, 0x1a, links)
	put32(n, 0x1c, -1, uint32(blocks*(blockSize/512)))
	put32(n, 0x20, -1, 0x80000) // by extents
	extent := n[0x28:]
	put16(extent, 0, 0xf30a)
	put16(extent, 2, 1) // extents
	put16(extent, 4, 4) // that have room
	put16(extent, 16, uint16(blocks))
	put16(extent, 18, uint16(block>>32))
	put32(extent, 20, -1, uint32(block))
	put16(n, 0x80, extraSize)
	return n
}

func (w *writer) inode(ino uint32, n []byte) {
	put32(n, 0x7c, 0x82, checksum(w.inodeSeed(ino), n))
	w.write(n, (w.l.bitmaps(0)+2)*blockSize+uint64(ino-1)*inodeSize)
}

// supers writes superblock and descriptors wherever they are to be.
func (w *writer) supers() {
	l := &w.l
	for g := range l.groups {
		if !hasSuper(g) {
			continue
		}
		at := g * blocksPerGroup * blockSize
		w.write(w.descs[:l.groups*descSize], at+blockSize)
		if g == 0 {
			at += superOffset
		}
		w.write(w.super(g), at)
	}
}

func (w *writer) super(g uint64) []byte {
	l := &w.l
	s := make([]byte, 1024)
	p32 := func(at int, v uint32) { put32(s, at, -1, v) }
	p32(0x0, uint32(l.inodesPerGroup*l.groups))
	put64(s, 0x4, 0x150, l.blocks)
	put64(s, 0xc, 0x158, w.free)
	p32(0x10, uint32(l.inodesPerGroup*l.groups-(firstInode-1)))
	p32(0x18, 2) // block size, 1024 << 2
	p32(0x1c, 2) // cluster size
	p32(0x20, blocksPerGroup)
	p32(0x24, blocksPerGroup)
	p32(0x28, uint32(l.inodesPerGroup))
	p32(0x30, w.seconds()) // last write
	put16(s, 0x36, 0xffff) // no check after so many mounts
	put16(s, 0x38, 0xef53)
	put16(s, 0x3a, 1) // clean
	put16(s, 0x3c, 1) // on errors: go on
	p32(0x40, w.seconds())
	p32(0x4c, 1) // revision
	p32(0x54, firstInode)
	put16(s, 0x58, inodeSize)
	put16(s, 0x5a, uint16(g))
	p32(0x5c, compat)
	p32(0x60, incompat)
	p32(0x64, roCompat)
	copy(s[0x68:], w.opt.UUID[:])
	copy(s[0x78:0x88], w.opt.Label)
	p32(0xe0, journalInode)
	copy(s[0xec:], w.opt.UUID[:]) // seed of directory hashes: any will do
	s[0xfc] = 1                   // half MD4
	s[0xfd] = 1                   // the journal's inode is copied below
	put16(s, 0xfe, descSize)
	p32(0x100, 0xc) // mount options: user_xattr, acl
	p32(0x108, w.seconds())
	journal := w.makeInode(0o100600, 1, l.journalBlock, l.journalBlocks)
	copy(s[0x10c:], journal[0x28:0x28+60])
	p32(0x10c+16*4, uint32(l.journalBlocks*blockSize))
	put16(s, 0x15c, extraSize)
	put16(s, 0x15e, extraSize)
	p32(0x160, 1) // directory hashes are of signed characters
	s[0x175] = 1  // checksums are CRC-32C
	p32(0x3fc, checksum(^uint32(0), s[:0x3fc]))
	return s
}

func put16(b []byte, at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }

// put32 puts v at at or, with hi, its halves at at and hi.
func put32(b []byte, at, hi int, v uint32) {
	if hi < 0 {
		binary.LittleEndian.PutUint32(b[at:], v)
		return
	}
	put16(b, at, uint16(v))
	put16(b, hi, uint16(v>>16))
}

// put64 puts the halves of v at lo and hi.
func put64(b []byte, lo, hi int, v uint64) {
	binary.LittleEndian.PutUint32(b[lo:], uint32(v))
	binary.LittleEndian.PutUint32(b[hi:], uint32(v>>32))
}
