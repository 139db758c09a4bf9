package oci

import (
	"io"
	"os"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Image is an image whose layers are on this machine, verified.
type Image struct {
	ManifestDigest string // of the manifest for Platform; empty for one from a docker-save archive
	ConfigDigest   string // Docker's image ID
	Platform       Platform
	References     []string // full forms, sorted
	Config         api.ImageConfig
	Created        time.Time // as the image says; zero where it does not
	Layers         []LayerFile
}

// ID is the image's identity: the digest of its manifest, else of its
// configuration.
func (img *Image) ID() string {
	if img.ManifestDigest != "" {
		return img.ManifestDigest
	}
	return img.ConfigDigest
}

// LayerFile is one layer, lowest first in Image.Layers: an uncompressed tar
// archive in Size bytes of a file from Offset on. Several may be of one file,
// and one layer may occur twice.
type LayerFile struct {
	DiffID string
	Path   string
	Offset int64
	Size   int64
}

// Open opens the layer; the caller closes it. The reader's ReadAt may be used
// from several goroutines.
func (l LayerFile) Open() (*LayerReader, error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return nil, err
	}
	return &LayerReader{io.NewSectionReader(f, l.Offset, l.Size), f}, nil
}

// LayerReader reads a layer from its beginning, or at any offset.
type LayerReader struct {
	*io.SectionReader
	f *os.File
}

// Close closes the file.
func (r *LayerReader) Close() error { return r.f.Close() }

// Options say how to get an image, from wherever.
type Options struct {
	// Staging is the folder for the image's layers, which is made where it is
	// missing. Pull and Load lock it, see ErrBusy.
	Staging string
	// Platform is the one to choose where there are several, and to insist on;
	// zero means this machine's.
	Platform Platform
	Limits   Limits
	// Select chooses one of several images of an archive or layout: by a name
	// that it has there, or by the digest that is its ID. Empty takes all. A
	// pull has no use for it.
	Select string
	// Name, unless zero, becomes the image's only reference. An archive or
	// layout must then have, or Select leave, one image. A pull has no use for it.
	Name Reference
	// Progress, where set, is told of steps "resolve" and "download", one call
	// at a time, a few times a second. It must not block for long.
	Progress func(api.ImageProgress)
}

func (o Options) withDefaults() Options {
	if o.Platform == (Platform{}) {
		o.Platform = ThisPlatform()
	}
	o.Platform = o.Platform.normal()
	o.Limits = o.Limits.withDefaults()
	return o
}
