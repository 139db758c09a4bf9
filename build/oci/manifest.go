package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxDepth bounds indexes within indexes.
const maxDepth = 4

// manifestTypes are the media types that a registry is asked for.
func manifestTypes() []string {
	return []string{
		string(types.OCIImageIndex), string(types.DockerManifestList),
		string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	}
}

// document is a manifest, or an index of manifests.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"` // of Docker's schema 1
}

// index reports whether d is an index.
func (d *document) index() bool { return d.Config == nil }

// parseDocument reads a manifest or an index and checks its shape. What could
// be read as both is refused: readers that choose differently would see
// different images (CVE-2021-41190).
func parseDocument(where string, data []byte) (*document, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, errorf(ErrInvalid, "%s: the manifest cannot be read: %w", where, err)
	}
	switch {
	case d.SchemaVersion == 1 || d.FSLayers != nil:
		return nil, errorf(ErrInvalid, "%s: the image has a manifest of Docker's schema 1, which is out of use: push it again with a current Docker", where)
	case d.SchemaVersion != 2:
		return nil, errorf(ErrInvalid, "%s: the manifest has schema version %d, want 2", where, d.SchemaVersion)
	case d.Config != nil && d.Manifests != nil, d.MediaType.IsImage() && d.Config == nil, d.MediaType.IsIndex() && (d.Config != nil || d.Layers != nil):
		return nil, errorf(ErrInvalid, "%s: the manifest is both an image and an index", where)
	case d.Config == nil && d.Manifests == nil:
		return nil, errorf(ErrInvalid, "%s: the manifest has neither a configuration nor manifests", where)
	case d.MediaType != "" && !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		return nil, errorf(ErrInvalid, "%s: media type %s is not a container image's", where, clip(string(d.MediaType)))
	}
	if d.index() {
		for i := range d.Manifests {
			if err := checkDescriptor(where, &d.Manifests[i]); err != nil {
				return nil, err
			}
		}
		return &d, nil
	}
	switch d.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON:
	default:
		return nil, errorf(ErrInvalid, "%s: is no container image: its configuration is %s", where, clip(string(d.Config.MediaType)))
	}
	if err := checkDescriptor(where, d.Config); err != nil {
		return nil, err
	}
	for i := range d.Layers {
		if err := checkDescriptor(where, &d.Layers[i]); err != nil {
			return nil, err
		}
	}
	return &d, nil
}

func checkDescriptor(where string, d *v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" {
		return errorf(ErrInvalid, "%s: digest %s is no sha256", where, clip(d.Digest.String()))
	}
	if d.Size < 0 {
		return errorf(ErrInvalid, "%s: %s has %d bytes", where, d.Digest, d.Size)
	}
	return nil
}

// check says whether the parts of a manifest are such as we take.
func (d *document) check(where string, limits Limits) error {
	for i := range d.Layers {
		if err := checkLayer(where, i+1, &d.Layers[i]); err != nil {
			return err
		}
	}
	if d.Config.Size > limits.ConfigBytes {
		return errorf(ErrLimit, "%s: the configuration has %d bytes, the limit is %d", where, d.Config.Size, limits.ConfigBytes)
	}
	return nil
}

// checkLayer refuses what is no layer of a container image.
func checkLayer(where string, n int, d *v1.Descriptor) error {
	m := string(d.MediaType)
	if !d.MediaType.IsDistributable() || strings.Contains(m, "nondistributable") || strings.Contains(m, ".foreign.") {
		return errorf(ErrInvalid, "%s: layer %d is not distributable (%s): its publisher does not let registries hand it out", where, n, clip(m))
	}
	switch m {
	case string(types.OCILayer), string(types.OCILayerZStd), string(types.OCIUncompressedLayer),
		string(types.DockerLayer), string(types.DockerUncompressedLayer), string(types.DockerUncompressedLayer) + ".zstd":
		return nil
	}
	return errorf(ErrInvalid, "%s: layer %d is %s, which is not a layer of a container image", where, n, clip(m))
}

// isAttestation reports whether an entry of an index is no image but a
// statement about one, as BuildKit makes them.
func isAttestation(d *v1.Descriptor) bool {
	if d.Annotations["vnd.docker.reference.type"] != "" {
		return true
	}
	return d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// choose picks the entry of an index that suits want best. One that names no
// platform is taken when no other suits: its configuration is asked later.
func choose(where string, list []v1.Descriptor, want Platform) (*v1.Descriptor, error) {
	var best *v1.Descriptor
	bestRank := -1
	var has []string
	for i := range list {
		d := &list[i]
		if isAttestation(d) || !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		rank := 0
		if d.Platform != nil && d.Platform.Architecture != "" {
			p := platformOf(d.Platform)
			if rank = want.rank(p); rank == 0 {
				if s := p.String(); len(has) < 16 && !slices.Contains(has, s) {
					has = append(has, s)
				}
				continue
			}
		}
		if rank > bestRank {
			best, bestRank = d, rank
		}
	}
	if best == nil && has == nil {
		return nil, errorf(ErrInvalid, "%s: holds no container image", where)
	}
	if best == nil {
		return nil, platformError(where, want, has)
	}
	return best, nil
}

func platformError(where string, want Platform, has []string) error {
	for i, s := range has {
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_.-/") != "" {
			has[i] = clip(s)
		}
	}
	there := strings.Join(has, ", ")
	if want == ThisPlatform() {
		return errorf(ErrPlatform, "%s: is not there for this machine, %s: it is there for %s", where, want, there)
	}
	return errorf(ErrPlatform, "%s: is not there for %s: it is there for %s", where, want, there)
}

// descend follows indexes from doc down to the manifest for want, and returns
// it with its digest. get reads a document and verifies it against its
// descriptor.
func descend(ctx context.Context, where string, doc *document, digest string, want Platform,
	get func(context.Context, *v1.Descriptor) ([]byte, error)) (*document, string, error) {
	for range maxDepth {
		if !doc.index() {
			return doc, digest, nil
		}
		d, err := choose(where, doc.Manifests, want)
		if err != nil {
			return nil, "", err
		}
		data, err := get(ctx, d)
		if err != nil {
			return nil, "", err
		}
		if doc, err = parseDocument(where, data); err != nil {
			return nil, "", err
		}
		digest = d.Digest.String()
	}
	return nil, "", errorf(ErrInvalid, "%s: indexes lie within indexes, more than %d deep", where, maxDepth)
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
