package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// archiveName is a loaded archive's file in the staging folder.
const archiveName = "archive"

// maxLinks bounds links from one archive member to the next.
const maxLinks = 8

// Load reads images from an archive: a `docker save` archive or an OCI layout
// in a tar archive, each plain or compressed with gzip or zstd. Uncompressed
// layers are not copied again: they are read in the archive's own copy in
// opts.Staging.
//
// Of images for several platforms the one for opts.Platform is taken. Errors
// are ErrInvalid, ErrTruncated, ErrDigest, ErrPlatform, ErrLimit, ErrNotFound
// when nothing is selected, ErrNoSpace, ErrBusy, ctx's, or r's.
func Load(ctx context.Context, r io.Reader, opts Options) ([]*Image, error) {
	return load(ctx, "archive", r, nil, opts)
}

// LoadPath is Load for a file, or for an OCI layout folder as skopeo, umoci and
// buildah make it. Uncompressed layers of either are read where they are, so
// neither may change while its images are in use.
func LoadPath(ctx context.Context, name string, opts Options) ([]*Image, error) {
	fi, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errorf(ErrNotFound, "%s does not exist: give an archive or an OCI layout folder", clip(name))
	}
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return loadLayout(ctx, name, opts)
	}
	if !fi.Mode().IsRegular() {
		return nil, errorf(ErrInvalid, "%s is neither a file nor a folder", clip(name))
	}
	if name, err = filepath.Abs(name); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return load(ctx, name, f, f, opts)
}

// load reads an archive from r; file is the same if it is a regular file.
func load(ctx context.Context, where string, r io.Reader, file *os.File, opts Options) (_ []*Image, err error) {
	opts = opts.withDefaults()
	s, err := openStaging(opts.Staging, opts.Limits)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.removeParts(tarSuffix)
	s.removeParts(archiveName)
	l := &loader{where: where, opts: &opts, staging: s}
	l.tell = opts.Progress
	if file != nil {
		head := make([]byte, 10)
		n, err := file.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if format, err := sniff(head[:n]); err != nil || format != formPlain {
			file = nil
			if err != nil {
				return nil, fmt.Errorf("%s: %w", where, err)
			}
		}
	}
	if file == nil {
		if file, err = l.spoolArchive(ctx, r); err != nil {
			return nil, err
		}
		defer file.Close()
		defer func() {
			if err != nil {
				os.Remove(s.path(archiveName))
			}
		}()
	}
	a, err := indexArchive(where, file, opts.Limits)
	if err != nil {
		return nil, err
	}
	_, oci := a.members["index.json"]
	_, docker := a.members["manifest.json"]
	switch {
	case oci:
		return l.layout(ctx, a)
	case docker:
		return l.docker(ctx, a)
	case a.tree:
		return nil, errorf(ErrInvalid, "%s holds a file tree and no image: make it with docker save, not docker export", where)
	default:
		return nil, errorf(ErrInvalid, "%s holds no image: it has neither index.json nor manifest.json", where)
	}
}

// spoolArchive writes the uncompressed archive to the staging folder.
func (l *loader) spoolArchive(ctx context.Context, r io.Reader) (_ *os.File, err error) {
	in := &countReader{r: r}
	dec, err := decompress(in)
	if err != nil {
		return nil, layerError(l.where, err)
	}
	defer dec.Close()
	f, err := os.OpenFile(l.staging.path(archiveName+partSuffix), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, stagingError(l.staging.dir, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	told := l.item("download", archiveName, 0)
	var n int64
	err = copyCtx(ctx, f, dec, func(more int64) error {
		n += more
		told(in.n)
		if n > l.opts.Limits.TotalBytes {
			return errorf(ErrLimit, "%s has more than %d bytes uncompressed, the limit of an image", l.where, l.opts.Limits.TotalBytes)
		}
		if n > ratioFrom && n/l.opts.Limits.Ratio > in.n {
			return errorf(ErrLimit, "%s: %d compressed bytes make more than %d: over %d to 1 is taken for a bomb", l.where, in.n, n, l.opts.Limits.Ratio)
		}
		return nil
	})
	if err != nil {
		return nil, stagingError(l.staging.dir, layerError(l.where, err))
	}
	l.report(api.ImageProgress{Step: "download", Item: archiveName, Done: in.n, Total: in.n})
	final := l.staging.path(archiveName)
	if err := os.Rename(f.Name(), final); err != nil { // not synced: the next load begins anew
		return nil, stagingError(l.staging.dir, err)
	}
	f.Close()
	f, err = os.Open(final)
	return f, err
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// place is where a blob lies: size bytes of a file.
type place struct {
	path   string
	offset int64
	size   int64
}

func (p place) open() (*LayerReader, error) {
	return LayerFile{Path: p.path, Offset: p.offset, Size: p.size}.Open()
}

// read reads all of a small blob.
func (p place) read(where, what string, limit int64) ([]byte, error) {
	if p.size > limit {
		return nil, errorf(ErrLimit, "%s: %s has %d bytes, the limit is %d", where, what, p.size, limit)
	}
	r, err := p.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, p.size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, errorf(ErrTruncated, "%s: %s: %w", where, what, err)
	}
	return data, nil
}

// archive is a tar archive on disk by the names of its members. The names are
// keys and nothing else.
type archive struct {
	members map[string]place
	tree    bool // it looks like somebody's root
}

// indexArchive reads the headers of a tar archive. Of members of one name the
// last counts, as it would for tar.
func indexArchive(where string, f *os.File, limits Limits) (*archive, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// The tar reader takes exactly what it needs, and seeks over the rest.
	in := io.NewSectionReader(f, 0, fi.Size())
	a := &archive{members: map[string]place{}}
	links := map[string]string{}
	tr := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, errorf(ErrTruncated, "%s ends too early: get or make it again", where)
		case err != nil && n == 0:
			return nil, errorf(ErrInvalid, "%s is no tar archive, plain or compressed with gzip or zstd", where)
		case err != nil:
			return nil, errorf(ErrInvalid, "%s is damaged: %w", where, err)
		case n >= limits.Members:
			return nil, errorf(ErrLimit, "%s has more than %d members: is it an image?", where, limits.Members)
		}
		name := path.Clean(h.Name)
		if strings.HasPrefix(name, "etc/") || strings.HasPrefix(name, "usr/") {
			a.tree = true
		}
		delete(a.members, name)
		delete(links, name)
		switch h.Typeflag {
		case tar.TypeReg:
			for key := range h.PAXRecords {
				if strings.HasPrefix(key, "GNU.sparse.") {
					return nil, errorf(ErrInvalid, "%s: member %s is stored as a sparse file: make the archive without it", where, clip(name))
				}
			}
			offset, err := in.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if h.Size > fi.Size()-offset {
				return nil, errorf(ErrTruncated, "%s ends too early: get or make it again", where)
			}
			a.members[name] = place{f.Name(), offset, h.Size}
		case tar.TypeGNUSparse:
			return nil, errorf(ErrInvalid, "%s: member %s is stored as a sparse file: make the archive without it", where, clip(name))
		case tar.TypeSymlink: // an old docker save links layers that two images share
			links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		}
	}
	for name, to := range links {
		for range maxLinks {
			if p, ok := a.members[to]; ok {
				a.members[name] = p
				break
			}
			to = links[to]
		}
	}
	return a, nil
}

// blob finds a blob of an OCI layout.
func (a *archive) blob(hex string) (place, error) {
	p, ok := a.members["blobs/sha256/"+hex]
	if !ok {
		return place{}, os.ErrNotExist
	}
	return p, nil
}

func (a *archive) index() (place, error) {
	p, ok := a.members["index.json"]
	if !ok {
		return place{}, os.ErrNotExist
	}
	return p, nil
}
