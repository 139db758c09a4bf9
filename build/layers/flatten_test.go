package layers_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
)

// layer makes a layer of headers; a regular file's content is its Uname.
func layer(t testing.TB, headers ...tar.Header) layers.Layer {
	t.Helper()
	entries := make([]layertest.Entry, len(headers))
	for i, h := range headers {
		entries[i] = layertest.Entry{Header: h, Data: h.Uname}
		entries[i].Uname = ""
	}
	return layertest.Layer(layertest.Tar(t, entries...))
}

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750, Uid: 7}
}

func file(name, data string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uname: data}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
}

func flatten(t testing.TB, stack ...layers.Layer) (*layers.Tree, error) {
	t.Helper()
	return layers.Flatten(context.Background(), stack, layers.Limits{})
}

// unquoted takes the quotes off the paths, for tables to be read.
func unquoted(dump string) string {
	var out strings.Builder
	for l := range strings.Lines(dump) {
		path, rest, _ := strings.Cut(l[1:], `" `)
		out.WriteString(path + " " + rest)
	}
	return out.String()
}

const root = ". d755 0:0 @0.000000000\n"

func TestFlatten(t *testing.T) {
	dev := func(typ byte, name string, major, minor int64) tar.Header {
		return tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}
	}
	// base is a lower layer that most cases change.
	base := []tar.Header{dir("a/"), file("a/x", "x"), file("a/y", "y"), dir("a/d/"), file("a/d/z", "z"), symlink("l", "a")}
	const baseL = "l l777 0:0 -> a\n"
	long := strings.Repeat("n", 200)
	tests := []struct {
		name  string
		stack [][]tar.Header
		want  string // without the root, if that is the implied one
	}{
		{"no layer", nil, ""},
		{"empty layer", [][]tar.Header{{}}, ""},
		{"root's own entry", [][]tar.Header{{dir("./")}}, ". d750 7:0\n"},
		{"root as a slash", [][]tar.Header{{dir("/")}}, ". d750 7:0\n"},
		{"leading slash and dots", [][]tar.Header{{file("/a", "1"), file("./b", "2"), file(".//c/./d", "3")}},
			"a -644 0:0 \"1\"\nb -644 0:0 \"2\"\nc d755 0:0 @0.000000000\nc/d -644 0:0 \"3\"\n"},
		{"missing parents", [][]tar.Header{{file("p/q/r", "1"), dir("p/")}},
			"p d750 7:0\np/q d755 0:0 @0.000000000\np/q/r -644 0:0 \"1\"\n"},
		{"special bits and big ids", [][]tar.Header{{
			{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
			{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755, Uid: 3_000_000_000, Gid: 4_000_000_000, Format: tar.FormatGNU}}},
			"su -6755 3000000000:4000000000 \"\"\ntmp d1777 0:0\n"},
		{"nanoseconds and before 1970", [][]tar.Header{{
			{Typeflag: tar.TypeReg, Name: "f", ModTime: time.Unix(layertest.MTime, 123456789), Format: tar.FormatPAX},
			{Typeflag: tar.TypeReg, Name: "g", ModTime: time.Unix(-2, 500000000), Format: tar.FormatPAX}}},
			"f -0 0:0 @1700000000.123456789 \"\"\ng -0 0:0 @-2.500000000 \"\"\n"},
		{"devices and fifos", [][]tar.Header{{dev(tar.TypeChar, "null", 1, 3), dev(tar.TypeBlock, "sda", 259, 1048575), dev(tar.TypeFifo, "pipe", 0, 0)}},
			"null c600 0:0 1,3\npipe p600 0:0\nsda b600 0:0 259,1048575\n"},
		{"xattrs", [][]tar.Header{{{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{
			"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\x00=\n", "SCHILY.xattr.trusted.t": "t",
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.system.nfs4_acl": "x", "SCHILY.xattr.system.posix_acl_access": "p",
			"LIBARCHIVE.xattr.user.lib%3Darchive": "AP8", "LIBARCHIVE.xattr.user.a": "AP8"}}}},
			`f -0 0:0 "" security.capability="\x01\x00=\n" system.posix_acl_access="p" trusted.t="t" user.a="1" user.b="2" user.lib=archive="\x00\xff"` + "\n"},
		{"long names", [][]tar.Header{{{Typeflag: tar.TypeReg, Name: long + "/" + long, Format: tar.FormatPAX}, {Typeflag: tar.TypeSymlink, Name: long + "/g", Linkname: long + long, Format: tar.FormatGNU}}},
			long + " d755 0:0 @0.000000000\n" + long + "/g l0 0:0 -> " + long + long + "\n" + long + "/" + long + " -0 0:0 \"\"\n"},
		{"symlinks are data", [][]tar.Header{{symlink("abs", "/etc/passwd"), symlink("esc", "../../../../etc"), symlink("dangling", "nowhere/./x//"), symlink("self", "self")}},
			"abs l777 0:0 -> /etc/passwd\ndangling l777 0:0 -> nowhere/./x//\nesc l777 0:0 -> ../../../../etc\nself l777 0:0 -> self\n"},
		{"last of a layer wins", [][]tar.Header{{file("f", "1"), file("f", "2"), dir("f/"), file("f/g", "3"), file("f", "4")}}, "f -644 0:0 \"4\"\n"},

		{"whiteout", [][]tar.Header{base, {file("a/.wh.x", "")}}, "a d750 7:0\na/d d750 7:0\na/d/z -644 0:0 \"z\"\na/y -644 0:0 \"y\"\n" + baseL},
		{"whiteout of a directory", [][]tar.Header{base, {file(".wh.a", "")}}, baseL},
		{"whiteout of nothing", [][]tar.Header{base[:2], {file("no/.wh.x", ""), file("a/x/.wh.x", ""), file(".wh.no", "")}}, "a d750 7:0\na/x -644 0:0 \"x\"\n"},
		{"whiteout before its successor", [][]tar.Header{base, {file(".wh.a", ""), dir("a/"), file("a/new", "n")}}, "a d750 7:0\na/new -644 0:0 \"n\"\n" + baseL},
		{"whiteout behind its successor", [][]tar.Header{base, {dir("a/"), file("a/new", "n"), file(".wh.a", "")}}, "a d750 7:0\na/new -644 0:0 \"n\"\n" + baseL},
		{"whiteout between", [][]tar.Header{base, {file("a/new", "n"), file(".wh.a", "")}}, "a d755 0:0 @0.000000000\na/new -644 0:0 \"n\"\n" + baseL},
		{"whiteout of a file of its own layer", [][]tar.Header{base, {file("a/x", "new"), file("a/.wh.x", ""), file(".wh.l", "")}},
			"a d750 7:0\na/d d750 7:0\na/d/z -644 0:0 \"z\"\na/x -644 0:0 \"new\"\na/y -644 0:0 \"y\"\n"},
		{"whiteout of an earlier whiteout's successor", [][]tar.Header{base, {file(".wh.a", ""), file("a/n", "n")}, {file(".wh.a", "")}}, baseL},
		{"opaque first", [][]tar.Header{base, {dir("a/"), file("a/.wh..wh..opq", ""), file("a/y", "new")}}, "a d750 7:0\na/y -644 0:0 \"new\"\n" + baseL},
		{"opaque last", [][]tar.Header{base, {dir("a/"), file("a/y", "new"), dir("a/e/"), file("a/d/q", "q"), file("a/.wh..wh..opq", "")}},
			"a d750 7:0\na/d d755 0:0 @0.000000000\na/d/q -644 0:0 \"q\"\na/e d750 7:0\na/y -644 0:0 \"new\"\n" + baseL},
		{"opaque without the directory's entry", [][]tar.Header{base, {file("a/.wh..wh..opq", "")}}, "a d750 7:0\n" + baseL},
		{"opaque through a symlink", [][]tar.Header{base, {file("l/.wh..wh..opq", "")}}, "a d750 7:0\n" + baseL},
		{"opaque root", [][]tar.Header{base, {file("k", "k"), file(".wh..wh..opq", "")}}, "k -644 0:0 \"k\"\n"},
		{"aufs bookkeeping", [][]tar.Header{{dir(".wh..wh.plnk/"), file(".wh..wh.aufs", ""), file("f", "f")}}, "f -644 0:0 \"f\"\n"},

		{"directory over directory keeps", [][]tar.Header{base, {{Typeflag: tar.TypeDir, Name: "a", Mode: 0o700, Gid: 9}, file(".wh.l", "")}},
			"a d700 0:9\na/d d750 7:0\na/d/z -644 0:0 \"z\"\na/x -644 0:0 \"x\"\na/y -644 0:0 \"y\"\n"},
		{"file over directory and back", [][]tar.Header{base, {file("a", "file")}, {dir("a/"), file("a/new", "n")}}, "a d750 7:0\na/new -644 0:0 \"n\"\n" + baseL},
		{"symlink over directory", [][]tar.Header{base, {symlink("a", "b")}}, "a l777 0:0 -> b\n" + baseL},
		{"directory over symlink", [][]tar.Header{base[5:], {dir("l/"), file("l/f", "f")}}, "l d750 7:0\nl/f -644 0:0 \"f\"\n"},
		{"through a symlink", [][]tar.Header{base, {file("l/new", "n"), file("l/d/.wh.z", ""), file(".wh.l", "")}},
			"a d750 7:0\na/d d750 7:0\na/new -644 0:0 \"n\"\na/x -644 0:0 \"x\"\na/y -644 0:0 \"y\"\n"},
		{"through links that climb", [][]tar.Header{{symlink("up", "../../../etc"), symlink("abs", "/etc/../etc/./up"), file("up/f", "1"), file("abs/g", "2")}},
			"abs l777 0:0 -> /etc/../etc/./up\netc d755 0:0 @0.000000000\netc/f -644 0:0 \"1\"\netc/up d755 0:0 @0.000000000\netc/up/g -644 0:0 \"2\"\nup l777 0:0 -> ../../../etc\n"},

		{"hard link", [][]tar.Header{{file("f", "f"), hardlink("g", "f"), hardlink("d/h", "/./g")}},
			"d d755 0:0 @0.000000000\nd/h -644 0:0 #1/3 \"f\"\nf -644 0:0 #1/3 \"f\"\ng -644 0:0 #1/3 \"f\"\n"},
		{"hard link across layers", [][]tar.Header{base[:2], {hardlink("z", "a/x")}, {{Typeflag: tar.TypeReg, Name: "a/x", Mode: 0o600, Uname: "new"}}},
			"a d750 7:0\na/x -600 0:0 \"new\"\nz -644 0:0 \"x\"\n"},
		{"hard link outlives a whiteout", [][]tar.Header{base[:2], {hardlink("z", "a/x")}, {file(".wh.a", "")}}, "z -644 0:0 \"x\"\n"},
		{"hard link to a symlink", [][]tar.Header{{symlink("l", "x"), hardlink("m", "l")}}, "l l777 0:0 #1/2 -> x\nm l777 0:0 #1/2 -> x\n"},
		{"hard link through a symlink", [][]tar.Header{base[:2], {symlink("s", "a"), hardlink("s/k", "s/x"), file("a/.wh.x", "")}},
			"a d750 7:0\na/k -644 0:0 \"x\"\ns l777 0:0 -> a\n"},
		{"hard link over a file", [][]tar.Header{base[:3], {hardlink("a/y", "a/x")}}, "a d750 7:0\na/x -644 0:0 #1/2 \"x\"\na/y -644 0:0 #1/2 \"x\"\n"},
		{"hard link to a device", [][]tar.Header{{dev(tar.TypeChar, "n", 1, 3), hardlink("m", "n")}}, "m c600 0:0 #1/2 1,3\nn c600 0:0 #1/2 1,3\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stack []layers.Layer
			for _, headers := range tt.stack {
				stack = append(stack, layer(t, headers...))
			}
			tree, err := flatten(t, stack...)
			if err != nil {
				t.Fatal(err)
			}
			got, want := unquoted(layertest.Dump(t, tree)), tt.want
			if !strings.HasPrefix(want, ". ") {
				want = root + want
			}
			if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestFlattenRefuses(t *testing.T) {
	deep := strings.TrimSuffix(strings.Repeat("d/", 1500), "/")
	tests := []struct {
		name  string
		stack [][]tar.Header
		err   error
		text  string
	}{
		{"climbing name", [][]tar.Header{{file("a/../../b", "")}}, layers.ErrName, `entry "a/../../b": unusable name: it climbs with ".."`},
		{"climbing within", [][]tar.Header{{file("a/../b", "")}}, layers.ErrName, "climbs"},
		{"climbing whiteout", [][]tar.Header{{file("../.wh.x", "")}}, layers.ErrName, "climbs"},
		{"whiteout of the parent", [][]tar.Header{{dir("a/"), file("a/.wh...", "")}}, layers.ErrName, "whiteout of nothing"},
		{"whiteout of itself", [][]tar.Header{{dir("a/"), file("a/.wh..", "")}}, layers.ErrName, "whiteout of nothing"},
		{"whiteout without a name", [][]tar.Header{{file(".wh.", "")}}, layers.ErrName, "whiteout of nothing"},
		{"long component", [][]tar.Header{{file(strings.Repeat("x", 256), "")}}, layers.ErrName, "component of 256 bytes"},
		{"long path", [][]tar.Header{{file(strings.Repeat("x/", 2048)+"y", "")}}, layers.ErrName, "path of 4097 bytes"},
		{"long path through a link", [][]tar.Header{{dir(deep), symlink("s", deep), file("s/"+deep+"/f", "")}}, layers.ErrName, "too long"},
		{"long target", [][]tar.Header{{symlink("s", strings.Repeat("x", 4096))}}, layers.ErrName, "targets have"},
		{"hard link to nothing", [][]tar.Header{{hardlink("a", "b")}}, nil, `a hard link to "b": there is nothing of that name`},
		{"hard link to a directory", [][]tar.Header{{dir("d"), hardlink("a", "d")}}, nil, "which is a directory"},
		{"hard link to the root", [][]tar.Header{{hardlink("a", "/")}}, nil, "hard link"},
		{"hard link to itself", [][]tar.Header{{file("a", ""), hardlink("a", "./a")}}, nil, "itself"},
		{"hard link that climbs", [][]tar.Header{{hardlink("a", "../etc/shadow")}}, layers.ErrName, "climbs"},
		{"hard link to what was hidden", [][]tar.Header{{file("a", "")}, {file(".wh.a", ""), hardlink("b", "a")}}, nil, "nothing of that name"},
		{"file as a directory", [][]tar.Header{{file("a", ""), file("a/b", "")}}, nil, "a file where a directory is needed"},
		{"root as a file", [][]tar.Header{{symlink("/", "x")}}, layers.ErrName, "root must be a directory"},
		{"link loop", [][]tar.Header{{symlink("a", "b"), symlink("b", "a"), file("a/f", "")}}, nil, "too many levels of symbolic links"},
		{"unknown type", [][]tar.Header{{{Typeflag: 'Q', Name: "q"}}}, layers.ErrFormat, "unknown entry type 'Q'"},
		{"owner too large", [][]tar.Header{{{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 32, Format: tar.FormatGNU}}}, nil, "owner 4294967296:0"},
		{"owner that means none", [][]tar.Header{{{Typeflag: tar.TypeReg, Name: "f", Gid: 1<<32 - 1, Format: tar.FormatGNU}}}, nil, "owner 0:4294967295"},
		{"device number too large", [][]tar.Header{{{Typeflag: tar.TypeChar, Name: "f", Devmajor: 4096}}}, nil, "device number 4096:0"},
		{"attribute too large", [][]tar.Header{{{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 65536)}}}}, nil, "of 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stack []layers.Layer
			for _, headers := range tt.stack {
				stack = append(stack, layer(t, headers...))
			}
			_, err := flatten(t, stack...)
			var le *layers.Error
			if !errors.As(err, &le) || !strings.Contains(err.Error(), tt.text) || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("Flatten = %v; want an *Error with %q that is %v", err, tt.text, tt.err)
			}
		})
	}
}

func TestFlattenLimits(t *testing.T) {
	many := make([]tar.Header, 100)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i), "0123456789")
	}
	for _, tt := range []struct {
		name   string
		limits layers.Limits
		text   string
	}{
		{"enough", layers.Limits{Entries: 100, Bytes: 1000, MetadataBytes: 1000}, ""},
		{"entries", layers.Limits{Entries: 99}, "over the limit of 99 files"},
		{"bytes", layers.Limits{Bytes: 999}, "over the limit of 999 bytes of content"},
		{"metadata", layers.Limits{MetadataBytes: 100}, "over the limit of 100 bytes of names"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := layers.Flatten(context.Background(), []layers.Layer{layer(t, many...)}, tt.limits)
			if tt.text == "" && err != nil || tt.text != "" && (!errors.Is(err, layers.ErrLimit) || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("Flatten = %v, want %q", err, tt.text)
			}
		})
	}
	t.Run("links that multiply", func(t *testing.T) {
		deep, climb := strings.Repeat("d/", 800), strings.Repeat("../", 800)
		stack := []tar.Header{dir(deep)}
		for i := range 38 {
			stack = append(stack, symlink(fmt.Sprint("s", i), deep+climb+fmt.Sprint("s", i+1)))
		}
		stack = append(stack, dir("s38/"))
		for range 1200 {
			stack = append(stack, file("s0/f", ""))
		}
		l := layer(t, stack...)
		if _, err := flatten(t, l); !errors.Is(err, layers.ErrLimit) {
			t.Errorf("Flatten = %v, want ErrLimit", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := layers.Flatten(ctx, []layers.Layer{layer(t, many...)}, layers.Limits{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Flatten = %v, want %v", err, context.Canceled)
		}
	})
}
