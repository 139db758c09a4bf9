package layertest

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Random returns a stack of layers, lowest first, with everything that images
// have: files over directories and back, whiteouts and opaque directories at
// any place, hard links across layers, symbolic links and names that lead
// through them, devices, attributes, odd owners, modes and times. Every stack
// can be unpacked by any runtime: it holds no entry that they refuse, and none
// on which the specification is silent.
func Random(seed uint64) [][]Entry {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	g.tree = map[string]byte{"": 'd'}
	out := make([][]Entry, 1+g.IntN(5))
	for i := range out {
		out[i] = g.layer()
	}
	return out
}

type generator struct {
	*rand.Rand
	tree map[string]byte // path to type, of what the layers so far make
	mine map[string]bool // what this layer touched, parents included
	own  map[string]bool // what this layer has an entry of
}

func (g *generator) layer() []Entry {
	g.mine, g.own = map[string]bool{}, map[string]bool{}
	root := g.header("./")
	root.Typeflag = tar.TypeDir
	out := []Entry{{Header: root}}
	for range 3 + g.IntN(40) {
		out = append(out, g.entry()...)
	}
	return out
}

// names are few, so that layers meet, and look odd.
func (g *generator) name() string {
	names := []string{"a", "b", "c", "d", "etc", "!x", "-f", "..x", ".hidden", "ü", "sp ace", strings.Repeat("long", 40)}
	return names[g.IntN(len(names))]
}

// dirs lists the directories, sorted for the sake of the seed.
func (g *generator) paths(types string) []string {
	var out []string
	for p, typ := range g.tree {
		if strings.IndexByte(types, typ) >= 0 {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

func (g *generator) pick(list []string) string { return list[g.IntN(len(list))] }

// put notes an entry of this layer.
func (g *generator) put(p string, typ byte) {
	if typ != 'd' || g.tree[p] != 'd' {
		g.forget(p)
	}
	g.tree[p], g.own[p] = typ, true
	g.touch(p)
}

// touch marks a path and its parents as of this layer.
func (g *generator) touch(p string) {
	for ; p != "." && p != ""; p = path.Dir(p) {
		g.mine[p] = true
	}
}

// forget removes a path and all below it.
func (g *generator) forget(p string) {
	for q := range g.tree {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(g.tree, q)
		}
	}
}

func (g *generator) entry() []Entry {
	dir := g.pick(g.paths("d"))
	if strings.Count(dir, "/") > 5 {
		dir = ""
	}
	p := path.Join(dir, g.name())
	switch n := g.IntN(20); {
	case n < 3:
		return g.whiteout(dir, p)
	case n < 4 && dir != "":
		return g.opaque(dir)
	case n < 9:
		return []Entry{g.directory(p)}
	case n < 12:
		return g.through(p)
	case n < 14:
		return g.link(p)
	}
	return []Entry{g.leaf(p)}
}

// whiteout hides a path of lower layers. One that this layer touched only by
// what it put below it is left alone: there runtimes differ.
func (g *generator) whiteout(dir, p string) []Entry {
	if g.mine[p] {
		return nil
	}
	g.forget(p)
	g.touch(dir)
	return []Entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, ".wh."+path.Base(p))}}}
}

// opaque hides what lower layers have in a directory, unless this layer has
// put something into a directory below that it has no entry of.
func (g *generator) opaque(dir string) []Entry {
	for q := range g.mine {
		if strings.HasPrefix(q, dir+"/") && !g.own[q] {
			return nil
		}
	}
	for q := range g.tree {
		if strings.HasPrefix(q, dir+"/") && !g.mine[q] {
			delete(g.tree, q)
		}
	}
	g.put(dir, 'd')
	h := g.header(dir)
	h.Typeflag = tar.TypeDir
	out := []Entry{{Header: h}, {Header: tar.Header{Typeflag: tar.TypeReg, Name: dir + "/.wh..wh..opq"}}}
	if g.IntN(2) == 0 {
		slices.Reverse(out)
	}
	return out
}

func (g *generator) directory(p string) Entry {
	g.put(p, 'd')
	h := g.header(p)
	h.Typeflag = tar.TypeDir
	if g.IntN(2) == 0 {
		h.Name += "/"
	}
	return Entry{Header: h}
}

// leaf is anything but a directory and a hard link.
func (g *generator) leaf(p string) Entry {
	g.put(p, 'f')
	h := g.header(p)
	e := Entry{}
	switch g.IntN(10) {
	case 0:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, g.Int64N(512), 1+g.Int64N(70000)
	case 1:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, 1+g.Int64N(512), g.Int64N(300)
	case 2:
		h.Typeflag = tar.TypeFifo
	case 3, 4:
		g.tree[p] = 'l'
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		h.Linkname = g.pick([]string{"x", "/a/b", "../../../../etc/passwd", ".", "../c", strings.Repeat("y/", 300), strings.Repeat("z", 5000)[:4000]})
		h.PAXRecords = nil // user.* is not for links
	default:
		h.Typeflag = tar.TypeReg
		e.Data = strings.Repeat(string(rune('a'+g.IntN(26))), []int{0, 1, 60, 511, 512, 2000, 4095, 4096, 4097, 9000, 70000}[g.IntN(11)])
	}
	e.Header = h
	return e
}

// through writes a file by way of a symbolic link to a directory.
func (g *generator) through(p string) []Entry {
	target := g.pick(g.paths("d"))
	if target == "" || p == target || strings.HasPrefix(target, p+"/") {
		return nil
	}
	g.put(p, 'l')
	l := g.header(p)
	l.Typeflag, l.Mode, l.Linkname, l.PAXRecords = tar.TypeSymlink, 0o777, "/"+target, nil
	name := fmt.Sprint("via", g.IntN(5))
	f := g.leaf(path.Join(target, name))
	f.Name = p + "/" + name
	return []Entry{{Header: l}, f}
}

func (g *generator) link(p string) []Entry {
	files := g.paths("fl")
	if len(files) == 0 {
		return nil
	}
	target := g.pick(files)
	if target == p || g.tree[p] == 'd' {
		return nil
	}
	g.put(p, g.tree[target])
	return []Entry{{Header: tar.Header{Typeflag: tar.TypeLink, Name: p, Linkname: target, Mode: 0o600}}}
}

func (g *generator) header(name string) tar.Header {
	h := tar.Header{Name: name, Mode: []int64{0o644, 0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o000}[g.IntN(7)], Format: tar.FormatPAX}
	if g.IntN(3) == 0 {
		h.Uid, h.Gid = g.IntN(1<<16), g.IntN(1<<31)
	}
	if g.IntN(3) == 0 {
		h.ModTime = time.Unix(int64(g.IntN(1<<31)), int64(g.IntN(1e9)))
	}
	if g.IntN(6) == 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.volant": g.name()}
		if g.IntN(2) == 0 {
			h.PAXRecords["SCHILY.xattr.security.capability"] = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		}
	}
	return h
}
