package volar

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/volantvm/volant/client/api"
)

// maxEnvFile bounds an environment file, in bytes.
const maxEnvFile = 1 << 20

// environment reads --env-file and --env, the later over the earlier. A name
// without a value takes the one that it has here, and is left out when it has
// none, as docker does it.
func (c *cli) environment(files, list []string) (map[string]string, error) {
	env := map[string]string{}
	for _, file := range files {
		data, err := c.read(location{dir: file}, maxEnvFile)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		if !utf8.Valid(data) {
			return nil, usagef("--env-file %s: it is not UTF-8 text", file)
		}
		text := strings.TrimPrefix(string(data), "\ufeff")
		for i, line := range strings.Split(text, "\n") {
			line = strings.TrimLeftFunc(strings.TrimSuffix(line, "\r"), unicode.IsSpace)
			if line == "" || line[0] == '#' {
				continue
			}
			if !c.setEnv(env, line) {
				return nil, usagef("--env-file %s: line %d: %.40q is neither NAME=VALUE nor NAME", file, i+1, line)
			}
		}
	}
	for _, s := range list {
		if !c.setEnv(env, s) {
			return nil, usagef("--env %q: give NAME=VALUE, or NAME for its value here", s)
		}
	}
	if len(env) == 0 {
		return nil, nil
	}
	return env, api.ValidateEnv("--env", env)
}

// setEnv takes one assignment into env, and reports whether it was one.
func (c *cli) setEnv(env map[string]string, s string) bool {
	name, value, given := strings.Cut(s, "=")
	if name == "" || strings.ContainsFunc(name, unicode.IsSpace) {
		return false
	}
	if !given {
		var set bool
		if value, set = c.lookupEnv(name); !set {
			return true
		}
	}
	env[name] = value
	return true
}

// labels reads repeated --label flags. A label without a value is empty, as
// docker has it.
func labels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		name, value, _ := strings.Cut(s, "=")
		if name == "" {
			return nil, usagef("--label %q: give NAME=VALUE", s)
		}
		out[name] = value
	}
	return out, api.ValidateLabels("--label", out)
}
