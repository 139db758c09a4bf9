package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// PackOptions are what Pack may be told. The zero value packs everything.
type PackOptions struct {
	// Enter is asked about each directory, by its name in the archive; false
	// leaves out what is in it.
	Enter func(d *Dir, name string) (bool, error)
	// LeftOut is told what cannot be packed.
	LeftOut func(name, why string)
}

// Pack writes the file name, a single one in dir or "." for dir itself, and all
// below it to w as an archive. There it is called as; with "." its content
// stands at the top. Owners, modes and times go with every file. What vanishes
// meanwhile is left out; a file that becomes shorter is an error.
//
// After an error that is not of w, what w was given is no whole archive to
// anybody.
func Pack(ctx context.Context, w io.Writer, dir *os.Root, name, as string, o PackOptions) error {
	p := &packer{ctx: ctx, o: o, tw: tar.NewWriter(w), links: make(map[inode]string), buf: make([]byte, copyBuffer)}
	err := p.pack(dir, name, as, 0)
	if err == nil {
		return p.tw.Close()
	}
	if p.tw.Flush() == nil { // else the end is within an entry, where nobody expects it
		_, _ = w.Write(bytes.Repeat([]byte{0xff}, 1024)) // is no header: its checksum is wrong; the error above is what counts
	}
	return err
}

type packer struct {
	ctx   context.Context // of one call of Pack
	o     PackOptions
	tw    *tar.Writer
	links map[inode]string // the first name of files that have several
	buf   []byte
}

// inode is what tells files apart.
type inode struct{ dev, ino uint64 }

func (p *packer) leftOut(name, why string) {
	if p.o.LeftOut != nil {
		p.o.LeftOut(name, why)
	}
}

// pack packs one file. What is gone is no error, but at the top.
func (p *packer) pack(dir *os.Root, name, as string, depth int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && depth > 0:
		return nil
	case err != nil:
		return about(as, err)
	case depth > MaxDepth:
		return about(as, fmt.Errorf("directories are nested more than %d deep", MaxDepth))
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return p.packDir(dir, info, name, as, depth)
	case mode.IsRegular():
		return p.packFile(dir, info, name, as, depth)
	case mode&fs.ModeSymlink != 0:
		target, err := dir.Readlink(name)
		if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL)) && depth > 0 {
			return nil
		}
		if err != nil {
			return about(as, err)
		}
		return p.header(info, as, target)
	case mode&fs.ModeSocket != 0:
		p.leftOut(as, "it is a socket")
		return nil
	}
	return p.header(info, as, "")
}

func (p *packer) packDir(dir *os.Root, info fs.FileInfo, name, as string, depth int) error {
	d, err := OpenDir(dir, name)
	if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, ErrChanged)) && depth > 0 {
		return nil
	}
	if err != nil {
		return about(as, err)
	}
	defer d.Close() //nolint:errcheck // it was only read
	if err := p.header(info, as+"/", ""); err != nil {
		return err
	}
	if p.o.Enter != nil {
		if enter, err := p.o.Enter(d, as); err != nil || !enter {
			return err
		}
	}
	for {
		names, err := d.File.Readdirnames(256)
		for _, n := range names {
			if err := p.pack(d.Root, n, as+"/"+n, depth+1); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return about(as, err)
		}
	}
}

func (p *packer) packFile(dir *os.Root, info fs.FileInfo, name, as string, depth int) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		id := inode{uint64(st.Dev), uint64(st.Ino)} //nolint:unconvert // their types depend on the system
		if first, ok := p.links[id]; ok {
			return p.link(info, as, first)
		}
		if len(p.links) < maxLinks {
			defer func() { p.links[id] = as }()
		}
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) && depth > 0 {
		return nil
	}
	if err != nil {
		return about(as, err)
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return about(as, err)
	}
	if !os.SameFile(info, now) || !now.Mode().IsRegular() {
		if depth == 0 {
			return about(as, ErrChanged)
		}
		return nil // another file took its place, as if it had never been there
	}
	if err := p.header(now, as, ""); err != nil {
		return err
	}
	for left := now.Size(); left > 0; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(f, p.buf[:min(left, int64(len(p.buf)))])
		if n > 0 {
			left -= int64(n)
			if _, err := p.tw.Write(p.buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return about(as, fmt.Errorf("it became shorter while it was read: %w", ErrChanged))
		}
		if err != nil {
			return about(as, err)
		}
	}
	return nil
}

// nameless hides who owns a file by name: it takes time to find, and means
// nothing on the other side.
type nameless struct{ fs.FileInfo }

func (nameless) Uname() (string, error) { return "", nil }
func (nameless) Gname() (string, error) { return "", nil }

func (p *packer) header(info fs.FileInfo, as, target string) error {
	h, err := tar.FileInfoHeader(nameless{info}, target)
	if err != nil {
		return about(as, err)
	}
	return p.write(h, as)
}

func (p *packer) link(info fs.FileInfo, as, first string) error {
	h, err := tar.FileInfoHeader(nameless{info}, "")
	if err != nil {
		return about(as, err)
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return p.write(h, as)
}

func (p *packer) write(h *tar.Header, as string) error {
	h.Name, h.Format = as, tar.FormatPAX // which alone has fractions of a second
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	return p.tw.WriteHeader(h)
}
