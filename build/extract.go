package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/layers"
)

// extract makes dir, which must not exist, and writes the tree's files into
// it, with all their attributes. Everything is done relative to open
// directories that extract has made itself, in a place that only this user may
// enter, so no link in the tree leads anywhere.
func extract(ctx context.Context, t *layers.Tree, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	x := extractor{root: fd, first: make(map[*layers.Inode]string), buf: make([]byte, 1<<20)}
	if err := x.children(ctx, fd, "", t.Root); err != nil {
		return err
	}
	return x.attributes(fd, ".", t.Root)
}

type extractor struct {
	root  int
	first map[*layers.Inode]string // where a file with several names was written
	buf   []byte
}

func (x *extractor) children(ctx context.Context, fd int, prefix string, dir *layers.Node) error {
	for _, n := range dir.Children() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := x.node(ctx, fd, prefix+n.Name, n); err != nil {
			var pe *os.PathError
			if !errors.As(err, &pe) {
				err = &os.PathError{Op: "extract", Path: prefix + n.Name, Err: err}
			}
			return err
		}
	}
	return nil
}

func (x *extractor) node(ctx context.Context, fd int, path string, n *layers.Node) error {
	if n.Nlink > 1 && !n.IsDir() {
		if first, ok := x.first[n.Inode]; ok {
			return unix.Linkat(x.root, first, fd, n.Name, 0)
		}
		x.first[n.Inode] = path
	}
	switch n.Type() {
	case layers.ModeDir:
		if err := unix.Mkdirat(fd, n.Name, 0o700); err != nil {
			return err
		}
		sub, err := unix.Openat(fd, n.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = x.children(ctx, sub, path+"/", n)
		if err = errors.Join(err, unix.Close(sub)); err != nil {
			return err
		}
	case layers.ModeRegular:
		if err := x.file(fd, n); err != nil {
			return err
		}
	case layers.ModeSymlink:
		if err := unix.Symlinkat(n.Target(), fd, n.Name); err != nil {
			return err
		}
	default:
		major, minor := n.Device()
		if err := unix.Mknodat(fd, n.Name, n.Mode&layers.ModeType|0o600, int(unix.Mkdev(major, minor))); err != nil {
			return err
		}
	}
	return x.attributes(fd, n.Name, n)
}

// file writes a regular file and leaves its holes.
func (x *extractor) file(fd int, n *layers.Node) error {
	out, err := unix.Openat(fd, n.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(out), n.Name)
	err = f.Truncate(n.Size)
	if err == nil && n.Size > 0 {
		err = x.content(f, n)
	}
	return errors.Join(err, f.Close())
}

func (x *extractor) content(f *os.File, n *layers.Node) error {
	in, err := n.Open()
	if err != nil {
		return err
	}
	for _, e := range n.Extents() {
		r, w := io.NewSectionReader(in, e.Offset, e.Length), io.NewOffsetWriter(f, e.Offset)
		var got int64
		if got, err = io.CopyBuffer(w, struct{ io.Reader }{r}, x.buf); err != nil {
			break
		}
		if got != e.Length {
			err = io.ErrUnexpectedEOF
			break
		}
	}
	return errors.Join(err, in.Close())
}

// attributes sets what n has beyond its content: the owner first, because that
// clears setuid bits and capabilities.
func (x *extractor) attributes(fd int, name string, n *layers.Node) error {
	if err := unix.Fchownat(fd, name, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", n.UID, n.GID, err)
	}
	if n.Type() != layers.ModeSymlink {
		if err := unix.Fchmodat(fd, name, n.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	path := "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
	for _, a := range n.Xattrs() {
		if err := unix.Lsetxattr(path, a.Name, []byte(a.Value), 0); err != nil {
			return fmt.Errorf("extended attribute %q of %d bytes: %w", clip(a.Name), len(a.Value), err)
		}
	}
	ts := unix.Timespec{Sec: n.ModSec, Nsec: int64(n.ModNsec)}
	return unix.UtimesNanoAt(fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
