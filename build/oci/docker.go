package oci

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// docker loads images of a `docker save` archive by its manifest.json. What
// manifest.json names are members of the archive.
func (l *loader) docker(ctx context.Context, a *archive) ([]*Image, error) {
	data, err := a.members["manifest.json"].read(l.where, "manifest.json", l.opts.Limits.ManifestBytes)
	if err != nil {
		return nil, err
	}
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, errorf(ErrInvalid, "%s: manifest.json cannot be read: %w", l.where, err)
	}
	if len(entries) > l.opts.Limits.Images {
		return nil, errorf(ErrLimit, "%s: has %d images, the limit is %d", l.where, len(entries), l.opts.Limits.Images)
	}
	var images []*Image
	var refused error
	var known []string
	for _, e := range entries {
		member, ok := a.members[path.Clean(e.Config)]
		if !ok {
			return nil, errorf(ErrInvalid, "%s: configuration %s is missing", l.where, clip(e.Config))
		}
		config, err := member.read(l.where, "configuration "+clip(e.Config), l.opts.Limits.ConfigBytes)
		if err != nil {
			return nil, err
		}
		known = append(known, e.RepoTags...)
		if !selected(l.opts.Select, append(slices.Clone(e.RepoTags), digestOf(config))...) {
			continue
		}
		places := make([]place, len(e.Layers))
		layers := make([]v1.Descriptor, len(e.Layers))
		for i, name := range e.Layers {
			if places[i], ok = a.members[path.Clean(name)]; !ok {
				return nil, errorf(ErrInvalid, "%s: layer %s is missing", l.where, clip(name))
			}
			layers[i].Size = places[i].size
		}
		img, err := assemble(ctx, l.where, l.opts, layers, config, func(ctx context.Context, n int, diffID string) (LayerFile, error) {
			return l.layer(ctx, places[n], "", diffID)
		})
		if errors.Is(err, ErrPlatform) {
			refused = err
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, tag := range e.RepoTags {
			if ref, err := ParseReference(tag); err == nil {
				img.References = append(img.References, ref.String())
			}
		}
		slices.Sort(img.References)
		img.References = slices.Compact(img.References)
		images = append(images, img)
	}
	return l.finish(images, refused, known)
}

// selected reports whether one of names is the one asked for, as it is or as a
// reference.
func selected(want string, names ...string) bool {
	if want == "" || slices.Contains(names, want) {
		return true
	}
	ref, err := ParseReference(want)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(names, func(name string) bool {
		r, err := ParseReference(name)
		return err == nil && r == ref
	})
}
