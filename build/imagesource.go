package build

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
)

// Transports of an image, in skopeo's words. A reference without one is of
// transportRegistry.
const (
	transportRegistry      = "docker"         // docker://REFERENCE, or REFERENCE
	transportLayout        = "oci"            // oci:FOLDER[:REFERENCE]
	transportOCIArchive    = "oci-archive"    // oci-archive:FILE[:REFERENCE]
	transportDockerArchive = "docker-archive" // docker-archive:FILE[:REFERENCE]
	transportDaemon        = "docker-daemon"  // docker-daemon:REFERENCE
)

// imageSource says where an image is.
type imageSource struct {
	transport string
	path      string // host path, as written, of a layout or archive
	name      string // the image in a registry, a daemon, or a layout or archive with several; else empty
}

// parseImageSource reads the image of a recipe. As with skopeo, the first colon
// behind a path ends it.
func parseImageSource(s string) (imageSource, error) {
	transport, rest, _ := strings.Cut(s, ":")
	switch transport {
	case transportLayout, transportOCIArchive, transportDockerArchive:
		path, name, _ := strings.Cut(rest, ":")
		if path == "" || strings.IndexByte(path, 0) >= 0 {
			return imageSource{}, fmt.Errorf("%q names no path: write %s:PATH", clip(s), transport)
		}
		if strings.HasPrefix(path, "//") && transport == transportLayout {
			return imageSource{}, fmt.Errorf("%q: write oci:PATH without slashes, or docker://REFERENCE for a registry", clip(s))
		}
		return imageSource{transport, path, name}, nil
	case transportDaemon:
		if rest == "" {
			return imageSource{}, fmt.Errorf("%q names no image: write docker-daemon:NAME:TAG", clip(s))
		}
		return imageSource{transport: transport, name: rest}, nil
	}
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "/") {
		return imageSource{}, fmt.Errorf("%q is a path: write oci:FOLDER, oci-archive:FILE or docker-archive:FILE", clip(s))
	}
	if _, err := oci.ParseReference(s); err != nil {
		return imageSource{}, err
	}
	return imageSource{transport: transportRegistry, name: strings.TrimPrefix(s, "docker://")}, nil
}

// plugin is the name of a plugin made of the image, for a manifest without one.
func (s imageSource) plugin() string {
	if s.path == "" || s.name != "" && strings.ContainsAny(s.name, ":/") {
		return api.ImageName(s.name)
	}
	return nameOfPath(s.path)
}

// nameOfPath makes a plugin's name of a folder or archive.
func nameOfPath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs // "." has no name
	}
	base := filepath.Base(path)
	for _, suffix := range []string{".gz", ".tgz", ".zst", ".tar"} {
		base = strings.TrimSuffix(base, suffix)
	}
	return api.ImageName(strings.ReplaceAll(base, ":", "-"))
}
