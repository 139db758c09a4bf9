package layers

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// File types and special bits of a mode, as in inode(7).
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
	ModeSetuid  = 0o4000
	ModeSetgid  = 0o2000
	ModeSticky  = 0o1000
	ModePerm    = 0o777
)

// What a Linux kernel takes as a name: NAME_MAX, and PATH_MAX less its NUL.
const (
	maxComponent = 255
	maxPath      = 4095
)

// maxLinks bounds the symbolic links that one name may lead through, as in
// the kernel (MAXSYMLINKS).
const maxLinks = 40

// Tree is a tree of files. It is not safe for concurrent use, with one
// exception: the content of its files may be read by several goroutines.
type Tree struct {
	Root *Node

	hosts   []*hostDir // directories of FromDir, closed by Close
	steps   int        // taken by resolve, against a bomb of symbolic links
	counted usage
}

// Node is one name in a tree. The names of a file with several of them share
// their Inode.
type Node struct {
	Name string // one component; empty for the root
	*Inode
	dir   *directory // what a directory holds; nil otherwise
	layer int32      // that put the inode here, from 1
}

// Inode is a file: everything but its name. Mode, owner and times may be
// changed before the tree is written; the type of file may not.
type Inode struct {
	Mode     uint32 // type and permission bits
	UID, GID uint32
	Nlink    uint32 // set by Tree.Index: names of the file, or 2 and the subdirectories of a directory
	Number   uint32 // set by Tree.Index: the place of the inode in its order, from 0
	ModNsec  uint32 // nanoseconds, below 1e9
	ModSec   int64  // seconds since 1970, may be negative
	Size     int64  // bytes of a regular file's content, or of a symbolic link's target

	data  content // of a regular file with bytes
	at    int64   // offset in data
	extra *extra
}

// extra is what few inodes have.
type extra struct {
	target       string
	major, minor uint32
	xattrs       []Xattr
	sparse       bool
	extents      []Extent
}

// Xattr is an extended attribute, its name complete with its prefix.
type Xattr struct {
	Name  string
	Value string // bytes
}

// Extent is a run of bytes of a file between holes.
type Extent struct {
	Offset, Length int64 // in the file
	at             int64 // in its source
}

type directory struct {
	children []*Node
	index    map[string]int32 // name to place in children; nil while there are few
	sorted   bool
	clean    int32 // the layer in which everything from lower layers was removed
}

// indexFrom is the number of children from which a directory has an index.
const indexFrom = 24

// NewTree returns a tree that holds its root, an empty directory of mode 0755.
func NewTree() *Tree {
	return newTree(Limits{})
}

func newTree(l Limits) *Tree {
	return &Tree{Root: &Node{Inode: impliedDir(), dir: new(directory)}, counted: newUsage(l)}
}

func impliedDir() *Inode { return &Inode{Mode: ModeDir | 0o755} }

// Type returns the type bits of the mode.
func (i *Inode) Type() uint32 { return i.Mode & ModeType }

// IsDir reports whether i is a directory.
func (i *Inode) IsDir() bool { return i.Type() == ModeDir }

// IsRegular reports whether i is a regular file.
func (i *Inode) IsRegular() bool { return i.Type() == ModeRegular }

// ModTime is the time of the last modification.
func (i *Inode) ModTime() time.Time { return time.Unix(i.ModSec, int64(i.ModNsec)) }

// SetModTime sets the time of the last modification.
func (i *Inode) SetModTime(t time.Time) { i.ModSec, i.ModNsec = t.Unix(), uint32(t.Nanosecond()) }

// Target is what a symbolic link points to, as it was written.
func (i *Inode) Target() string {
	if i.extra == nil {
		return ""
	}
	return i.extra.target
}

// Device is the device number of a block or character device.
func (i *Inode) Device() (major, minor uint32) {
	if i.extra == nil {
		return 0, 0
	}
	return i.extra.major, i.extra.minor
}

// Xattrs returns the extended attributes by name. The slice must not be
// changed.
func (i *Inode) Xattrs() []Xattr {
	if i.extra == nil {
		return nil
	}
	return i.extra.xattrs
}

func (i *Inode) more() *extra {
	if i.extra == nil {
		i.extra = new(extra)
	}
	return i.extra
}

// Children returns what a directory holds, by name in byte order. The slice
// must not be changed.
func (n *Node) Children() []*Node {
	if n.dir == nil {
		return nil
	}
	n.dir.sort()
	return n.dir.children
}

// Child returns what a directory holds under a name, or nil.
func (n *Node) Child(name string) *Node {
	if n.dir == nil {
		return nil
	}
	if i := n.dir.find(name); i >= 0 {
		return n.dir.children[i]
	}
	return nil
}

func (d *directory) sort() {
	if d.sorted {
		return
	}
	slices.SortFunc(d.children, func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
	d.sorted, d.index = true, nil
}

// find returns the place of a child, or -1.
func (d *directory) find(name string) int {
	switch {
	case d.sorted:
		i, ok := slices.BinarySearchFunc(d.children, name, func(n *Node, name string) int { return strings.Compare(n.Name, name) })
		if ok {
			return i
		}
		return -1
	case len(d.children) < indexFrom:
		return slices.IndexFunc(d.children, func(n *Node) bool { return n.Name == name })
	case d.index == nil:
		d.index = make(map[string]int32, 2*len(d.children))
		for i, n := range d.children {
			d.index[n.Name] = int32(i)
		}
	}
	if i, ok := d.index[name]; ok {
		return int(i)
	}
	return -1
}

// add appends a child whose name is not there yet.
func (d *directory) add(n *Node) {
	if d.index != nil {
		d.index[n.Name] = int32(len(d.children))
	}
	d.children, d.sorted = append(d.children, n), false
}

// remove takes a child out by moving the last to its place.
func (d *directory) remove(i int) {
	last := len(d.children) - 1
	if d.index != nil {
		delete(d.index, d.children[i].Name)
		if i != last {
			d.index[d.children[last].Name] = int32(i)
		}
	}
	d.children[i], d.children[last] = d.children[last], nil
	d.children, d.sorted = d.children[:last], false
}

// Index numbers the inodes of the tree, counts their names, and returns a node
// for each: entry i has Number i. The root comes first. What a directory holds
// follows in one run, then the same of each of its subdirectories.
func (t *Tree) Index() []*Node {
	t.forget(t.Root)
	t.Root.Nlink = 2
	out := []*Node{t.Root}
	var visit func(*Node)
	visit = func(dir *Node) {
		children := dir.Children()
		for _, n := range children {
			if n.Nlink == 0 {
				n.Number = uint32(len(out))
				out = append(out, n)
			}
			n.Nlink++
			if n.IsDir() {
				n.Nlink = 2
				dir.Nlink++
			}
		}
		for _, n := range children {
			if n.IsDir() {
				visit(n)
			}
		}
	}
	visit(t.Root)
	return out
}

// forget undoes an earlier Index.
func (t *Tree) forget(n *Node) {
	n.Nlink, n.Number = 0, 0
	if n.dir != nil {
		for _, c := range n.dir.children {
			t.forget(c)
		}
	}
}

// Walk calls visit for every name but the root's, by path: a directory first,
// then what it holds in the order of names. Paths are relative to the root and
// without a leading slash. It ends at the first error and returns it.
func (t *Tree) Walk(visit func(path string, n *Node) error) error {
	return walk("", t.Root, visit)
}

func walk(prefix string, dir *Node, visit func(string, *Node) error) error {
	for _, n := range dir.Children() {
		path := prefix + n.Name
		if err := visit(path, n); err != nil {
			return err
		}
		if n.IsDir() {
			if err := walk(path+"/", n, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// Lookup returns what a process whose root directory is the tree would find at
// path, symbolic links followed, or nil if there is nothing.
func (t *Tree) Lookup(path string) *Node {
	t.steps = 0
	at, err := t.resolve(path, lookup)
	if err != nil {
		return nil
	}
	return at[len(at)-1]
}

var (
	errMissing = errors.New("there is nothing of that name")
	errNotDir  = errors.New("a file where a directory is needed")
	errLoop    = errors.New("too many levels of symbolic links")
)

// maxSteps bounds the components that resolving the names of all entries may
// visit: about a second of work, and beyond what any image needs.
const maxSteps = 1 << 26

// lookup is no layer: resolve makes nothing.
const lookup = -1

// resolve follows path from the root, symbolic links included, and returns the
// nodes from the root to its end. With a layer other than lookup, everything
// on the way is a directory, and is made in that layer where it is missing.
func (t *Tree) resolve(path string, layer int32) ([]*Node, error) {
	at := make([]*Node, 1, 12)
	at[0] = t.Root
	links, rest := 0, path
	for rest != "" {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if t.steps++; t.steps > maxSteps {
			return nil, fmt.Errorf("%w: symbolic links make the layers' names too long to follow", ErrLimit)
		}
		dir := at[len(at)-1]
		switch c {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		if !dir.IsDir() {
			return nil, errNotDir
		}
		n := dir.Child(c)
		switch {
		case n == nil && layer == lookup:
			return nil, errMissing
		case n == nil:
			if err := checkDepth(at, c); err != nil {
				return nil, err
			}
			if err := t.counted.entry(len(c)); err != nil {
				return nil, err
			}
			n = &Node{Name: strings.Clone(c), Inode: impliedDir(), dir: new(directory), layer: layer}
			dir.dir.add(n)
		case n.Type() == ModeSymlink:
			if links++; links > maxLinks {
				return nil, errLoop
			}
			target := n.Target()
			if strings.HasPrefix(target, "/") {
				at = at[:1]
			}
			rest = target + "/" + rest
			continue
		}
		at = append(at, n)
	}
	if layer != lookup && !at[len(at)-1].IsDir() {
		return nil, errNotDir
	}
	return at, nil
}

// checkDepth refuses a name whose real path, symbolic links resolved, is longer
// than a kernel takes: trees are walked by recursion.
func checkDepth(at []*Node, name string) error {
	size := len(name)
	for _, n := range at[1:] {
		size += len(n.Name) + 1
	}
	if size > maxPath || len(name) > maxComponent {
		return fmt.Errorf("%w: a name of %d bytes, in a path of %d, is too long", ErrName, len(name), size)
	}
	return nil
}

// Add puts a file, a directory or a symbolic link into the tree, at the path
// that a process in the tree would write to: links on the way are followed,
// the last component is not. Missing directories are made. A directory over a
// directory replaces its attributes and keeps what it holds; anything else
// replaces what was there.
func (t *Tree) Add(path string, i *Inode) error {
	t.steps = 0
	clean, err := cleanName(path)
	if err != nil {
		return fmt.Errorf("%s: %w", quote(path), err)
	}
	if err := t.put(clean, i, 0); err != nil {
		return fmt.Errorf("%s: %w", quote(path), err)
	}
	return nil
}

// put places an inode at a clean name, which is "" for the root.
func (t *Tree) put(name string, i *Inode, layer int32) error {
	if name == "" {
		if !i.IsDir() {
			return fmt.Errorf("%w: the root must be a directory", ErrName)
		}
		t.Root.Inode, t.Root.layer = i, layer
		return nil
	}
	dir, base, err := t.parent(name, layer)
	if err != nil {
		return err
	}
	if err := t.counted.entry(len(base)); err != nil {
		return err
	}
	n := dir.Child(base)
	if n == nil {
		n = &Node{Name: strings.Clone(base)}
		dir.dir.add(n)
	}
	switch {
	case !i.IsDir():
		n.dir = nil
	case n.dir == nil:
		n.dir = new(directory)
	}
	n.Inode, n.layer = i, layer
	return nil
}

// parent returns the directory that a clean name lies in, made if need be, and
// the name's last component.
func (t *Tree) parent(name string, layer int32) (*Node, string, error) {
	i := strings.LastIndexByte(name, '/')
	at, err := t.resolve(name[:max(i, 0)], layer)
	if err != nil {
		return nil, "", err
	}
	if err := checkDepth(at, name[i+1:]); err != nil {
		return nil, "", err
	}
	return at[len(at)-1], name[i+1:], nil
}

// cleanName checks a name and returns it without leading, trailing and doubled
// slashes and "." components; the root is "".
func cleanName(name string) (string, error) {
	switch {
	case len(name) > maxPath:
		return "", fmt.Errorf("%w: a path of %d bytes, at most %d", ErrName, len(name), maxPath)
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%w: it holds a NUL", ErrName)
	}
	clean := true
	for c := range strings.SplitSeq(name, "/") {
		switch {
		case c == "..":
			return "", fmt.Errorf("%w: it climbs with %q", ErrName, c)
		case len(c) > maxComponent:
			return "", fmt.Errorf("%w: a component of %d bytes, at most %d", ErrName, len(c), maxComponent)
		case c == "" || c == ".":
			clean = false
		}
	}
	if clean {
		return name, nil
	}
	parts := slices.DeleteFunc(strings.Split(name, "/"), func(c string) bool { return c == "" || c == "." })
	return strings.Join(parts, "/"), nil
}

// SetXattrs sets the extended attributes, of which it keeps those that a file
// system on disk can hold, and takes the slice over.
func (i *Inode) SetXattrs(all []Xattr) error {
	all = slices.DeleteFunc(all, func(x Xattr) bool { return !kept(x.Name) })
	if len(all) == 0 && i.extra == nil {
		return nil
	}
	for _, x := range all {
		if len(x.Name) > 255 || len(x.Value) > maxXattr || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("extended attribute %s of %d bytes: names have at most 255 bytes, values %d", quote(x.Name), len(x.Value), maxXattr)
		}
	}
	slices.SortFunc(all, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	i.more().xattrs = all
	return nil
}

// maxXattr is what the 16-bit field of an erofs attribute holds, a byte less
// than Linux's XATTR_SIZE_MAX.
const maxXattr = 65535

func kept(name string) bool {
	prefix, rest, _ := strings.Cut(name, ".")
	switch prefix {
	case "user", "security":
		return rest != ""
	case "trusted":
		return rest != "" && !strings.HasPrefix(rest, "overlay.")
	case "system":
		return rest == "posix_acl_access" || rest == "posix_acl_default"
	}
	return false
}

// quote prints a hostile name.
func quote(s string) string {
	if len(s) > 120 {
		return fmt.Sprintf("%q...", s[:120])
	}
	return fmt.Sprintf("%q", s)
}
