package layers_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/testdata/need"
)

// sparseFile makes a file with content at some offsets.
func sparseFile(t *testing.T, name string, size int64, at ...int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, off := range at {
		if _, err := f.WriteAt([]byte("data at "+fmt.Sprint(off)), off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGNUTar reads what GNU tar writes, in each of its formats of archives and
// of sparse files.
func TestGNUTar(t *testing.T) {
	need.Tool(t, "tar")
	src := t.TempDir()
	sparseFile(t, filepath.Join(src, "middle"), 1<<20, 500_000)
	sparseFile(t, filepath.Join(src, "ends"), 3<<20, 0, 3<<20-20)
	sparseFile(t, filepath.Join(src, "hole"), 7_000_001)
	var many []int64
	for i := range int64(60) { // more runs than one header holds
		many = append(many, i<<16)
	}
	sparseFile(t, filepath.Join(src, "many"), 60<<16+5, many...)
	sparseFile(t, filepath.Join(src, strings.Repeat("long name ", 15)), 1<<20, 4096)
	write(t, filepath.Join(src, "plain"), []byte("plain"))
	write(t, filepath.Join(src, strings.Repeat("d/", 120)+"deep"), []byte("deep"))
	if err := os.Symlink(strings.Repeat("x", 300), filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	host, err := layers.FromDir(context.Background(), src, layers.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, format := range []string{"--format=gnu", "--format=oldgnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1", "--format=posix --sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "a.tar")
			args := append([]string{"--sparse", "--numeric-owner", "-C", src, "-cf", archive}, strings.Fields(format)...)
			if out, err := exec.Command("tar", append(args, ".")...).CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			b, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > 2<<20 {
				t.Fatalf("the archive has %d bytes, want it sparse", len(b))
			}
			tree, err := flatten(t, layertest.Layer(b))
			if err != nil {
				t.Fatal(err)
			}
			want := layertest.Dump(t, host)
			got := layertest.Dump(t, tree)
			if !strings.Contains(format, "posix") { // whole seconds
				got, want = seconds(got), seconds(want)
			}
			if d := layertest.Diff(got, want); d != "" {
				t.Errorf("%.3000s", d)
			}
			for _, n := range tree.Root.Children() {
				sparse := n.Name != "plain" && n.IsRegular()
				var stored int64
				for _, x := range n.Extents() {
					stored += x.Length
				}
				if n.Sparse() != sparse || sparse && stored > 600_000 {
					t.Errorf("%s: sparse is %v with %d bytes stored, want %v", n.Name, n.Sparse(), stored, sparse)
				}
			}
		})
	}
}

// seconds cuts the fractions off a dump's times.
func seconds(dump string) string {
	var out strings.Builder
	for l := range strings.Lines(dump) {
		if i := strings.Index(l, " @"); i >= 0 {
			j := i + strings.IndexByte(l[i:], '.')
			l = l[:j] + l[j+10:]
		}
		out.WriteString(l)
	}
	return out.String()
}

// archive returns one plain file's tar, for damaging.
func archive(t testing.TB) []byte {
	return layertest.Tar(t, layertest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644}, Data: strings.Repeat("x", 1000)})
}

// pax returns a tar with one file behind pax records; where holds Go's writer
// off the reserved ones.
func pax(t testing.TB, size int64, records ...string) []byte {
	t.Helper()
	var body string
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n = len(fmt.Sprint(n)) + len(r) + 2
		}
		body += fmt.Sprintf("%d %s\n", n, r)
	}
	x := layertest.Tar(t, layertest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x"}, Data: body})
	x = x[:len(x)-1024]
	x[156] = 'x'
	fix(x)
	return append(x, layertest.Tar(t, layertest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "f"}, Data: strings.Repeat("1", int(size))})...)
}

// fix sets the checksum of the header at the start of b.
func fix(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestDamagedLayers(t *testing.T) {
	damage := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(archive(t))) }
	field := func(at int, text string) []byte {
		return damage(func(b []byte) []byte { copy(b[at:], text); fix(b); return b })
	}
	tests := []struct {
		name string
		data []byte
		text string
	}{
		{"no tar", bytes.Repeat([]byte("no tar at all..."), 64), "no tar header at offset 0"},
		{"short", []byte("short"), "it ends after 5 bytes"},
		{"truncated in a header", damage(func(b []byte) []byte { return b[:300] }), "it ends after 300 bytes"},
		{"truncated in content", damage(func(b []byte) []byte { return b[:1100] }), `"f" is cut short: 588 of 1000 bytes are there`},
		{"garbage behind the content", damage(func(b []byte) []byte { b[1536] = 1; return b }), "no tar header at offset 1536"},
		{"lone zero block", damage(func(b []byte) []byte { return append(make([]byte, 512), b...) }), "a lone zero block"},
		{"flipped bit", damage(func(b []byte) []byte { b[5] ^= 1; return b }), "no tar header"},
		{"negative size", field(124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "has -1 bytes"},
		{"size beyond 63 bits", field(124, "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "too large"},
		{"size beyond the layer", field(124, "77777777777\x00"), "cut short"},
		{"size near the largest", field(124, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"), "cut short"},
		{"no octal", field(108, "rwxr-xr\x00"), "no octal number"},
		{"long name too long", field(124, "00100000000\x00"), "cut short"},
		{"pax header too large", damage(func(b []byte) []byte { b[156] = 'x'; copy(b[124:], "00100000000\x00"); fix(b); return b }), "extended header of 16777216 bytes"},
		{"pax header as the last", pax(t, 1, "comment=x")[:1024], "it ends after 1024 bytes"},
		{"pax without a length", bytes.Replace(pax(t, 1, "comment=x"), []byte("13 comment"), []byte("x3 comment"), 1), "pax header line"},
		{"pax without a value", pax(t, 1, "comment"), "pax record"},
		{"pax size", pax(t, 1, "size=-5"), "has -5 bytes"},
		{"pax time", pax(t, 1, "mtime=1.2.3"), `pax record "mtime"`},
		{"pax owner", pax(t, 1, "uid=root"), `pax record "uid"`},
		{"libarchive attribute", pax(t, 1, "LIBARCHIVE.xattr.user.x=!"), "pax record"},
		{"NUL in a name", pax(t, 1, "path=a\x00b"), "it holds a NUL"},
		{"climbing by pax", pax(t, 1, "path=../x"), "it climbs"},
		{"sparse format", pax(t, 1, "GNU.sparse.major=2", "GNU.sparse.minor=0"), "unknown format 2.0"},
		{"sparse map backwards", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=50,1,10,1"), "out of order"},
		{"sparse map too long", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=0,50"), "more than the archive holds"},
		{"sparse map beyond the end", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=99,2"), "beyond the file's end"},
		{"sparse map too short", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=0,1"), "stored bytes over"},
		{"sparse map odd", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=0"), "offset without a length"},
		{"sparse map overflows", pax(t, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=9223372036854775807", "GNU.sparse.map=9223372036854775807,9223372036854775807"), "beyond the file's end"},
		{"sparse 0.0 out of turn", pax(t, 2, "GNU.sparse.numbytes=1", "GNU.sparse.offset=0"), "do not alternate"},
		{"sparse 1.0 without a map", pax(t, 511, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9"), "is cut short"},
		{"sparse 1.0 announces many", pax(t, 512, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9"), "holds"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := flatten(t, layertest.Layer(tt.data))
			var le *layers.Error
			if !errors.As(err, &le) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Flatten = %v; want %q", err, tt.text)
			}
		})
	}
}

// TestSparseBomb bounds what a small layer may claim to be.
func TestSparseBomb(t *testing.T) {
	b := pax(t, 1, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=9000000000000000000", "GNU.sparse.map=0,1")
	if _, err := flatten(t, layertest.Layer(b)); !errors.Is(err, layers.ErrLimit) {
		t.Errorf("Flatten = %v, want %v", err, layers.ErrLimit)
	}
}

// readStd reads an archive with archive/tar.
func readStd(b []byte) ([]layers.TarEntry, error) {
	r := tar.NewReader(bytes.NewReader(b))
	var out []layers.TarEntry
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := layers.TarEntry{Type: h.Typeflag, Name: h.Name, Link: h.Linkname, Mode: uint32(h.Mode) & 0o7777, UID: int64(h.Uid), GID: int64(h.Gid),
			Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()), Major: h.Devmajor, Minor: h.Devminor, Size: h.Size}
		if h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse {
			e.Type = tar.TypeReg
		}
		if e.Type == tar.TypeReg && h.Size <= 1<<20 {
			if e.Content, err = io.ReadAll(r); err != nil {
				return out, err
			}
		}
		out = append(out, e)
	}
}

// FuzzTar compares the reader with archive/tar, wherever both read an archive.
func FuzzTar(f *testing.F) {
	f.Add(archive(f))
	f.Add(pax(f, 2, "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.size=100", "GNU.sparse.map=0,1,50,1"))
	f.Add(pax(f, 512+3, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1000", "GNU.sparse.name=n"))
	f.Add(pax(f, 3, "mtime=-1.5", "path=p/q", "uid=70000", "SCHILY.xattr.user.x=1"))
	for seed := range uint64(3) {
		f.Add(layertest.Tar(f, layertest.Random(seed)[0]...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := layers.ReadTar(b)
		want, stdErr := readStd(b)
		if err != nil || stdErr != nil {
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%d entries, archive/tar has %d", len(got), len(want))
		}
		for i := range got {
			g, w := got[i], want[i]
			if w.Type != tar.TypeChar && w.Type != tar.TypeBlock {
				w.Major, w.Minor = 0, 0
			}
			if w.Type == tar.TypeDir {
				w.Size = 0
			}
			if fmt.Sprint(g) != fmt.Sprint(w) {
				t.Errorf("entry %d:\ngot  %.400v\nwant %.400v", i, g, w)
			}
		}
	})
}

// FuzzFlatten applies two layers and checks what must hold of every tree.
func FuzzFlatten(f *testing.F) {
	for seed := range uint64(6) {
		stack := layertest.Random(seed)
		f.Add(layertest.Tar(f, stack[0]...), layertest.Tar(f, stack[len(stack)-1]...))
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		limits := layers.Limits{Entries: 10_000, Bytes: 1 << 26, MetadataBytes: 1 << 22}
		tree, err := layers.Flatten(context.Background(), []layers.Layer{layertest.Layer(lower), layertest.Layer(upper)}, limits)
		if err != nil {
			return
		}
		nodes := tree.Index()
		names := make(map[*layers.Inode]uint32)
		last := ""
		err = tree.Walk(func(path string, n *layers.Node) error {
			names[n.Inode]++
			base := path[strings.LastIndexByte(path, '/')+1:]
			if base == "" || base == "." || base == ".." || len(base) > 255 || strings.IndexByte(base, 0) >= 0 || len(path) > 4095 || strings.HasPrefix(base, ".wh.") {
				t.Errorf("name %q", path)
			}
			if strings.ReplaceAll(path, "/", "\x00") <= strings.ReplaceAll(last, "/", "\x00") {
				t.Errorf("%q comes behind %q", path, last)
			}
			last = path
			if nodes[n.Number].Inode != n.Inode {
				t.Errorf("%q has the number %d of another file", path, n.Number)
			}
			if n.IsRegular() {
				f, err := n.Open()
				if err != nil {
					return err
				}
				size, err := io.Copy(io.Discard, f.Reader())
				if err != nil || size != n.Size {
					t.Errorf("%q: %d bytes, %v; want %d", path, size, err, n.Size)
				}
				return f.Close()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if !n.IsDir() && names[n.Inode] != n.Nlink {
				t.Errorf("%q has %d names, want %d", n.Name, names[n.Inode], n.Nlink)
			}
		}
	})
}
