package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// HostOptions say what FromDir takes.
type HostOptions struct {
	Limits Limits
	// OneFileSystem leaves the directories on which others are mounted empty.
	OneFileSystem bool
}

// hostDir is a directory of the host, held open so that what is found in it
// later is what was found in it first, whatever its path has become.
type hostDir struct{ fd int }

// resolveInside keeps every lookup below the directory: no symbolic link is
// followed, whoever may be swapping directories for links meanwhile.
const resolveInside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func (d *hostDir) open(rel string, flags uint64) (int, error) {
	if rel == "" {
		rel = "."
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat2(d.fd, rel, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolveInside})
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	return fd, nil
}

func retry(call func() (int, error)) (int, error) {
	for {
		// openat2 answers EAGAIN when a rename elsewhere kept it from proving
		// that it stayed inside.
		if fd, err := call(); err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// FromDir makes a tree of a directory of the host, with owners, modes, times,
// hard links, holes and extended attributes. It never follows a symbolic link
// below path. Content is read when a disk is made of the tree, and refused
// with ErrChanged if it is no longer what FromDir saw. The tree must be closed.
func FromDir(ctx context.Context, path string, o HostOptions) (*Tree, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	t := newTree(o.Limits)
	d := &hostDir{fd}
	t.hosts = append(t.hosts, d)
	r := hostReader{tree: t, dir: d, oneFS: o.OneFileSystem, links: make(map[fileID]*Inode)}
	if err := r.root(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), t.Close())
	}
	return t, nil
}

// Close gives back what FromDir holds. The content of the tree's files cannot
// be read any more.
func (t *Tree) Close() error {
	var errs []error
	for _, d := range t.hosts {
		errs = append(errs, unix.Close(d.fd))
	}
	t.hosts = nil
	return errors.Join(errs...)
}

type fileID struct{ dev, ino uint64 }

type hostReader struct {
	tree  *Tree
	dir   *hostDir
	oneFS bool
	dev   uint64 // of the root
	links map[fileID]*Inode
}

func (r *hostReader) root(ctx context.Context) error {
	i, st, err := r.inode("")
	if err != nil {
		return err
	}
	r.dev = st.Dev
	r.tree.Root.Inode = i
	return r.read(ctx, "", r.tree.Root)
}

// read fills a directory node.
func (r *hostReader) read(ctx context.Context, rel string, dir *Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := r.dir.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), rel)
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		path := name
		if rel != "" {
			path = rel + "/" + name
		}
		if len(path) > maxPath {
			return fmt.Errorf("%s: %w: a path of %d bytes, at most %d", quote(path), ErrName, len(path), maxPath)
		}
		if err := r.tree.counted.entry(len(name)); err != nil {
			return err
		}
		i, st, err := r.inode(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return err
		}
		n := &Node{Name: name, Inode: i}
		if i.IsDir() {
			n.dir = new(directory)
		}
		dir.dir.add(n)
		if i.IsDir() && !(r.oneFS && st.Dev != r.dev) {
			if err := r.read(ctx, path, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// inode reads what a host file is.
func (r *hostReader) inode(rel string) (*Inode, *unix.Stat_t, error) {
	fd, err := r.dir.open(rel, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	i, st, err := r.inodeAt(fd, rel)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "read", Path: rel, Err: err}
	}
	return i, st, nil
}

func (r *hostReader) inodeAt(fd int, rel string) (*Inode, *unix.Stat_t, error) {
	st := new(unix.Stat_t)
	if err := unix.Fstat(fd, st); err != nil {
		return nil, nil, err
	}
	id := fileID{st.Dev, st.Ino}
	shared := st.Nlink > 1 && st.Mode&ModeType != ModeDir
	if i := r.links[id]; shared && i != nil {
		return i, st, nil
	}
	i := inodeOf(st)
	switch i.Type() {
	case ModeRegular:
		i.Size = st.Size
		if err := r.tree.counted.content(st.Size); err != nil {
			return nil, nil, err
		}
		i.data = &hostContent{dir: r.dir, rel: rel, id: id, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
		if st.Blocks*512 < st.Size {
			if err := r.holes(i); err != nil {
				return nil, nil, err
			}
		}
	case ModeSymlink:
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return nil, nil, err
		}
		i.more().target, i.Size = string(buf[:n]), int64(n)
	}
	xattrs, err := readXattrs("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, nil, err
	}
	if err := i.SetXattrs(xattrs); err != nil {
		return nil, nil, err
	}
	metadata := len(i.Target()) + 24*len(i.Extents())
	for _, x := range i.Xattrs() {
		metadata += len(x.Name) + len(x.Value)
	}
	if err := r.tree.counted.more(int64(metadata)); err != nil {
		return nil, nil, err
	}
	if shared {
		r.links[id] = i
	}
	return i, st, nil
}

func inodeOf(st *unix.Stat_t) *Inode {
	i := &Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModSec: st.Mtim.Sec, ModNsec: uint32(st.Mtim.Nsec)}
	if t := i.Type(); t == ModeChar || t == ModeBlock {
		i.more().major, i.extra.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return i
}

// holes finds a sparse file's extents.
func (r *hostReader) holes(i *Inode) error {
	ra, c, err := i.data.open(i)
	if err != nil {
		return err
	}
	defer c.Close()
	fd := int(ra.(*os.File).Fd())
	i.more().sparse = true
	for off := int64(0); off < i.Size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // a hole up to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if end = min(end, i.Size); end <= start {
			return ErrChanged
		}
		i.extra.extents = append(i.extra.extents, Extent{start, end - start, start})
		off = end
	}
	return nil
}

// readXattrs reads the attributes of what path, a magic link to an open file,
// stands for.
func readXattrs(path string) ([]Xattr, error) {
	list, err := readGrowing(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
	if err == unix.ENOTSUP || err == unix.EPERM || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if !kept(name) {
			continue
		}
		value, err := readGrowing(func(b []byte) (int, error) { return unix.Getxattr(path, name, b) })
		if err == unix.ENODATA {
			continue // removed since
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", quote(name), err)
		}
		out = append(out, Xattr{name, string(value)})
	}
	return out, nil
}

func readGrowing(call func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := call(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		if n, err = call(b); err != unix.ERANGE {
			return b[:max(n, 0)], err
		}
	}
}

// hostContent is a file of the host, and what proves that it did not change.
type hostContent struct {
	dir          *hostDir // nil: rel is a path
	rel          string
	id           fileID
	size         int64
	mtime, ctime unix.Timespec
}

func (c *hostContent) open(*Inode) (io.ReaderAt, io.Closer, error) {
	// Not blocking: a FIFO may have taken the file's place.
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	var (
		fd  int
		err error
	)
	if c.dir != nil {
		fd, err = c.dir.open(c.rel, flags)
	} else {
		fd, err = retry(func() (int, error) { return unix.Open(c.rel, flags|unix.O_CLOEXEC, 0) })
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.rel, err)
	}
	f := os.NewFile(uintptr(fd), c.rel)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if (fileID{st.Dev, st.Ino}) != c.id || st.Size != c.size || st.Mtim != c.mtime || st.Ctim != c.ctime {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", c.rel, ErrChanged), f.Close())
	}
	return f, f, nil
}
