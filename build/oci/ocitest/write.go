package ocitest

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	refName      = "org.opencontainers.image.ref.name"
)

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// WriteLayout writes images as an OCI image layout into the folder dir, which
// it makes, and returns the digests of their manifests in order. Images of one
// reference stand in one multi-platform index under it.
func WriteLayout(dir string, images ...Image) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	var digests []string
	var top []descriptor
	byRef := map[string][]descriptor{}
	var refs []string
	for _, img := range images {
		d, err := writeImage(dir, &img)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Reference, err)
		}
		digests = append(digests, d.Digest)
		if img.Reference == "" {
			top = append(top, d)
			continue
		}
		if byRef[img.Reference] == nil {
			refs = append(refs, img.Reference)
		}
		byRef[img.Reference] = append(byRef[img.Reference], d)
	}
	for _, ref := range refs {
		d := byRef[ref][0]
		if len(byRef[ref]) > 1 {
			var err error
			if d, err = writeJSON(dir, indexType, index{2, indexType, byRef[ref]}); err != nil {
				return nil, err
			}
		}
		d.Annotations = map[string]string{refName: ref}
		top = append(top, d)
	}
	if top == nil {
		top = []descriptor{}
	}
	data, err := json.Marshal(index{2, indexType, top})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), data, 0o644); err != nil {
		return nil, err
	}
	return digests, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func writeImage(dir string, img *Image) (descriptor, error) {
	var m manifest
	var diffIDs []string
	for _, l := range img.Layers {
		sum := sha256.New()
		if err := l.write(sum); err != nil {
			return descriptor{}, err
		}
		diffID := "sha256:" + hex.EncodeToString(sum.Sum(nil))
		if l.DiffID != "" {
			diffID = l.DiffID
		}
		diffIDs = append(diffIDs, diffID)
		d, err := writeBlob(dir, l.mediaType(), l.compress)
		if err != nil {
			return descriptor{}, err
		}
		m.Layers = append(m.Layers, d)
	}
	config, err := img.config(diffIDs)
	if err != nil {
		return descriptor{}, err
	}
	if m.Config, err = writeBlob(dir, configType, func(w io.Writer) error { _, err := w.Write(config); return err }); err != nil {
		return descriptor{}, err
	}
	if m.Layers == nil {
		m.Layers = []descriptor{}
	}
	m.SchemaVersion, m.MediaType = 2, manifestType
	d, err := writeJSON(dir, manifestType, m)
	p := img.platform()
	d.Platform = &p
	return d, err
}

func writeJSON(dir, mediaType string, v any) (descriptor, error) {
	return writeBlob(dir, mediaType, func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
}

// writeBlob stores what write writes under its digest.
func writeBlob(dir, mediaType string, write func(io.Writer) error) (descriptor, error) {
	blobs := filepath.Join(dir, "blobs", "sha256")
	f, err := os.CreateTemp(blobs, "new-*")
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	sum := sha256.New()
	if err := write(io.MultiWriter(f, sum)); err != nil {
		return descriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return descriptor{}, err
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return descriptor{}, err
	}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: size}, os.Rename(f.Name(), filepath.Join(blobs, digest))
}

// WriteArchive writes images to w as an OCI image layout in a tar archive, as
// skopeo's and buildah's oci-archive.
func WriteArchive(w io.Writer, images ...Image) ([]string, error) {
	dir, err := os.MkdirTemp("", "volant-ocitest-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	digests, err := WriteLayout(dir, images...)
	if err != nil {
		return nil, err
	}
	return digests, tarFolder(w, dir)
}

// WriteDocker writes images to w as `docker save` did before it wrote OCI
// layouts: uncompressed layers in folders, named by manifest.json. A layer's
// MediaType and Compression do not count. It returns the digests of their
// configurations, which are Docker's image IDs.
func WriteDocker(w io.Writer, images ...Image) ([]string, error) {
	dir, err := os.MkdirTemp("", "volant-ocitest-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	entries := []entry{}
	var digests []string
	for _, img := range images {
		e := entry{Layers: []string{}}
		if img.Reference != "" {
			e.RepoTags = []string{strings.TrimPrefix(strings.TrimPrefix(img.Reference, "docker.io/"), "library/")}
		}
		var diffIDs []string
		for _, l := range img.Layers {
			sum := sha256.New()
			if err := l.write(sum); err != nil {
				return nil, err
			}
			id := hex.EncodeToString(sum.Sum(nil))
			if l.DiffID != "" {
				diffIDs = append(diffIDs, l.DiffID)
			} else {
				diffIDs = append(diffIDs, "sha256:"+id)
			}
			e.Layers = append(e.Layers, id+"/layer.tar")
			if err := os.MkdirAll(filepath.Join(dir, id), 0o755); err != nil {
				return nil, err
			}
			f, err := os.Create(filepath.Join(dir, id, "layer.tar"))
			if err != nil {
				return nil, err
			}
			if err := errors.Join(l.write(f), f.Close()); err != nil {
				return nil, err
			}
		}
		config, err := img.config(diffIDs)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(config)
		digest := hex.EncodeToString(sum[:])
		digests = append(digests, "sha256:"+digest)
		e.Config = digest + ".json"
		if err := os.WriteFile(filepath.Join(dir, e.Config), config, 0o644); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	data, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), data, 0o644); err != nil {
		return nil, err
	}
	return digests, tarFolder(w, dir)
}

// tarFolder writes the files below dir, sorted by name.
func tarFolder(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: fi.Size()}); err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
