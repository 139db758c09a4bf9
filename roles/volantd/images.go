package volantd

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon"
)

// images makes images for the daemon with the packages of the builder. It is
// safe for concurrent use.
type images struct {
	registry *oci.Registry
}

// roomPoll is how often the room on the disk is looked at while an image is
// made: well before a fast disk has written what is kept free.
const roomPoll = 250 * time.Millisecond

// ParseReference implements daemon.Images.
func (images) ParseReference(s string) (string, error) {
	ref, err := oci.ParseReference(s)
	if err != nil {
		return "", imageError(err)
	}
	return ref.String(), nil
}

// Resolve implements daemon.Images.
func (i images) Resolve(ctx context.Context, pull api.ImagePull) (id, reference string, err error) {
	ref, platform, err := parsePull(pull)
	if err != nil {
		return "", "", imageError(err)
	}
	d, err := i.registry.Resolve(ctx, ref, platform, pull.Auth)
	if err != nil {
		return "", "", imageError(err)
	}
	return d.Digest, ref.String(), nil
}

// Pull implements daemon.Images.
func (i images) Pull(ctx context.Context, work daemon.ImageWork, pull api.ImagePull) (daemon.ImageResult, error) {
	ref, platform, err := parsePull(pull)
	if err != nil {
		return daemon.ImageResult{}, imageError(err)
	}
	// The tag may have moved since it was resolved; the digest cannot.
	ref.Digest = work.ID
	var out daemon.ImageResult
	err = withRoom(ctx, work, func(ctx context.Context) error {
		img, err := i.registry.Pull(ctx, ref, pull.Auth, oci.Options{Staging: work.Dir, Platform: platform, Progress: work.Progress})
		if err != nil {
			return err
		}
		out, err = convert(ctx, work, img, pull.Form, work.Out)
		out.References = nil // the daemon knows what it asked for
		return err
	})
	return out, imageError(err)
}

// Load implements daemon.Images.
func (i images) Load(ctx context.Context, work daemon.ImageWork, archive io.Reader, name string, form api.ImageForm) ([]daemon.ImageResult, error) {
	o := oci.Options{Staging: work.Dir, Progress: work.Progress}
	if name != "" {
		var err error
		if o.Name, err = oci.ParseReference(name); err != nil {
			return nil, imageError(err)
		}
	}
	var out []daemon.ImageResult
	err := withRoom(ctx, work, func(ctx context.Context) error {
		list, err := oci.Load(ctx, archive, o)
		if err != nil {
			return err
		}
		for n, img := range list {
			r, err := convert(ctx, work, img, form, work.Out+"-"+strconv.Itoa(n))
			if err != nil {
				return err
			}
			out = append(out, r)
		}
		return nil
	})
	if err != nil {
		return nil, imageError(err)
	}
	return out, nil
}

// convert makes an image into a file for VMs.
func convert(ctx context.Context, work daemon.ImageWork, img *oci.Image, form api.ImageForm, file string) (daemon.ImageResult, error) {
	c, err := build.ConvertImage(ctx, img, form, file, work.Progress)
	if err != nil {
		return daemon.ImageResult{}, err
	}
	return daemon.ImageResult{
		ID: img.ID(), References: img.References, Platform: img.Platform.String(), Layers: len(img.Layers),
		Config: img.Config, CreatedAt: img.Created, File: file, Digest: c.Digest, Size: c.Size,
	}, nil
}

func parsePull(pull api.ImagePull) (oci.Reference, oci.Platform, error) {
	ref, err := oci.ParseReference(pull.Reference)
	if err != nil {
		return ref, oci.Platform{}, err
	}
	platform, err := oci.ParsePlatform(pull.Platform)
	if err != nil {
		return ref, platform, api.Errorf(api.CodeInvalid, "platform: %v", err)
	}
	return ref, platform, nil
}

// errNoRoom is the cause of a context that withRoom ended.
var errNoRoom = errors.New("too little room is left on the disk")

// withRoom runs f, and ends its context when the room on the disk is used up.
func withRoom(ctx context.Context, work daemon.ImageWork, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		tick := time.NewTicker(roomPoll)
		defer tick.Stop()
		for {
			if free, err := work.Free(); err == nil && free <= 0 {
				cancel(errNoRoom)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	err := f(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errNoRoom) {
		return cause
	}
	return err
}

// imageError gives an error the code that daemon.Images promises. What the
// asker can do nothing about stays as it is.
func imageError(err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	for _, k := range [...]struct {
		kind error
		code api.Code
	}{
		{oci.ErrNoSpace, api.CodeExhausted},
		{errNoRoom, api.CodeExhausted},
		{syscall.ENOSPC, api.CodeExhausted},
		{syscall.EDQUOT, api.CodeExhausted},
		{oci.ErrReference, api.CodeInvalid},
		{oci.ErrUnauthorized, api.CodeDenied},
		{oci.ErrNotFound, api.CodeNotFound},
		{oci.ErrPlatform, api.CodeNotFound},
		{oci.ErrUnavailable, api.CodeUnavailable},
		{oci.ErrDigest, api.CodeInvalid},
		{oci.ErrTruncated, api.CodeInvalid},
		{oci.ErrLimit, api.CodeInvalid},
		{oci.ErrInvalid, api.CodeInvalid},
		{oci.ErrBusy, api.CodeConflict},
		{layers.ErrLimit, api.CodeInvalid},
		{layers.ErrName, api.CodeInvalid},
		{layers.ErrFormat, api.CodeInvalid},
		{build.ErrOwnInit, api.CodeInvalid},
	} {
		if errors.Is(err, k.kind) {
			return api.Errorf(k.code, "%v", err)
		}
	}
	return err
}
