package initramfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/initramfs"
)

func compressions() []initramfs.Compression {
	return []initramfs.Compression{initramfs.None, initramfs.Gzip, initramfs.Zstd, initramfs.LZ4}
}

func compress(t testing.TB, c initramfs.Compression, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := c.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	// In uneven pieces, so that block borders do not fall on write borders.
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 300_007)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// large is more than one lz4 block, half of it incompressible.
func large() []byte {
	rng := rand.NewChaCha8([32]byte{1})
	b := make([]byte, 9<<20+5)
	rng.Read(b[:5<<20])
	for i := 5 << 20; i < len(b); i++ {
		b[i] = byte(i >> 9)
	}
	return b
}

func TestCompressions(t *testing.T) {
	entries := append(sample(), initramfs.Entry{Name: "large", Mode: 0o644, Data: large()})
	image := pack(t, entries)
	want := listing(t, image)
	tools := map[initramfs.Compression]string{initramfs.Gzip: "gzip", initramfs.Zstd: "zstd", initramfs.LZ4: "lz4"}
	for _, c := range compressions() {
		t.Run(string(c), func(t *testing.T) {
			packed := compress(t, c, image)
			if again := compress(t, c, image); !bytes.Equal(packed, again) {
				t.Error("compressing twice gave other bytes")
			}
			diff(t, listing(t, packed), want)
			if c == initramfs.None {
				return
			}
			if len(packed) >= len(image)*9/10 {
				t.Errorf("%d bytes of %d: not compressed", len(packed), len(image))
			}
			tool := tools[c]
			if got := run(t, "", packed, tool, "-dc"); got != string(image) {
				t.Errorf("%s -dc gave %d bytes, want the %d of the image", tool, len(got), len(image))
			}
		})
	}
}

func TestWeReadTheTools(t *testing.T) {
	image := pack(t, sample())
	for _, tt := range [][]string{
		{"gzip", "-9c"}, {"gzip", "-nc"}, {"zstd", "-19c"}, {"zstd", "-1c", "--no-check"}, {"zstd", "-3c", "--long=27"}, {"lz4", "-l9c"}, {"lz4", "-lc"},
	} {
		t.Run(strings.Join(tt, " "), func(t *testing.T) {
			diff(t, listing(t, []byte(run(t, "", image, tt[0], tt[1:]...))), wantSample())
		})
	}
	t.Run("lz4 frame", func(t *testing.T) {
		r := initramfs.NewReader(strings.NewReader(run(t, "", image, "lz4", "-c")), initramfs.Limits{})
		if _, err := r.Next(); !errors.Is(err, initramfs.ErrUnsupported) || !strings.Contains(err.Error(), "lz4 -l") {
			t.Errorf("Next = %v, want ErrUnsupported naming lz4 -l", err)
		}
	})
}

func TestConcat(t *testing.T) {
	first := pack(t, []initramfs.Entry{{Name: "init", Mode: 0o755, Data: []byte("agent")}})
	second := pack(t, []initramfs.Entry{{Name: "app", Mode: 0o755, Data: []byte("x")}})
	var want []string
	for _, c1 := range compressions() {
		for _, c2 := range compressions() {
			for _, c3 := range compressions() {
				t.Run(string(c1+"+"+c2+"+"+c3), func(t *testing.T) {
					var buf bytes.Buffer
					n, err := initramfs.Concat(&buf, bytes.NewReader(compress(t, c1, first)), strings.NewReader(""),
						bytes.NewReader(compress(t, c2, second)), bytes.NewReader(compress(t, c3, first)))
					if err != nil || n != int64(buf.Len()) {
						t.Fatalf("Concat = %d, %v; wrote %d", n, err, buf.Len())
					}
					if want == nil {
						want = slices.Concat(listing(t, first), listing(t, second), listing(t, first))
					}
					diff(t, listing(t, buf.Bytes()), want)

					r := initramfs.NewReader(bytes.NewReader(buf.Bytes()), initramfs.Limits{})
					for range want {
						if _, err := r.Next(); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := r.Next(); err != io.EOF {
						t.Fatalf("Next = %v, want EOF", err)
					}
					segs := r.Segments()
					if len(segs) != 3 {
						t.Fatalf("Segments = %+v, want three", segs)
					}
					for i, c := range []initramfs.Compression{c1, c2, c3} {
						s := segs[i]
						data := compress(t, c, [][]byte{first, second, first}[i])
						if s.Compression != c || s.Entries != 1 || s.Offset%4 != 0 || s.Length != int64(len(data)) ||
							!bytes.Equal(buf.Bytes()[s.Offset:s.Offset+s.Length], data) {
							t.Errorf("segment %d = %+v, want %s, %d bytes", i, s, c, len(data))
						}
					}
				})
			}
		}
	}
	t.Run("junk", func(t *testing.T) {
		if _, err := initramfs.Concat(io.Discard, bytes.NewReader(first), strings.NewReader("\x7fELF")); !errors.Is(err, initramfs.ErrFormat) || !strings.Contains(err.Error(), "segment 1") {
			t.Errorf("Concat = %v, want ErrFormat of segment 1", err)
		}
	})
}

func TestKernelPadding(t *testing.T) {
	a := pack(t, []initramfs.Entry{{Name: "a", Data: []byte("1")}})
	// 512-byte blocks of GNU cpio, and any multiple of four, lie between.
	for _, gap := range []int{0, 4, 8, 512, 4096} {
		image := slices.Concat(a, make([]byte, gap), a, make([]byte, 3))
		if got := listing(t, image); len(got) != 2 {
			t.Errorf("gap %d: %d entries, want 2", gap, len(got))
		}
	}
	for _, gap := range []int{1, 2, 3, 5} {
		r := initramfs.NewReader(bytes.NewReader(slices.Concat(a, make([]byte, gap), a)), initramfs.Limits{})
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); !errors.Is(err, initramfs.ErrFormat) {
			t.Errorf("gap %d: Next = %v, want ErrFormat: the kernel refuses it", gap, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	good := pack(t, []initramfs.Entry{{Name: "abcd", Mode: 0o644, Data: []byte("1234")}})
	edit := func(off int, s string) []byte {
		b := bytes.Clone(good)
		copy(b[off:], s)
		return b
	}
	field := func(i int, s string) []byte { return edit(6+8*i, s) }
	packed := func(c initramfs.Compression, data []byte) []byte { return compress(t, c, data) }
	corrupt := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-6] ^= 0x55; return b }
	for _, tt := range []struct {
		name  string
		image []byte
		want  error
	}{
		{"empty", nil, initramfs.ErrFormat},
		{"zeros", make([]byte, 1024), initramfs.ErrFormat},
		{"ELF", []byte("\x7fELF..........."), initramfs.ErrFormat},
		{"portable format", edit(0, "070707"), initramfs.ErrFormat},
		{"not hexadecimal", field(1, "0000x1A4"), initramfs.ErrFormat},
		{"sign", field(6, "-0000004"), initramfs.ErrFormat},
		{"no type", field(1, "000001A4"), initramfs.ErrFormat},
		{"no name", field(11, "00000001"), initramfs.ErrName},
		{"huge name", field(11, "7FFFFFFF"), initramfs.ErrName},
		{"name without NUL", edit(110, "abcde"), initramfs.ErrName},
		{"climbing", edit(110, "../x"), initramfs.ErrName},
		{"NUL in name", edit(110, "a\x00bc"), initramfs.ErrName},
		{"huge file", field(6, "FFFFFFFF"), io.ErrUnexpectedEOF},
		{"directory with content", field(1, "000041ED"), initramfs.ErrFormat},
		{"no trailer", good[:len(good)-124], io.ErrUnexpectedEOF},
		{"cut in header", good[:50], io.ErrUnexpectedEOF},
		{"cut in content", good[:118], io.ErrUnexpectedEOF},
		{"junk behind", append(bytes.Clone(good), "junk"...), initramfs.ErrFormat},
		{"xz", []byte("\xfd7zXZ\x00..."), initramfs.ErrUnsupported},
		{"gzip cut", packed(initramfs.Gzip, good)[:40], io.ErrUnexpectedEOF},
		{"zstd cut", packed(initramfs.Zstd, good)[:40], io.ErrUnexpectedEOF},
		{"lz4 cut", packed(initramfs.LZ4, good)[:40], io.ErrUnexpectedEOF},
		{"lz4 block length", []byte("\x02\x21\x4c\x18\xff\xff\xff\xff"), nil},
		{"gzip checksum", corrupt(packed(initramfs.Gzip, good)), nil},
		{"zstd checksum", corrupt(packed(initramfs.Zstd, good)), nil},
		{"nested compression", packed(initramfs.Gzip, packed(initramfs.Gzip, good)), initramfs.ErrFormat},
		{"junk in gzip", packed(initramfs.Gzip, append(bytes.Clone(good), "junk"...)), initramfs.ErrFormat},
		{"lz4 then cpio without padding", append(packed(initramfs.LZ4, good), good...), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := initramfs.NewReader(bytes.NewReader(tt.image), initramfs.Limits{})
			var err error
			for err == nil {
				_, err = r.Next()
			}
			if err == io.EOF || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Next = %v, want %v", err, tt.want)
			}
			if _, again := r.Next(); again != err {
				t.Errorf("second Next = %v, want %v again", again, err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	var entries []initramfs.Entry
	for _, n := range []string{"a", "b", "c"} {
		entries = append(entries, initramfs.Entry{Name: n, Data: make([]byte, 1<<20)})
	}
	image := pack(t, entries)
	for _, c := range compressions() {
		for _, tt := range []struct {
			name   string
			limits initramfs.Limits
			want   error
		}{
			{"fits", initramfs.Limits{Entries: 3, Bytes: 4 << 20}, io.EOF},
			{"entries", initramfs.Limits{Entries: 2}, initramfs.ErrLimit},
			{"bytes", initramfs.Limits{Bytes: 2 << 20}, initramfs.ErrLimit},
		} {
			t.Run(string(c)+" "+tt.name, func(t *testing.T) {
				r := initramfs.NewReader(bytes.NewReader(compress(t, c, image)), tt.limits)
				var err error
				for err == nil {
					_, err = r.Next()
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("Next = %v, want %v", err, tt.want)
				}
			})
		}
	}
	t.Run("segments of nothing", func(t *testing.T) {
		empty := pack(t, nil)
		r := initramfs.NewReader(bytes.NewReader(slices.Concat(empty, empty, empty)), initramfs.Limits{Entries: 2})
		if _, err := r.Next(); !errors.Is(err, initramfs.ErrLimit) {
			t.Errorf("Next = %v, want ErrLimit", err)
		}
	})
	t.Run("all segments together", func(t *testing.T) {
		z := compress(t, initramfs.Zstd, image)
		r := initramfs.NewReader(bytes.NewReader(slices.Concat(z, z, z)), initramfs.Limits{Bytes: 8 << 20})
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, initramfs.ErrLimit) {
			t.Errorf("Next = %v, want ErrLimit", err)
		}
	})
}

func FuzzReader(f *testing.F) {
	image := pack(f, sample())
	for _, c := range compressions() {
		f.Add(compress(f, c, image))
	}
	var two bytes.Buffer
	if _, err := initramfs.Concat(&two, bytes.NewReader(compress(f, initramfs.LZ4, image)), bytes.NewReader(image)); err != nil {
		f.Fatal(err)
	}
	f.Add(two.Bytes())
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := initramfs.NewReader(bytes.NewReader(data), initramfs.Limits{Entries: 1000, Bytes: 16 << 20})
		for n := 0; ; n++ {
			h, err := r.Next()
			if err != nil {
				return
			}
			if n > 1000 {
				t.Fatal("more entries than the limit")
			}
			if h.Name == "" || h.Name[0] == '/' || h.Name != "." && !fs.ValidPath(strings.ToValidUTF8(h.Name, "?")) {
				t.Fatalf("unsafe name %q", h.Name)
			}
			if n%2 == 0 {
				got, err := io.Copy(io.Discard, r)
				if err == nil && got != h.Size {
					t.Fatalf("%q: read %d of %d bytes", h.Name, got, h.Size)
				}
			}
		}
	})
}

// FuzzWriteRead makes entries of what it is given; what Add takes must come
// back as it was.
func FuzzWriteRead(f *testing.F) {
	f.Add("etc/motd", uint32(0o644), []byte("hello"), uint32(3), uint32(4), byte(0))
	f.Add("bin", uint32(fs.ModeSymlink|0o777), []byte("usr/bin"), uint32(0), uint32(0), byte(1))
	f.Add("/dev/x", uint32(fs.ModeDevice|0o600), []byte{}, uint32(259), uint32(70000), byte(2))
	f.Fuzz(func(t *testing.T, name string, mode uint32, data []byte, major, minor uint32, c byte) {
		e := initramfs.Entry{Name: name, Mode: fs.FileMode(mode), Major: major, Minor: minor, UID: minor, GID: major}
		if e.Mode&fs.ModeSymlink != 0 {
			e.Linkname = string(data)
		} else {
			e.Data = data
		}
		var a initramfs.Archive
		if a.Add(e) != nil {
			return
		}
		var buf bytes.Buffer
		w, err := compressions()[c%4].NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteTo(w); err != nil {
			t.Fatalf("WriteTo after Add took it: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r := initramfs.NewReader(&buf, initramfs.Limits{})
		for {
			h, err := r.Next()
			if err != nil {
				t.Fatalf("%q is not in the archive: %v", name, err)
			}
			if h.Name != strings.TrimPrefix(name, "/") {
				continue // a parent
			}
			kept := fs.ModePerm | fs.ModeType | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Mode != e.Mode&kept || h.Linkname != e.Linkname || !bytes.Equal(got, e.Data) || h.Major != major || h.Minor != minor || h.UID != minor || h.GID != major {
				t.Fatalf("read %+v %q, want %+v", h, got, e)
			}
			break
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("Next = %v, want EOF", err)
		}
	})
}
