package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/testdata/need"
)

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// describe lists a tree with all that a copy keeps.
func describe(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		more := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			more = string(b)
		case unix.S_IFLNK:
			more, _ = os.Readlink(path)
		case unix.S_IFCHR, unix.S_IFBLK:
			more = fmt.Sprint(st.Rdev)
		}
		value := make([]byte, 100)
		if n, err := unix.Lgetxattr(path, "user.note", value); err == nil {
			more += " user.note=" + string(value[:n])
		}
		rel, _ := filepath.Rel(root, path)
		lines = append(lines, fmt.Sprintf("%s %o %d:%d %d.%d %q", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, more))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// sampleTree makes a tree with one of each kind.
func sampleTree(t *testing.T) string {
	t.Helper()
	need.Root(t, "files of other users")
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(root, name) }
	must(os.MkdirAll(in("a/b"), 0o755))
	must(os.WriteFile(in("a/file"), []byte(strings.Repeat("data", 10_000)), 0o644))
	must(os.WriteFile(in("a/b/setuid"), nil, 0o644))
	must(os.Chown(in("a/b/setuid"), 5, 6))
	must(unix.Chmod(in("a/b/setuid"), 0o6755))
	must(os.Symlink("/etc/passwd", in("link")))
	must(os.Lchown(in("link"), 7, 8))
	must(unix.Mkfifo(in("fifo"), 0o640))
	must(unix.Mknod(in("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(unix.Setxattr(in("a/file"), "user.note", []byte("kept"), 0))
	must(unix.UtimesNanoAt(unix.AT_FDCWD, in("link"), []unix.Timespec{{Sec: 1}, {Sec: 1e9, Nsec: 5}}, unix.AT_SYMLINK_NOFOLLOW))
	must(unix.UtimesNanoAt(unix.AT_FDCWD, in("a"), []unix.Timespec{{Sec: 1}, {Sec: 2e9}}, 0))
	must(unix.Chmod(root, 0o1710))
	must(os.Chown(root, 70, 71))
	return root
}

func TestCopyContents(t *testing.T) {
	src, dst := sampleTree(t), t.TempDir()
	if err := copyContents(t.Context(), openDir(t, dst), openDir(t, src)); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(t, dst), describe(t, src); got != want {
		t.Errorf("the copy is\n%s\nwant\n%s", got, want)
	}
	err := copyContents(t.Context(), openDir(t, dst), openDir(t, src))
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("the second copy = %v, want an error that something exists", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyContents(ctx, openDir(t, t.TempDir()), openDir(t, src)); !errors.Is(err, context.Canceled) {
		t.Errorf("a copy that was called off = %v", err)
	}
}

func TestRemoveContents(t *testing.T) {
	root := sampleTree(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(root, "a/out")); err != nil {
		t.Fatal(err)
	}
	dir := openDir(t, root)
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	before := describe(t, root)
	if left, err := removeBelow(dir, st.Dev+1, nil, 0); !left || err != nil || describe(t, root) != before {
		t.Errorf("of another file system something was removed (left %v, %v)", left, err)
	}
	if err := removeContents(dir, func(name string) bool { return name == "fifo" }); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(root); len(entries) != 1 || err != nil {
		t.Errorf("left %v, %v, want the fifo", entries, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestFillVolume(t *testing.T) {
	src := sampleTree(t)
	want := describe(t, src)
	copies := 0
	copying := func() { copies++ }
	newVolume := func(t *testing.T) (string, *os.File) {
		dir := t.TempDir()
		if err := unix.Setxattr(dir, beganXattr, nil, 0); err != nil {
			t.Fatalf("a file system with extended attributes is needed: %v", err)
		}
		if err := unix.Removexattr(dir, beganXattr); err != nil {
			t.Fatal(err)
		}
		return dir, openDir(t, dir)
	}
	t.Run("new", func(t *testing.T) {
		dir, f := newVolume(t)
		if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := fillVolume(t.Context(), f, openDir(t, src), copying); err != nil || copies != 1 {
			t.Fatalf("fillVolume() = %v after %d copies", err, copies)
		}
		if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil {
			t.Fatal(err)
		}
		got := describe(t, dir)
		_, wantBelow, _ := strings.Cut(want, "\n")
		if _, below, _ := strings.Cut(got, "\n"); below != wantBelow || !strings.HasPrefix(got, ". 41710 70:71 ") {
			t.Errorf("the volume is\n%s\nwant\n%s", got, want)
		}
		if _, err := unix.Getxattr(dir, beganXattr, nil); !errors.Is(err, unix.ENODATA) {
			t.Errorf("the mark: %v, want none", err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
			t.Fatal(err)
		}
		if err := fillVolume(t.Context(), f, openDir(t, src), copying); err != nil || copies != 1 {
			t.Errorf("a volume in use was filled again: %v", err)
		}
	})
	t.Run("cut short", func(t *testing.T) {
		dir, f := newVolume(t)
		ctx, cancel := context.WithCancel(t.Context())
		if err := fillVolume(ctx, f, openDir(t, src), cancel); !errors.Is(err, context.Canceled) {
			t.Fatalf("fillVolume() = %v", err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "a/torn"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := fillVolume(t.Context(), f, openDir(t, src), copying); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, dir); got != want {
			t.Errorf("the volume is\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("nothing to copy", func(t *testing.T) {
		dir, f := newVolume(t)
		empty := t.TempDir()
		if err := errors.Join(os.Chown(empty, 9, 9), os.Chmod(empty, 0o750)); err != nil {
			t.Fatal(err)
		}
		if err := fillVolume(t.Context(), f, openDir(t, empty), func() { t.Error("it copied") }); err != nil {
			t.Fatal(err)
		}
		if got, want := describe(t, dir), describe(t, empty); got != want {
			t.Errorf("the volume is %s, want %s", got, want)
		}
	})
}
