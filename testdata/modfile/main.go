// Modfile makes the go.mod that Volant's binary is built with, and prints its
// path. It is run in the root of the repository and writes to out/.
//
//	go build -modfile "$(go run ./testdata/modfile)" ...
//
// kong looks methods up by names that it holds in variables. The linker then has
// to keep every exported method of every type in the program, which is 2.6 MiB
// of Volant's 22 (kong issue 547). This go.mod replaces kong by a copy of it that
// looks up the few names that it knows, each a constant, and does without the
// lookup by prefix ("Provide"), which Volant does not use. Nothing else differs;
// a plain go build works too, and is larger.
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

const module = "github.com/alecthomas/kong"

// methods are the names that kong looks for.
func methods() []string {
	return []string{"Run", "BeforeReset", "BeforeResolve", "BeforeApply", "AfterApply", "AfterRun"}
}

// lookups is the file that is added to kong.
func lookups() string {
	var b strings.Builder
	b.WriteString("package kong\n\nimport \"reflect\"\n")
	for _, f := range []struct{ name, of, result string }{
		{"valueMethod", "reflect.Value", "reflect.Value"},
		{"typeMethod", "reflect.Type", "(reflect.Method, bool)"},
	} {
		fmt.Fprintf(&b, "\n// %s is of.MethodByName(name) for the names that kong looks for.\n", f.name)
		fmt.Fprintf(&b, "func %s(of %s, name string) %s {\n\tswitch name {\n", f.name, f.of, f.result)
		for _, m := range methods() {
			fmt.Fprintf(&b, "\tcase %q:\n\t\treturn of.MethodByName(%[1]q)\n", m)
		}
		b.WriteString("\t}\n\tpanic(\"kong: method \" + name + \" is not among those that Volant knows\")\n}\n")
	}
	return b.String()
}

func main() {
	path, err := write()
	if err != nil {
		fmt.Fprintf(os.Stderr, "modfile: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// write makes the copy, once for its content, and then the go.mod beside it. The
// copy's path ends up in the binary's build information, so it is relative, and
// the same wherever the repository is.
func write() (string, error) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return "", fmt.Errorf("%w; run it in the root of the repository", err)
	}
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		return "", err
	}
	files, err := copyOf()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %d\n%s", name, len(files[name]), files[name])
	}
	dir := fmt.Sprintf("out/kong-%.6x", h.Sum(nil))
	files["volant.mod"] = string(mod) + "\nreplace " + module + " => ./" + dir + "\n"
	files["volant.sum"] = string(sum)

	// Others may do the same at this moment: what is there is whole.
	if err := os.MkdirAll("out", 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp("out", ".kong-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(temp, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		// The module's own requirements may have changed since.
		for _, name := range []string{"volant.mod", "volant.sum"} {
			if err := os.Rename(filepath.Join(temp, name), filepath.Join(dir, name)); err != nil {
				return "", err
			}
		}
	} else if err != nil {
		return "", err
	}
	return dir + "/volant.mod", nil
}

// copyOf returns kong's files, less its tests, with the changes.
func copyOf() (map[string]string, error) {
	source, err := sourceDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return nil, err
	}
	files := map[string]string{"lookups.go": lookups()}
	for _, e := range entries {
		name := e.Name()
		if name != "go.mod" && name != "COPYING" && (!strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go")) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return nil, err
		}
		files[name] = string(text)
	}
	var err1, err2 error
	files["callbacks.go"], err1 = replace(files["callbacks.go"], []change{
		{"value.MethodByName(name)", "valueMethod(value, name)", 2},
		{"value.Addr().MethodByName(name)", "valueMethod(value.Addr(), name)", 2},
		{"t.MethodByName(name)", "typeMethod(t, name)", 1},
	})
	files["context.go"], err2 = withoutProviders(files["context.go"])
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("%s is not as this program knows it: %w", module, err)
	}
	return files, nil
}

// sourceDir is where the go tool keeps kong, which it fetches if need be.
func sourceDir() (string, error) {
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

func replace(text string, changes []change) (string, error) {
	for _, c := range changes {
		if n := strings.Count(text, c.from); n != c.times {
			return "", fmt.Errorf("%q is there %d times, not %d", c.from, n, c.times)
		}
		text = strings.ReplaceAll(text, c.from, c.to)
	}
	return text, nil
}

// withoutProviders takes out the loop over methods whose names begin with
// "Provide".
func withoutProviders(text string) (string, error) {
	const begin, loop, end = "\t\t\t// Try value and pointer to value.\n", "\t\t\t\t\tmethodt := t.Method(i)\n", "\t\t}\n\t\tif method.IsValid() {\n"
	before, rest, ok1 := strings.Cut(text, begin)
	inside, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 || strings.Count(text, loop) != 1 || !strings.Contains(inside, loop) {
		return "", errors.New("the loop over methods is not where it was")
	}
	return before + end + after, nil
}
