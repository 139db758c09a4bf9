package build

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// ErrOwnInit: the image brings a /init, which would replace the agent in an
// archive that is the guest's root.
var ErrOwnInit = errors.New("the image has an /init of its own, which would replace the agent: make a disk of it")

// Converted is what an image was made into.
type Converted struct {
	Digest string // "sha256:..." of the file
	Size   int64  // bytes of the file
	Inodes int    // files, directories and all else
}

// ConvertImage makes an image's tree into form, an erofs disk or an
// uncompressed archive, in the file out, which is replaced if it is there. The
// file is not synced; when the conversion fails there is none. progress, which
// may be nil, is told of the steps "flatten" and "write". It blocks until done or
// ctx ends. Errors wrap ErrOwnInit, those of package layers, or the file
// system's.
func ConvertImage(ctx context.Context, img *oci.Image, form api.ImageForm, out string, progress func(api.ImageProgress)) (_ Converted, err error) {
	if progress == nil {
		progress = func(api.ImageProgress) {}
	}
	var total int64
	for _, l := range img.Layers {
		total += l.Size
	}
	progress(api.ImageProgress{Step: "flatten", Item: img.ID(), Total: total})
	t, err := flatten(ctx, img, layers.Limits{})
	if err != nil {
		return Converted{}, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := addMountPoints(t.Tree); err != nil {
		return Converted{}, err
	}
	progress(api.ImageProgress{Step: "write", Item: img.ID()})
	f, err := os.OpenFile(out, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return Converted{}, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(out))
		}
	}()
	var w Written
	switch form {
	case "", api.FormDisk:
		w, err = WriteDisk(ctx, f, t.Tree, DiskOptions{})
	case api.FormInitramfs:
		if t.Root.Child("init") != nil {
			return Converted{}, ErrOwnInit
		}
		if err := addConsole(t.Tree); err != nil {
			return Converted{}, err
		}
		w, err = WriteInitramfs(ctx, f, t.Tree, initramfs.None)
	default:
		return Converted{}, fmt.Errorf("image form %q is not known", form)
	}
	if err != nil {
		return Converted{}, fmt.Errorf("write %s: %w", out, err)
	}
	return Converted{Digest: w.Digest, Size: w.Size, Inodes: w.Inodes}, nil
}

// imageTree is an image as one tree of files. The content of the tree is read
// from the image's layers until it is closed.
type imageTree struct {
	*layers.Tree
	open []*oci.LayerReader
}

// flatten makes the tree of an image. It must be closed.
func flatten(ctx context.Context, img *oci.Image, limits layers.Limits) (_ *imageTree, err error) {
	t := new(imageTree)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	stack := make([]layers.Layer, len(img.Layers))
	for i, l := range img.Layers {
		r, err := l.Open()
		if err != nil {
			return nil, err
		}
		t.open = append(t.open, r)
		stack[i] = layers.Layer{Name: l.DiffID, R: r, Size: l.Size}
	}
	t.Tree, err = layers.Flatten(ctx, stack, limits)
	return t, err
}

// Close closes the layers.
func (t *imageTree) Close() error {
	var errs []error
	for _, r := range t.open {
		errs = append(errs, r.Close())
	}
	t.open = nil
	if t.Tree != nil {
		errs = append(errs, t.Tree.Close())
	}
	return errors.Join(errs...)
}
