package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/volantvm/volant/initramfs"
)

// maxEntries bounds an image; a mapping of "/" is a mistake.
const maxEntries = 1 << 20

// maxLinks is how many symbolic links one path may go through, as in the
// kernel (MAXSYMLINKS).
const maxLinks = 40

// node is one path of the image to be.
type node struct {
	initramfs.Entry        // Name is the node's path; Open and Size or Data its content
	host            string // host file the content comes from; empty for our own
	origin          string // what put it there, for messages
	implied         bool   // a parent nobody asked for
}

// tree is the image to be: clean relative guest paths to nodes. Every node's
// parents are directories of the tree.
type tree struct {
	nodes map[string]*node
}

func newTree() *tree { return &tree{nodes: make(map[string]*node)} }

// rel turns an absolute guest path into a key; the root is "".
func rel(guest string) string {
	return strings.TrimPrefix(path.Clean("/"+guest), "/")
}

// add puts n at its name and makes its parents.
func (t *tree) add(n *node) error {
	if len(t.nodes) >= maxEntries {
		return fmt.Errorf("more than %d files", maxEntries)
	}
	if err := t.parents(n.Name, n.origin); err != nil {
		return err
	}
	old, ok := t.nodes[n.Name]
	if !ok {
		t.nodes[n.Name] = n
		return nil
	}
	if old.Mode.IsDir() && n.Mode.IsDir() {
		if old.implied && !n.implied {
			t.nodes[n.Name] = n
		}
		return nil
	}
	return fmt.Errorf("/%s is already there, from %s", n.Name, old.origin)
}

func (t *tree) parents(name, origin string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		p, ok := t.nodes[dir]
		if !ok {
			t.nodes[dir] = t.dirNode(dir, origin, true)
			continue
		}
		if !p.Mode.IsDir() {
			return fmt.Errorf("/%s cannot hold /%s: it is not a directory, from %s", dir, name, p.origin)
		}
		return nil // its own parents are there
	}
	return nil
}

func (t *tree) dirNode(name, origin string, implied bool) *node {
	return &node{Entry: initramfs.Entry{Name: name, Mode: fs.ModeDir | dirMode(name)}, origin: origin, implied: implied}
}

func (t *tree) addDir(name, origin string) error {
	if name == "" {
		return nil
	}
	return t.add(t.dirNode(name, origin, false))
}

func (t *tree) addSymlink(name, target, origin string) error {
	return t.add(&node{Entry: initramfs.Entry{Name: name, Mode: fs.ModeSymlink | 0o777, Linkname: target}, origin: origin})
}

func (t *tree) addData(name string, mode fs.FileMode, data, origin string) error {
	return t.add(&node{Entry: initramfs.Entry{Name: name, Mode: mode, Data: []byte(data)}, origin: origin})
}

// addFile adds a host file, fi being what stat said of it. mode zero chooses
// by the guest path and the host file's execute bits.
func (t *tree) addFile(name, host string, fi fs.FileInfo, mode fs.FileMode, origin string) error {
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is a %s: only files, directories and symbolic links can be mapped", host, kind(fi.Mode()))
	}
	if mode == 0 {
		mode = fileMode(name, fi.Mode())
	}
	return t.add(&node{
		Entry: initramfs.Entry{
			Name: name, Mode: mode, Size: fi.Size(),
			Open: func() (io.ReadCloser, error) { return os.Open(host) },
		},
		host: host, origin: origin,
	})
}

// absent reports whether nothing but an implied directory is at name.
func (t *tree) absent(name string) bool {
	n, ok := t.nodes[name]
	return !ok || n.implied
}

// sorted returns the nodes by name.
func (t *tree) sorted() []*node {
	out := make([]*node, 0, len(t.nodes))
	for _, name := range slices.Sorted(maps.Keys(t.nodes)) {
		out = append(out, t.nodes[name])
	}
	return out
}

var errLoop = errors.New("too many levels of symbolic links")

// resolve follows guest, an absolute path, as a process in the guest would,
// and returns the name it ends at and the node there, nil if there is none.
// The name is resolved as far as it exists.
func (t *tree) resolve(guest string) (string, *node, error) {
	return t.walk(guest, true)
}

// parentOf resolves all but the last component of guest and returns where a
// file of that path would lie.
func (t *tree) parentOf(guest string) (string, error) {
	name, _, err := t.walk(guest, false)
	return name, err
}

func (t *tree) walk(guest string, followLast bool) (string, *node, error) {
	todo := strings.Split(rel(guest), "/")
	cur, links := "", 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			cur = strings.TrimPrefix(path.Dir("/"+cur), "/")
			continue
		}
		next := path.Join(cur, c)
		n, ok := t.nodes[next]
		switch {
		case !ok:
			return path.Join(append([]string{next}, todo...)...), nil, nil
		case n.Mode&fs.ModeSymlink != 0 && (followLast || len(todo) > 0):
			if links++; links > maxLinks {
				return next, nil, fmt.Errorf("/%s: %w", next, errLoop)
			}
			if path.IsAbs(n.Linkname) {
				cur = ""
			}
			todo = append(strings.Split(n.Linkname, "/"), todo...)
		case len(todo) > 0 && !n.Mode.IsDir() && n.Mode&fs.ModeSymlink == 0:
			return next, nil, nil // a file where a directory is needed
		default:
			cur = next
		}
	}
	return cur, t.nodes[cur], nil
}

// dirMode is a directory's permission bits in every image.
func dirMode(name string) fs.FileMode {
	switch name {
	case "tmp", "var/tmp":
		return fs.ModeSticky | 0o777
	case "root":
		return 0o700
	}
	return 0o755
}

// fileMode is a file's permission bits: those of its place, else 0755 if any
// execute bit is set on the host, else 0644.
func fileMode(name string, host fs.FileMode) fs.FileMode {
	if name == "init" || isExecDir(path.Dir(name)) || host&0o111 != 0 {
		return 0o755
	}
	base := path.Base(name)
	if (strings.HasSuffix(base, ".so") || strings.Contains(base, ".so.")) && inLibDir(name) {
		return 0o755
	}
	return 0o644
}

func isExecDir(dir string) bool {
	switch dir {
	case "bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/bin", "opt/sbin":
		return true
	}
	return false
}

func inLibDir(name string) bool {
	for _, dir := range [...]string{"lib/", "lib64/", "usr/lib/", "usr/lib64/", "usr/local/lib/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file"
}
