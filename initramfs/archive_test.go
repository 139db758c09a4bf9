package initramfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cavaliergopher "github.com/cavaliergopher/cpio"

	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// sample holds one entry of every kind, in no order.
func sample() []initramfs.Entry {
	return []initramfs.Entry{
		{Name: "usr/bin/tool", Mode: 0o755, Data: []byte("#!/bin/sh\necho tool\n")},
		{Name: "/etc/motd", Mode: 0o644, UID: 1000, GID: 100, Data: []byte("hello")},
		{Name: "bin", Mode: fs.ModeSymlink | 0o777, Linkname: "usr/bin"},
		{Name: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Name: "dev/vda", Mode: fs.ModeDevice | 0o660, Major: 254, Minor: 17},
		{Name: "run/pipe", Mode: fs.ModeNamedPipe | 0o600},
		{Name: "run/sock", Mode: fs.ModeSocket | 0o600},
		{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Name: "usr/bin/su", Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755, Data: []byte("su")},
		{Name: "usr/bin/alias-a", Linkname: "usr/bin/tool"},
		{Name: "usr/bin/z-alias", Linkname: "/usr/bin/tool"},
		{Name: "empty", Mode: 0o600},
		{Name: "a file with spaces and ünïcode", Mode: 0o444, Open: opener("streamed"), Size: 8},
	}
}

func opener(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

func pack(t testing.TB, entries []initramfs.Entry) []byte {
	t.Helper()
	var a initramfs.Archive
	for _, e := range entries {
		if err := a.Add(e); err != nil {
			t.Fatalf("Add(%q): %v", e.Name, err)
		}
	}
	var buf bytes.Buffer
	n, err := a.WriteTo(&buf)
	if err != nil {
		t.Fatalf("WriteTo: %v", err)
	}
	if n != int64(buf.Len()) || n%4 != 0 {
		t.Fatalf("WriteTo = %d bytes, wrote %d; want equal and a multiple of 4", n, buf.Len())
	}
	return buf.Bytes()
}

// listing reads an image to one line an entry, content included.
func listing(t testing.TB, image []byte) []string {
	t.Helper()
	var out []string
	r := initramfs.NewReader(bytes.NewReader(image), initramfs.Limits{})
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatalf("Next after %d entries: %v", len(out), err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		out = append(out, fmt.Sprintf("%v %d:%d n%d %d,%d %s|%s|%s", h.Mode, h.UID, h.GID, h.Nlink, h.Major, h.Minor, h.Name, h.Linkname, content))
	}
}

func wantSample() []string {
	return []string{
		"-r--r--r-- 0:0 n1 0,0 a file with spaces and ünïcode||streamed",
		"Lrwxrwxrwx 0:0 n1 0,0 bin|usr/bin|",
		"drwxr-xr-x 0:0 n2 0,0 dev||",
		"Dcrw------- 0:0 n1 5,1 dev/console||",
		"Drw-rw---- 0:0 n1 254,17 dev/vda||",
		"-rw------- 0:0 n1 0,0 empty||",
		"drwxr-xr-x 0:0 n2 0,0 etc||",
		"-rw-r--r-- 1000:100 n1 0,0 etc/motd||hello",
		"drwxr-xr-x 0:0 n2 0,0 run||",
		"prw------- 0:0 n1 0,0 run/pipe||",
		"Srw------- 0:0 n1 0,0 run/sock||",
		"dtrwxrwxrwx 0:0 n2 0,0 tmp||",
		"drwxr-xr-x 0:0 n2 0,0 usr||",
		"drwxr-xr-x 0:0 n2 0,0 usr/bin||",
		"-rwxr-xr-x 0:0 n3 0,0 usr/bin/alias-a||",
		"ugrwxr-xr-x 0:0 n1 0,0 usr/bin/su||su",
		"-rwxr-xr-x 0:0 n3 0,0 usr/bin/tool||",
		"-rwxr-xr-x 0:0 n3 0,0 usr/bin/z-alias||#!/bin/sh\necho tool\n",
	}
}

func diff(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRoundTrip(t *testing.T) {
	diff(t, listing(t, pack(t, sample())), wantSample())
}

func TestOrderOfAddingDoesNotMatter(t *testing.T) {
	want := pack(t, sample())
	backward := sample()
	slices.Reverse(backward)
	if got := pack(t, backward); !bytes.Equal(got, want) {
		t.Error("entries added backward gave other bytes")
	}
	if got := pack(t, sample()); !bytes.Equal(got, want) {
		t.Error("writing twice gave other bytes")
	}
}

func TestGolden(t *testing.T) {
	// Counted by hand from cpio(5): the format must not drift.
	got := string(pack(t, []initramfs.Entry{{Name: "d/f", Mode: 0o640, UID: 1, GID: 2, Data: []byte("hello")}}))
	want := "070701" + "00000001" + "000041ED" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "d\x00" +
		"070701" + "00000002" + "000081A0" + "00000001" + "00000002" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "d/f\x00" + "\x00\x00" + "hello\x00\x00\x00" +
		"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if got != want {
		t.Errorf("archive =\n%q\nwant\n%q", got, want)
	}
}

func TestAddRefuses(t *testing.T) {
	long := strings.Repeat("x", initramfs.MaxComponent+1)
	for _, tt := range []struct {
		name  string
		entry initramfs.Entry
		want  error // nil: any
	}{
		{"empty name", initramfs.Entry{Name: ""}, initramfs.ErrName},
		{"root", initramfs.Entry{Name: "/", Mode: fs.ModeDir}, initramfs.ErrName},
		{"climbing", initramfs.Entry{Name: "../etc/passwd"}, initramfs.ErrName},
		{"climbing inside", initramfs.Entry{Name: "a/../../b"}, initramfs.ErrName},
		{"dot", initramfs.Entry{Name: "./a"}, initramfs.ErrName},
		{"two slashes", initramfs.Entry{Name: "//a"}, initramfs.ErrName},
		{"trailing slash", initramfs.Entry{Name: "a/", Mode: fs.ModeDir}, initramfs.ErrName},
		{"NUL", initramfs.Entry{Name: "a\x00b"}, initramfs.ErrName},
		{"trailer", initramfs.Entry{Name: "TRAILER!!!"}, initramfs.ErrName},
		{"long component", initramfs.Entry{Name: long}, initramfs.ErrName},
		{"long path", initramfs.Entry{Name: strings.Repeat("abcdefg/", 512) + "x"}, initramfs.ErrName},
		{"4 GiB", initramfs.Entry{Name: "big", Open: opener(""), Size: 1 << 32}, initramfs.ErrTooLarge},
		{"negative size", initramfs.Entry{Name: "neg", Open: opener(""), Size: -1}, nil},
		{"directory with content", initramfs.Entry{Name: "d", Mode: fs.ModeDir, Data: []byte("x")}, nil},
		{"symlink without target", initramfs.Entry{Name: "l", Mode: fs.ModeSymlink}, nil},
		{"symlink with NUL", initramfs.Entry{Name: "l", Mode: fs.ModeSymlink, Linkname: "a\x00"}, nil},
		{"hard link with content", initramfs.Entry{Name: "h", Linkname: "x", Data: []byte("x")}, nil},
		{"hard link climbing", initramfs.Entry{Name: "h", Linkname: "../x"}, initramfs.ErrName},
		{"file with device number", initramfs.Entry{Name: "f", Major: 1}, nil},
		{"two contents", initramfs.Entry{Name: "f", Data: []byte("x"), Open: opener("x"), Size: 1}, nil},
		{"irregular", initramfs.Entry{Name: "f", Mode: fs.ModeIrregular}, nil},
		{"twice", initramfs.Entry{Name: "/there"}, initramfs.ErrDuplicate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var a initramfs.Archive
			if err := a.Add(initramfs.Entry{Name: "there"}); err != nil {
				t.Fatal(err)
			}
			err := a.Add(tt.entry)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Add(%+v) = %v, want %v", tt.entry.Name, err, tt.want)
			}
			if a.Len() != 1 {
				t.Errorf("a refused entry was kept")
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []initramfs.Entry
		want    string
	}{
		{"file as parent", []initramfs.Entry{{Name: "a"}, {Name: "a/b/c"}}, "a/b/c: a is a regular file, not a directory"},
		{"symlink as parent", []initramfs.Entry{{Name: "lib", Mode: fs.ModeSymlink, Linkname: "usr/lib"}, {Name: "lib/x"}}, "lib is a symbolic link"},
		{"dangling hard link", []initramfs.Entry{{Name: "h", Linkname: "gone"}}, "not in the archive"},
		{"hard link to hard link", []initramfs.Entry{{Name: "f"}, {Name: "g", Linkname: "f"}, {Name: "h", Linkname: "g"}}, "not a regular file"},
		{"hard link to directory", []initramfs.Entry{{Name: "d", Mode: fs.ModeDir}, {Name: "h", Linkname: "d"}}, "not a regular file"},
		{"short content", []initramfs.Entry{{Name: "f", Open: opener("1234"), Size: 5}}, "f: content does not match its size: 4 bytes, announced as 5"},
		{"long content", []initramfs.Entry{{Name: "f", Open: opener("123456"), Size: 5}}, "more than the 5 bytes"},
		{"opener", []initramfs.Entry{{Name: "f", Open: func() (io.ReadCloser, error) { return nil, fs.ErrPermission }, Size: 5}}, "permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var a initramfs.Archive
			for _, e := range tt.entries {
				if err := a.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := a.WriteTo(io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("WriteTo = %v, want %q", err, tt.want)
			}
		})
	}
}

func run(t testing.TB, dir string, stdin []byte, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Tool(t, name), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String()
}

func TestGNUCpioListsOurs(t *testing.T) {
	out := run(t, t.TempDir(), pack(t, sample()), "cpio", "-itv", "--numeric-uid-gid", "--quiet")
	for _, want := range []string{
		"crw-------   1 0        0          5,   1 Jan  1  1970 dev/console",
		"brw-rw----   1 0        0        254,  17 Jan  1  1970 dev/vda",
		"-rw-r--r--   1 1000     100             5 Jan  1  1970 etc/motd",
		"lrwxrwxrwx   1 0        0               7 Jan  1  1970 bin -> usr/bin",
		"prw-------   1 0        0               0 Jan  1  1970 run/pipe",
		"drwxrwxrwt   2 0        0               0 Jan  1  1970 tmp",
		"-rwsr-sr-x   1 0        0               2 Jan  1  1970 usr/bin/su",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("cpio -itv lacks %q:\n%s", want, out)
		}
	}
}

func TestGNUCpioExtractsOurs(t *testing.T) {
	dir := t.TempDir()
	var entries []initramfs.Entry
	for _, e := range sample() {
		if e.Mode&(fs.ModeDevice|fs.ModeSocket) == 0 { // those need root
			e.UID, e.GID = 0, 0
			entries = append(entries, e)
		}
	}
	run(t, dir, pack(t, entries), "cpio", "-idm", "--no-preserve-owner", "--quiet")
	for name, want := range map[string]string{
		"usr/bin/tool": "#!/bin/sh\necho tool\n", "usr/bin/alias-a": "#!/bin/sh\necho tool\n",
		"usr/bin/z-alias": "#!/bin/sh\necho tool\n", "etc/motd": "hello", "empty": "",
		"a file with spaces and ünïcode": "streamed",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	a, errA := os.Stat(filepath.Join(dir, "usr/bin/alias-a"))
	z, errZ := os.Stat(filepath.Join(dir, "usr/bin/z-alias"))
	if errA != nil || errZ != nil || !os.SameFile(a, z) {
		t.Errorf("hard links are not one file: %v, %v", errA, errZ)
	}
	if l, err := os.Readlink(filepath.Join(dir, "bin")); l != "usr/bin" {
		t.Errorf("readlink bin = %q, %v", l, err)
	}
}

func TestWeReadGNUCpio(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"one": "1", "sub/two": "22", "sub/three": ""} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "uno")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/two", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"newc", "crc"} {
		t.Run(format, func(t *testing.T) {
			image := run(t, dir, []byte(".\none\nuno\nlink\nsub\nsub/two\nsub/three\n"), "cpio", "-o", "-H", format, "--quiet")
			r := initramfs.NewReader(strings.NewReader(image), initramfs.Limits{})
			got := make(map[string]string)
			ino := make(map[string]uint32)
			for {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				content, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				got[h.Name] = h.Mode.String()[:1] + h.Linkname + string(content)
				ino[h.Name] = h.Ino
			}
			want := map[string]string{".": "d", "one": "-", "uno": "-1", "link": "Lsub/two", "sub": "d", "sub/two": "-22", "sub/three": "-"}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("read %v, want %v", got, want)
			}
			if ino["one"] != ino["uno"] || ino["one"] == ino["sub/two"] {
				t.Errorf("inodes %v: one and uno are one file", ino)
			}
		})
	}
	t.Run("wrong checksum", func(t *testing.T) {
		image := []byte(run(t, dir, []byte("sub/two\n"), "cpio", "-o", "-H", "crc", "--quiet"))
		image[bytes.Index(image, []byte("22"))] = '3'
		r := initramfs.NewReader(bytes.NewReader(image), initramfs.Limits{})
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); !errors.Is(err, initramfs.ErrFormat) || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("Next = %v, want a checksum error", err)
		}
	})
}

func TestCavaliergopherReadsOurs(t *testing.T) {
	r := cavaliergopher.NewReader(bytes.NewReader(pack(t, sample())))
	var got []string
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s|%s|%s", h.Name, h.Linkname, content))
	}
	want := wantSample()
	if len(got) != len(want) {
		t.Fatalf("read %d entries, want %d", len(got), len(want))
	}
	for i := range got {
		if !strings.HasSuffix(want[i], got[i]) {
			t.Errorf("entry %d = %q, want the end of %q", i, got[i], want[i])
		}
	}
}
