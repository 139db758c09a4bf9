package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// tarOf makes an archive of entries. A Size of -1 is that of the body.
type entry struct {
	tar.Header
	body string
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Size = int64(len(e.body))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) entry { return entry{tar.Header{Name: name}, body} }
func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}
func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
}
func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

// listing describes a tree: a line for each file, with mode, size, time and what
// it holds or leads to.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", rel, info.Mode())
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s %.20q nlink=%d", info.ModTime().UTC().Format(time.RFC3339Nano), b, info.Sys().(*syscall.Stat_t).Nlink)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case info.IsDir():
			line += " " + info.ModTime().UTC().Format(time.RFC3339Nano)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// makeTree makes a tree with everything that is kept.
func makeTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	when := time.Date(2020, 2, 3, 4, 5, 6, 789000000, time.UTC)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "a/b"), 0o755))
	must(os.MkdirAll(filepath.Join(root, "closed"), 0o755))
	must(os.MkdirAll(filepath.Join(root, "empty"), 0o755))
	must(os.WriteFile(filepath.Join(root, "a/one"), []byte("one\n"), 0o640))
	must(os.WriteFile(filepath.Join(root, "a/b/exe"), []byte("#!/bin/sh\n"), 0o755))
	must(os.WriteFile(filepath.Join(root, "closed/secret"), []byte("x"), 0o400))
	must(os.WriteFile(filepath.Join(root, "a/"+strings.Repeat("long", 40)), nil, 0o644))
	must(os.WriteFile(filepath.Join(root, "umlaut-ü\n\xff"), []byte("odd"), 0o644))
	must(os.Link(filepath.Join(root, "a/one"), filepath.Join(root, "a/uno")))
	must(os.Symlink("../a/one", filepath.Join(root, "a/link")))
	must(os.Symlink("/etc/passwd", filepath.Join(root, "absolute")))
	must(filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink == 0 {
			err = os.Chtimes(p, when, when)
		}
		return err
	}))
	must(os.Chmod(filepath.Join(root, "closed"), 0o500))
	must(os.Chmod(filepath.Join(root, "empty"), 0o1777))
	for _, p := range []string{"a/b", "a", "closed", "empty", ""} {
		must(os.Chtimes(filepath.Join(root, p), when, when))
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(root, "closed"), 0o700) })
	return root
}

// TestRoundTrip packs a tree and unpacks it elsewhere under each way of naming.
func TestRoundTrip(t *testing.T) {
	src := makeTree(t)
	for name, tc := range map[string]struct {
		name, as string
		o        ExtractOptions
		at       string
	}{
		"below its name":   {"tree", "tree", ExtractOptions{}, "tree"},
		"renamed":          {"tree", "tree", ExtractOptions{Top: "tree", As: "new"}, "new"},
		"contents of one":  {"tree", "tree", ExtractOptions{Top: "tree"}, ""},
		"packed as .":      {"tree", ".", ExtractOptions{}, ""},
		"packed otherwise": {"tree", "other", ExtractOptions{}, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Pack(t.Context(), &b, openRoot(t, filepath.Dir(src)), tc.name, tc.as, PackOptions{}); err != nil {
				t.Fatal(err)
			}
			dst := t.TempDir()
			if err := Extract(t.Context(), &b, openRoot(t, dst), tc.o); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(filepath.Join(dst, tc.at, "closed"), 0o700) })
			if got, want := listing(t, filepath.Join(dst, tc.at)), listing(t, src); got != want {
				t.Errorf("the copy is\n%s\nwant\n%s", got, want)
			}
			if tc.at == "" {
				return
			}
			if rest := listing(t, dst); strings.Count(rest, "\n") != strings.Count(listing(t, src), "\n")+1 {
				t.Errorf("something is beside the copy:\n%s", rest)
			}
		})
	}
}

// TestExtractMerges unpacks over what is there.
func TestExtractMerges(t *testing.T) {
	old := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		there   func(dst string) error
		entries []entry
		keep    bool
		check   string // a line of the listing
		wantErr error
	}{
		"a file is replaced": {
			there:   func(d string) error { return os.WriteFile(d+"/f", []byte("old"), 0o600) },
			entries: []entry{file("f", "new")}, check: `"new" nlink=1`,
		},
		"a further name of a file is not written to": {
			there: func(d string) error {
				return errors.Join(os.WriteFile(d+"/g", []byte("old"), 0o600), os.Link(d+"/g", d+"/f"))
			},
			entries: []entry{file("f", "new")}, check: `"old" nlink=1`,
		},
		"a link is replaced, and what it leads to is not": {
			there: func(d string) error {
				return errors.Join(os.WriteFile(d+"/g", []byte("old"), 0o600), os.Symlink("g", d+"/f"))
			},
			entries: []entry{file("f", "new")}, check: `"old"`,
		},
		"a directory is kept as it is": {
			there:   func(d string) error { return os.Mkdir(d+"/tmp", 0o700) },
			entries: []entry{dir("tmp/"), file("tmp/f", "x")}, check: "tmp drwx------",
		},
		"unless it is to be as in the archive": {
			there:   func(d string) error { return os.Mkdir(d+"/tmp", 0o700) },
			entries: []entry{dir("tmp/"), file("tmp/f", "x")}, keep: true, check: "tmp drwxr-xr-x",
		},
		"the destination is kept in any case": {
			there:   func(d string) error { return os.Mkdir(d+"/x", 0o700) },
			entries: []entry{{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o111}, ""}, file("./f", "x")}, keep: true, check: "f -rw-r--r--",
		},
		"a file over a directory": {
			there:   func(d string) error { return os.Mkdir(d+"/f", 0o700) },
			entries: []entry{file("f", "new")}, wantErr: ErrClash,
		},
		"a directory over a file": {
			there:   func(d string) error { return os.WriteFile(d+"/f", nil, 0o600) },
			entries: []entry{dir("f/")}, wantErr: ErrClash,
		},
		"through a link that is there": {
			there:   func(d string) error { return errors.Join(os.Mkdir(d+"/real", 0o700), os.Symlink("real", d+"/d")) },
			entries: []entry{file("d/f", "x")}, wantErr: ErrClash,
		},
		"directories that the archive does not name": {
			entries: []entry{file("a/b/c", "x")}, check: "a/b drwxr-xr-x",
		},
		"a directory that comes after what is in it": {
			entries: []entry{file("a/b", "x"), {tar.Header{Name: "a", Typeflag: tar.TypeDir, Mode: 0o711, ModTime: old}, ""}}, check: "a drwx--x--x 2001-01-01T00:00:00Z",
		},
		"bits that let a program be its owner": {
			entries: []entry{{tar.Header{Name: "f", Mode: 0o6755}, "x"}}, check: "f -rwxr-xr-x",
		},
		"and kept": {
			entries: []entry{{tar.Header{Name: "f", Mode: 0o6755}, "x"}}, keep: true, check: "f ugrwxr-xr-x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dst := t.TempDir()
			if tc.there != nil {
				if err := tc.there(dst); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, dst)
			err := Extract(t.Context(), bytes.NewReader(tarOf(t, tc.entries...)), openRoot(t, dst), ExtractOptions{Keep: tc.keep})
			if !errors.Is(err, tc.wantErr) || (err == nil) != (tc.wantErr == nil) {
				t.Fatalf("Extract = %v, want %v", err, tc.wantErr)
			}
			after := listing(t, dst)
			if tc.wantErr != nil && before != after {
				t.Errorf("it left\n%s\nwant\n%s", after, before)
			}
			if !strings.Contains(after, tc.check) {
				t.Errorf("it made\n%s\nwant a line with %s", after, tc.check)
			}
		})
	}
}

// hostile are archives that want to be somewhere else.
func hostile(t testing.TB, outside string) map[string][]byte {
	long := strings.Repeat("n", 256)
	deep := strings.Repeat("d/", MaxDepth+1)
	whole := tarOf(t, file("f", strings.Repeat("x", 2000)))
	return map[string][]byte{
		"dots":                       tarOf(t, file("../f", "x")),
		"dots within":                tarOf(t, dir("a/"), file("a/../../f", "x")),
		"only dots":                  tarOf(t, dir("..")),
		"absolute":                   tarOf(t, file(outside+"/f", "x")),
		"through its own link":       tarOf(t, symlink("l", outside), file("l/f", "x")),
		"through its own link, ..":   tarOf(t, symlink("l", ".."), file("l/f", "x")),
		"a directory over a link":    tarOf(t, symlink("l", outside), dir("l/"), file("l/f", "x")),
		"a chain of links":           tarOf(t, dir("a/"), symlink("a/l", ".."), symlink("m", "a/l/.."), file("m/f", "x")),
		"a hard link to outside":     tarOf(t, hardlink("l", outside+"/victim"), file("l", "x")),
		"a hard link by dots":        tarOf(t, hardlink("l", "../victim"), file("l", "x")),
		"a hard link through a link": tarOf(t, symlink("d", outside), hardlink("l", "d/victim"), file("l", "x")),
		"a hard link to a link":      tarOf(t, symlink("d", outside+"/victim"), hardlink("l", "d"), file("l", "x")),
		"a hard link to nothing":     tarOf(t, hardlink("l", "none")),
		"a hard link to itself":      tarOf(t, hardlink("l", "l")),
		"a long name":                tarOf(t, file(long, "x")),
		"a very long name":           tarOf(t, file(strings.Repeat("a/", 3000)+"f", "x")),
		"deep":                       tarOf(t, file(deep+"f", "x")),
		"a huge header":              hugeHeader(t),
		"a huge file":                hugeFile(),
		"a strange owner":            tarOf(t, entry{tar.Header{Name: "f", Uid: -1}, "x"}),
		"a link to nothing":          tarOf(t, symlink("l", strings.Repeat("t", 5000))),
		"cut in a header":            whole[:300],
		"cut in a file":              whole[:1024],
		"cut between entries":        whole[:512+2048],
		"cut in the end":             whole[:512+2048+512],
		"empty":                      {},
		"no archive":                 []byte(strings.Repeat("no archive", 1000)),
	}
}

// hugeFile is a file of 2⁶¹ bytes in the base-256 form, which are not there.
func hugeFile() []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	_ = tw.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: 1 << 61, Format: tar.FormatGNU})
	return b.Bytes()
}

// hugeHeader is an extended header of 3 MiB, in front of a file.
func hugeHeader(t testing.TB) []byte {
	record := "4000000 comment=" + strings.Repeat("x", 4000000-17) + "\n"
	data := tarOf(t, file("pax", record), file("f", "x"))
	data[156] = tar.TypeXHeader
	sum := 0
	copy(data[148:156], "        ")
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// TestExtractHostile checks that nothing comes to be outside, that every such
// archive is refused, and that no half file is left.
func TestExtractHostile(t *testing.T) {
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	for name, data := range hostile(t, outside) {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(outside), os.Mkdir(outside, 0o755), os.WriteFile(outside+"/victim", []byte("victim"), 0o644)); err != nil {
				t.Fatal(err)
			}
			dst := filepath.Join(base, "outer", "dst")
			if err := errors.Join(os.RemoveAll(filepath.Dir(dst)), os.MkdirAll(dst, 0o755), os.WriteFile(dst+"/../victim", []byte("victim"), 0o644)); err != nil {
				t.Fatal(err)
			}
			before := listing(t, outside) + "\n" + listing(t, filepath.Dir(dst))
			o := ExtractOptions{Owner: func(uid, gid int) (int, int) { return uid, os.Getgid() }}
			if os.Geteuid() != 0 && name != "a strange owner" {
				o.Owner = nil
			}
			err := Extract(t.Context(), bytes.NewReader(data), openRoot(t, dst), o)
			if err == nil {
				t.Error("Extract = nil, want an error")
			}
			t.Log(err)
			if strings.Contains(listing(t, dst), ".volant-") || strings.HasPrefix(name, "cut in a") && listing(t, dst) != "" {
				t.Errorf("a half file is left:\n%s", listing(t, dst))
			}
			if err := os.RemoveAll(dst); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dst, 0o755); err != nil {
				t.Fatal(err)
			}
			trim := func(s string) string { // the times of the directories that were made again
				return strings.Join(slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return strings.HasPrefix(l, "dst ") }), "\n")
			}
			if after := listing(t, outside) + "\n" + listing(t, filepath.Dir(dst)); trim(after) != trim(before) {
				t.Errorf("outside is now\n%s\nwant\n%s", after, before)
			}
		})
	}
}

// TestTop refuses what a renamed archive brings besides.
func TestTop(t *testing.T) {
	for name, data := range map[string][]byte{
		"beside it":            tarOf(t, dir("top/"), file("other", "x")),
		"longer":               tarOf(t, file("top2/f", "x")),
		"nothing of it":        tarOf(t, dir("./")),
		"a link to beside it":  tarOf(t, file("top/f", "x"), hardlink("top/g", "f")),
		"a file for a content": tarOf(t, file("top", "x")),
	} {
		dst := t.TempDir()
		o := ExtractOptions{Top: "top", As: "new"}
		if name == "a file for a content" {
			o.As = ""
		}
		if err := Extract(t.Context(), bytes.NewReader(data), openRoot(t, dst), o); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrClash) {
			t.Errorf("%s: Extract = %v, want it refused", name, err)
		}
	}
	if err := Extract(t.Context(), bytes.NewReader(tarOf(t, file("a", "x"))), openRoot(t, t.TempDir()), ExtractOptions{Top: "a", As: "../b"}); !errors.Is(err, ErrMalformed) {
		t.Errorf("As ../b: Extract = %v, want malformed", err)
	}
}

// TestLeftOut has what is not unpacked without those who can.
func TestLeftOut(t *testing.T) {
	data := tarOf(t, entry{tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""},
		entry{tar.Header{Name: "blk", Typeflag: tar.TypeBlock}, ""}, entry{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}, ""},
		entry{tar.Header{Name: "x", Typeflag: 'Q'}, ""}, file("f", "x"))
	var left []string
	dst := t.TempDir()
	o := ExtractOptions{LeftOut: func(name, why string) error { left = append(left, name); return nil }}
	if err := Extract(t.Context(), bytes.NewReader(data), openRoot(t, dst), o); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(left, " "); got != "dev blk pipe x" || strings.Contains(listing(t, dst), "\n") {
		t.Errorf("left out %s, and made\n%s", got, listing(t, dst))
	}
	boom := errors.New("boom")
	o.LeftOut = func(string, string) error { return boom }
	if err := Extract(t.Context(), bytes.NewReader(data), openRoot(t, t.TempDir()), o); !errors.Is(err, boom) {
		t.Errorf("Extract = %v, want %v", err, boom)
	}
}

// TestEnter refuses a directory by its name, also as the source of a link.
func TestEnter(t *testing.T) {
	no := errors.New("no")
	for name, data := range map[string][]byte{
		"file": tarOf(t, file("a/own/f", "x")),
		"dir":  tarOf(t, dir("a/own/")),
		"link": tarOf(t, hardlink("l", "a/own/there")),
	} {
		dst := t.TempDir()
		if err := errors.Join(os.MkdirAll(dst+"/a/own", 0o755), os.WriteFile(dst+"/a/own/there", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		err := Extract(t.Context(), bytes.NewReader(data), openRoot(t, dst), ExtractOptions{Enter: func(_ *Dir, name string) error {
			if name == "a/own" {
				return no
			}
			return nil
		}})
		if !errors.Is(err, no) {
			t.Errorf("%s: Extract = %v, want %v", name, err, no)
		}
	}
}

// TestSparse unpacks a hole of 64 MiB into next to nothing.
func TestSparse(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	f, err := os.Create(filepath.Join(src, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("middle"), 32<<20+5); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(64<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(Pack(t.Context(), w, openRoot(t, src), "f", "f", PackOptions{})) }()
	if err := Extract(t.Context(), r, openRoot(t, dst), ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dst, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != 64<<20 || used > 1<<20 {
		t.Errorf("the copy has %d bytes and takes %d", info.Size(), used)
	}
	got := make([]byte, 8)
	g, err := os.Open(filepath.Join(dst, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.ReadAt(got, 32<<20+4); err != nil || string(got) != "\x00middle\x00" {
		t.Errorf("it holds %q, %v", got, err)
	}
}

// TestPackFailure has Pack fail at different places: nobody takes what it wrote
// for whole, be it this package or tar(1).
func TestPackFailure(t *testing.T) {
	src := makeTree(t)
	boom := errors.New("boom")
	for _, at := range []string{"t", "t/a", "t/a/b", "t/empty"} {
		var b bytes.Buffer
		err := Pack(t.Context(), &b, openRoot(t, filepath.Dir(src)), "tree", "t", PackOptions{Enter: func(_ *Dir, name string) (bool, error) {
			if name == at {
				return false, boom
			}
			return true, nil
		}})
		if !errors.Is(err, boom) {
			t.Fatalf("Pack = %v, want %v", err, boom)
		}
		dst := t.TempDir()
		t.Cleanup(func() { _ = os.Chmod(dst+"/t/closed", 0o700) })
		if err := Extract(t.Context(), bytes.NewReader(b.Bytes()), openRoot(t, dst), ExtractOptions{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("failed at %s: Extract = %v, want malformed", at, err)
		}
		checkTar(t, b.Bytes(), false)
	}
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, openRoot(t, filepath.Dir(src)), "none", "t", PackOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Pack of nothing = %v, want not exist", err)
	}
	b.Reset()
	if err := Pack(t.Context(), &b, openRoot(t, filepath.Dir(src)), "tree", "t", PackOptions{}); err != nil {
		t.Fatal(err)
	}
	checkTar(t, b.Bytes(), true)
}

// TestPackShorter has a file become shorter while it is read.
func TestPackShorter(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	w := writerFunc(func(p []byte) (int, error) { return len(p), os.Truncate(name, 1000) })
	if err := Pack(t.Context(), w, openRoot(t, dir), "f", "f", PackOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("Pack = %v, want %v", err, ErrChanged)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestPackOddities has what cannot be packed, and what must not be waited for.
func TestPackOddities(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, "sock")}); err != nil {
		t.Fatal(err)
	}
	var left []string
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, openRoot(t, dir), ".", ".", PackOptions{LeftOut: func(name, _ string) { left = append(left, name) }}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %c", h.Name, h.Typeflag))
	}
	if got := strings.Join(names, ", "); got != "./ 5, ./pipe 6" || strings.Join(left, " ") != "./sock" {
		t.Errorf("packed %s, left out %v", got, left)
	}
}

// TestOpenDir does not wait for a pipe, and follows nothing.
func TestOpenDir(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644), os.Symlink(".", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "d"), 0o755)); err != nil {
		t.Fatal(err)
	}
	root := openRoot(t, dir)
	for name, want := range map[string]error{"pipe": syscall.ENOTDIR, "link": syscall.ENOTDIR, "none": syscall.ENOENT, "d": nil} {
		d, err := OpenDir(root, name)
		if !errors.Is(err, want) {
			t.Errorf("OpenDir(%s) = %v, want %v", name, err, want)
		}
		if err == nil {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
