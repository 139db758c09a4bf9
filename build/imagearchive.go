package build

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/initramfs"
)

// WriteInitramfs makes an archive of t in f, whose content it replaces, for
// the kernel to unpack as its root. The format holds neither extended
// attributes, see Written.XattrsLost, nor times, nor more than 4 GiB in a file.
// f is not synced. Nothing else may use t meanwhile. It blocks until done or
// ctx ends.
func WriteInitramfs(ctx context.Context, f *os.File, t *layers.Tree, c initramfs.Compression) (Written, error) {
	if err := f.Truncate(0); err != nil {
		return Written{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Written{}, err
	}
	nodes := t.Index()
	w := Written{Inodes: len(nodes)}
	for _, n := range nodes {
		if len(n.Xattrs()) > 0 {
			w.XattrsLost++
		}
	}
	a, err := archiveOf(t)
	if err != nil {
		return Written{}, err
	}
	h := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(contextWriter{ctx, f}, h), 1<<20)
	out := &countWriter{w: buffered}
	cw, err := c.NewWriter(out)
	if err != nil {
		return Written{}, err
	}
	if _, err := a.WriteTo(cw); err != nil {
		return Written{}, err
	}
	if err := errors.Join(cw.Close(), buffered.Flush()); err != nil {
		return Written{}, err
	}
	w.Digest, w.Size = "sha256:"+hex.EncodeToString(h.Sum(nil)), out.n
	return w, nil
}

// archiveOf collects the entries of an archive.
func archiveOf(t *layers.Tree) (*initramfs.Archive, error) {
	a := new(initramfs.Archive)
	first := make(map[*layers.Inode]string) // of regular files with several names: the format links no others
	err := t.Walk(func(path string, n *layers.Node) error {
		e := initramfs.Entry{Name: path, UID: n.UID, GID: n.GID, Mode: fileModeOf(n.Mode)}
		if name, ok := first[n.Inode]; ok {
			return a.Add(initramfs.Entry{Name: path, Linkname: name})
		}
		switch n.Type() {
		case layers.ModeRegular:
			if n.Nlink > 1 {
				first[n.Inode] = path
			}
			e.Size, e.Open = n.Size, func() (io.ReadCloser, error) { return openFile(n) }
		case layers.ModeSymlink:
			e.Linkname = n.Target()
		case layers.ModeChar, layers.ModeBlock:
			e.Major, e.Minor = n.Device()
		}
		if err := a.Add(e); err != nil {
			return fmt.Errorf("an initramfs cannot hold it: %w", err)
		}
		return nil
	})
	return a, err
}

// openFile adapts a file of a tree to a stream.
func openFile(n *layers.Node) (io.ReadCloser, error) {
	f, err := n.Open()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{f.Reader(), f}, nil
}

// fileModeOf turns a mode of inode(7) into Go's.
func fileModeOf(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	for _, b := range [...]struct {
		unix uint32
		mode fs.FileMode
	}{{layers.ModeSetuid, fs.ModeSetuid}, {layers.ModeSetgid, fs.ModeSetgid}, {layers.ModeSticky, fs.ModeSticky}} {
		if m&b.unix != 0 {
			out |= b.mode
		}
	}
	switch m & layers.ModeType {
	case layers.ModeDir:
		out |= fs.ModeDir
	case layers.ModeSymlink:
		out |= fs.ModeSymlink
	case layers.ModeFIFO:
		out |= fs.ModeNamedPipe
	case layers.ModeSocket:
		out |= fs.ModeSocket
	case layers.ModeBlock:
		out |= fs.ModeDevice
	case layers.ModeChar:
		out |= fs.ModeDevice | fs.ModeCharDevice
	}
	return out
}
