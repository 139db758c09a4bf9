package erofs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/volantvm/volant/build/layers"
)

// Options are what a tree does not say. The zero value is useful.
type Options struct {
	// BuildTime is when the image was made, as the superblock has it. It must
	// not be the clock's if the image is to be reproducible. The zero time
	// stands for 1970.
	BuildTime time.Time
	// OneTime gives every file BuildTime instead of its own time, and a smaller
	// inode.
	OneTime bool
	// UUID names the file system; zero derives it from the tree's names and
	// attributes.
	UUID [16]byte
	// Label is the volume's name, of at most 15 bytes.
	Label string
}

// Result is a finished image.
type Result struct {
	Size   int64  // bytes
	Digest string // "sha256:" and 64 hex digits
}

// Write writes an image of t to w, from its first byte to its last. It numbers
// t's inodes, so nothing else may use t meanwhile. It blocks until done or ctx
// ends; what it wrote until an error is no image. Errors of w are returned as
// they are.
func Write(ctx context.Context, w io.Writer, t *layers.Tree, o Options) (Result, error) {
	if o.BuildTime.IsZero() {
		o.BuildTime = time.Unix(0, 0)
	}
	if len(o.Label) > 15 {
		return Result{}, fmt.Errorf("label %q: at most 15 bytes", o.Label)
	}
	p, err := newPlan(ctx, t, o)
	if err != nil {
		return Result{}, err
	}
	s := newSink(ctx, w)
	iw := imageWriter{plan: p, sink: s}
	err = iw.image()
	if closeErr := s.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Size: s.pos, Digest: s.digest()}, nil
}

// imageWriter writes what a plan says.
type imageWriter struct {
	*plan
	sink *sink
	buf  []byte
}

func (w *imageWriter) image() error {
	if err := w.sink.write(superblock(w.plan)); err != nil {
		return err
	}
	for i, n := range w.nodes {
		if err := w.sink.pad(int64(w.slot[i]) * slotSize); err != nil {
			return err
		}
		if err := w.inode(n); err != nil {
			return fmt.Errorf("%q: %w", n.Name, err)
		}
	}
	if err := w.sink.pad(w.xattrBlock << blockBits); err != nil {
		return err
	}
	for _, x := range w.sharedList {
		if err := w.sink.write(appendXattr(w.buf[:0], x)); err != nil {
			return err
		}
	}
	for _, files := range []bool{false, true} {
		for i, n := range w.nodes {
			if n.IsRegular() != files || w.block[i] == 0 {
				continue
			}
			if err := w.sink.pad(int64(w.block[i]) << blockBits); err != nil {
				return err
			}
			var err error
			if w.layout[i] == layoutChunks {
				err = w.chunkData(n)
			} else {
				err = w.content(n)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", n.Name, err)
			}
		}
	}
	return w.sink.pad(w.blocks << blockBits)
}

// inode writes an inode with its attributes and what lies behind them.
func (w *imageWriter) inode(n *layers.Node) error {
	xattrs := w.xattrSize(n)
	count, err := icount(xattrs)
	if err != nil {
		return err
	}
	i := inode{Inode: n.Inode, compact: w.compact(n), layout: uint16(w.layout[n.Number]), icount: count, size: w.size(n)}
	switch n.Type() {
	case layers.ModeChar, layers.ModeBlock:
		i.union = rdev(n.Device())
	default:
		i.union = w.block[n.Number]
	}
	var c chunks
	if i.layout == layoutChunks {
		c = chunksOf(n)
		i.union = uint32(c.bits)
	}
	w.buf = i.append(w.buf[:0])
	if xattrs > 0 {
		w.appendXattrs(n)
	}
	if err := w.sink.write(w.buf); err != nil {
		return err
	}
	switch i.layout {
	case layoutInline:
		return w.content(n)
	case layoutChunks:
		return w.chunkMap(n, c)
	}
	return nil
}

func (w *imageWriter) appendXattrs(n *layers.Node) {
	shared, own := w.splitXattrs(n)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, 0)
	w.buf = append(w.buf, byte(len(shared)), 0, 0, 0, 0, 0, 0, 0)
	for _, at := range shared {
		w.buf = binary.LittleEndian.AppendUint32(w.buf, at/4)
	}
	for _, x := range own {
		w.buf = appendXattr(w.buf, x)
	}
}

// chunkMap writes the first block of each chunk.
func (w *imageWriter) chunkMap(n *layers.Node, c chunks) error {
	w.buf = w.buf[:0]
	block := w.block[n.Number]
	for i := range c.data() {
		for int64(len(w.buf)) < 4*i {
			w.buf = binary.LittleEndian.AppendUint32(w.buf, nullBlock)
		}
		w.buf = binary.LittleEndian.AppendUint32(w.buf, block)
		block += uint32(blocksOf(c.span(i)))
	}
	for int64(len(w.buf)) < 4*c.count {
		w.buf = binary.LittleEndian.AppendUint32(w.buf, nullBlock)
	}
	return w.sink.write(w.buf)
}

// chunkData writes the chunks that hold bytes. Each but a file's last is a
// multiple of a block.
func (w *imageWriter) chunkData(n *layers.Node) error {
	f, err := n.Open()
	if err != nil {
		return err
	}
	c := chunksOf(n)
	for i := range c.data() {
		if err = w.sink.copy(f, i*c.size(), c.span(i)); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// content writes what an inode holds.
func (w *imageWriter) content(n *layers.Node) error {
	switch n.Type() {
	case layers.ModeSymlink:
		return w.sink.write([]byte(n.Target()))
	case layers.ModeDir:
		return w.directory(n)
	}
	f, err := n.Open()
	if err != nil {
		return err
	}
	return errors.Join(w.sink.copy(f, 0, n.Size), f.Close())
}

// directory writes a directory's blocks: in each its entries, then their
// names. All but the last are filled up with zeros.
func (w *imageWriter) directory(n *layers.Node) error {
	var block []dirent
	used, full := 0, false
	flush := func() error {
		w.buf = w.buf[:0]
		nameAt := len(block) * direntSize
		for _, e := range block {
			w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(w.slot[e.ino]))
			w.buf = binary.LittleEndian.AppendUint16(w.buf, uint16(nameAt))
			w.buf = append(w.buf, e.typ, 0)
			nameAt += len(e.name)
		}
		for _, e := range block {
			w.buf = append(w.buf, e.name...)
		}
		if full {
			w.buf = append(w.buf, make([]byte, blockSize-len(w.buf))...)
		}
		block, used = block[:0], 0
		return w.sink.write(w.buf)
	}
	for e := range w.entries(n) {
		if used+direntSize+len(e.name) > blockSize {
			full = true
			if err := flush(); err != nil {
				return err
			}
			full = false
		}
		block = append(block, e)
		used += direntSize + len(e.name)
	}
	return flush()
}
