package volar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"

	"github.com/volantvm/volant/client/api"
)

// readManifest reads a manifest from a file, an http(s) URL, or standard input
// for "-", and checks it. base is where relative references in it begin.
func (c *cli) readManifest(source string) (m *api.Manifest, base location, err error) {
	var data []byte
	if source == "-" {
		base, source = location{dir: "."}, "standard input"
		data, err = c.readStdin(api.MaxManifestSize)
	} else {
		var at location
		if at, err = (location{dir: "."}).resolve(source); err == nil {
			base = at.parent()
			data, err = c.read(at, api.MaxManifestSize)
		}
	}
	if err != nil {
		return nil, base, fmt.Errorf("manifest %s: %w", source, err)
	}
	m, err = parseManifest(path.Ext(source), data)
	if err == nil {
		err = c.inlineCloudInit(m, base)
	}
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return nil, base, fmt.Errorf("manifest %s: %w", source, err)
	}
	return m, base, nil
}

// parseManifest decodes JSON, TOML or YAML, as the file's extension says or
// else the data look like. All are checked in their JSON form.
func parseManifest(ext string, data []byte) (*api.Manifest, error) {
	asJSON := data
	switch form := manifestForm(ext, data); form {
	case "toml", "yaml":
		var tree map[string]any
		var err error
		if form == "toml" {
			err = toml.Unmarshal(data, &tree)
			var de *toml.DecodeError
			if errors.As(err, &de) {
				line, col := de.Position()
				err = fmt.Errorf("line %d, column %d: %w", line, col, err)
			}
		} else {
			err = yaml.Unmarshal(data, &tree)
		}
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%v", err)
		}
		if asJSON, err = json.Marshal(tree); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "this %s has no JSON form: %v", form, err)
		}
	}
	var m api.Manifest
	if err := api.DecodeStrict(asJSON, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

func manifestForm(ext string, data []byte) string {
	switch strings.ToLower(ext) {
	case ".json":
		return "json"
	case ".toml":
		return "toml"
	case ".yaml", ".yml":
		return "yaml"
	}
	var tree map[string]any
	switch trimmed := bytes.TrimSpace(data); {
	case len(trimmed) == 0 || trimmed[0] == '{':
		return "json"
	case toml.Unmarshal(data, &tree) == nil:
		return "toml"
	}
	return "yaml"
}

// inlineCloudInit puts the documents that cloud_init names by path into the
// manifest: the daemon does not see the caller's files.
func (c *cli) inlineCloudInit(m *api.Manifest, base location) error {
	if m.CloudInit == nil {
		return nil
	}
	for name, doc := range map[string]*api.CloudInitDoc{
		"user_data": m.CloudInit.UserData, "meta_data": m.CloudInit.MetaData, "network_config": m.CloudInit.NetworkConfig,
	} {
		if doc == nil || doc.Path == "" {
			continue
		}
		at := "cloud_init." + name
		if doc.Inline || doc.Content != "" {
			return api.Errorf(api.CodeInvalid, "%s: has both a path and content; give one", at)
		}
		loc, err := base.resolve(doc.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		data, err := c.read(loc, api.MaxManifestSize/4)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		*doc = api.CloudInitDoc{Inline: true, Content: string(data)}
	}
	return nil
}

// location is a local path or a URL: of a file, or of what relative references
// are relative to.
type location struct {
	dir string   // local; empty when url is set
	url *url.URL // remote
}

func (l location) String() string {
	if l.url != nil {
		return l.url.Redacted()
	}
	return l.dir
}

// resolve returns where ref leads from l. A reference in a remote document
// cannot lead to a local file.
func (l location) resolve(ref string) (location, error) {
	u, err := url.Parse(ref)
	switch {
	case err == nil && (u.Scheme == "http" || u.Scheme == "https"):
		if u.Host == "" {
			return location{}, api.Errorf(api.CodeInvalid, "%q lacks a host", ref)
		}
		return location{url: u}, nil
	case err == nil && u.Scheme == "file":
		if u.Host != "" && u.Host != "localhost" || !path.IsAbs(u.Path) {
			return location{}, api.Errorf(api.CodeInvalid, "%q: a file URL must be file:///absolute/path", ref)
		}
		if l.url != nil {
			return location{}, api.Errorf(api.CodeInvalid, "%q: a manifest from the network cannot name a local file", ref)
		}
		return location{dir: filepath.Clean(u.Path)}, nil
	case strings.Contains(ref, "://"):
		return location{}, api.Errorf(api.CodeInvalid, "%q: only files, file:// and http(s):// are understood", ref)
	case l.url != nil:
		if path.IsAbs(ref) {
			return location{}, api.Errorf(api.CodeInvalid, "%q: a manifest from the network cannot name a local file", ref)
		}
		if err != nil {
			return location{}, api.Errorf(api.CodeInvalid, "%q does not parse: %v", ref, err)
		}
		return location{url: l.url.ResolveReference(u)}, nil
	case filepath.IsAbs(ref):
		return location{dir: filepath.Clean(ref)}, nil
	}
	return location{dir: filepath.Join(l.dir, ref)}, nil
}

// parent returns what references in the document at l are relative to.
func (l location) parent() location {
	if l.url != nil {
		return l // as RFC 3986 section 5 has it, the document's own URL
	}
	return location{dir: filepath.Dir(l.dir)}
}

// read returns what is at l, at most limit bytes of it.
func (c *cli) read(l location, limit int64) ([]byte, error) {
	if l.url != nil {
		body, err := c.get(l.url)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return readLimited(body, limit)
	}
	f, _, err := openRegular(l.dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

// readStdin reads standard input to its end, or until the context ends. The
// read itself cannot be ended: its goroutine goes with the process.
func (c *cli) readStdin(limit int64) ([]byte, error) {
	var data []byte
	done := make(chan error, 1)
	go func() {
		var err error
		data, err = readLimited(c.stdin, limit)
		done <- err
	}()
	select {
	case err := <-done:
		return data, err
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, api.Errorf(api.CodeTooLarge, "it is larger than %s", size(limit))
	}
	return data, nil
}

// missingFile is the name of a file that is not there.
type missingFile string

func (f missingFile) Error() string { return "there is no file " + string(f) }
func (missingFile) Unwrap() error   { return fs.ErrNotExist }

// openRegular opens a file that is no directory, device or pipe.
func openRegular(name string) (*os.File, int64, error) {
	st, err := os.Stat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, 0, missingFile(name)
		}
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	return f, st.Size(), nil
}
