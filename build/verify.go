package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/build/superblock"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// Verified is what Verify found sound.
type Verified struct {
	Manifest *api.Manifest
	Artifact string // path
	Digest   string // "sha256:..."
	Size     int64  // bytes
	Entries  int    // of an initramfs

	// Filesystem is that of a raw rootfs; nil for all else.
	Filesystem *superblock.Superblock
}

// Verify checks a manifest and the artifact beside it: the manifest is valid,
// the artifact has the digest it says, an initramfs is one the kernel unpacks,
// with an /init where the manifest promises one, and a raw rootfs has a file
// system that the guest can mount. Nothing is downloaded.
func Verify(manifest string) (*Verified, error) {
	data, err := readDocument(manifest)
	if err != nil {
		return nil, err
	}
	m, src, err := decodeManifest(manifest, data)
	if err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, src.place("", err)
	}
	key, url, digest := "rootfs", "", ""
	if m.Initramfs != nil {
		key, url, digest = "initramfs", m.Initramfs.URL, m.Initramfs.Checksum
	} else {
		url, digest = m.Rootfs.URL, m.Rootfs.Checksum
	}
	if digest == "" {
		return nil, src.errorf(key+".checksum", "is missing: there is nothing to verify against")
	}
	if !filepath.IsLocal(url) || strings.Contains(url, "://") {
		return nil, src.errorf(key+".url", "%q is not a file beside the manifest", clip(url))
	}
	v := &Verified{Manifest: m, Artifact: filepath.Join(filepath.Dir(manifest), url)}
	fi, err := os.Stat(v.Artifact)
	if err != nil {
		return nil, src.errorf(key+".url", "%w", err)
	}
	if !fi.Mode().IsRegular() {
		return nil, src.errorf(key+".url", "%s is a %s", v.Artifact, kind(fi.Mode()))
	}
	v.Size = fi.Size()
	got, err := fileDigest(v.Artifact)
	if err != nil {
		return nil, err
	}
	v.Digest = "sha256:" + got
	if v.Digest != digest {
		return nil, src.errorf(key+".checksum", "%s has digest %s, the manifest says %s", v.Artifact, v.Digest, digest)
	}
	if m.Initramfs == nil {
		if m.Rootfs.Format == "qcow2" {
			return v, nil
		}
		if err := v.readDisk(); err != nil {
			return nil, src.errorf("rootfs.url", "%s: %w", v.Artifact, err)
		}
		return v, nil
	}
	hasInit, err := v.readArchive()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Artifact, err)
	}
	if want := m.Initramfs.Agent == api.AgentImage || m.Initramfs.Agent == api.AgentNone; want != hasInit {
		if want {
			return nil, src.errorf("initramfs.agent", "is %q but %s has no /init", m.Initramfs.Agent, v.Artifact)
		}
		return nil, src.errorf("initramfs.agent", "is %q but %s has an /init, which would replace the agent", api.AgentHost, v.Artifact)
	}
	return v, nil
}

func (v *Verified) readDisk() error {
	f, err := os.Open(v.Artifact)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := superblock.Read(f, v.Size)
	if err != nil {
		return err
	}
	v.Filesystem = &s
	return nil
}

func (v *Verified) readArchive() (hasInit bool, err error) {
	f, err := os.Open(v.Artifact)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r := initramfs.NewReader(f, initramfs.Limits{})
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return hasInit, nil
		}
		if err != nil {
			return false, err
		}
		v.Entries++
		if path.Clean(h.Name) == "init" && h.Mode&fs.ModeDir == 0 {
			hasInit = true
		}
	}
}
