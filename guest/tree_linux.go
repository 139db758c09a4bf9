package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep a tree of directories is followed: each level keeps
// two directories open.
const maxDepth = 1000

// errTooDeep is why a tree was not followed to its end.
var errTooDeep = errors.New("directories are nested more than 1000 deep")

// eachEntry calls f with every name in a directory, but "." and "..".
func eachEntry(dir *os.File, f func(name string) error) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// openAt opens a name in a directory, and nothing that it may link to.
func openAt(dir *os.File, name string, flag int, perm uint32) (*os.File, error) {
	full := path.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// removeContents removes everything in a directory for which keep, which may be
// nil, is false. It never enters another file system, and goes on after errors,
// of which it returns the first.
func removeContents(dir *os.File, keep func(name string) bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	_, err := removeBelow(dir, st.Dev, keep, 0)
	return err
}

// removeBelow reports whether it left anything, beside the first error.
func removeBelow(dir *os.File, dev uint64, keep func(name string) bool, depth int) (left bool, first error) {
	if depth > maxDepth {
		return true, errTooDeep
	}
	note := func(err error) {
		left = true
		if first == nil {
			first = err
		}
	}
	// Names first: a directory that changes while it is read may leave some out.
	var names []string
	if err := eachEntry(dir, func(name string) error { names = append(names, name); return nil }); err != nil {
		return true, err
	}
	fd := int(dir.Fd())
	for _, name := range names {
		if keep != nil && keep(name) {
			left = true
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			note(&fs.PathError{Op: "stat", Path: path.Join(dir.Name(), name), Err: err})
			continue
		}
		if st.Dev != dev { // something is mounted here
			left = true
			continue
		}
		flags := 0
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
			sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				note(err)
				continue
			}
			subLeft, err := removeBelow(sub, dev, nil, depth+1)
			sub.Close()
			if err != nil {
				note(err)
			}
			if subLeft {
				left = true
				continue
			}
		}
		if err := unix.Unlinkat(fd, name, flags); err != nil {
			note(&fs.PathError{Op: "remove", Path: path.Join(dir.Name(), name), Err: err})
		}
	}
	return left, first
}

// copyChunk is how much of a file is copied before the context is asked again,
// in bytes.
const copyChunk = 16 << 20

// copyContents copies everything in the directory src into the directory dst,
// with owners, modes, times and extended attributes, then gives dst those of
// src. Hard links become files of their own. It follows no symbolic link, and
// fails on the first thing that it cannot copy.
func copyContents(ctx context.Context, dst, src *os.File) error {
	return copyBelow(ctx, dst, src, 0)
}

func copyBelow(ctx context.Context, dst, src *os.File, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	err := eachEntry(src, func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyEntry(ctx, dst, src, name, depth); err != nil {
			var p *fs.PathError // names what it is about already
			if errors.As(err, &p) || errors.Is(err, errTooDeep) || ctx.Err() != nil {
				return err
			}
			return &fs.PathError{Op: "copy", Path: path.Join(src.Name(), name), Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return copyAttributes(dst, src)
}

func copyEntry(ctx context.Context, dst, src *os.File, name string, depth int) error {
	from, to := int(src.Fd()), int(dst.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		s, d, err := openBoth(dst, src, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer s.Close()
		defer d.Close()
		return copyBelow(ctx, d, s, depth+1)
	case unix.S_IFREG:
		s, d, err := openBoth(dst, src, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
		if err != nil {
			return err
		}
		defer s.Close()
		if err = copyBytes(ctx, d, s); err == nil {
			err = copyAttributes(d, s)
		}
		return errors.Join(err, d.Close())
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, target)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(target[:n]), to, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a link has no mode
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// openBoth opens a name in both directories, in dst with the flags.
func openBoth(dst, src *os.File, name string, flag int) (s, d *os.File, err error) {
	if s, err = openAt(src, name, unix.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	if d, err = openAt(dst, name, flag, 0o600); err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, d, nil
}

func copyBytes(ctx context.Context, dst, src *os.File) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, copyChunk); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// copyAttributes gives dst the owner, mode, extended attributes and times of
// src, in the order in which none undoes another.
func copyAttributes(dst, src *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	fd := int(dst.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(fd, int(src.Fd())); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// maxXattrs is XATTR_LIST_MAX and XATTR_SIZE_MAX, in bytes.
const maxXattrs = 64 << 10

func copyXattrs(dst, src int) error {
	n, err := unix.Flistxattr(src, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	buf := make([]byte, maxXattrs)
	if n, err = unix.Flistxattr(src, buf); err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue // of the overlay, or ours
		}
		n, err := unix.Fgetxattr(src, name, value)
		if err == nil {
			err = unix.Fsetxattr(dst, name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
	}
	return nil
}

// owner returns the owner of a file.
func owner(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
