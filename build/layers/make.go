package layers

import (
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// NewDir returns a directory owned by root. An inode of a directory is put
// into one tree, once.
func NewDir(perm uint32) *Inode { return &Inode{Mode: ModeDir | perm&^ModeType} }

// NewSymlink returns a symbolic link owned by root.
func NewSymlink(target string) *Inode {
	return &Inode{Mode: ModeSymlink | 0o777, Size: int64(len(target)), extra: &extra{target: target}}
}

// NewDevice returns a block or character device owned by root; mode has its
// type.
func NewDevice(mode, major, minor uint32) *Inode {
	return &Inode{Mode: mode, extra: &extra{major: major, minor: minor}}
}

// NewFile returns a regular file of content in memory, owned by root.
func NewFile(perm uint32, data []byte) *Inode {
	i := &Inode{Mode: ModeRegular | perm&^ModeType, Size: int64(len(data))}
	if len(data) > 0 {
		i.data = bytesContent(data)
	}
	return i
}

// ReaderFile returns a regular file of the first size bytes of r, owned by root.
// They are read when a disk is made of the tree, until when r must stay open.
func ReaderFile(perm uint32, r io.ReaderAt, size int64) *Inode {
	i := &Inode{Mode: ModeRegular | perm&^ModeType, Size: size}
	if size > 0 {
		i.data = &layerContent{r}
	}
	return i
}

// HostFile returns a regular file with the mode, owner and time of a file of
// the host, whose last path component is not followed if it is a symbolic
// link. Content is read when a disk is made of the tree, and refused with
// ErrChanged if it is no longer that file.
func HostFile(path string) (*Inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if st.Mode&ModeType != ModeRegular {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	i := inodeOf(&st)
	i.Size = st.Size
	i.data = &hostContent{rel: path, id: fileID{st.Dev, st.Ino}, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
	return i, nil
}
