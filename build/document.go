package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v3"

	"github.com/volantvm/volant/client/api"
)

// maxDocument bounds recipes and manifests, in bytes.
const maxDocument = api.MaxManifestSize

// readDocument reads a file of bounded size.
func readDocument(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDocument {
		return nil, &Error{File: file, Err: fmt.Errorf("larger than %d bytes", maxDocument)}
	}
	return data, nil
}

// toJSON turns a TOML, YAML or JSON document, told apart by the file's
// extension, into JSON for api.DecodeStrict, and notes the line of every key.
// One strict decoder for all three means one set of errors.
func toJSON(file string, data []byte) ([]byte, *source, error) {
	src := &source{file: file}
	var tree any
	switch ext := strings.ToLower(filepath.Ext(file)); ext {
	case ".toml":
		if err := toml.Unmarshal(data, &tree); err != nil {
			var de *toml.DecodeError
			if errors.As(err, &de) {
				line, _ := de.Position()
				return nil, nil, &Error{File: file, Line: line, Key: strings.Join(de.Key(), "."), Err: errors.New(strings.TrimPrefix(de.Error(), "toml: "))}
			}
			return nil, nil, &Error{File: file, Err: err}
		}
		src.lines = tomlLines(data)
	case ".yaml", ".yml":
		dec := yaml.NewDecoder(bytes.NewReader(data))
		var node yaml.Node
		if err := dec.Decode(&node); err != nil {
			return nil, nil, yamlError(file, err)
		}
		if err := dec.Decode(new(yaml.Node)); err != io.EOF {
			return nil, nil, &Error{File: file, Err: errors.New("more than one YAML document")}
		}
		if err := node.Decode(&tree); err != nil {
			return nil, nil, yamlError(file, err)
		}
		src.lines = yamlLines(&node)
	case ".json":
		// JSON's lines are found by the YAML parser, of which it is a subset
		// for this purpose; that it is JSON is for DecodeStrict to say.
		var node yaml.Node
		if yaml.Unmarshal(data, &node) == nil {
			src.lines = yamlLines(&node)
		}
		return data, src, nil
	default:
		return nil, nil, &Error{File: file, Err: fmt.Errorf("extension %q is none of .toml, .yaml, .yml, .json", ext)}
	}
	out, err := json.Marshal(tree)
	if err != nil {
		return nil, nil, &Error{File: file, Err: fmt.Errorf("holds what JSON cannot: %w", err)}
	}
	return out, src, nil
}

func yamlError(file string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if n, after, ok := strings.Cut(rest, ": "); ok {
			if v, err := strconv.Atoi(n); err == nil {
				line, msg = v, after
			}
		}
	}
	if err == io.EOF {
		msg = "the document is empty"
	}
	return &Error{File: file, Line: line, Err: errors.New(msg)}
}

// tomlLines maps each key's path to its line. data is known to be valid.
func tomlLines(data []byte) map[string]int {
	lines := make(map[string]int)
	arrays := make(map[string]int) // elements of arrays of tables
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			table = tomlKey(&p, "", e.Key(), lines)
		case unstable.ArrayTable:
			table = tomlKey(&p, "", e.Key(), lines)
			n := arrays[table]
			arrays[table]++
			line := lines[table]
			table = fmt.Sprintf("%s[%d]", table, n)
			lines[table] = line
		case unstable.KeyValue:
			tomlValue(&p, tomlKey(&p, table, e.Key(), lines), e.Value(), lines)
		}
	}
	return lines
}

func tomlValue(p *unstable.Parser, at string, v *unstable.Node, lines map[string]int) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			kv := it.Node()
			tomlValue(p, tomlKey(p, at, kv.Key(), lines), kv.Value(), lines)
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			tomlValue(p, fmt.Sprintf("%s[%d]", at, i), it.Node(), lines)
		}
	}
}

func tomlKey(p *unstable.Parser, at string, key unstable.Iterator, lines map[string]int) string {
	for key.Next() {
		n := key.Node()
		if at != "" {
			at += "."
		}
		at += string(n.Data)
		if _, ok := lines[at]; !ok {
			lines[at] = p.Shape(n.Raw).Start.Line
		}
	}
	return at
}

// yamlLines maps each key's path to its line.
func yamlLines(n *yaml.Node) map[string]int {
	lines := make(map[string]int)
	var walk func(at string, n *yaml.Node)
	walk = func(at string, n *yaml.Node) {
		switch n.Kind {
		case yaml.DocumentNode:
			for _, c := range n.Content {
				walk(at, c)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				k := n.Content[i].Value
				if at != "" {
					k = at + "." + k
				}
				lines[k] = n.Content[i].Line
				walk(k, n.Content[i+1])
			}
		case yaml.SequenceNode:
			for i, c := range n.Content {
				k := fmt.Sprintf("%s[%d]", at, i)
				lines[k] = c.Line
				walk(k, c)
			}
		}
	}
	walk("", n)
	return lines
}
