package layers_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/testdata/need"
)

func fromDir(t *testing.T, dir string) *layers.Tree {
	t.Helper()
	tree, err := layers.FromDir(context.Background(), dir, layers.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func TestFromDir(t *testing.T) {
	need.Root(t, "for devices and owners")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("d/f"), []byte("content"))
	sparseFile(t, at("sparse"), 1<<20, 8192)
	for _, err := range []error{
		os.Link(at("d/f"), at("g")), os.Symlink("/etc", at("etc")), os.Symlink("gone", at("dangling")), os.Link(at("dangling"), at("again")),
		unix.Mknod(at("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), unix.Mknod(at("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(300, 70000))),
		unix.Mkfifo(at("pipe"), 0o600), unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0),
		os.Chown(at("d/f"), 1000, 3_000_000_000), os.Chmod(at("d/f"), os.ModeSetuid|os.ModeSetgid|0o711), os.Chmod(at("d"), os.ModeSticky|0o777), os.Chmod(dir, 0o700),
		unix.Setxattr(at("d/f"), "trusted.a", []byte("\x00\xff"), 0), unix.Setxattr(at("d/f"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Lsetxattr(at("etc"), "trusted.link", []byte("l"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stamp := time.Unix(layertest.MTime, 0)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		ts := unix.NsecToTimespec(stamp.UnixNano())
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	})
	if err != nil {
		t.Fatal(err)
	}
	tree := fromDir(t, dir)
	const want = `. d700 0:0
again l777 0:0 #1/2 -> gone
d d1777 0:0
d/f -6711 1000:3000000000 #2/2 "content" trusted.a="\x00\xff"
dangling l777 0:0 #1/2 -> gone
disk b600 0:0 300,70000
etc l777 0:0 -> /etc trusted.link="l"
g -6711 1000:3000000000 #2/2 "content" trusted.a="\x00\xff"
null c600 0:0 1,3
pipe p600 0:0
socket s600 0:0
`
	got := unquoted(layertest.Dump(t, tree))
	var kept strings.Builder
	for l := range strings.Lines(got) {
		if !strings.HasPrefix(l, "sparse ") {
			kept.WriteString(l)
		}
	}
	if kept.String() != want {
		t.Errorf("got\n%swant\n%s", kept.String(), want)
	}
	if n := tree.Root.Child("sparse"); !n.Sparse() || len(n.Extents()) != 1 || n.Extents()[0].Length > 64<<10 {
		t.Errorf("sparse file has extents %v, want one that is small", n.Extents())
	}
}

func TestFromDirRefuses(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "f")
		write(t, name, nil)
		if _, err := layers.FromDir(context.Background(), name, layers.HostOptions{}); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("FromDir of a file = %v, want %v", err, unix.ENOTDIR)
		}
	})
	t.Run("limits", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"a", "b", "c"} {
			write(t, filepath.Join(dir, name), []byte("0123456789"))
		}
		for _, l := range []layers.Limits{{Entries: 2}, {Bytes: 29}, {MetadataBytes: 2}} {
			if _, err := layers.FromDir(context.Background(), dir, layers.HostOptions{Limits: l}); !errors.Is(err, layers.ErrLimit) {
				t.Errorf("FromDir with %+v = %v, want %v", l, err, layers.ErrLimit)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := layers.FromDir(ctx, t.TempDir(), layers.HostOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("FromDir = %v, want %v", err, context.Canceled)
		}
	})
}

// TestFromDirChanged changes a directory after it was read: what is read later
// is refused, and never comes from outside of it.
func TestFromDirChanged(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "f")
	write(t, secret, []byte("secret!"))
	tests := []struct {
		name   string
		change func(dir string) error
	}{
		{"grown", func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/f"), []byte("content!"), 0o644) }},
		{"rewritten", func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "d/f"), []byte("CONTENT"), 0o644), os.Chtimes(filepath.Join(dir, "d/f"), time.Unix(1, 0), time.Unix(1, 0)))
		}},
		{"removed", func(dir string) error { return os.Remove(filepath.Join(dir, "d/f")) }},
		{"replaced by a link", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "d/f")), os.Symlink(secret, filepath.Join(dir, "d/f")))
		}},
		{"replaced by a FIFO", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "d/f")), unix.Mkfifo(filepath.Join(dir, "d/f"), 0o644))
		}},
		{"its directory replaced by a link", func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "e")), os.Symlink(filepath.Dir(secret), filepath.Join(dir, "d")))
		}},
		{"the whole replaced by a link", func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".old"), os.Symlink(filepath.Dir(secret), dir), os.Remove(filepath.Join(dir+".old", "d/f")))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			write(t, filepath.Join(dir, "d/f"), []byte("content"))
			tree := fromDir(t, dir)
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			f, err := tree.Lookup("d/f").Open()
			if err == nil {
				b, _ := io.ReadAll(f.Reader())
				t.Errorf("Open = nil, and it reads %q; want an error", b)
			}
		})
	}
	t.Run("moved", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "dir")
		write(t, filepath.Join(dir, "d/f"), []byte("content"))
		tree := fromDir(t, dir)
		if err := os.Rename(dir, dir+".moved"); err != nil {
			t.Fatal(err)
		}
		f, err := tree.Lookup("d/f").Open()
		if err != nil {
			t.Fatalf("Open = %v, want the file: its directory is held open", err)
		}
		f.Close()
	})
}

func TestAdd(t *testing.T) {
	host := filepath.Join(t.TempDir(), "app")
	write(t, host, []byte("app"))
	tree, err := flatten(t, layer(t, dir("usr/"), dir("usr/bin/"), symlink("bin", "usr/bin"), symlink("out", "../../../.."), file("usr/bin/old", "old"), file("plain", "p")))
	if err != nil {
		t.Fatal(err)
	}
	i, err := layers.HostFile(host)
	if err != nil {
		t.Fatal(err)
	}
	i.Mode, i.UID, i.GID = layers.ModeRegular|0o755, 0, 0
	i.SetModTime(time.Unix(layertest.MTime, 0))
	for _, a := range []struct {
		path string
		i    *layers.Inode
	}{{"/bin/app", i}, {"/bin/same", i}, {"/bin/old", layers.NewSymlink("app")}, {"out/made/by", layers.NewFile(0o600, []byte("me"))}, {"/usr/", layers.NewDir(0o700)}} {
		if err := tree.Add(a.path, a.i); err != nil {
			t.Errorf("Add(%q) = %v", a.path, err)
		}
	}
	for path, want := range map[string]string{"../x": "climbs", "a/../../x": "climbs", "plain/x": "a file where a directory is needed", "": "root must be a directory"} {
		if err := tree.Add(path, layers.NewFile(0o644, nil)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Add(%q) = %v, want %q", path, err, want)
		}
	}
	const want = root + `bin l777 0:0 -> usr/bin
made d755 0:0 @0.000000000
made/by -600 0:0 @0.000000000 "me"
out l777 0:0 -> ../../../..
plain -644 0:0 "p"
usr d700 0:0 @0.000000000
usr/bin d750 7:0
usr/bin/app -755 0:0 #1/2 "app"
usr/bin/old l777 0:0 @0.000000000 -> app
usr/bin/same -755 0:0 #1/2 "app"
`
	if got := unquoted(layertest.Dump(t, tree)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if n := tree.Lookup("/bin/old"); n == nil || n.Name != "app" {
		t.Errorf("Lookup(/bin/old) = %v, want what the link leads to", n)
	}
	if n := tree.Lookup("/bin/none"); n != nil {
		t.Errorf("Lookup(/bin/none) = %v, want nil", n)
	}
	if _, err := layers.HostFile(filepath.Dir(host)); err == nil {
		t.Error("HostFile took a directory")
	}
}
