package volar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// uploadFolder packs a folder of the host into a file system image, brings that
// into the daemon's store unless it is there, and returns its digest. The same
// files make the same image, so a folder that has not changed is sent once.
func (c *cli) uploadFolder(cl *client.Client, dir string) (digest string, err error) {
	f, err := os.CreateTemp("", "volar-volume-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	var image erofs.Result
	err = c.during("packing "+dir, func() (err error) {
		image, err = packFolder(c.ctx, f, dir)
		return err
	})
	if err != nil {
		return "", err
	}
	_, err = cl.Blob(c.ctx, image.Digest)
	if err == nil || api.CodeOf(err) != api.CodeNotFound {
		return image.Digest, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	_, err = cl.PutBlob(c.ctx, image.Digest, c.watch(f, "uploading "+dir, image.Size), image.Size)
	return image.Digest, err
}

func packFolder(ctx context.Context, w io.Writer, dir string) (image erofs.Result, err error) {
	tree, err := layers.FromDir(ctx, dir, layers.HostOptions{})
	if err != nil {
		return image, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	if image, err = erofs.Write(ctx, w, tree, erofs.Options{}); err != nil {
		return image, fmt.Errorf("pack: %w", err)
	}
	return image, nil
}

// during runs do, and says what it does when it takes long.
func (c *cli) during(what string, do func() error) error {
	t := time.AfterFunc(c.progressAfter, func() { c.notef("%s", what) })
	defer t.Stop()
	return do()
}
