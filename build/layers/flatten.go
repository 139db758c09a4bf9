package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Layer is one uncompressed layer.
type Layer struct {
	Name string // for messages: its digest or diff ID
	R    io.ReaderAt
	Size int64 // bytes
}

// Prefixes of names with a meaning, OCI image specification, "Whiteouts".
const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh." // aufs's own bookkeeping
	opaque       = ".wh..wh..opq"
)

// Flatten applies layers, the lowest first, and returns the tree they make.
// The layers must stay open and unchanged as long as the tree's content is
// read. Faults of a layer are *Error and wrap ErrFormat, ErrName or ErrLimit
// where these apply.
func Flatten(ctx context.Context, stack []Layer, limits Limits) (*Tree, error) {
	t := newTree(limits)
	for i, l := range stack {
		f := flattener{Tree: t, content: &layerContent{l.R}, layer: int32(i) + 1}
		if err := f.apply(ctx, l); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// flattener applies one layer.
type flattener struct {
	*Tree
	content *layerContent
	layer   int32 // from 1
}

func (f *flattener) apply(ctx context.Context, l Layer) error {
	r := newTarReader(l.R, l.Size, &f.counted)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &Error{Layer: l.Name, Err: err}
		}
		if err := f.entry(h); err != nil {
			return &Error{Layer: l.Name, Entry: h.name, Err: err}
		}
	}
}

// entry applies one entry.
func (f *flattener) entry(h *header) error {
	name, err := cleanName(h.name)
	if err != nil {
		return err
	}
	dir, base := name[:max(0, strings.LastIndexByte(name, '/'))], name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case base == opaque:
		return f.hide(dir, "")
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case strings.HasPrefix(base, whiteout):
		hidden := base[len(whiteout):]
		if hidden == "" || hidden == "." || hidden == ".." {
			return fmt.Errorf("%w: a whiteout of nothing", ErrName)
		}
		return f.hide(dir, hidden)
	case h.typ == typeLink:
		return f.link(name, h.link)
	}
	i, err := f.inode(h)
	if err != nil {
		return err
	}
	return f.put(name, i, f.layer)
}

// inode makes an inode of an entry.
func (f *flattener) inode(h *header) (*Inode, error) {
	if h.uid < 0 || h.uid >= math.MaxUint32 || h.gid < 0 || h.gid >= math.MaxUint32 {
		return nil, fmt.Errorf("its owner %d:%d is no user and group id", h.uid, h.gid)
	}
	i := &Inode{Mode: h.mode, UID: uint32(h.uid), GID: uint32(h.gid), ModSec: h.sec, ModNsec: h.nsec}
	switch h.typ {
	case typeRegular:
		i.Mode |= ModeRegular
		i.Size = h.size
		if err := f.counted.content(h.size); err != nil {
			return nil, err
		}
		if h.length > 0 {
			i.data, i.at = f.content, h.offset
		}
		if h.sparse {
			i.more().sparse, i.extra.extents = true, h.extents
		}
	case typeDir:
		i.Mode |= ModeDir
	case typeSymlink:
		if h.link == "" || len(h.link) > maxPath || strings.IndexByte(h.link, 0) >= 0 {
			return nil, fmt.Errorf("%w: a symbolic link to %s: targets have 1 to %d bytes and no NUL", ErrName, quote(h.link), maxPath)
		}
		i.Mode |= ModeSymlink
		i.more().target = strings.Clone(h.link)
		i.Size = int64(len(h.link))
	case typeChar, typeBlock:
		if i.Mode |= ModeChar; h.typ == typeBlock {
			i.Mode ^= ModeChar ^ ModeBlock
		}
		if h.major < 0 || h.major > maxMajor || h.minor < 0 || h.minor > maxMinor {
			return nil, fmt.Errorf("its device number %d:%d is beyond %d:%d", h.major, h.minor, maxMajor, maxMinor)
		}
		i.more().major, i.extra.minor = uint32(h.major), uint32(h.minor)
	case typeFIFO:
		i.Mode |= ModeFIFO
	default:
		return nil, fmt.Errorf("%w: unknown entry type %q", ErrFormat, h.typ)
	}
	if err := i.SetXattrs(h.xattrs); err != nil {
		return nil, err
	}
	metadata := int64(len(i.Target()))
	for _, x := range i.Xattrs() {
		metadata += int64(len(x.Name) + len(x.Value))
	}
	return i, f.counted.more(metadata)
}

// Linux's device numbers have 12 and 20 bits.
const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1

// link gives a file a further name.
func (f *flattener) link(name, target string) error {
	clean, err := cleanName(target)
	if err != nil {
		return fmt.Errorf("a hard link to %s: %w", quote(target), err)
	}
	i := max(0, strings.LastIndexByte(clean, '/'))
	at, err := f.resolve(clean[:i], lookup)
	if err != nil {
		return fmt.Errorf("a hard link to %s: %w", quote(target), err)
	}
	n := at[len(at)-1].Child(strings.TrimPrefix(clean[i:], "/"))
	switch {
	case n == nil:
		return fmt.Errorf("a hard link to %s: %w", quote(target), errMissing)
	case n.IsDir():
		return fmt.Errorf("a hard link to %s, which is a directory", quote(target))
	}
	inode := n.Inode
	if dir, base, err := f.parent(name, f.layer); err != nil {
		return err
	} else if dir.Child(base) == n {
		return fmt.Errorf("a hard link to %s, which is itself", quote(target))
	}
	return f.put(name, inode, f.layer)
}

// hide applies a whiteout of base in dir or, with base empty, of all that dir
// holds.
func (f *flattener) hide(dir, base string) error {
	if err := f.counted.entry(0); err != nil {
		return err
	}
	at, err := f.resolve(dir, lookup)
	switch {
	case errors.Is(err, errMissing) || errors.Is(err, errNotDir) || errors.Is(err, errLoop):
		return nil // nothing is there to be hidden
	case err != nil:
		return err
	}
	d := at[len(at)-1].dir
	switch {
	case d == nil:
		return nil
	case base == "":
		f.clean(d)
		return nil
	}
	if i := d.find(base); i >= 0 && !f.survives(d.children[i]) {
		d.remove(i)
	}
	return nil
}

// clean removes what lower layers put into a directory. A directory is gone
// through once per layer, however many whiteouts name it.
func (f *flattener) clean(d *directory) {
	if d.clean == f.layer {
		return
	}
	d.clean = f.layer
	kept := d.children[:0]
	for _, n := range d.children {
		if f.survives(n) {
			kept = append(kept, n)
		}
	}
	clear(d.children[len(kept):])
	d.children, d.index = kept, nil
}

// survives reports whether a hidden node is, or holds, something of this
// layer. A directory of a lower layer that only holds such is one that nobody
// mentions.
func (f *flattener) survives(n *Node) bool {
	if n.dir == nil {
		return n.layer == f.layer
	}
	f.clean(n.dir)
	if n.layer == f.layer {
		return true
	}
	if len(n.dir.children) == 0 {
		return false
	}
	n.Inode, n.layer = impliedDir(), f.layer
	return true
}
