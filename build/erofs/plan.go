package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"iter"
	"math"
	"math/bits"

	"github.com/volantvm/volant/build/layers"
)

// ErrTooLarge: the tree does not fit the format.
var ErrTooLarge = errors.New("too large for an erofs image")

// plan says where everything comes to lie, before anything is written. Slices
// are by inode number.
type plan struct {
	opts  Options
	nodes []*layers.Node

	parent []uint32 // number of a directory's parent
	slot   []uint32 // nid
	block  []uint32 // first block of what does not lie in the metadata
	layout []uint8

	shared     map[layers.Xattr]uint32 // offset in the shared attributes
	sharedList []layers.Xattr
	sharedSize int64

	metaEnd    int64 // byte behind the last inode
	xattrBlock int64
	blocks     int64 // of the image
	chunked    bool
	uuid       [16]byte
}

func newPlan(ctx context.Context, t *layers.Tree, o Options) (*plan, error) {
	p := &plan{opts: o, nodes: t.Index()}
	n := len(p.nodes)
	p.parent, p.slot, p.block, p.layout = make([]uint32, n), make([]uint32, n), make([]uint32, n), make([]uint8, n)
	for _, dir := range p.nodes {
		for _, c := range dir.Children() {
			if c.IsDir() {
				p.parent[c.Number] = dir.Number
			}
		}
	}
	p.shareXattrs()
	if err := p.placeInodes(ctx); err != nil {
		return nil, err
	}
	if err := p.placeContent(); err != nil {
		return nil, err
	}
	p.uuid = o.UUID
	if p.uuid == [16]byte{} {
		p.deriveUUID()
	}
	return p, nil
}

// shareXattrs finds attributes that several inodes have.
func (p *plan) shareXattrs() {
	count := make(map[layers.Xattr]int)
	for _, n := range p.nodes {
		for _, x := range n.Xattrs() {
			count[x]++
		}
	}
	p.shared = make(map[layers.Xattr]uint32)
	for _, n := range p.nodes {
		for _, x := range n.Xattrs() {
			if _, ok := p.shared[x]; ok || count[x] < 2 || p.sharedSize > math.MaxUint32 {
				continue
			}
			p.shared[x] = uint32(p.sharedSize)
			p.sharedList = append(p.sharedList, x)
			p.sharedSize += int64(xattrLen(x))
		}
	}
}

// splitXattrs returns the offsets of an inode's shared attributes and the
// attributes that are its own.
func (p *plan) splitXattrs(n *layers.Node) (shared []uint32, own []layers.Xattr) {
	for _, x := range n.Xattrs() {
		if at, ok := p.shared[x]; ok && len(shared) < maxShared {
			shared = append(shared, at)
		} else {
			own = append(own, x)
		}
	}
	return shared, own
}

// xattrSize is the bytes between an inode and its content, a multiple of 4.
func (p *plan) xattrSize(n *layers.Node) int {
	if len(n.Xattrs()) == 0 {
		return 0
	}
	shared, own := p.splitXattrs(n)
	size := xattrHead + 4*len(shared)
	for _, x := range own {
		size += xattrLen(x)
	}
	return size
}

// icount is the field that says xattrSize.
func icount(size int) (uint16, error) {
	if size == 0 {
		return 0, nil
	}
	n := (size-xattrHead)/4 + 1
	if n > math.MaxUint16 {
		return 0, fmt.Errorf("%w: extended attributes of %d bytes on one file", ErrTooLarge, size)
	}
	return uint16(n), nil
}

// compact reports whether the short form holds an inode.
func (p *plan) compact(n *layers.Node) bool {
	return n.UID <= math.MaxUint16 && n.GID <= math.MaxUint16 && n.Nlink <= math.MaxUint16 && p.size(n) <= math.MaxUint32 &&
		(p.opts.OneTime || n.ModSec == p.opts.BuildTime.Unix() && int(n.ModNsec) == p.opts.BuildTime.Nanosecond())
}

func (p *plan) inodeSize(n *layers.Node) int {
	if p.compact(n) {
		return compactSize
	}
	return extendedSize
}

// size is the field i_size: bytes of content, of a directory those of its
// entries.
func (p *plan) size(n *layers.Node) int64 {
	switch n.Type() {
	case layers.ModeDir:
		full, last := 0, 0
		for e := range p.entries(n) {
			if last+direntSize+len(e.name) > blockSize {
				full, last = full+1, 0
			}
			last += direntSize + len(e.name)
		}
		return int64(full)<<blockBits + int64(last)
	case layers.ModeRegular, layers.ModeSymlink:
		return n.Size
	}
	return 0
}

// dirent is an entry of a directory.
type dirent struct {
	name string
	ino  uint32
	typ  byte
}

// entries yields a directory's entries in the order the kernel searches them,
// "." and ".." among them.
func (p *plan) entries(dir *layers.Node) iter.Seq[dirent] {
	return func(yield func(dirent) bool) {
		dots := []dirent{{".", dir.Number, 2}, {"..", p.parent[dir.Number], 2}}
		for _, n := range dir.Children() {
			for len(dots) > 0 && dots[0].name < n.Name {
				if !yield(dots[0]) {
					return
				}
				dots = dots[1:]
			}
			if !yield(dirent{n.Name, n.Number, fileType(n)}) {
				return
			}
		}
		for _, d := range dots {
			if !yield(d) {
				return
			}
		}
	}
}

// placeInodes gives each inode its slot and decides where its content goes.
func (p *plan) placeInodes(ctx context.Context) error {
	pos := int64(blockSize)
	for i, n := range p.nodes {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		xattrs := p.xattrSize(n)
		if _, err := icount(xattrs); err != nil {
			return fmt.Errorf("%q: %w", n.Name, err)
		}
		size, head := p.size(n), int64(p.inodeSize(n)+xattrs)
		pos = (pos + slotSize - 1) &^ (slotSize - 1)
		room := blockSize - pos%blockSize
		p.layout[i] = layoutPlain
		switch {
		case n.IsRegular() && n.Sparse():
			p.layout[i], p.chunked = layoutChunks, true
			head += 4 * chunksOf(n).count
		case size > 0 && size < blockSize && head+size <= room:
			p.layout[i] = layoutInline
			head += size
		case size > 0 && head+size <= blockSize && room <= blockSize-size:
			// Leaving the rest of this block empty costs less than a block of its own.
			p.layout[i] = layoutInline
			head += size
			pos += room
		case room < extendedSize:
			pos += room // an inode lies in one block
		}
		if p.layout[i] == layoutChunks && room < extendedSize {
			pos += room
		}
		if pos/slotSize > math.MaxUint32 {
			return fmt.Errorf("%w: %d files", ErrTooLarge, len(p.nodes))
		}
		p.slot[i] = uint32(pos / slotSize)
		pos += head
	}
	p.metaEnd = pos
	return nil
}

// placeContent gives blocks to what does not lie in the metadata.
func (p *plan) placeContent() error {
	next := blocksOf(p.metaEnd)
	p.xattrBlock = next
	next += blocksOf(p.sharedSize)
	for _, files := range []bool{false, true} {
		for i, n := range p.nodes {
			if n.IsRegular() != files || p.layout[i] == layoutInline {
				continue
			}
			blocks := blocksOf(p.size(n))
			if p.layout[i] == layoutChunks {
				blocks = chunksOf(n).blocks()
			}
			if blocks == 0 {
				continue
			}
			if next+blocks >= math.MaxUint32 {
				return fmt.Errorf("%w: more than 16 TiB", ErrTooLarge)
			}
			p.block[i] = uint32(next)
			next += blocks
		}
	}
	p.blocks = next
	return nil
}

func blocksOf(size int64) int64 { return (size + blockSize - 1) >> blockBits }

// chunks is how a sparse file is cut.
type chunks struct {
	n     *layers.Node
	bits  int // of a chunk's size, beyond blockBits
	count int64
}

func chunksOf(n *layers.Node) chunks {
	c := chunks{n: n}
	c.bits = max(0, bits.Len64(uint64(blocksOf(n.Size)-1)/maxChunks))
	if len(n.Extents()) == 0 {
		c.bits = min(maxChunkBits, bits.Len64(uint64(blocksOf(n.Size)-1)))
	}
	size := c.size()
	c.count = (n.Size + size - 1) / size
	return c
}

func (c chunks) size() int64 { return 1 << (blockBits + c.bits) }

// data yields the numbers of the chunks that hold bytes.
func (c chunks) data() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		next := int64(0)
		for _, x := range c.n.Extents() {
			first, last := max(next, x.Offset/c.size()), (x.Offset+x.Length-1)/c.size()
			for i := first; i <= last; i++ {
				if !yield(i) {
					return
				}
			}
			next = max(next, last+1)
		}
	}
}

// span is the bytes of the file in a chunk.
func (c chunks) span(i int64) int64 { return min(c.size(), c.n.Size-i*c.size()) }

func (c chunks) blocks() int64 {
	var sum int64
	for i := range c.data() {
		sum += blocksOf(c.span(i))
	}
	return sum
}

// deriveUUID names the image after its files' names and attributes: content is
// not known before it is written.
func (p *plan) deriveUUID() {
	h := sha256.New()
	var b []byte
	for _, dir := range p.nodes {
		b = appendMeta(b[:0], dir.Inode)
		for _, n := range dir.Children() {
			b = appendString(binary.LittleEndian.AppendUint32(b, n.Number), n.Name)
		}
		h.Write(b)
	}
	p.uuid = uuidOf(h)
}

func appendMeta(b []byte, i *layers.Inode) []byte {
	major, minor := i.Device()
	for _, v := range [...]uint32{i.Number, i.Mode, i.UID, i.GID, i.ModNsec, major, minor} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(i.ModSec))
	b = binary.LittleEndian.AppendUint64(b, uint64(i.Size))
	b = appendString(b, i.Target())
	for _, x := range i.Xattrs() {
		b = appendString(appendString(b, x.Name), x.Value)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
}

// uuidOf is a UUID of version 8, RFC 9562.
func uuidOf(h hash.Hash) (u [16]byte) {
	copy(u[:], h.Sum(nil))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return u
}
