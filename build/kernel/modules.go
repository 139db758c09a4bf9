package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/volantvm/volant/guest/wire"
)

// Limits on a module tree, far above what distributions ship.
const (
	maxTreeEntries  = 200_000
	maxBuiltinBytes = 4 << 20
	maxModuleBytes  = 64 << 20 // one module, unpacked
	maxModulesBytes = 256 << 20
)

var (
	// ErrModuleMissing says that the tree lacks a module which a guest needs, or one
	// that such a module depends on, and that the kernel has not built it in.
	ErrModuleMissing = errors.New("kernel module missing")
	// ErrModule says that a module file is damaged or of an unknown format.
	ErrModule = errors.New("not a kernel module")
	// ErrModuleVersion says that a module was built for another kernel.
	ErrModuleVersion = errors.New("kernel module is for another kernel version")
)

// Module is one kernel module, ready to be loaded.
type Module struct {
	Name string // as /proc/modules shows it: "virtio_blk"
	Path string // in the guest, relative to its root: "lib/modules/volant/004-virtio_blk.ko"
	Data []byte // the uncompressed ELF object with its signature, if it has one
}

// SelectModules takes the wanted modules and all they depend on from tree, the folder
// of one kernel such as /lib/modules/6.1.0-56-cloud-amd64, and returns them in an order
// in which they can be loaded: dependencies first, else as wanted. What modules.builtin
// lists is left out. version is the kernel's ([Image.Version]).
//
// Dependencies are read from the modules themselves (depends= and softdep=pre: in
// .modinfo), where the kernel's build put them, and not from modules.dep: that file is
// made by depmod when a package is installed, and packages that are only unpacked have
// none.
//
// Errors wrap ErrModuleMissing, ErrModule, ErrModuleVersion, ErrTooLarge, ctx's error,
// or are those of tree.
func SelectModules(ctx context.Context, tree fs.FS, version string, wanted []Wanted) ([]Module, error) {
	files, err := findModules(ctx, tree)
	if err != nil {
		return nil, fmt.Errorf("module tree: %w", err)
	}
	builtin, err := readBuiltin(tree)
	if err != nil {
		return nil, fmt.Errorf("module tree: %w", err)
	}
	s := selection{tree: tree, files: files, builtin: builtin, version: version, state: map[string]visit{}}
	for _, w := range wanted {
		name := moduleName(w.Name)
		if w.Optional && files[name] == "" {
			continue
		}
		if err := s.add(ctx, name); err != nil {
			return nil, fmt.Errorf("module tree: %w", err)
		}
	}
	return s.modules, nil
}

// ModuleOrder is the contents of the file ModuleOrderPath: the modules' file names, one
// a line, in load order.
func ModuleOrder(modules []Module) []byte {
	var b bytes.Buffer
	for _, m := range modules {
		fmt.Fprintln(&b, path.Base(m.Path))
	}
	return b.Bytes()
}

// ModuleOrderPath is where kestrel looks for the load order, relative to the guest's root.
const ModuleOrderPath = moduleDir + "/" + wire.ModulesOrder

// moduleDir is wire.ModulesDir without its leading slash, as archives hold it.
const moduleDir = "lib/modules/volant"

type visit int

const (
	unvisited visit = iota
	visiting
	visited
)

// selection is a depth-first walk over the wanted modules.
type selection struct {
	tree    fs.FS
	files   map[string]string // module name → path in tree
	builtin map[string]bool
	version string

	state   map[string]visit
	total   int64 // bytes of modules
	modules []Module
}

func (s *selection) add(ctx context.Context, name string) error {
	if s.builtin[name] || s.state[name] == visited {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.state[name] == visiting {
		return fmt.Errorf("%s: %w: it depends on itself", name, ErrModule)
	}
	file, ok := s.files[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrModuleMissing)
	}
	s.state[name] = visiting
	data, err := readModule(s.tree, file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	info, err := parseModinfo(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if info.version != s.version {
		return fmt.Errorf("%s: %w: it is for %.64q, the kernel is %q", file, ErrModuleVersion, info.version, s.version)
	}
	if s.total += int64(len(data)); s.total > maxModulesBytes {
		return fmt.Errorf("modules: %w: more than %d bytes", ErrTooLarge, maxModulesBytes)
	}
	for _, dep := range info.before {
		if _, ok := s.files[dep]; !ok {
			continue // softdeps also name aliases, and what may be absent
		}
		if s.state[dep] == visiting {
			continue // a soft circle is harmless
		}
		if err := s.add(ctx, dep); err != nil {
			return err
		}
	}
	for _, dep := range info.depends {
		if err := s.add(ctx, dep); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	s.state[name] = visited
	s.modules = append(s.modules, Module{
		Name: name,
		Path: fmt.Sprintf("%s/%03d-%s.ko", moduleDir, len(s.modules), name),
		Data: data,
	})
	return nil
}

// findModules maps module names to their files. Where a name occurs twice the one
// under updates/ wins, as in depmod's default search order; else the first by path.
func findModules(ctx context.Context, tree fs.FS) (map[string]string, error) {
	files := map[string]string{}
	entries := 0
	err := fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxTreeEntries {
			return fmt.Errorf("%w: more than %d files", ErrTooLarge, maxTreeEntries)
		}
		if !d.Type().IsRegular() { // "build" and "source" are links out of the tree
			return ctx.Err()
		}
		base, ok := cutModuleSuffix(path.Base(p))
		if !ok {
			return nil
		}
		name := moduleName(base)
		if !validModuleName(name) {
			return fmt.Errorf("%q: %w: malformed name", p, ErrModule)
		}
		if old, ok := files[name]; !ok || (isUpdate(p) && !isUpdate(old)) {
			files[name] = p
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no .ko files; it must be the folder lib/modules/<version> of a kernel", ErrModuleMissing)
	}
	return files, nil
}

func isUpdate(p string) bool { return strings.HasPrefix(p, "updates/") }

func cutModuleSuffix(base string) (string, bool) {
	for _, suffix := range [...]string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return name, true
		}
	}
	return "", false
}

// moduleName is the kernel's form of a name: files have dashes where it has underscores.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// validModuleName keeps names fit for a file name and a line of the load order.
func validModuleName(s string) bool {
	if s == "" || len(s) > 56 { // MODULE_NAME_LEN
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// readBuiltin reads modules.builtin, a path a line. The build makes it, so unpacked
// packages have it; without it nothing counts as built in.
func readBuiltin(tree fs.FS) (map[string]bool, error) {
	f, err := tree.Open("modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	builtin := map[string]bool{}
	lines := bufio.NewScanner(io.LimitReader(f, maxBuiltinBytes))
	for lines.Scan() {
		if name, ok := cutModuleSuffix(path.Base(lines.Text())); ok {
			builtin[moduleName(name)] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.builtin: %w", err)
	}
	return builtin, nil
}

// readModule returns a module's uncompressed bytes.
func readModule(tree fs.FS, file string) ([]byte, error) {
	f, err := tree.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	magic, err := r.Peek(magicSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModule, noEOF(err))
	}
	var body io.ReadCloser
	switch s := sniff(magic); s {
	case elfImage:
		body = io.NopCloser(r)
	case gzipStream, xzStream, zstdStream:
		if body, err = decompress(s, r); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: neither an ELF object nor gzip, xz or zstd data", ErrModule)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxModuleBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxModuleBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxModuleBytes)
	}
	return data, nil
}
