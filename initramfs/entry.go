package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
)

// Limits of the format and of the kernel that unpacks it.
const (
	// MaxFileSize is the largest file a newc header can describe, in bytes:
	// its size field is eight hexadecimal digits.
	MaxFileSize = math.MaxUint32
	// MaxName is the longest name in bytes. The kernel skips entries whose
	// name with its NUL exceeds PATH_MAX (4096).
	MaxName = 4095
	// MaxComponent is the longest single path component (NAME_MAX).
	MaxComponent = 255
	// MaxLinkname is the longest symbolic link target in bytes.
	MaxLinkname = 4095
)

// Errors that callers may want to tell apart. They are wrapped with the entry
// they concern.
var (
	// ErrName: a name is absent, climbs out with "..", holds a NUL, is too
	// long, or is the reserved trailer name.
	ErrName = errors.New("bad name")
	// ErrTooLarge: a file is 4 GiB or more, which newc cannot hold.
	ErrTooLarge = errors.New("larger than the 4 GiB - 1 a cpio entry can hold")
	// ErrDuplicate: a name was added twice.
	ErrDuplicate = errors.New("name already in the archive")
	// ErrSize: a file's content was shorter or longer than announced.
	ErrSize = errors.New("content does not match its size")
)

// Entry describes one name to be written. Its type is the type bits of Mode.
type Entry struct {
	// Name is the path from the archive's root, with slashes. One leading
	// slash is dropped; "." and ".." components, empty components and a
	// trailing slash are refused.
	Name string

	// Mode holds the permission bits, ModeSetuid, ModeSetgid and ModeSticky,
	// and the type: none for a regular file, or one of ModeDir, ModeSymlink,
	// ModeNamedPipe, ModeSocket, ModeDevice (block) or
	// ModeDevice|ModeCharDevice.
	Mode fs.FileMode

	UID, GID uint32 // owner in the guest; zero is root

	// Data is a regular file's content when Open is nil. It is not copied
	// and must not change until the archive is written.
	Data []byte

	// Open supplies a regular file's content when it is large: exactly Size
	// bytes. It is called once each time the archive is written, and what it
	// returns is closed.
	Open func() (io.ReadCloser, error)
	Size int64 // bytes that Open supplies; ignored without Open

	// Linkname is the target of a symbolic link, kept as it is; or, for a
	// regular file, the name of the entry this one is a hard link to. A hard
	// link takes mode, owner and content from its target.
	Linkname string

	Major, Minor uint32 // device number of a block or character device
}

// size returns the bytes of content that follow the header.
func (e *Entry) size() int64 {
	switch {
	case e.Mode&fs.ModeType == fs.ModeSymlink:
		return int64(len(e.Linkname))
	case e.Mode&fs.ModeType != 0:
		return 0
	case e.Open != nil:
		return e.Size
	}
	return int64(len(e.Data))
}

// isHardlink reports whether e names another entry's file.
func (e *Entry) isHardlink() bool { return e.Mode&fs.ModeType == 0 && e.Linkname != "" }

// check refuses what the format cannot hold or the kernel would drop.
func (e *Entry) check() error {
	typ := e.Mode & fs.ModeType
	if _, err := unixMode(e.Mode); err != nil {
		return err
	}
	hasContent := e.Open != nil || len(e.Data) > 0
	switch {
	case typ != 0 && hasContent:
		return fmt.Errorf("a %s has no content", typeName(typ))
	case e.Open != nil && len(e.Data) > 0:
		return errors.New("both Data and Open are set")
	case e.isHardlink() && hasContent:
		return errors.New("a hard link has no content of its own")
	case typ == fs.ModeSymlink && e.Linkname == "":
		return errors.New("symbolic link without a target")
	case typ == fs.ModeSymlink && (len(e.Linkname) > MaxLinkname || strings.IndexByte(e.Linkname, 0) >= 0):
		return errors.New("symbolic link target is too long or holds a NUL")
	case typ != 0 && typ != fs.ModeSymlink && e.Linkname != "":
		return fmt.Errorf("a %s has no link target", typeName(typ))
	case e.size() < 0:
		return fmt.Errorf("negative size %d", e.size())
	case e.size() > MaxFileSize:
		return fmt.Errorf("%d bytes: %w", e.size(), ErrTooLarge)
	case typ&fs.ModeDevice == 0 && (e.Major != 0 || e.Minor != 0):
		return fmt.Errorf("a %s has no device number", typeName(typ))
	}
	return nil
}

// cleanName checks an entry's name and returns it relative to the root.
func cleanName(name string) (string, error) {
	rel := strings.TrimPrefix(name, "/")
	if err := checkName(rel); err != nil {
		return "", fmt.Errorf("%q: %w", clip(name), err)
	}
	return rel, nil
}

// checkName refuses names that are not clean relative paths the kernel takes.
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: empty", ErrName)
	case len(name) > MaxName:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrName, len(name), MaxName)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: holds a NUL", ErrName)
	case name == trailer:
		return fmt.Errorf("%w: reserved for the end of an archive", ErrName)
	}
	for c := range strings.SplitSeq(name, "/") {
		switch {
		case c == "":
			return fmt.Errorf("%w: empty component", ErrName)
		case c == "." || c == "..":
			return fmt.Errorf("%w: %q component", ErrName, c)
		case len(c) > MaxComponent:
			return fmt.Errorf("%w: component of %d bytes, at most %d", ErrName, len(c), MaxComponent)
		}
	}
	return nil
}

// clip shortens a hostile name for an error message.
func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// Bits of the mode field, as in inode(7).
const (
	sIFMT   = 0o170000
	sIFSOCK = 0o140000
	sIFLNK  = 0o120000
	sIFREG  = 0o100000
	sIFBLK  = 0o060000
	sIFDIR  = 0o040000
	sIFCHR  = 0o020000
	sIFIFO  = 0o010000
	sISUID  = 0o4000
	sISGID  = 0o2000
	sISVTX  = 0o1000
)

// unixMode turns a Go file mode into the header's field.
func unixMode(m fs.FileMode) (uint32, error) {
	out := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		out |= sISUID
	}
	if m&fs.ModeSetgid != 0 {
		out |= sISGID
	}
	if m&fs.ModeSticky != 0 {
		out |= sISVTX
	}
	switch m & fs.ModeType {
	case 0:
		return out | sIFREG, nil
	case fs.ModeDir:
		return out | sIFDIR, nil
	case fs.ModeSymlink:
		return out | sIFLNK, nil
	case fs.ModeNamedPipe:
		return out | sIFIFO, nil
	case fs.ModeSocket:
		return out | sIFSOCK, nil
	case fs.ModeDevice:
		return out | sIFBLK, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		return out | sIFCHR, nil
	}
	return 0, fmt.Errorf("mode %v has no single type a cpio entry can hold", m)
}

// goMode is the inverse of unixMode.
func goMode(m uint32) (fs.FileMode, error) {
	out := fs.FileMode(m & 0o777)
	if m&sISUID != 0 {
		out |= fs.ModeSetuid
	}
	if m&sISGID != 0 {
		out |= fs.ModeSetgid
	}
	if m&sISVTX != 0 {
		out |= fs.ModeSticky
	}
	switch m & sIFMT {
	case sIFREG:
		return out, nil
	case sIFDIR:
		return out | fs.ModeDir, nil
	case sIFLNK:
		return out | fs.ModeSymlink, nil
	case sIFIFO:
		return out | fs.ModeNamedPipe, nil
	case sIFSOCK:
		return out | fs.ModeSocket, nil
	case sIFBLK:
		return out | fs.ModeDevice, nil
	case sIFCHR:
		return out | fs.ModeDevice | fs.ModeCharDevice, nil
	}
	return 0, fmt.Errorf("mode %#o has no known file type", m)
}

func typeName(t fs.FileMode) string {
	switch t {
	case 0:
		return "regular file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	case fs.ModeNamedPipe:
		return "fifo"
	case fs.ModeSocket:
		return "socket"
	}
	return "device"
}
