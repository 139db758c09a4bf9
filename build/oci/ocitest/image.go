package ocitest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/volantvm/volant/client/api"
)

// Compression of a layer's blob.
type Compression int

const (
	Gzip Compression = iota
	Zstd
	None
)

// Layer is one layer of an image, its bytes given by Tar or, for those too
// big for memory, by Write, which must write the same each time.
type Layer struct {
	Tar         []byte
	Write       func(w io.Writer) error
	Compression Compression
	// MediaType and DiffID stand in the place of the true ones where set.
	MediaType string
	DiffID    string
}

// Image is an image to be written.
type Image struct {
	Reference string // "docker.io/library/nginx:alpine"; empty for none
	Platform  string // "linux/arm/v7"; default: linux and this machine's architecture
	Config    api.ImageConfig
	Created   string // RFC 3339; default 2024-01-02T03:04:05Z
	Layers    []Layer
}

// FromFiles is an image of one layer for each list of files.
func FromFiles(reference string, layers ...[]File) (Image, error) {
	img := Image{Reference: reference}
	for _, files := range layers {
		data, err := Tar(files...)
		if err != nil {
			return Image{}, err
		}
		img.Layers = append(img.Layers, Layer{Tar: data})
	}
	return img, nil
}

func (img *Image) platform() platform {
	s := img.Platform
	if s == "" {
		s = "linux/" + runtime.GOARCH
	}
	parts := append(strings.Split(s, "/"), "", "")
	return platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

// config is the image's configuration document.
func (img *Image) config(diffIDs []string) ([]byte, error) {
	set := func(list []string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, s := range list {
			m[s] = struct{}{}
		}
		return m
	}
	type health struct {
		Test                           []string
		Interval, Timeout, StartPeriod int64 `json:",omitempty"`
		Retries                        int   `json:",omitempty"`
	}
	type inner struct {
		User                 string              `json:",omitempty"`
		ExposedPorts         map[string]struct{} `json:",omitempty"`
		Env, Entrypoint, Cmd []string            `json:",omitempty"`
		Volumes              map[string]struct{} `json:",omitempty"`
		WorkingDir           string              `json:",omitempty"`
		Labels               map[string]string   `json:",omitempty"`
		StopSignal           string              `json:",omitempty"`
		Healthcheck          *health             `json:",omitempty"`
	}
	c := img.Config
	in := inner{
		User: c.User, ExposedPorts: set(c.ExposedPorts), Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
		Volumes: set(c.Volumes), WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
	}
	if h := c.Healthcheck; h != nil {
		in.Healthcheck = &health{Test: h.Test, Interval: int64(h.Interval), Timeout: int64(h.Timeout), StartPeriod: int64(h.StartPeriod), Retries: h.Retries}
	}
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	if diffIDs == nil {
		diffIDs = []string{}
	}
	created := img.Created
	if created == "" {
		created = "2024-01-02T03:04:05Z"
	}
	return json.Marshal(struct {
		Created string `json:"created"`
		platform
		Config inner  `json:"config"`
		RootFS rootfs `json:"rootfs"`
	}{created, img.platform(), in, rootfs{"layers", diffIDs}})
}

// write writes the layer's tar archive to w.
func (l *Layer) write(w io.Writer) error {
	if l.Write != nil {
		return l.Write(w)
	}
	_, err := io.Copy(w, bytes.NewReader(l.Tar))
	return err
}

// compress writes the layer's blob to w.
func (l *Layer) compress(w io.Writer) error {
	var cw io.WriteCloser
	switch l.Compression {
	case Gzip:
		cw = gzip.NewWriter(w)
	case Zstd:
		zw, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		cw = zw
	default:
		return l.write(w)
	}
	if err := l.write(cw); err != nil {
		return err
	}
	return cw.Close()
}

func (l *Layer) mediaType() string {
	if l.MediaType != "" {
		return l.MediaType
	}
	const plain = "application/vnd.oci.image.layer.v1.tar"
	switch l.Compression {
	case Gzip:
		return plain + "+gzip"
	case Zstd:
		return plain + "+zstd"
	default:
		return plain
	}
}
