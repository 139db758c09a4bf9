package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Annotations that name an image of a layout: containerd's has a full
// reference, OCI's anything, often a tag alone.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// layoutReader is an OCI layout: a folder, or the members of an archive.
// Errors are os.ErrNotExist for what is not there.
type layoutReader interface {
	index() (place, error)
	blob(hex string) (place, error)
}

// folder is an OCI layout in a folder.
type folder string

func (f folder) index() (place, error)          { return f.file("index.json") }
func (f folder) blob(hex string) (place, error) { return f.file(filepath.Join("blobs", "sha256", hex)) }

func (f folder) file(name string) (place, error) {
	path := filepath.Join(string(f), name)
	fi, err := os.Stat(path)
	if err != nil {
		return place{}, err
	}
	if !fi.Mode().IsRegular() {
		return place{}, fmt.Errorf("%s is no file", path)
	}
	return place{path: path, size: fi.Size()}, nil
}

// loadLayout loads the images of a layout folder.
func loadLayout(ctx context.Context, dir string, opts Options) ([]*Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	s, err := openStaging(opts.Staging, opts.Limits)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.removeParts(tarSuffix)
	l := &loader{where: dir, opts: &opts, staging: s}
	l.tell = opts.Progress
	return l.layout(ctx, folder(dir))
}

// named are the entries of a layout's index that stand for one image.
type named struct {
	names   []string
	entries []v1.Descriptor
}

// layout loads the images of a layout.
func (l *loader) layout(ctx context.Context, from layoutReader) ([]*Image, error) {
	groups, known, err := l.groups(from)
	if err != nil {
		return nil, err
	}
	var images []*Image
	var refused error
	for _, g := range groups {
		img, err := l.layoutImage(ctx, from, g)
		if errors.Is(err, ErrPlatform) {
			refused = err
			continue
		}
		if err != nil {
			return nil, err
		}
		refs := references(g.names)
		if i := slices.IndexFunc(images, func(have *Image) bool { return have.ManifestDigest == img.ManifestDigest }); i >= 0 {
			img = images[i]
		} else {
			images = append(images, img)
		}
		img.References = append(img.References, refs...)
		slices.Sort(img.References)
		img.References = slices.Compact(img.References)
	}
	return l.finish(images, refused, known)
}

// groups reads a layout's index and sorts its entries by the image they stand
// for: those of one name are platforms of one image; those without a name, of
// one image too if all say their platform, else each of its own. What was not
// selected is left out; known are the names of all.
func (l *loader) groups(from layoutReader) (groups []named, known []string, err error) {
	p, err := from.index()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, errorf(ErrInvalid, "%s is no OCI layout: it has no index.json", l.where)
	}
	if err != nil {
		return nil, nil, err
	}
	data, err := p.read(l.where, "index.json", l.opts.Limits.ManifestBytes)
	if err != nil {
		return nil, nil, err
	}
	doc, err := parseDocument(l.where+": index.json", data)
	if err != nil {
		return nil, nil, err
	}
	if !doc.index() {
		return nil, nil, errorf(ErrInvalid, "%s: index.json is no index", l.where)
	}
	place := map[string]int{}
	for _, d := range doc.Manifests {
		if isAttestation(&d) {
			continue
		}
		var names []string
		for _, key := range [...]string{containerdName, ociRefName} {
			if name := d.Annotations[key]; name != "" {
				names = append(names, name)
			}
		}
		known = append(known, names...)
		if !selected(l.opts.Select, append(slices.Clone(names), d.Digest.String())...) {
			continue
		}
		key := strings.Join(names, "\x00")
		if len(names) == 0 && d.Platform == nil {
			key = "\x00" + d.Digest.String()
		}
		i, ok := place[key]
		if !ok {
			i = len(groups)
			place[key] = i
			groups = append(groups, named{names: names})
		}
		groups[i].entries = append(groups[i].entries, d)
	}
	if len(groups) > l.opts.Limits.Images {
		return nil, nil, errorf(ErrLimit, "%s: has %d images, the limit is %d", l.where, len(groups), l.opts.Limits.Images)
	}
	return groups, known, nil
}

// pick follows a group down to the manifest for the platform. visit, if not
// nil, sees the documents on the way.
func (l *loader) pick(ctx context.Context, from layoutReader, g named, visit func(*v1.Descriptor)) (*document, string, error) {
	top := &document{Manifests: g.entries}
	return descend(ctx, l.where, top, "", l.opts.Platform, func(_ context.Context, d *v1.Descriptor) ([]byte, error) {
		if visit != nil {
			visit(d)
		}
		return l.document(from, d, "manifest", l.opts.Limits.ManifestBytes)
	})
}

// document reads a small blob and verifies it.
func (l *loader) document(from layoutReader, d *v1.Descriptor, what string, limit int64) ([]byte, error) {
	what += " " + d.Digest.String()
	p, err := l.find(from, d, what)
	if err != nil {
		return nil, err
	}
	data, err := p.read(l.where, what, limit)
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest.String() {
		return nil, errorf(ErrDigest, "%s: %s has digest %s: it is damaged or was tampered with", l.where, what, got)
	}
	return data, nil
}

func (l *loader) find(from layoutReader, d *v1.Descriptor, what string) (place, error) {
	p, err := from.blob(d.Digest.Hex)
	if errors.Is(err, os.ErrNotExist) {
		return place{}, errorf(ErrInvalid, "%s: %s is missing", l.where, what)
	}
	return p, err
}

func (l *loader) layoutImage(ctx context.Context, from layoutReader, g named) (*Image, error) {
	doc, digest, err := l.pick(ctx, from, g, nil)
	if err != nil {
		return nil, err
	}
	if err := doc.check(l.where, l.opts.Limits); err != nil {
		return nil, err
	}
	config, err := l.document(from, doc.Config, "configuration", l.opts.Limits.ConfigBytes)
	if err != nil {
		return nil, err
	}
	img, err := assemble(ctx, l.where, l.opts, doc.Layers, config, func(ctx context.Context, n int, diffID string) (LayerFile, error) {
		d := &doc.Layers[n]
		p, err := l.find(from, d, fmt.Sprintf("layer %s", d.Digest))
		if err != nil {
			return LayerFile{}, err
		}
		if p.size != d.Size {
			return LayerFile{}, errorf(ErrDigest, "%s: layer %s has %d bytes, not %d as the manifest says: it is damaged", l.where, d.Digest, p.size, d.Size)
		}
		return l.layer(ctx, p, d.Digest.String(), diffID)
	})
	if err != nil {
		return nil, err
	}
	img.ManifestDigest = digest
	return img, nil
}

// references are those of an image's names that say which image it is; "latest"
// does not.
func references(names []string) []string {
	var refs []string
	for _, name := range names {
		if !strings.ContainsAny(name, ":/") {
			continue
		}
		if ref, err := ParseReference(name); err == nil {
			refs = append(refs, ref.String())
		}
	}
	return refs
}

// ArchiveLayout writes the images of an OCI layout folder to w as an archive
// that Load reads: of each, what opts.Platform needs, and only those that
// opts.Select and opts.Limits allow. Nothing but manifests is verified; Load
// does that. Equal images give equal bytes.
func ArchiveLayout(ctx context.Context, w io.Writer, dir string, opts Options) error {
	opts = opts.withDefaults()
	l := &loader{where: dir, opts: &opts}
	from := folder(dir)
	groups, known, err := l.groups(from)
	if err != nil {
		return err
	}
	top := v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{}}
	var blobs []v1.Descriptor
	var refused error
	for _, g := range groups {
		var path []v1.Descriptor
		doc, _, err := l.pick(ctx, from, g, func(d *v1.Descriptor) { path = append(path, *d) })
		if errors.Is(err, ErrPlatform) {
			refused = err
			continue
		}
		if err != nil {
			return err
		}
		top.Manifests = append(top.Manifests, path[0])
		blobs = append(append(append(blobs, path...), *doc.Config), doc.Layers...)
	}
	if len(top.Manifests) == 0 {
		_, err := l.finish(nil, refused, known)
		return err
	}
	index, err := json.Marshal(top)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	write := func(name string, r io.Reader, size int64) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		return copyCtx(ctx, tw, io.LimitReader(r, size), func(int64) error { return nil })
	}
	const version = `{"imageLayoutVersion":"1.0.0"}`
	if err := write("oci-layout", strings.NewReader(version), int64(len(version))); err != nil {
		return err
	}
	if err := write("index.json", strings.NewReader(string(index)), int64(len(index))); err != nil {
		return err
	}
	slices.SortFunc(blobs, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	blobs = slices.CompactFunc(blobs, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest })
	for _, d := range blobs {
		p, err := l.find(from, &d, "blob "+d.Digest.String())
		if err != nil {
			return err
		}
		r, err := p.open()
		if err != nil {
			return err
		}
		err = write("blobs/sha256/"+d.Digest.Hex, r, p.size)
		r.Close()
		if err != nil {
			return err
		}
	}
	return tw.Close()
}
