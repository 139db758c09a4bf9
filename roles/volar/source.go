package volar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
)

// Words that skopeo and its kin put in front of an image to say where it is.
const (
	sourceLayout        = "oci"
	sourceOCIArchive    = "oci-archive"
	sourceDockerArchive = "docker-archive"
	sourceDocker        = "docker-daemon"
	sourcePodman        = "podman"
)

// localSource is an image on this machine that the daemon is sent as an archive.
type localSource struct {
	what string // for messages
	open func(context.Context) (io.ReadCloser, error)
	pick string // the image that is meant, if there are several; empty for all
}

// isLocalSource reports whether a user's word for an image means something on
// this machine rather than a reference to a registry. "oci:latest" could be
// both, and is a folder: who means Docker Hub's writes docker://oci:latest.
func isLocalSource(s string) bool {
	kind, _, _ := strings.Cut(s, ":")
	switch kind {
	case sourceLayout, sourceOCIArchive, sourceDockerArchive, sourceDocker, sourcePodman:
		return kind != s
	}
	return isPath(s) || s == "-" || isArchiveName(s)
}

// isPath reports whether a word is a path of the host and not a name.
func isPath(s string) bool {
	return filepath.IsAbs(s) || s == "." || s == ".." || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
}

func isArchiveName(s string) bool {
	for _, ext := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(s, ext) {
			return true
		}
	}
	return false
}

// localSource finds what a user means by a word for which isLocalSource holds,
// or by the path of a file or folder of any name.
func (c *cli) localSource(s string) (localSource, error) {
	kind, rest, ok := strings.Cut(s, ":")
	if ok && isLocalSource(s) {
		switch kind {
		case sourceLayout, sourceOCIArchive, sourceDockerArchive:
			return c.fileSource(kind, rest)
		case sourceDocker, sourcePodman:
			return engineSource(kind, rest), nil
		}
	}
	if s == "-" {
		return localSource{what: "standard input", open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(c.stdin), nil }}, nil
	}
	if _, err := os.Stat(s); !isLocalSource(s) && err != nil {
		return localSource{}, &usageError{msg: s + " is no archive or folder of this machine", hint: "volar images pull " + s + " gets it from its registry"}
	}
	return c.fileSource("", s)
}

// fileSource is an archive or a layout folder, whose name may be followed by a
// colon and the image that is meant. kind is empty when the user did not say.
func (c *cli) fileSource(kind, name string) (localSource, error) {
	src := localSource{what: name}
	st, err := os.Stat(name)
	if err != nil && kind != "" {
		if file, pick, ok := strings.Cut(name, ":"); ok {
			name, src.pick = file, pick
			st, err = os.Stat(name)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && kind == sourceLayout:
		return src, fmt.Errorf("there is no folder %s", name)
	case errors.Is(err, fs.ErrNotExist):
		return src, missingFile(name)
	case err != nil:
		return src, err
	case !st.IsDir() && kind == sourceLayout:
		return src, &hintError{fmt.Errorf("%s is not a folder", name), "name a file with oci-archive: in front"}
	case st.IsDir() && kind != "" && kind != sourceLayout:
		return src, &hintError{fmt.Errorf("%s is a folder", name), "name an OCI layout folder with oci: in front"}
	case st.IsDir():
		if _, err := os.Stat(filepath.Join(name, layoutFile)); err != nil {
			return src, &hintError{api.Errorf(api.CodeInvalid, "%s is no OCI layout: there is no %s in it", name, layoutFile), "skopeo copy and buildah push make such folders"}
		}
		pick := src.pick // done here, so that no more than that is sent
		src.open = func(ctx context.Context) (io.ReadCloser, error) { return layoutArchive(ctx, name, pick), nil }
		src.pick = ""
		return src, nil
	}
	src.open = func(context.Context) (io.ReadCloser, error) {
		f, _, err := openRegular(name)
		return f, err
	}
	return src, nil
}

// choose returns the image of a source that its user means.
func (src localSource) choose(images []api.Image) (api.Image, error) {
	var names []string
	for _, img := range images {
		names = append(names, imageName(img))
		for _, ref := range img.References {
			want, err := oci.ParseReference(src.pick)
			if src.pick != "" && (strings.HasSuffix(ref, ":"+src.pick) || err == nil && ref == want.String()) {
				return img, nil
			}
		}
	}
	switch {
	case len(images) == 1 && src.pick == "":
		return images[0], nil
	case src.pick == "":
		return api.Image{}, &hintError{
			api.Errorf(api.CodeInvalid, "%s holds %d images, which were all loaded", src.what, len(images)), "run the one that is meant: " + strings.Join(names, ", "),
		}
	}
	return api.Image{}, &hintError{api.Errorf(api.CodeNotFound, "%s holds no image %s", src.what, src.pick), "it holds " + strings.Join(names, ", ")}
}

// engineSource is an image that a running Docker or Podman holds.
func engineSource(kind, name string) localSource {
	sockets := oci.EngineSockets() // Docker's first
	if kind == sourcePodman {
		sockets = slices.DeleteFunc(sockets, func(path string) bool { return !strings.Contains(path, "podman") })
	}
	return localSource{what: kind + ":" + name, open: func(ctx context.Context) (io.ReadCloser, error) { return oci.Engine(ctx, sockets, name) }}
}

// layoutFile marks an OCI layout folder (OCI image specification 1.1,
// image-layout.md).
const layoutFile = "oci-layout"

// layoutArchive returns an image of an OCI layout folder, or all of them, as an
// archive, which is made while it is read. The caller closes it.
func layoutArchive(ctx context.Context, dir, pick string) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(oci.ArchiveLayout(ctx, w, dir, oci.Options{Select: pick})) }() // ends when r is closed
	return r
}

// sourceError gives an error of package oci the code, and so the exit status,
// that the daemon's would have.
func sourceError(what string, err error) error {
	var code api.Code
	switch {
	case errors.Is(err, oci.ErrNotFound):
		code = api.CodeNotFound
	case errors.Is(err, oci.ErrUnavailable):
		code = api.CodeUnavailable
	case errors.Is(err, oci.ErrUnauthorized):
		code = api.CodeDenied
	case errors.Is(err, oci.ErrReference), errors.Is(err, oci.ErrInvalid), errors.Is(err, oci.ErrDigest), errors.Is(err, oci.ErrPlatform), errors.Is(err, oci.ErrTruncated):
		code = api.CodeInvalid
	case errors.Is(err, oci.ErrLimit):
		code = api.CodeTooLarge
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return api.Errorf(code, "%s: %v", what, err)
}
