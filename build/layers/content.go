package layers

import (
	"io"
	"slices"
	"strings"
)

// content is where the bytes of files come from.
type content interface {
	// open returns the bytes of i without its holes: byte Inode.at of the
	// reader, or Extent.at, is the first. The closer may be nil.
	open(i *Inode) (io.ReaderAt, io.Closer, error)
}

// layerContent is a layer; offsets are the layer's.
type layerContent struct{ r io.ReaderAt }

func (c *layerContent) open(*Inode) (io.ReaderAt, io.Closer, error) { return c.r, nil, nil }

// bytesContent is content in memory.
type bytesContent string

func (c bytesContent) open(*Inode) (io.ReaderAt, io.Closer, error) {
	return strings.NewReader(string(c)), nil, nil
}

// Extents returns where a regular file has bytes, in order; what lies between
// is holes. The slice must not be changed.
func (i *Inode) Extents() []Extent {
	switch {
	case i.extra != nil && i.extra.sparse:
		return i.extra.extents
	case i.data == nil || i.Size == 0:
		return nil
	}
	return []Extent{{0, i.Size, i.at}}
}

// Sparse reports whether a regular file has holes.
func (i *Inode) Sparse() bool {
	if !i.IsRegular() || i.Size == 0 {
		return false
	}
	if i.extra != nil && i.extra.sparse {
		x := i.extra.extents
		return len(x) != 1 || x[0].Offset != 0 || x[0].Length != i.Size
	}
	return i.data == nil
}

// File is the content of a regular file, holes read as zeros.
type File struct {
	r       io.ReaderAt
	c       io.Closer
	extents []Extent
	size    int64
}

// Open opens the content of a regular file. The file must be closed. It may
// wrap ErrChanged for a file of the host.
func (i *Inode) Open() (*File, error) {
	f := &File{extents: i.Extents(), size: i.Size}
	if i.data == nil {
		return f, nil
	}
	var err error
	f.r, f.c, err = i.data.open(i)
	return f, err
}

// Size returns the bytes of content, holes included.
func (f *File) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt. An unexpected end is io.ErrUnexpectedEOF,
// never a short file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	want, eof := len(p), error(nil)
	if int64(want) > f.size-off {
		want, eof = int(f.size-off), io.EOF
	}
	p = p[:want]
	i, found := slices.BinarySearchFunc(f.extents, off, func(x Extent, off int64) int {
		switch {
		case x.Offset+x.Length <= off:
			return -1
		case x.Offset > off:
			return 1
		}
		return 0
	})
	_ = found // i is the extent at off, or the first behind it
	for len(p) > 0 {
		if i == len(f.extents) {
			clear(p)
			break
		}
		x := f.extents[i]
		if hole := x.Offset - off; hole > 0 {
			n := min(hole, int64(len(p)))
			clear(p[:n])
			p, off = p[n:], off+n
			continue
		}
		n := min(x.Length-(off-x.Offset), int64(len(p)))
		got, err := f.r.ReadAt(p[:n], x.at+off-x.Offset)
		if int64(got) < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return want - len(p) + got, err
		}
		p, off = p[n:], off+n
		i++
	}
	return want, eof
}

// Reader returns a reader of the whole content.
func (f *File) Reader() *io.SectionReader { return io.NewSectionReader(f, 0, f.size) }

// Close ends the use of the file.
func (f *File) Close() error {
	if f.c == nil {
		return nil
	}
	return f.c.Close()
}
