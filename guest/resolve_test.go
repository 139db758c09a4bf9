package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResolve(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/real/dir/file", "", 0o644)
	for link, target := range map[string]string{
		"/abs": "/real", "/rel": "real/dir", "/up": "../../../../real", "/dangling": "/mnt/deep", "/loop": "loop",
		"/real/out": "/../../etc", "/procs": "../../proc", "/slash": "/", "/real/dir/back": "../..", "/chain": "abs/dir/",
	} {
		if err := os.Symlink(target, sys.at(link)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, want string }{
		{"/", "/"}, {"", "/"}, {"/..", "/"}, {"/../..//x/./y/", "/x/y"},
		{"/abs/dir/file", "/real/dir/file"}, {"/rel/file", "/real/dir/file"}, {"/up/dir", "/real/dir"},
		{"/dangling/er", "/mnt/deep/er"}, {"/real/out/passwd", "/etc/passwd"}, {"/procs/self", "/proc/self"},
		{"/slash/slash/abs", "/real"}, {"/real/dir/back/abs", "/real"}, {"/chain/file", "/real/dir/file"},
		{"/missing/../abs", "/real"}, {"/real/dir/file/below", "/real/dir/file/below"},
	}
	for _, tt := range tests {
		if got, err := resolve(sys, tt.name); got != tt.want || err != nil {
			t.Errorf("resolve(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	if got, err := resolve(sys, "/loop/x"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("resolve of a loop = %q, %v, want ELOOP", got, err)
	}
	for name, want := range map[string]string{
		"/procs": "/procs leads to /proc in this image", "/procs/1": "leads to /proc/1", "/sys/fs/cgroup": "/sys/fs/cgroup is the machine's own",
		"/dev": "/dev is the machine's own", "/slash": "/slash leads to / in this image",
	} {
		if got, err := resolveOwn(sys, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("resolveOwn(%q) = %q, %v, want an error with %q", name, got, err, want)
		}
	}
	for _, name := range []string{"/dev/shm", "/processes", "/abs"} {
		if _, err := resolveOwn(sys, name); err != nil {
			t.Errorf("resolveOwn(%q): %v", name, err)
		}
	}
}

// FuzzResolve compares with the kernel, which resolves below a directory with
// RESOLVE_IN_ROOT (openat2(2)), where it finds something.
func FuzzResolve(f *testing.F) {
	f.Add("/a/b", "b", "/a/../c", "..")
	f.Add("/a", "/c/a", "b/c", "/../../..")
	f.Add("/b/x/../../c", "/", "a/.", "c")
	f.Fuzz(func(t *testing.T, name, a, b, c string) {
		root := rooted(t.TempDir())
		if err := os.MkdirAll(root.at("/d/e"), 0o755); err != nil {
			t.Fatal(err)
		}
		for link, target := range map[string]string{"/a": a, "/d/b": b, "/d/e/c": c} {
			_ = os.Symlink(target, root.at(link)) // what is no target is no link
		}
		got, err := resolve(root, name)
		if err == nil && (!filepath.IsAbs(got) || filepath.Clean(got) != got) {
			t.Fatalf("resolve(%q) = %q", name, got)
		}
		dir, e := os.Open(string(root))
		if e != nil {
			t.Fatal(e)
		}
		defer dir.Close()
		fd, kernelErr := unix.Openat2(int(dir.Fd()), "./"+name, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
		if kernelErr != nil {
			return
		}
		defer unix.Close(fd)
		want, e := os.Readlink(procFD(os.NewFile(uintptr(fd), "")))
		if e != nil {
			t.Fatal(e)
		}
		if want = "/" + strings.TrimPrefix(strings.TrimPrefix(want, string(root)), "/"); err != nil || got != want {
			t.Errorf("resolve(%q) = %q, %v, the kernel says %q (a=%q b=%q c=%q)", name, got, err, want, a, b, c)
		}
	})
}
