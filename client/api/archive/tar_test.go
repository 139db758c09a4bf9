package archive

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/testdata/need"
)

// checkTar asks tar(1) whether an archive is whole.
func checkTar(t *testing.T, data []byte, whole bool) {
	t.Helper()
	cmd := exec.Command("tar", "-tf", "-")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		need.Missing(t, "tar: %v", err)
	}
	if (err == nil) != whole {
		t.Errorf("tar -t = %v, want whole: %v\n%s", err, whole, out)
	}
}

// TestTarReads exchanges archives with tar(1), in the forms that it writes.
func TestTarReads(t *testing.T) {
	src := makeTree(t)
	need.Tool(t, "tar")
	for _, format := range []string{"gnu", "pax", "posix"} {
		out, err := exec.Command("tar", "-C", filepath.Dir(src), "--sparse", "--format="+format, "-cf", "-", "tree").Output()
		if err != nil {
			t.Fatalf("tar: %v", err)
		}
		dst := t.TempDir()
		if err := Extract(t.Context(), bytes.NewReader(out), openRoot(t, dst), ExtractOptions{}); err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		got, want := listing(t, dst+"/tree"), listing(t, src)
		if format == "gnu" { // whole seconds
			want = strings.ReplaceAll(want, ".789Z", "Z")
		}
		if got != want {
			t.Errorf("%s: the copy is\n%s\nwant\n%s", format, got, want)
		}
		_ = os.Chmod(dst+"/tree/closed", 0o700)
	}
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, openRoot(t, filepath.Dir(src)), "tree", "tree", PackOptions{}); err != nil {
		t.Fatal(err)
	}
	dst := t.TempDir()
	cmd := exec.Command("tar", "-C", dst, "--preserve-permissions", "-xf", "-")
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if got, want := listing(t, dst+"/tree"), listing(t, src); got != want {
		t.Errorf("tar's copy is\n%s\nwant\n%s", got, want)
	}
	_ = os.Chmod(dst+"/tree/closed", 0o700)
}

// FuzzExtract unpacks anything into a directory: nothing may come to be beside
// it, nothing half may be left, and it ends when it is told to, whatever hole it
// is about to make.
func FuzzExtract(f *testing.F) {
	base := f.TempDir()
	outside := filepath.Join(base, "outside")
	for _, data := range hostile(f, outside) {
		if len(data) < 64<<10 {
			f.Add(data)
		}
	}
	f.Add(tarOf(f, dir("a/"), file("a/f", "x"), symlink("a/l", "f"), hardlink("a/h", "a/f")))
	var b bytes.Buffer
	if err := Pack(f.Context(), &b, openRoot(f, filepath.Dir(makeTree(f))), "tree", "tree", PackOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		dst := filepath.Join(base, "dst")
		if err := errors.Join(os.Mkdir(dst, 0o755), os.WriteFile(base+"/victim", []byte("victim"), 0o644)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_ = Extract(ctx, bytes.NewReader(data), openRoot(t, dst), ExtractOptions{})
		entries, err := os.ReadDir(base)
		if err != nil || len(entries) != 2 {
			t.Errorf("beside the destination: %v, %v", entries, err)
		}
		if got, err := os.ReadFile(base + "/victim"); err != nil || string(got) != "victim" {
			t.Errorf("the victim is %q, %v", got, err)
		}
		_ = filepath.WalkDir(dst, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			if strings.HasPrefix(filepath.Base(p), ".volant-") {
				t.Errorf("left %s", p)
			}
			return nil
		})
	})
}
