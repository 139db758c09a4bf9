// Package archive packs files into a tar stream and unpacks one, at both ends of
// a copy between a client and a guest. Neither end trusts the other, nor the
// files: names that lead out of the destination are refused, symbolic links are
// kept and never followed, and what a stream makes its reader keep in memory is
// bounded. It speaks pax (POSIX.1-2001, pax(1)), reads what package archive/tar
// reads, and holds no files of its own: both ends give it a directory that is
// open, as os.Root, and it works with single names relative to open directories
// from there on. So a name that somebody changes meanwhile changes nothing.
//
// A stream that was cut short never looks whole: Extract wants the marker at the
// end of an archive, and Pack, when it fails, leaves behind what no reader of
// archives takes for one.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// MediaType is that of the stream.
const MediaType = "application/x-tar"

// Bounds of what is packed and unpacked.
const (
	// MaxName bounds a name in an archive, in bytes, as PATH_MAX does; maxPart
	// one part of it, as NAME_MAX.
	MaxName = 4096
	maxPart = 255
	// MaxDepth bounds how deep directories are nested: each level keeps some open.
	MaxDepth = 255
	// MaxFile bounds one file, in bytes: a few bytes of a stream can stand for a
	// hole of any size.
	MaxFile = 1 << 40
	// maxEntries bounds one archive.
	maxEntries = 1 << 24
	// maxLinks is how many files with several names are remembered when they are
	// packed; what comes after them is packed once for each name.
	maxLinks = 1 << 16
)

var (
	// ErrMalformed is an archive that is not accepted, whatever it is unpacked to.
	ErrMalformed = errors.New("malformed archive")
	// ErrClash is a file that does not fit to what is there already.
	ErrClash = errors.New("in the way")
	// ErrChanged is a file that changed while it was read.
	ErrChanged = errors.New("changed meanwhile")
)

// copyBuffer is how much is copied at once, in bytes.
const copyBuffer = 64 << 10

// Dir is a directory that is open: to be read, and to work with its names.
type Dir struct {
	*os.Root
	File *os.File
}

// Close closes both.
func (d *Dir) Close() error { return errors.Join(d.Root.Close(), d.File.Close()) }

// OpenDir opens a directory by one name in another, or "." for itself. It follows
// no link, and does not wait for what turns out to be a pipe.
func OpenDir(parent *os.Root, name string) (*Dir, error) {
	before, err := parent.Lstat(name)
	if err != nil {
		return nil, Cause(err)
	}
	if !before.IsDir() {
		return nil, syscall.ENOTDIR
	}
	f, err := parent.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, Cause(err)
	}
	d, err := rootOf(f, before)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// rootOf makes a Root of a directory that is open and must be the one that was
// seen before. Root.OpenRoot could wait for a pipe that took its place; the
// kernel's link to what is open cannot (proc_pid_fd(5)).
func rootOf(f *os.File, before fs.FileInfo) (*Dir, error) {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, Cause(err)
	}
	for _, stat := range []func() (fs.FileInfo, error){f.Stat, func() (fs.FileInfo, error) { return root.Stat(".") }} {
		if now, err := stat(); err != nil || !os.SameFile(before, now) {
			return nil, errors.Join(ErrChanged, root.Close())
		}
	}
	return &Dir{root, f}, nil
}

// Walk opens the directory that parts lead to, one after the other, and asks
// enter, which may be nil, about each, by its name from root on ("" for that). It
// follows no link.
func Walk(root *os.Root, parts []string, enter func(d *Dir, name string) error) (*Dir, error) {
	at, err := OpenDir(root, ".")
	for i := 0; err == nil; i++ {
		if enter != nil {
			if err = enter(at, strings.Join(parts[:i], "/")); err != nil {
				return nil, errors.Join(err, at.Close())
			}
		}
		if i == len(parts) {
			return at, nil
		}
		var next *Dir
		next, err = OpenDir(at.Root, parts[i])
		at.Close() //nolint:errcheck // it was only read
		at = next
	}
	return nil, err
}

// Split splits a name of an archive into its parts, without what says nothing:
// "./a//b/" is a and b. The name must not lead out.
func Split(name string) ([]string, error) {
	switch {
	case name == "":
		return nil, fmt.Errorf("%w: an entry without a name", ErrMalformed)
	case len(name) > MaxName:
		return nil, fmt.Errorf("%w: a name of %d bytes, %.40q…; %d are allowed", ErrMalformed, len(name), name, MaxName)
	case strings.ContainsRune(name, 0):
		return nil, fmt.Errorf("%w: the name %q holds a zero byte", ErrMalformed, name)
	case name[0] == '/':
		return nil, fmt.Errorf("%w: the name %q is absolute", ErrMalformed, name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, fmt.Errorf("%w: the name %q leads out by \"..\"", ErrMalformed, name)
		case len(part) > maxPart:
			return nil, fmt.Errorf("%w: a name with %d bytes between two slashes, %.40q…; %d are allowed", ErrMalformed, len(part), part, maxPart)
		}
		parts = append(parts, part)
	}
	if len(parts) > MaxDepth {
		return nil, fmt.Errorf("%w: directories nested %d deep; %d are allowed", ErrMalformed, len(parts), MaxDepth)
	}
	return parts, nil
}

// Cause takes the names off an error of package os, which are relative to some
// directory and would mislead.
func Cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// about says which file an error is about.
func about(name string, err error) error { return fmt.Errorf("%q: %w", name, Cause(err)) }

// malformed makes an error of package tar about what was read one of ours.
func malformed(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it was cut short", ErrMalformed)
	}
	return err
}
