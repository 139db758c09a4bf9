package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
)

const (
	magicNewc  = "070701"
	magicCRC   = "070702"
	headerSize = 110
	trailer    = "TRAILER!!!"
)

// parentMode is the mode of directories nobody added but something lies in.
const parentMode = fs.ModeDir | 0o755

// writeBuffer is large enough that the output is written in few system calls
// and small enough to stay in a core's second-level cache.
const writeBuffer = 256 << 10

// Archive is a set of entries to be written as one cpio archive. The zero
// value is empty and ready. It is not safe for concurrent use.
type Archive struct {
	// MTime is the modification time of every entry, in seconds since 1970.
	// Kernels ignore it unless built with INITRAMFS_PRESERVE_MTIME.
	MTime uint32

	entries map[string]*Entry // by clean name; never an absent parent
}

// Add puts a copy of e into the archive. Parents need not be added, nor added
// first: absent ones are written as root's, mode 0755. The errors are
// ErrName, ErrDuplicate, ErrTooLarge, or say what contradicts itself in e.
func (a *Archive) Add(e Entry) error {
	name, err := cleanName(e.Name)
	if err != nil {
		return err
	}
	e.Name = name
	if err := e.check(); err != nil {
		return fmt.Errorf("%s: %w", clip(name), err)
	}
	if e.isHardlink() {
		if e.Linkname, err = cleanName(e.Linkname); err != nil {
			return fmt.Errorf("%s: hard link to %w", clip(name), err)
		}
	}
	if _, ok := a.entries[name]; ok {
		return fmt.Errorf("%s: %w", clip(name), ErrDuplicate)
	}
	if a.entries == nil {
		a.entries = make(map[string]*Entry)
	}
	a.entries[name] = &e
	return nil
}

// Len returns the number of entries added.
func (a *Archive) Len() int { return len(a.entries) }

// record is one header to be written.
type record struct {
	name  string
	entry *Entry
	ino   uint32
	nlink uint32
	body  bool // this name of a hard-linked file carries its content
}

// records sorts the entries, adds parents, numbers inodes and groups hard
// links.
func (a *Archive) records() ([]record, error) {
	all := make(map[string]*Entry, len(a.entries)+16)
	for name, e := range a.entries {
		all[name] = e
	}
	for name := range a.entries {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			p, ok := all[dir]
			if !ok {
				all[dir] = &Entry{Name: dir, Mode: parentMode}
				continue
			}
			if p.Mode&fs.ModeType != fs.ModeDir {
				return nil, fmt.Errorf("%s: %s is a %s, not a directory", clip(name), clip(dir), typeName(p.Mode&fs.ModeType))
			}
			if p.Name == dir && a.entries[dir] == nil {
				break // made above, and so were its parents
			}
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names) // a directory sorts before what it holds

	links := make(map[string]int) // target name → further names
	for _, name := range names {
		e := all[name]
		if !e.isHardlink() {
			continue
		}
		t, ok := all[e.Linkname]
		switch {
		case !ok:
			return nil, fmt.Errorf("%s: hard link to %s, which is not in the archive", clip(name), clip(e.Linkname))
		case t.isHardlink() || t.Mode&fs.ModeType != 0:
			return nil, fmt.Errorf("%s: hard link to %s, which is not a regular file", clip(name), clip(e.Linkname))
		}
		links[e.Linkname]++
	}

	recs := make([]record, 0, len(names))
	inode := make(map[string]uint32, len(links))
	last := make(map[string]int, len(links))
	next := uint32(1)
	for _, name := range names {
		e, target := all[name], name
		if e.isHardlink() {
			target = e.Linkname
			e = all[target]
		}
		r := record{name: name, entry: e, ino: next, nlink: 1, body: true}
		if e.Mode.IsDir() {
			r.nlink = 2
		}
		if n := links[target]; n > 0 {
			// Content goes with the last name, as GNU cpio writes it.
			r.nlink = uint32(n) + 1
			if ino, ok := inode[target]; ok {
				r.ino = ino
				recs[last[target]].body = false
			} else {
				inode[target] = next
			}
			last[target] = len(recs)
		}
		if r.ino == next {
			next++
		}
		recs = append(recs, r)
	}
	return recs, nil
}

// WriteTo writes the archive, trailer included, and returns the bytes written.
// The length is a multiple of 4. It may be called again.
func (a *Archive) WriteTo(w io.Writer) (int64, error) {
	recs, err := a.records()
	if err != nil {
		return 0, err
	}
	cw := &countWriter{w: w}
	bw := bufio.NewWriterSize(cw, writeBuffer)
	for i := range recs {
		if err := writeRecord(bw, &recs[i], a.MTime); err != nil {
			return cw.n, fmt.Errorf("%s: %w", clip(recs[i].name), err)
		}
	}
	end := record{name: trailer, entry: &Entry{}, nlink: 1}
	if err := writeHeader(bw, &end, 0, 0, 0); err != nil {
		return cw.n, err
	}
	err = bw.Flush()
	return cw.n, err
}

func writeRecord(bw *bufio.Writer, r *record, mtime uint32) error {
	mode, err := unixMode(r.entry.Mode)
	if err != nil {
		return err
	}
	size := int64(0)
	if r.body {
		size = r.entry.size()
	}
	if err := writeHeader(bw, r, mode, mtime, size); err != nil {
		return err
	}
	if !r.body {
		return nil
	}
	e := r.entry
	switch {
	case e.Mode&fs.ModeType == fs.ModeSymlink:
		_, err = bw.WriteString(e.Linkname)
	case e.Mode&fs.ModeType != 0:
	case e.Open != nil:
		err = copyContent(bw, e)
	default:
		_, err = bw.Write(e.Data)
	}
	if err != nil {
		return err
	}
	return pad4(bw, size)
}

// copyContent writes exactly e.Size bytes and sees to it that there are no
// more: a file that changed under us must not shift what follows it.
func copyContent(bw *bufio.Writer, e *Entry) (err error) {
	rc, err := e.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	n, err := io.CopyN(bw, rc, e.Size)
	if err == io.EOF {
		return fmt.Errorf("%w: %d bytes, announced as %d", ErrSize, n, e.Size)
	}
	if err != nil {
		return err
	}
	var one [1]byte
	switch _, err := io.ReadFull(rc, one[:]); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("%w: more than the %d bytes announced", ErrSize, e.Size)
	default:
		return err
	}
}

// writeHeader writes the 110 bytes, the name, its NUL and the padding.
func writeHeader(bw *bufio.Writer, r *record, mode, mtime uint32, size int64) error {
	var buf [headerSize]byte
	b := append(buf[:0], magicNewc...)
	for _, v := range [...]uint32{
		r.ino, mode, r.entry.UID, r.entry.GID, r.nlink, mtime, uint32(size),
		0, 0, // device the archive was made from
		r.entry.Major, r.entry.Minor,
		uint32(len(r.name)) + 1,
		0, // checksum, of 070702 only
	} {
		b = appendHex8(b, v)
	}
	if _, err := bw.Write(b); err != nil {
		return err
	}
	if _, err := bw.WriteString(r.name); err != nil {
		return err
	}
	if err := bw.WriteByte(0); err != nil {
		return err
	}
	return pad4(bw, int64(headerSize+len(r.name)+1))
}

func appendHex8(b []byte, v uint32) []byte {
	const digits = "0123456789ABCDEF"
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, digits[v>>shift&15])
	}
	return b
}

// pad4 writes the zero bytes that bring n to a multiple of four.
func pad4(w io.Writer, n int64) error {
	var zero [3]byte
	_, err := w.Write(zero[:-n&3])
	return err
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
