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
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

// Strategies.
const (
	StrategyInitramfs = "initramfs"
	StrategyRootfs    = "oci_rootfs"
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
	Image         string            `json:"image"`
	Dockerfile    string            `json:"dockerfile"`
	Context       string            `json:"context"`
	Target        string            `json:"target"`
	BuildArgs     map[string]string `json:"build_args"`
}

// FilesystemSpec is the disk image of the oci_rootfs strategy.
type FilesystemSpec struct {
	Type             string `json:"type"`
	SizeBufferMB     int    `json:"size_buffer_mb"` // MiB
	Preallocate      bool   `json:"preallocate"`
	CompressionLevel int    `json:"compression_level"`
	OverlaySize      string `json:"overlay_size"`
}

// OutputSpec says how the artifact is stored.
type OutputSpec struct {
	Compression string `json:"compression"` // none (default), gzip, zstd or lz4
}

// LoadRecipe reads and validates a recipe. Errors are *Error.
func LoadRecipe(file string) (*Recipe, error) {
	data, err := readDocument(file)
	if err != nil {
		return nil, err
	}
	return parseRecipe(file, data)
}

func parseRecipe(file string, data []byte) (*Recipe, error) {
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
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
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
	rooted := s.Image != "" || s.Dockerfile != ""
	if r.Strategy == "" {
		r.Strategy = StrategyInitramfs
		if rooted {
			r.Strategy = StrategyRootfs
		}
	}
	for _, check := range []func() error{
		func() error { return r.validateSource(s) },
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
	case r.Strategy == StrategyRootfs:
		return r.src.errorf("strategy", "%w: strategy %s", ErrStrategy, StrategyRootfs)
	case r.Strategy != StrategyInitramfs:
		return r.src.errorf("strategy", "%q is not known; give initramfs or oci_rootfs", r.Strategy)
	case rooted:
		key := "source.image"
		if s.Dockerfile != "" {
			key = "source.dockerfile"
		}
		return r.src.errorf(key, "%w: an initramfs made from an OCI image; strategy initramfs packs [mappings]", ErrStrategy)
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
	case "", "erofs", "squashfs", "ext4", "xfs", "btrfs":
	default:
		return r.src.errorf("filesystem.type", "%q is not known; give erofs, squashfs, ext4, xfs or btrfs", f.Type)
	}
	if f.SizeBufferMB < 0 {
		return r.src.errorf("filesystem.size_buffer_mb", "is negative")
	}
	if f.CompressionLevel < 0 || f.CompressionLevel > 22 {
		return r.src.errorf("filesystem.compression_level", "is %d; give 0 to 22", f.CompressionLevel)
	}
	if s := f.OverlaySize; s != "" {
		digits := strings.TrimRight(s, "KMGkmg")
		if len(s)-len(digits) > 1 || digits == "" || strings.Trim(digits, "0123456789") != "" {
			return r.src.errorf("filesystem.overlay_size", `%q is not a size such as "512M" or "1G"`, clip(s))
		}
	}
	return nil
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
		if clean == "/init" && (r.Init == nil || !r.Init.None) {
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
