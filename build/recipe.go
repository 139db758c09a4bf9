package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// Strategies.
const (
	StrategyInitramfs = "initramfs"  // an archive: of mappings, or of an image
	StrategyRootfs    = "oci_rootfs" // a disk, of an image
)

// Types of the disk that oci_rootfs makes.
const (
	FilesystemErofs    = "erofs" // default
	FilesystemSquashfs = "squashfs"
	FilesystemExt4     = "ext4"
)

// Agent source strategies.
const (
	AgentRelease = "release" // volantd supplies the agent at boot (default)
	AgentLocal   = "local"
	AgentHTTP    = "http"
)

// Recipe is a fledge.toml, version 1.
type Recipe struct {
	Schema     string          `json:"$schema"` // ignored; editors use it
	Version    string          `json:"version"` // "1"
	Strategy   string          `json:"strategy"`
	Agent      *AgentSpec      `json:"agent"`
	Init       *InitSpec       `json:"init"`
	Source     *SourceSpec     `json:"source"`
	Filesystem *FilesystemSpec `json:"filesystem"`
	Output     *OutputSpec     `json:"output"`
	Manifest   json.RawMessage `json:"manifest"` // an api.Manifest without its artifact

	Mappings    map[string]string `json:"-"`        // host path → absolute guest path
	RawMappings map[string]any    `json:"mappings"` // as written; a value may be no string

	image      imageSource      // that Source.Image means
	dockerfile *dockerfile.Spec // of Source.Dockerfile, its paths the building process's

	file string // as given
	dir  string // that relative host paths are relative to
	src  *source
}

// AgentSpec says where the agent comes from.
type AgentSpec struct {
	SourceStrategy string `json:"source_strategy"`
	Version        string `json:"version"`
	Path           string `json:"path"`
	URL            string `json:"url"`
	Checksum       string `json:"checksum"` // "sha256:" and 64 hex digits
}

// InitSpec replaces the agent as /init: by a host file, or by nothing.
type InitSpec struct {
	Path string `json:"path"`
	None bool   `json:"none"`
}

// SourceSpec is what the image starts from.
type SourceSpec struct {
	Busybox       string            `json:"busybox"`        // host path
	BusyboxURL    string            `json:"busybox_url"`    // instead of Busybox
	BusyboxSHA256 string            `json:"busybox_sha256"` // 64 hex digits; required with BusyboxURL
	Image         string            `json:"image"`          // a reference, or in skopeo's words where the image is
	Dockerfile    string            `json:"dockerfile"`     // host path, instead of Image
	Context       string            `json:"context"`        // host path; default: the Dockerfile's directory
	Target        string            `json:"target"`
	BuildArgs     map[string]string `json:"build_args"`
}

// FilesystemSpec is the disk image of the oci_rootfs strategy.
type FilesystemSpec struct {
	Type             string `json:"type"`              // FilesystemErofs...
	SizeBufferMB     int    `json:"size_buffer_mb"`    // MiB that stay free in ext4
	Preallocate      bool   `json:"preallocate"`       // the image file has no holes
	CompressionLevel int    `json:"compression_level"` // of squashfs; 0: its default
	OverlaySize      string `json:"overlay_size"`      // of the disk that takes a VM's changes, "1G"; the manifest's root.size_mb
}

// OutputSpec says how the artifact is stored.
type OutputSpec struct {
	Compression string `json:"compression"` // none (default), gzip, zstd or lz4
}

// parseRecipe decodes and validates the recipe in a file. instead, when it is not
// nil, takes the place of its source. Errors are *Error.
func parseRecipe(file string, data []byte, instead *dockerfile.Spec) (*Recipe, error) {
	if filepath.Ext(file) != ".toml" {
		return nil, &Error{File: file, Err: errors.New("a recipe is TOML and its name ends in .toml")}
	}
	doc, src, err := toJSON(file, data)
	if err != nil {
		return nil, err
	}
	r := &Recipe{file: file, dir: filepath.Dir(file), src: src}
	if err := api.DecodeStrict(doc, r); err != nil {
		return nil, src.place("", err)
	}
	if instead != nil {
		r.Source, r.dockerfile = nil, instead
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// rooted reports whether the artifact is made of an image.
func (r *Recipe) rooted() bool { return r.dockerfile != nil || r.image != imageSource{} }

// imageName is the name of a plugin whose manifest gives none.
func (r *Recipe) imageName() string {
	if r.dockerfile == nil {
		return r.image.plugin()
	}
	if r.dockerfile.Context != "" {
		return nameOfPath(r.dockerfile.Context)
	}
	return nameOfPath(filepath.Dir(r.dockerfile.File))
}

// ownsInit reports whether /init is not for a mapping: it is the agent's, or
// what [init] path gives.
func (r *Recipe) ownsInit() bool {
	return r.Strategy == StrategyInitramfs && (r.Init == nil || !r.Init.None)
}

// agent is who is /init, in the manifest's words.
func (r *Recipe) agent() string {
	switch a := r.Agent; {
	case r.Init != nil:
		return api.AgentNone
	case a == nil || a.SourceStrategy == AgentRelease:
		return api.AgentHost
	}
	return api.AgentImage
}

// hostPath resolves a host path of the recipe.
func (r *Recipe) hostPath(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(r.dir, p)
}

// compression of the output; validated.
func (r *Recipe) compression() initramfs.Compression {
	if r.Output == nil || r.Output.Compression == "" {
		return initramfs.None
	}
	return initramfs.Compression(r.Output.Compression)
}

func (r *Recipe) validate() error {
	if r.Version == "" {
		return r.src.errorf("version", `is missing; this is version = "1"`)
	}
	if r.Version != "1" {
		return r.src.errorf("version", "%q is not known; this fledge understands version 1", r.Version)
	}
	s := r.Source
	if s == nil {
		s = &SourceSpec{}
	}
	rooted := s.Image != "" || s.Dockerfile != "" || r.dockerfile != nil
	if r.Strategy == "" {
		r.Strategy = StrategyInitramfs
		if rooted {
			r.Strategy = StrategyRootfs
		}
	}
	for _, check := range []func() error{
		func() error { return r.validateSource(s) },
		func() error { return r.validateImage(s) },
		r.validateFilesystem,
		r.validateAgent,
		r.validateInit,
		r.validateMappings,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	if r.Output != nil {
		if _, err := initramfs.ParseCompression(r.Output.Compression); err != nil {
			return r.src.errorf("output.compression", "%v", err)
		}
	}
	switch {
	case r.Strategy != StrategyRootfs && r.Strategy != StrategyInitramfs:
		return r.src.errorf("strategy", "%q is not known; give initramfs or oci_rootfs", r.Strategy)
	case r.Strategy == StrategyRootfs && !rooted:
		return r.src.errorf("source", "is missing: strategy oci_rootfs makes a disk of an image; give [source] image or dockerfile")
	case r.Strategy == StrategyRootfs && r.Init != nil:
		return r.src.errorf("init", "has no meaning with strategy oci_rootfs: the agent starts the image's program; give [manifest.workload] entrypoint")
	}
	return nil
}

func (r *Recipe) validateSource(s *SourceSpec) error {
	if s.Image != "" && s.Dockerfile != "" {
		return r.src.errorf("source.dockerfile", "stands beside image; give one")
	}
	if s.Dockerfile == "" && (s.Context != "" || s.Target != "" || len(s.BuildArgs) > 0) {
		return r.src.errorf("source", "context, target and build_args need dockerfile")
	}
	if s.Busybox != "" && s.BusyboxURL != "" {
		return r.src.errorf("source.busybox_url", "stands beside busybox; give one")
	}
	if s.BusyboxSHA256 != "" {
		if s.Busybox == "" && s.BusyboxURL == "" {
			return r.src.errorf("source.busybox_sha256", "needs busybox or busybox_url")
		}
		if _, err := api.ParseDigest("sha256:" + s.BusyboxSHA256); err != nil {
			return r.src.errorf("source.busybox_sha256", "%q is not 64 lower-case hex digits", clip(s.BusyboxSHA256))
		}
	}
	if s.BusyboxURL != "" {
		if s.BusyboxSHA256 == "" {
			return r.src.errorf("source.busybox_url", "needs busybox_sha256: a download is pinned by its digest")
		}
		return r.checkURL("source.busybox_url", s.BusyboxURL)
	}
	return nil
}

func (r *Recipe) validateImage(s *SourceSpec) (err error) {
	if s.Image != "" {
		if r.image, err = parseImageSource(s.Image); err != nil {
			return r.src.errorf("source.image", "%w", err)
		}
	}
	if s.Dockerfile != "" {
		r.dockerfile = &dockerfile.Spec{File: r.hostPath(s.Dockerfile), Target: s.Target, Args: s.BuildArgs}
		if s.Context != "" {
			r.dockerfile.Context = r.hostPath(s.Context)
		}
	}
	for k := range s.BuildArgs {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return r.src.errorf("source.build_args", "%q is not the name of a build argument", clip(k))
		}
	}
	return nil
}

func (r *Recipe) checkURL(key, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return r.src.errorf(key, "%q is not an http or https URL", clip(raw))
	}
	return nil
}

func (r *Recipe) validateFilesystem() error {
	f := r.Filesystem
	if f == nil {
		return nil
	}
	switch f.Type {
	case "", FilesystemErofs, FilesystemSquashfs, FilesystemExt4:
	case "xfs", "btrfs":
		return r.src.errorf("filesystem.type", "%q cannot be made without mounting it, which needs root; a root that is never written gains nothing by it: give erofs, squashfs or ext4", f.Type)
	default:
		return r.src.errorf("filesystem.type", "%q is not known; give erofs, squashfs or ext4", clip(f.Type))
	}
	if f.SizeBufferMB < 0 {
		return r.src.errorf("filesystem.size_buffer_mb", "is negative")
	}
	if f.CompressionLevel < 0 || f.CompressionLevel > 22 {
		return r.src.errorf("filesystem.compression_level", "is %d; give 0 to 22", f.CompressionLevel)
	}
	if f.OverlaySize != "" {
		mib, ok := parseMiB(f.OverlaySize)
		if !ok {
			return r.src.errorf("filesystem.overlay_size", `%q is not a size such as "512M" or "1G"`, clip(f.OverlaySize))
		}
		if mib < api.MinDiskMB || mib > api.MaxDiskMB {
			return r.src.errorf("filesystem.overlay_size", "is %d MiB; give %d to %d", mib, api.MinDiskMB, api.MaxDiskMB)
		}
	}
	return nil
}

// parseMiB reads a size in bytes, or in KiB, MiB or GiB by its last letter, and
// returns it in MiB, rounded up.
func parseMiB(s string) (int, bool) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMGkmg"); i >= 0 && i == len(s)-1 {
		digits = s[:i]
		shift = map[byte]int{'k': 10, 'm': 20, 'g': 30}[s[i]|0x20]
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || digits[0] == '+' {
		return 0, false
	}
	return int((n<<shift + 1<<20 - 1) >> 20), true
}

func (r *Recipe) validateAgent() error {
	a := r.Agent
	if a == nil {
		return nil
	}
	if a.SourceStrategy == "" {
		a.SourceStrategy = AgentRelease
	}
	unwanted := func(key, value string) error {
		if value == "" {
			return nil
		}
		return r.src.errorf("agent."+key, "has no meaning with source_strategy %s", a.SourceStrategy)
	}
	switch a.SourceStrategy {
	case AgentRelease:
		return errors.Join(unwanted("path", a.Path), unwanted("url", a.URL), unwanted("checksum", a.Checksum))
	case AgentLocal:
		if a.Path == "" {
			return r.src.errorf("agent.path", "is missing: source_strategy local needs the volant binary's path")
		}
		if err := errors.Join(unwanted("url", a.URL), unwanted("version", a.Version)); err != nil {
			return err
		}
	case AgentHTTP:
		if a.URL == "" {
			return r.src.errorf("agent.url", "is missing: source_strategy http needs it")
		}
		if err := r.checkURL("agent.url", a.URL); err != nil {
			return err
		}
		if a.Checksum == "" {
			return r.src.errorf("agent.checksum", "is missing: a download is pinned by its digest, sha256:<64 hex digits>")
		}
		if err := unwanted("path", a.Path); err != nil {
			return err
		}
	default:
		return r.src.errorf("agent.source_strategy", "%q is not known; give release, local or http", clip(a.SourceStrategy))
	}
	if a.Checksum != "" {
		if _, err := api.ParseDigest(a.Checksum); err != nil {
			return r.src.errorf("agent.checksum", "%v", err)
		}
	}
	return nil
}

func (r *Recipe) validateInit() error {
	i := r.Init
	switch {
	case i == nil:
		return nil
	case i.None && i.Path != "":
		return r.src.errorf("init.none", "stands beside path; give one")
	case !i.None && i.Path == "":
		return r.src.errorf("init", "is empty: give path, or none = true, or leave it out for the agent")
	case r.Agent != nil:
		return r.src.errorf("agent", "stands beside [init]: with a custom /init, or none, there is no agent")
	}
	return nil
}

func (r *Recipe) validateMappings() error {
	guests := make(map[string]string)
	r.Mappings = make(map[string]string, len(r.RawMappings))
	for _, host := range slices.Sorted(maps.Keys(r.RawMappings)) {
		key := "mappings." + host
		guest, ok := r.RawMappings[host].(string)
		if !ok {
			return r.src.errorf(key, "is not a string: a mapping is \"host path\" = \"/guest/path\"")
		}
		r.Mappings[host] = guest
		switch {
		case host == "":
			return r.src.errorf("mappings", "a host path is empty")
		case strings.IndexByte(host, 0) >= 0 || strings.IndexByte(guest, 0) >= 0:
			return r.src.errorf("mappings", "a path holds a NUL byte")
		case !path.IsAbs(guest):
			return r.src.errorf(key, "guest path %q is not absolute", clip(guest))
		case slices.Contains(strings.Split(guest, "/"), ".."):
			return r.src.errorf(key, `guest path %q holds ".."`, clip(guest))
		}
		clean := path.Clean(guest)
		if clean == "/init" && r.ownsInit() {
			return r.src.errorf(key, "/init is not for a mapping in this init mode: give [init] none = true to bring your own")
		}
		if other, ok := guests[clean]; ok {
			return r.src.errorf(key, "%s is mapped from %s too", clean, other)
		}
		guests[clean] = host
	}
	return nil
}

// clip shortens a value for an error message.
func clip(s string) string {
	if len(s) > 120 {
		return fmt.Sprintf("%.120s...", s)
	}
	return s
}
