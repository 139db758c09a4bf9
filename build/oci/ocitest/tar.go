package ocitest

import (
	"archive/tar"
	"bytes"
	"strings"
	"time"
)

// File is one entry of a layer: any header that archive/tar writes, and the
// data of a regular file. Size follows from Data.
type File struct {
	tar.Header
	Data string
}

// Dir is a directory of root's.
func Dir(name string, mode int64) File {
	return File{Header: tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: mode}}
}

// Regular is a regular file of root's.
func Regular(name string, mode int64, data string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, Data: data}
}

// Symlink is a symbolic link to target.
func Symlink(name, target string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Link is a hard link to the entry target.
func Link(name, target string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

// Whiteout hides name, a path in lower layers. A name whose last part begins
// with ".wh." is taken as it is: Whiteout("dir/.wh..wh..opq") makes dir opaque.
func Whiteout(name string) File {
	dir, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i+1], name[i+1:]
	}
	if !strings.HasPrefix(base, ".wh.") {
		base = ".wh." + base
	}
	return File{Header: tar.Header{Typeflag: tar.TypeReg, Name: dir + base, Mode: 0o644}}
}

// Tar writes files as one tar archive, in their order. A zero ModTime becomes
// the year 2024, so that equal files give equal archives.
func Tar(files ...File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.Data))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(f.Data)); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
