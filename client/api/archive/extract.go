package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ExtractOptions are what Extract may be told. The zero value unpacks an archive
// as it is, as the user that it runs as.
type ExtractOptions struct {
	// Top, if set, is the first part of every name in the archive, which As takes
	// the place of. An empty As puts what is in Top into the directory itself.
	Top, As string
	// Keep keeps bits that let a program run as its owner, and gives directories
	// that are there already the mode, owner and time of those in the archive.
	Keep bool
	// Owner returns the owner of what the archive has as uid's and gid's. nil
	// leaves everything to whoever Extract runs as.
	Owner func(uid, gid int) (int, int)
	// Enter is asked about each directory before anything is done in it, by its
	// name from dir on ("" for that).
	Enter func(d *Dir, name string) error
	// Pipe makes a FIFO, and SetLinkTime gives a symbolic link its time. nil
	// leaves FIFOs out, and links without.
	Pipe        func(d *Dir, name string) error
	SetLinkTime func(d *Dir, name string, mtime time.Time) error
	// LeftOut is told what is not unpacked: devices and FIFOs. Its error ends it
	// all.
	LeftOut func(name, why string) error
}

// Extract unpacks the archive that r yields into dir, up to the archive's end,
// which need not be r's. It merges with what is there: files and links are
// replaced, each at once and as a whole, directories are kept. Nothing is
// written through a symbolic link, be it the archive's or one that was there: one
// in the place of a directory is an error. A directory gets its mode and time
// when the archive goes on to another; dir itself keeps its own.
//
// Errors are ErrMalformed, ErrClash, of r, or of the file system. What was
// unpacked before is left, but no half file.
func Extract(ctx context.Context, r io.Reader, dir *os.Root, o ExtractOptions) (err error) {
	if o.As != "" {
		if parts, err := Split(o.As); err != nil || len(parts) != 1 || parts[0] != o.As {
			return fmt.Errorf("%w: nothing can be called %q", ErrMalformed, o.As)
		}
	}
	top, err := OpenDir(dir, ".")
	if err != nil {
		return err
	}
	x := &extractor{ctx: ctx, o: o, stack: []frame{{dir: top}}, buf: make([]byte, copyBuffer)}
	defer func() { err = errors.Join(err, x.leave(0), top.Close()) }()
	if err := x.enter(top, ""); err != nil {
		return err
	}
	end := &endReader{r: r}
	tr := tar.NewReader(end)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		switch {
		case err == io.EOF && end.seen:
			return fmt.Errorf("%w: it was cut short: it ends without the marker of its end", ErrMalformed)
		case err == io.EOF:
			return nil
		case err != nil:
			return malformed(err)
		case n == maxEntries:
			return fmt.Errorf("%w: more than %d entries", ErrMalformed, maxEntries)
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
}

// endReader notes whether the end was met, where package tar takes the end of a
// stream between two entries for that of the archive.
type endReader struct {
	r    io.Reader
	seen bool
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if n == 0 && err == io.EOF {
		e.seen = true
	}
	return n, err
}

type extractor struct {
	ctx context.Context // of one call of Extract
	o   ExtractOptions
	// stack is the way from the destination to the directory that is worked in.
	stack []frame
	buf   []byte
}

// frame is a directory on the stack. Header is what it is to become when it is
// left, nil for what it is.
type frame struct {
	name   string
	dir    *Dir
	header *tar.Header
}

func (x *extractor) enter(d *Dir, name string) error {
	if x.o.Enter == nil {
		return nil
	}
	return x.o.Enter(d, name)
}

func (x *extractor) leftOut(name, why string) error {
	if x.o.LeftOut == nil {
		return nil
	}
	return x.o.LeftOut(name, why)
}

// at is the name of the directory that is worked in.
func (x *extractor) at(name string) string {
	var parts []string
	for _, f := range x.stack[1:] {
		parts = append(parts, f.name)
	}
	return path.Join(append(parts, name)...)
}

// parts returns where a name of the archive is to be.
func (x *extractor) parts(name string) ([]string, error) {
	parts, err := Split(name)
	if err != nil || x.o.Top == "" {
		return parts, err
	}
	if len(parts) == 0 || parts[0] != x.o.Top {
		return nil, fmt.Errorf("%w: %q is not part of %q", ErrMalformed, name, x.o.Top)
	}
	if x.o.As == "" {
		return parts[1:], nil
	}
	return slices.Concat([]string{x.o.As}, parts[1:]), nil
}

// entry unpacks one entry.
func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader { // as git writes them: comments
		return nil
	}
	parts, err := x.parts(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return x.makeDir(parts, h)
	}
	if len(parts) == 0 {
		return fmt.Errorf("%w: %q is no directory in the archive", ErrClash, h.Name)
	}
	dir, name, err := x.parent(parts)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = x.makeFile(dir, name, h, r)
	case tar.TypeSymlink:
		err = x.makeSymlink(dir, name, h)
	case tar.TypeLink:
		err = x.makeLink(dir, name, h, parts)
	case tar.TypeFifo:
		err = x.makePipe(dir, name, h)
	case tar.TypeChar, tar.TypeBlock:
		err = x.leftOut(h.Name, "it is a device")
	default:
		err = x.leftOut(h.Name, fmt.Sprintf("it is of the unknown type %q", h.Typeflag))
	}
	return err
}

// parent goes to the directory that the last of parts is in.
func (x *extractor) parent(parts []string) (*Dir, string, error) {
	last := len(parts) - 1
	if err := x.cd(parts[:last], 0o755); err != nil {
		return nil, "", err
	}
	return x.stack[len(x.stack)-1].dir, parts[last], nil
}

// cd goes to a directory, which is made with all above it. perm is for the last
// of those, until it is left.
func (x *extractor) cd(parts []string, perm fs.FileMode) error {
	same := 0
	for same < len(parts) && same+1 < len(x.stack) && x.stack[same+1].name == parts[same] {
		same++
	}
	if err := x.leave(same); err != nil {
		return err
	}
	for i := same; i < len(parts); i++ {
		mode := fs.FileMode(0o755)
		if i == len(parts)-1 {
			mode = perm
		}
		if err := x.push(parts[i], mode); err != nil {
			return err
		}
	}
	return nil
}

// push goes one directory down.
func (x *extractor) push(name string, perm fs.FileMode) error {
	parent := x.stack[len(x.stack)-1].dir
	err := parent.Mkdir(name, perm)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return about(x.at(name), err)
	}
	if made && x.o.Owner != nil {
		uid, gid := x.o.Owner(0, 0)
		if err := parent.Lchown(name, uid, gid); err != nil {
			return about(x.at(name), err)
		}
	}
	d, err := OpenDir(parent.Root, name)
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%q: something that is no directory is %w", x.at(name), ErrClash)
	}
	if err != nil {
		return about(x.at(name), err)
	}
	if err := x.enter(d, x.at(name)); err != nil {
		return errors.Join(about(x.at(name), err), d.Close())
	}
	f := frame{name: name, dir: d}
	if made { // whatever the archive says of it
		f.header = &tar.Header{Mode: int64(perm), Typeflag: tar.TypeDir}
	}
	x.stack = append(x.stack, f)
	return nil
}

// leave goes up until depth directories are left below the destination.
func (x *extractor) leave(depth int) error {
	var first error
	for len(x.stack) > depth+1 {
		f := x.stack[len(x.stack)-1]
		at := x.at("")
		x.stack = x.stack[:len(x.stack)-1]
		err := x.finishDir(f)
		if err = errors.Join(err, f.dir.Close()); err != nil && first == nil {
			first = about(at, err)
		}
	}
	return first
}

// finishDir gives a directory its owner, mode and time.
func (x *extractor) finishDir(f frame) error {
	h := f.header
	if h == nil || h.Name == "" { // kept, or made on the way to something else
		return nil
	}
	if err := x.own(h, func(uid, gid int) error { return f.dir.File.Chown(uid, gid) }); err != nil {
		return err
	}
	if err := f.dir.File.Chmod(x.mode(h)); err != nil {
		return err
	}
	return f.dir.Chtimes(".", time.Time{}, h.ModTime)
}

// makeDir makes a directory, or goes to the one that is there.
func (x *extractor) makeDir(parts []string, h *tar.Header) error {
	if err := x.cd(parts, 0o700); err != nil || len(parts) == 0 {
		return err
	}
	top := &x.stack[len(x.stack)-1]
	if top.header != nil || x.o.Keep {
		top.header = h
	}
	return nil
}

// mode is the mode of a file that is not a link.
func (x *extractor) mode(h *tar.Header) fs.FileMode {
	mask := fs.ModePerm | fs.ModeSticky
	if x.o.Keep {
		mask |= fs.ModeSetuid | fs.ModeSetgid
	}
	return h.FileInfo().Mode() & mask
}

// own gives a file its owner, before its mode, which that changes.
func (x *extractor) own(h *tar.Header, chown func(uid, gid int) error) error {
	if x.o.Owner == nil {
		return nil
	}
	uid, gid := x.o.Owner(h.Uid, h.Gid)
	for _, id := range []int{uid, gid} {
		if id < 0 || id >= math.MaxUint32 { // the largest means "no change"
			return fmt.Errorf("%w: %d is nobody's id", ErrMalformed, id)
		}
	}
	return chown(uid, gid)
}

// notDir reports what is there by a name, nil for nothing, unless that is a
// directory, which nothing replaces.
func (x *extractor) notDir(d *Dir, name string) (fs.FileInfo, error) {
	info, err := d.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, about(x.at(name), err)
	case info.IsDir():
		return nil, fmt.Errorf("%q: a directory is %w", x.at(name), ErrClash)
	}
	return info, nil
}

// replace has something made under a name that nobody knows, and puts it in the
// place of what is there.
func (x *extractor) replace(d *Dir, name string, make func(name string) error) error {
	if _, err := x.notDir(d, name); err != nil {
		return err
	}
	tmp := ".volant-" + strings.ToLower(rand.Text()[:16])
	err := make(tmp)
	if err == nil {
		err = d.Rename(tmp, name)
	}
	if err != nil {
		if rmErr := d.Remove(tmp); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		if x.ctx.Err() != nil {
			return x.ctx.Err()
		}
		return about(x.at(name), err)
	}
	return nil
}

func (x *extractor) makeFile(d *Dir, name string, h *tar.Header, r io.Reader) error {
	if h.Size < 0 || h.Size > MaxFile {
		return fmt.Errorf("%w: %q has %d bytes; %d are allowed", ErrMalformed, h.Name, h.Size, int64(MaxFile))
	}
	var reading error // which is not about the file
	err := x.replace(d, name, func(tmp string) error {
		f, err := d.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if reading, err = x.copy(f, r, h.Size); err == nil {
			err = reading
		}
		if err == nil {
			err = x.own(h, f.Chown)
		}
		if err == nil {
			err = f.Chmod(x.mode(h))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return d.Chtimes(tmp, time.Time{}, h.ModTime)
	})
	if reading != nil {
		return malformed(reading)
	}
	return err
}

// copy writes size bytes of r to f, and nothing where there are only zeros. It
// tells errors of r from those of f.
func (x *extractor) copy(f *os.File, r io.Reader, size int64) (reading, writing error) {
	written := int64(0)
	for at := int64(0); at < size; {
		if err := x.ctx.Err(); err != nil {
			return err, nil
		}
		n, err := io.ReadFull(r, x.buf[:min(size-at, int64(len(x.buf)))])
		if err == io.EOF { // of which there should have been more
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err, nil
		}
		if !allZero(x.buf[:n]) {
			if _, err := f.WriteAt(x.buf[:n], at); err != nil {
				return nil, err
			}
			written = at + int64(n)
		}
		at += int64(n)
	}
	if written < size {
		return nil, f.Truncate(size)
	}
	return nil, nil
}

// allZero compares every byte with the one before.
func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

func (x *extractor) makeSymlink(d *Dir, name string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) >= MaxName || strings.ContainsRune(h.Linkname, 0) {
		return fmt.Errorf("%w: the link %q leads to %.80q", ErrMalformed, h.Name, h.Linkname)
	}
	return x.replace(d, name, func(tmp string) error {
		if err := d.Symlink(h.Linkname, tmp); err != nil {
			return err
		}
		if err := x.own(h, func(uid, gid int) error { return d.Lchown(tmp, uid, gid) }); err != nil {
			return err
		}
		if x.o.SetLinkTime == nil {
			return nil
		}
		return x.o.SetLinkTime(d, tmp, h.ModTime)
	})
}

// makeLink gives a file that was unpacked another name.
func (x *extractor) makeLink(d *Dir, name string, h *tar.Header, parts []string) error {
	from, err := x.parts(h.Linkname)
	if err != nil {
		return err
	}
	if len(from) == 0 || slices.Equal(from, parts) {
		return fmt.Errorf("%w: %q is a further name of %q", ErrMalformed, h.Name, h.Linkname)
	}
	refuse := func(err error) error {
		return fmt.Errorf("%q, a further name of %q: %w", h.Name, h.Linkname, Cause(err))
	}
	dir, err := Walk(x.stack[0].dir.Root, from[:len(from)-1], x.o.Enter)
	if err != nil {
		return refuse(err)
	}
	defer dir.Close() //nolint:errcheck // it was only read
	first, err := dir.Lstat(from[len(from)-1])
	if err != nil {
		return refuse(err)
	}
	if !first.Mode().IsRegular() {
		return refuse(fmt.Errorf("something that is no file is %w", ErrClash))
	}
	there, err := x.notDir(d, name)
	if err != nil || there != nil && os.SameFile(first, there) {
		return err
	}
	return x.replace(d, name, func(tmp string) error {
		// Names from the top: a link cannot lead from one open directory to
		// another. Whoever changed one since it was checked gains nothing.
		if err := x.stack[0].dir.Link(path.Join(from...), path.Join(slices.Concat(parts[:len(parts)-1], []string{tmp})...)); err != nil {
			return err
		}
		if second, err := d.Lstat(tmp); err != nil || !os.SameFile(first, second) {
			return ErrChanged
		}
		return nil
	})
}

func (x *extractor) makePipe(d *Dir, name string, h *tar.Header) error {
	if x.o.Pipe == nil {
		return x.leftOut(h.Name, "it is a pipe")
	}
	return x.replace(d, name, func(tmp string) error {
		if err := x.o.Pipe(d, tmp); err != nil {
			return err
		}
		if err := x.own(h, func(uid, gid int) error { return d.Lchown(tmp, uid, gid) }); err != nil {
			return err
		}
		if err := d.Chmod(tmp, x.mode(h)); err != nil {
			return err
		}
		return d.Chtimes(tmp, time.Time{}, h.ModTime)
	})
}
