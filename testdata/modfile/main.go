// Modfile makes the go.mod that Volant's binary is built with, and prints its
// path. It is run in the root of the repository and writes to out/.
//
//	go build -modfile "$(go run ./testdata/modfile)" ...
//
// It replaces some libraries by copies of them with small changes, each of which
// says below what it is for, and fails loudly when a library is no longer what
// it knows. A plain go build works too; its binary is larger and starts later.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// library is a module, and what differs in its copy, of which the files are given
// by their paths.
type library struct {
	module string
	change func(files map[string]string) error
}

func libraries() []library {
	return []library{
		{"github.com/alecthomas/kong", changeKong},
		{"github.com/klauspost/compress", changeCompress},
		{"github.com/opencontainers/go-digest", changeDigest},
		{"go.yaml.in/yaml/v3", changeYAML},
		{"github.com/google/go-containerregistry", changeRegistry},
	}
}

func main() {
	path, err := write()
	if err != nil {
		fmt.Fprintf(os.Stderr, "modfile: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// write makes the copies, and then the go.mod. The copies' paths end up in the
// binary's build information, so they are relative, and the same wherever the
// repository is.
func write() (string, error) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return "", fmt.Errorf("%w; run it in the root of the repository", err)
	}
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		return "", err
	}
	text := string(mod) + "\n"
	for _, l := range libraries() {
		files, err := copyOf(l.module)
		if err == nil {
			if err = l.change(files); err != nil {
				err = fmt.Errorf("%s is not as this program knows it: %w", l.module, err)
			}
		}
		if err != nil {
			return "", err
		}
		dir, err := store(strings.ReplaceAll(l.module, "/", "-"), files)
		if err != nil {
			return "", err
		}
		text += "replace " + l.module + " => ./" + dir + "\n"
	}
	dir, err := store("modfile", map[string]string{"volant.mod": text, "volant.sum": string(sum)})
	return dir + "/volant.mod", err
}

// store writes files to a folder in out/, once for their content, and returns its
// path.
func store(name string, files map[string]string) (string, error) {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %d\n%s", path, len(files[path]), files[path])
	}
	dir := fmt.Sprintf("out/%s-%.6x", name, h.Sum(nil))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // what is there is whole
	}
	if err := os.MkdirAll("out", 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp("out", ".modfile-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	for path, text := range files {
		path = filepath.Join(temp, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", err
	}
	// Others may do the same at this moment.
	if err := os.Rename(temp, dir); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return "", err
	}
	return dir, nil
}

// copyOf returns what of a module is compiled, and its licence.
func copyOf(module string) (map[string]string, error) {
	source, err := sourceDir(module)
	if err != nil {
		return nil, err
	}
	files := make(map[string]string)
	err = filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		base := e.Name()
		switch ext := filepath.Ext(base); {
		case e.IsDir() && name != "." && (base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_'):
			return fs.SkipDir
		case e.IsDir() && name != ".":
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir // another module
			}
			return nil
		case !e.Type().IsRegular() || strings.HasSuffix(base, "_test.go"):
			return nil
		case name != "go.mod" && base != "LICENSE" && base != "COPYING" && base != "NOTICE" && ext != ".go" && ext != ".s" && ext != ".h":
			return nil
		}
		text, err := os.ReadFile(path)
		files[filepath.ToSlash(name)] = string(text)
		return err
	})
	return files, err
}

// sourceDir is where the go tool keeps a module, which it fetches if need be.
func sourceDir(module string) (string, error) {
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", err
	}
	if m.Dir == "" {
		return "", fmt.Errorf("go mod download %s names no folder", module)
	}
	return m.Dir, nil
}

// change is a text that must be there so often, and what it becomes.
type change struct {
	from, to string
	times    int
}

// edit changes one of the files.
func edit(files map[string]string, name string, changes ...change) error {
	text := files[name]
	for _, c := range changes {
		if n := strings.Count(text, c.from); n != c.times {
			return fmt.Errorf("%s: %q is there %d times, not %d", name, c.from, n, c.times)
		}
		text = strings.ReplaceAll(text, c.from, c.to)
	}
	files[name] = text
	return nil
}
