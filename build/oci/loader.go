package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"sync"
)

// loader is one load of an archive or a layout.
type loader struct {
	reporter
	where   string
	opts    *Options
	staging *staging

	layersMu sync.Mutex
	layers   map[string]LayerFile // by diff ID; images share layers
}

// layer verifies a layer that lies at p, and unpacks it if it is compressed.
// digest is that of its bytes as they are, or empty where it is not known.
func (l *loader) layer(ctx context.Context, p place, digest, diffID string) (LayerFile, error) {
	l.layersMu.Lock()
	f, ok := l.layers[diffID]
	l.layersMu.Unlock()
	if ok {
		return f, nil
	}
	f, err := l.verify(ctx, p, digest, diffID)
	if err != nil {
		return LayerFile{}, err
	}
	l.layersMu.Lock()
	defer l.layersMu.Unlock()
	if l.layers == nil {
		l.layers = map[string]LayerFile{}
	}
	l.layers[diffID] = f
	return f, nil
}

func (l *loader) verify(ctx context.Context, p place, digest, diffID string) (LayerFile, error) {
	r, err := p.open()
	if err != nil {
		return LayerFile{}, err
	}
	defer r.Close()
	head := make([]byte, 10)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return LayerFile{}, err
	}
	format, err := sniff(head[:n])
	if err != nil {
		return LayerFile{}, err
	}
	sum := sha256.New()
	told := l.item("download", diffID, p.size)
	var done int64
	if format == formPlain {
		err := copyCtx(ctx, sum, r, func(more int64) error {
			done += more
			told(done)
			return l.staging.grow("layer "+diffID, more, done)
		})
		if err != nil {
			return LayerFile{}, err
		}
		if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID || digest != "" && digest != diffID {
			return LayerFile{}, errorf(ErrDigest, "%s: layer %s has digest %s: the archive is damaged or was tampered with", l.where, diffID, got)
		}
		return LayerFile{DiffID: diffID, Path: p.path, Offset: p.offset, Size: p.size}, nil
	}
	f, ok, err := l.staging.finished(ctx, diffID)
	if err != nil || ok {
		return f, err
	}
	f, err = l.staging.spool(ctx, io.TeeReader(r, sum), p.size, diffID)
	if err != nil {
		return LayerFile{}, err
	}
	if digest != "" {
		// What a decompressor leaves unread belongs to the blob all the same.
		if _, err := io.Copy(sum, r); err != nil {
			return LayerFile{}, err
		}
		if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
			os.Remove(f.Path)
			return LayerFile{}, errorf(ErrDigest, "%s: layer %s has digest %s: the archive is damaged or was tampered with", l.where, digest, got)
		}
	}
	told(p.size)
	return f, nil
}

// finish gives the images their names, and says so when there is nothing to
// return. refused is why images were passed over, if some were; known the
// names that could have been selected.
func (l *loader) finish(images []*Image, refused error, known []string) ([]*Image, error) {
	switch {
	case len(images) > 0:
	case refused != nil:
		return nil, refused
	case l.opts.Select != "":
		return nil, errorf(ErrNotFound, "%s: has no image %s: it has %s", l.where, clip(l.opts.Select), listed(known))
	default:
		return nil, errorf(ErrInvalid, "%s: holds no image", l.where)
	}
	if l.opts.Name != (Reference{}) {
		if len(images) > 1 {
			return nil, errorf(ErrInvalid, "%s: has %d images, so that one name is not enough: select one of %s", l.where, len(images), listed(known))
		}
		images[0].References = []string{l.opts.Name.String()}
	}
	return images, nil
}

// listed shows names that a stranger chose.
func listed(names []string) string {
	if len(names) == 0 {
		return "none that has a name"
	}
	s := ""
	for i, name := range names[:min(len(names), 16)] {
		if i > 0 {
			s += ", "
		}
		s += clip(name)
	}
	if len(names) > 16 {
		s += " and others"
	}
	return s
}
