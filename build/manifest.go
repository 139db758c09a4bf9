package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"

	"github.com/volantvm/volant/client/api"
)

// Resources of a VM whose manifest names none.
const (
	defaultCPUCores = 1
	defaultMemoryMB = 256
)

// DecodeManifest decodes a manifest in TOML, YAML or JSON, told apart by the
// file's extension, strictly. It does not call Validate. Errors are *Error and
// name the line.
func DecodeManifest(file string, data []byte) (*api.Manifest, error) {
	m, _, err := decodeManifest(file, data)
	return m, err
}

func decodeManifest(file string, data []byte) (*api.Manifest, *source, error) {
	if len(data) > maxDocument {
		return nil, nil, &Error{File: file, Err: errors.New("larger than 1 MiB")}
	}
	doc, src, err := toJSON(file, data)
	if err != nil {
		return nil, nil, err
	}
	m := new(api.Manifest)
	if err := api.DecodeStrict(doc, m); err != nil {
		return nil, nil, src.place("", err)
	}
	return m, src, nil
}

// template is the manifest before the artifact is known, with what is needed
// to say where a fault in it is.
type template struct {
	manifest *api.Manifest
	src      *source
	prefix   string // of its keys within the file
}

// loadTemplate finds the manifest: the file given, or the recipe's [manifest],
// or a manifest.toml, .yaml, .yml or .json beside the recipe. An image says most
// of what a manifest does, so there it may be missing.
func loadTemplate(r *Recipe, given string) (*template, error) {
	if given != "" && r.Manifest != nil {
		return nil, r.src.errorf("manifest", "stands beside the manifest file %s; give one", given)
	}
	t := &template{manifest: new(api.Manifest), src: r.src, prefix: "manifest"}
	if r.Manifest != nil {
		if err := api.DecodeStrict(r.Manifest, t.manifest); err != nil {
			return nil, r.src.place("manifest", err)
		}
		return t, t.check()
	}
	var candidates []string
	switch {
	case given != "":
		candidates = []string{given}
	case r.dir != "":
		for _, ext := range []string{".toml", ".yaml", ".yml", ".json"} {
			candidates = append(candidates, filepath.Join(r.dir, "manifest"+ext))
		}
	}
	for _, file := range candidates {
		data, err := readDocument(file)
		if errors.Is(err, fs.ErrNotExist) && given == "" {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, src, err := decodeManifest(file, data)
		if err != nil {
			return nil, err
		}
		t = &template{manifest: m, src: src}
		return t, t.check()
	}
	if r.rooted() {
		return t, nil
	}
	return nil, r.src.errorf("manifest", "is missing: add a [manifest] section, put a manifest.toml beside the recipe, or give -m")
}

// check refuses what fledge itself fills in.
func (t *template) check() error {
	m := t.manifest
	for _, f := range []struct {
		key string
		set bool
	}{{"initramfs", m.Initramfs != nil}, {"rootfs", m.Rootfs != nil}} {
		if f.set {
			return t.errorf(f.key, "is written by the build; leave it out")
		}
	}
	return nil
}

func (t *template) errorf(key, format string, args ...any) error {
	if t.prefix != "" {
		key = t.prefix + "." + key
	}
	return t.src.errorf(key, format, args...)
}

// finish returns a copy of m, which is t's manifest or made of it, with what has
// a default and the artifact that set names, and validates the whole.
func (t *template) finish(m api.Manifest, set func(*api.Manifest) error) (*api.Manifest, error) {
	if m.SchemaVersion == "" {
		m.SchemaVersion = "1"
	}
	if m.Runtime == "" {
		m.Runtime = m.Name
	}
	if m.Resources == (api.Resources{}) {
		m.Resources = defaultResources()
	}
	if err := set(&m); err != nil {
		return nil, t.src.place(t.prefix, err)
	}
	if err := m.Validate(); err != nil {
		return nil, t.src.place(t.prefix, err)
	}
	return &m, nil
}

func defaultResources() api.Resources {
	return api.Resources{CPUCores: defaultCPUCores, MemoryMB: defaultMemoryMB}
}

// ManifestFromImage returns the manifest of a plugin made of an image: all that
// the image's configuration says, with the resources of a VM that names none,
// and no artifact. Errors are *api.Error.
func ManifestFromImage(name string, cfg api.ImageConfig) (*api.Manifest, error) {
	m, err := api.ImageManifest(name, cfg)
	if err != nil {
		return nil, err
	}
	m.Runtime, m.Resources = m.Name, defaultResources()
	return &m, nil
}

// overlay returns base with what over says in its place. Environment and labels
// are merged, and a workload field by field; any other value or list replaces
// the image's.
func overlay(base, over api.Manifest) api.Manifest {
	out := base
	replace(&out, over)
	out.Labels = api.MergeLabels(base.Labels, over.Labels)
	if base.Workload != nil && over.Workload != nil {
		w := *base.Workload
		replace(&w, *over.Workload)
		w.Env = api.MergeLabels(base.Workload.Env, over.Workload.Env)
		out.Workload = &w
	}
	return out
}

// replace sets the fields of a struct that over has a value for.
func replace[T any](to *T, over T) {
	dst, src := reflect.ValueOf(to).Elem(), reflect.ValueOf(over)
	for i := range src.NumField() {
		if f := src.Field(i); !f.IsZero() {
			dst.Field(i).Set(f)
		}
	}
}

// encodeManifest writes the manifest as it is published. Maps are sorted, so
// equal manifests give equal bytes.
func encodeManifest(m *api.Manifest) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
