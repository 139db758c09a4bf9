package build

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// linker finds what dynamic ELF files need and puts it into the tree, in the
// order ld.so(8) looks: DT_RPATH of the object and of what loaded it, unless
// there is a DT_RUNPATH; DT_RUNPATH; the directories of ld.so.conf; the default
// ones. Every directory is looked at in the image first, then on the host.
// There is no LD_LIBRARY_PATH, and glibc-hwcaps variants are not chosen: the
// baseline library is always beside them.
type linker struct {
	t       *tree
	root    string // host directory taken as /; "" for the host's own
	conf    []string
	objects map[string]*object // by host path; nil for no ELF file
	warn    func(format string, args ...any)

	copied int // files added
	// fromConf are libraries that the host finds through ld.so.conf only.
	// The guest has no ld.so.cache, so each gets a link in a default
	// directory: that of the C library.
	fromConf map[string]string // name → guest path
	libcDir  string            // guest directory, absolute
	musl     bool
}

// loaded is an object in the place it has in the guest.
type loaded struct {
	*object
	name   string  // as needed, or the program's path
	guest  string  // absolute guest path
	host   string  // host file
	loader *loaded // what needed it; nil for the program
}

func newLinker(t *tree, root string, warn func(string, ...any)) (*linker, error) {
	l := &linker{t: t, root: root, objects: make(map[string]*object), fromConf: make(map[string]string), warn: warn}
	if err := l.readConf("/etc/ld.so.conf", 0); err != nil {
		return nil, err
	}
	return l, nil
}

// link completes the tree.
func (l *linker) link(ctx context.Context) error {
	for _, n := range l.t.sorted() {
		if n.host == "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		o, err := l.object(n.host)
		if err != nil {
			// Not for us to judge: it may be test data. It cannot run.
			l.warn("/%s begins like an ELF file but cannot be read: %v", n.Name, err)
			continue
		}
		if o == nil || o.interp == "" && len(o.needed) == 0 {
			continue
		}
		if err := l.program(&loaded{object: o, name: "/" + n.Name, guest: "/" + n.Name, host: n.host}); err != nil {
			return err
		}
	}
	return l.linkConf()
}

func (l *linker) object(host string) (*object, error) {
	if o, ok := l.objects[host]; ok {
		return o, nil
	}
	o, err := readObject(host)
	if err != nil {
		return nil, err
	}
	l.objects[host] = o
	return o, nil
}

// program finds the closure of one program, breadth first as the dynamic
// linker loads it: a name once loaded satisfies everything later.
func (l *linker) program(p *loaded) error {
	if p.interp != "" {
		if !path.IsAbs(p.interp) {
			return fmt.Errorf("%s: its interpreter %q is not an absolute path", p.guest, clip(p.interp))
		}
		ok, err := l.provide(p, p.interp, p.interp)
		if err != nil {
			return err
		}
		if ok == nil {
			return fmt.Errorf("%s needs the interpreter %s, which is neither in the image nor on this machine for %s", p.guest, p.interp, machineName(p.machine))
		}
		if strings.HasPrefix(path.Base(p.interp), "ld-musl-") {
			l.musl = true
		}
	}
	scope := map[string]bool{path.Base(p.interp): true}
	queue := []*loaded{p}
	for len(queue) > 0 {
		o := queue[0]
		queue = queue[1:]
		for _, name := range o.needed {
			if scope[name] {
				continue
			}
			// musl's linker is its C library, under any of its names.
			if strings.HasPrefix(path.Base(p.interp), "ld-musl-") && strings.HasPrefix(name, "libc.") {
				scope[name] = true
				continue
			}
			dep, searched, err := l.find(o, name)
			if err != nil {
				return err
			}
			if dep == nil {
				if p.interp == "" && l.inImage(name) {
					continue // a program that loads p will have loaded it
				}
				needer := ""
				if o != p {
					needer = " (for " + o.name + ")"
				}
				err := fmt.Errorf("%s needs the library %s%s, which is not in %s; install it, or map it", p.guest, name, needer, strings.Join(searched, ", "))
				if p.interp != "" {
					return err
				}
				// A plug-in, perhaps one of many: only what loads it knows.
				l.warn("%v", err)
				continue
			}
			scope[name] = true
			queue = append(queue, dep)
		}
	}
	return nil
}

// inImage reports whether any file of the image has that base name.
func (l *linker) inImage(base string) bool {
	for name := range l.t.nodes {
		if path.Base(name) == base {
			return true
		}
	}
	return false
}

// searchDir is a directory in the guest and where its files are on the host.
type searchDir struct {
	guest, host string
	conf        bool // known to the host's ld.so.cache only
}

// find returns the library, in the tree, or nil and where it was looked for.
func (l *linker) find(o *loaded, name string) (*loaded, []string, error) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			return nil, []string{"the working directory (the name is a relative path)"}, nil
		}
		dep, err := l.provide(o, name, name)
		if dep != nil {
			dep.name = name
		}
		return dep, []string{path.Dir(name)}, err
	}
	var searched []string
	for _, d := range l.dirs(o) {
		guest := path.Join(d.guest, name)
		dep, err := l.provide(o, guest, filepath.Join(d.host, name))
		if err != nil {
			return nil, nil, err
		}
		if dep != nil {
			dep.name = name
			if d.conf {
				l.fromConf[name] = guest
			}
			if strings.HasPrefix(name, "libc.so.") && l.libcDir == "" && !d.conf {
				l.libcDir = d.guest
			}
			return dep, nil, nil
		}
		if !slices.Contains(searched, d.guest) {
			searched = append(searched, d.guest)
		}
	}
	return nil, searched, nil
}

// dirs lists where o's needs are looked for, in order.
func (l *linker) dirs(o *loaded) []searchDir {
	var out []searchDir
	if len(o.runpath) == 0 {
		for p := o; p != nil; p = p.loader {
			if len(p.runpath) == 0 {
				out = append(out, expand(p, p.rpath)...)
			}
		}
	} else {
		out = append(out, expand(o, o.runpath)...)
	}
	defaults := defaultDirs(o.machine)
	for _, d := range l.conf {
		out = append(out, searchDir{guest: d, host: d, conf: !slices.Contains(defaults, d)})
	}
	for _, d := range defaults {
		out = append(out, searchDir{guest: d, host: d})
	}
	return out
}

// expand replaces $ORIGIN and $LIB. Directories that are relative, or hold
// other tokens, are left out: they would mean something else in the guest.
func expand(o *loaded, list []string) []searchDir {
	var out []searchDir
	for _, dir := range list {
		libs := []string{dir}
		if strings.Contains(dir, "$LIB") || strings.Contains(dir, "${LIB}") {
			libs = libs[:0]
			for _, lib := range []string{"lib/" + triple(o.machine), "lib64", "lib"} {
				libs = append(libs, strings.NewReplacer("${LIB}", lib, "$LIB", lib).Replace(dir))
			}
		}
		for _, d := range libs {
			guest := strings.NewReplacer("${ORIGIN}", path.Dir(o.guest), "$ORIGIN", path.Dir(o.guest)).Replace(d)
			host := strings.NewReplacer("${ORIGIN}", filepath.Dir(o.host), "$ORIGIN", filepath.Dir(o.host)).Replace(d)
			if strings.Contains(guest, "$") || !path.IsAbs(guest) {
				continue
			}
			out = append(out, searchDir{guest: path.Clean(guest), host: filepath.Clean(host)})
		}
	}
	return out
}

// provide sees to it that guest is in the tree, from the image itself or from
// the host file, and is an object that by's process can load; nil if not.
func (l *linker) provide(by *loaded, guest, host string) (*loaded, error) {
	at, n, err := l.t.resolve(guest)
	if err != nil {
		return nil, err
	}
	if n != nil && n.host != "" {
		o, err := l.object(n.host)
		if err == nil && o != nil && o.fits(by.object) {
			return &loaded{object: o, guest: "/" + at, host: n.host, loader: by}, nil
		}
		return nil, nil // an unreadable or foreign file is passed over, as ld.so does
	}
	same := guest == host
	if same {
		if host, err = l.hostFile(host); err != nil || host == "" {
			return nil, err
		}
	}
	fi, err := os.Stat(host)
	if err != nil || !fi.Mode().IsRegular() {
		return nil, nil // not there: the search goes on
	}
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		return nil, err
	}
	o, err := l.object(real)
	if err != nil || o == nil || !o.fits(by.object) {
		return nil, nil // as above
	}
	origin := "a library that " + by.guest + " needs"
	if same {
		err = l.copyPath(guest, real, fi, origin, 0)
	} else {
		err = l.copyAs(guest, real, fi, origin)
	}
	if err != nil {
		return nil, fmt.Errorf("%s needs %s: %w", by.guest, guest, err)
	}
	return &loaded{object: o, guest: guest, host: real, loader: by}, nil
}

// hostFile follows a path inside l.root as a process chrooted there would, and
// returns the real host path, "" if there is none.
func (l *linker) hostFile(p string) (string, error) {
	if l.root == "" {
		return p, nil
	}
	cur, todo, links := "/", strings.Split(p, "/"), 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		next := path.Join(cur, c)
		fi, err := os.Lstat(filepath.Join(l.root, next))
		if err != nil {
			return "", nil // not there
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: %w", p, errLoop)
		}
		target, err := os.Readlink(filepath.Join(l.root, next))
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			cur = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return filepath.Join(l.root, cur), nil
}

// copyPath puts the host file that guest leads to into the tree under the same
// path, with the symbolic links on the way.
func (l *linker) copyPath(guest, real string, fi fs.FileInfo, origin string, depth int) error {
	if depth > maxLinks {
		return errLoop
	}
	cur := ""
	comps := strings.Split(rel(guest), "/")
	for i, c := range comps {
		next := path.Join(cur, c)
		hi, err := os.Lstat(filepath.Join(l.root, "/", next))
		if err != nil {
			return err
		}
		if hi.Mode()&fs.ModeSymlink == 0 {
			cur = next
			continue
		}
		target, err := os.Readlink(filepath.Join(l.root, "/", next))
		if err != nil {
			return err
		}
		switch n, ok := l.t.nodes[next]; {
		case !ok:
			if err := l.t.addSymlink(next, target, origin); err != nil {
				return err
			}
		case n.Mode&fs.ModeSymlink != 0 && n.Linkname == target:
		default:
			// The image is laid out otherwise than the host here: the path
			// must lead to the file all the same.
			return l.copyAs(guest, real, fi, origin)
		}
		if !path.IsAbs(target) {
			target = path.Join("/", cur, target)
		}
		return l.copyPath(path.Join(append([]string{target}, comps[i+1:]...)...), real, fi, origin, depth+1)
	}
	return l.copyAs("/"+cur, real, fi, origin)
}

// copyAs puts a host file at guest, following the image's own links.
func (l *linker) copyAs(guest, real string, fi fs.FileInfo, origin string) error {
	at, err := l.t.parentOf(guest)
	if err != nil {
		return err
	}
	if n, ok := l.t.nodes[at]; ok && n.host == real {
		return nil
	}
	l.copied++
	return l.t.addFile(at, real, fi, 0o755, origin)
}

// linkConf makes the libraries of ld.so.conf's directories findable.
func (l *linker) linkConf() error {
	if l.musl {
		if err := l.copyMuslPath(); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.fromConf)) {
		guest := l.fromConf[name]
		if l.libcDir == "" {
			l.warn("%s is found through ld.so.conf on this machine; the guest may not find it", guest)
			continue
		}
		at, err := l.t.parentOf(path.Join(l.libcDir, name))
		if err != nil {
			return err
		}
		if _, ok := l.t.nodes[at]; ok {
			continue
		}
		if err := l.t.addSymlink(at, guest, "the search path of "+guest); err != nil {
			return err
		}
	}
	return nil
}

// copyMuslPath copies /etc/ld-musl-*.path, which musl's linker reads itself.
func (l *linker) copyMuslPath() error {
	found, err := filepath.Glob(filepath.Join(l.root, "/etc/ld-musl-*.path"))
	if err != nil {
		return err
	}
	for _, host := range found {
		name := "etc/" + filepath.Base(host)
		fi, err := os.Stat(host)
		if err != nil || !l.t.fits(name) {
			continue
		}
		if err := l.t.addFile(name, host, fi, 0, "the search path of musl"); err != nil {
			return err
		}
	}
	return nil
}

// readConf reads ld.so.conf, as ldconfig(8) does: a directory a line,
// includes with patterns, comments.
func (l *linker) readConf(file string, depth int) error {
	const maxDepth, maxSize, maxDirs = 8, 1 << 20, 1024
	if depth > maxDepth {
		return fmt.Errorf("%s: included more than %d deep", file, maxDepth)
	}
	f, err := os.Open(filepath.Join(l.root, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, maxSize))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "include"); ok && (strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "\t")) {
			for _, pattern := range strings.Fields(rest) {
				if !path.IsAbs(pattern) {
					pattern = path.Join(path.Dir(file), pattern)
				}
				found, err := filepath.Glob(filepath.Join(l.root, pattern))
				if err != nil {
					return fmt.Errorf("%s: include %s: %w", file, pattern, err)
				}
				for _, inc := range found { // sorted by Glob
					if err := l.readConf(strings.TrimPrefix(inc, l.root), depth+1); err != nil {
						return err
					}
				}
			}
			continue
		}
		dir, _, _ := strings.Cut(line, "=") // "dir=TYPE", of libc 5
		dir = path.Clean(strings.TrimSpace(dir))
		if path.IsAbs(dir) && !slices.Contains(l.conf, dir) && len(l.conf) < maxDirs {
			l.conf = append(l.conf, dir)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// triple is the multiarch name of a machine, as Debian builds it into glibc.
func triple(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64:
		return "x86_64-linux-gnu"
	case elf.EM_386:
		return "i386-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	case elf.EM_ARM:
		return "arm-linux-gnueabihf"
	case elf.EM_RISCV:
		return "riscv64-linux-gnu"
	case elf.EM_PPC64:
		return "powerpc64le-linux-gnu"
	case elf.EM_S390:
		return "s390x-linux-gnu"
	}
	return "unknown-linux-gnu"
}

// defaultDirs are built into the dynamic linkers of the distributions.
func defaultDirs(m elf.Machine) []string {
	return []string{"/lib/" + triple(m), "/usr/lib/" + triple(m), "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

func machineName(m elf.Machine) string {
	return strings.ToLower(strings.TrimPrefix(m.String(), "EM_"))
}
