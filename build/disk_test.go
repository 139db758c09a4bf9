package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// needTools wants root and programs.
func needTools(t *testing.T, programs ...string) {
	t.Helper()
	need.Root(t, "for the owners and devices of a tree")
	for _, p := range programs {
		need.Tool(t, p)
	}
}

func randomTree(t testing.TB, seed uint64) *layers.Tree {
	t.Helper()
	var stack []layers.Layer
	for _, l := range layertest.Random(seed) {
		stack = append(stack, layertest.Layer(layertest.Tar(t, l...)))
	}
	tree, err := layers.Flatten(context.Background(), stack, layers.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// writeDisk writes a disk and checks what WriteDisk says of it.
func writeDisk(t *testing.T, tree *layers.Tree, o build.DiskOptions) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("what was there before"); err != nil {
		t.Fatal(err)
	}
	w, err := build.WriteDisk(context.Background(), f, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := fileDigest(t, f.Name()); w.Digest != got.Digest || w.Size != got.Size || w.Inodes != len(tree.Index()) {
		t.Errorf("WriteDisk = %+v, want %+v and %d inodes", w, got, len(tree.Index()))
	}
	left, err := os.ReadDir(filepath.Dir(f.Name()))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the disk there is %v, %v; want nothing", left, err)
	}
	return f.Name()
}

func fileDigest(t *testing.T, name string) build.Written {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		t.Fatal(err)
	}
	return build.Written{Digest: fmt.Sprintf("sha256:%x", h.Sum(nil)), Size: n}
}

// mounted returns what this machine's kernel shows of a disk.
func mounted(t *testing.T, name, fstype string) string {
	t.Helper()
	dir := t.TempDir()
	exec.Command("modprobe", fstype).Run()
	if out, err := exec.Command("mount", "-t", fstype, "-o", "loop,ro", name, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	}()
	tree, err := layers.FromDir(context.Background(), dir, layers.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	return layertest.Dump(t, tree)
}

// without prints a tree without what a format does not hold: the fractions of
// times, or all of them; hard links of anything but regular files.
func without(dump string, times bool) string {
	replace := func(expr, by string) { dump = regexp.MustCompile(expr).ReplaceAllString(dump, by) }
	if times {
		replace(`(?m)^(".*" .\d+ \d+:\d+) @-?\d+\.\d{9}`, "$1")
	} else {
		replace(`(?m)^(".*" .\d+ \d+:\d+ @-?\d+)\.\d{9}`, "$1")
	}
	replace(`(?m)^(".*" .\d+ \d+:\d+(?: @[^ ]+)?) #\d+/`, "$1 #/") // numbers count the others too
	replace(`(?m)^(".*" [^-]\d+ \d+:\d+(?: @[^ ]+)?) #/\d+`, "$1")
	return dump
}

func TestWriteDisk(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mksquashfs")
	for _, fstype := range []string{"ext4", "squashfs", "erofs"} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s %d", fstype, seed), func(t *testing.T) {
				tree := randomTree(t, seed)
				if fstype == "ext4" { // mke2fs gives the root no extended attributes
					if err := tree.Root.SetXattrs(nil); err != nil {
						t.Fatal(err)
					}
				}
				name := writeDisk(t, tree, build.DiskOptions{Type: fstype, SizeBufferMB: 4})
				got, want := mounted(t, name, fstype), layertest.Dump(t, tree)
				if fstype != "erofs" {
					got, want = without(got, false), without(want, false)
				}
				if fstype == "ext4" {
					if out, err := exec.Command("e2fsck", "-fn", name).CombinedOutput(); err != nil {
						t.Errorf("e2fsck: %v\n%s", err, out)
					}
					got = regexp.MustCompile(`(?m)^"lost\+found" d700 0:0( @\d+)?\n`).ReplaceAllString(got, "")
				}
				if d := layertest.Diff(got, want); d != "" {
					t.Errorf("mounted:\n%.4000s", d)
				}
				again := writeDisk(t, tree, build.DiskOptions{Type: fstype, SizeBufferMB: 4})
				if a, b := fileDigest(t, name), fileDigest(t, again); a != b {
					t.Errorf("written twice: %v and %v", a, b)
				}
			})
		}
	}
}

func TestWriteDiskOptions(t *testing.T) {
	if os.Getenv("VOLANT_TEST_MISSING") == "" {
		needTools(t, "mke2fs", "mksquashfs")
	}
	tree := layers.NewTree()
	if err := tree.Add("f", layers.NewFile(0o644, bytes.Repeat([]byte("content "), 40<<17))); err != nil { // 40 MiB
		t.Fatal(err)
	}
	usage := func(name string) (size, allocated int64) {
		out, err := exec.Command("stat", "-c", "%s %b", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(out), &size, &allocated); err != nil {
			t.Fatal(err)
		}
		return size >> 20, allocated * 512 >> 20
	}
	t.Run("ext4 default buffer", func(t *testing.T) {
		if size, allocated := usage(writeDisk(t, tree, build.DiskOptions{Type: "ext4"})); size < 40+64 || size > 40+64+16 || allocated > 60 {
			t.Errorf("%d MiB of which %d are allocated, want 104 and a little, and less than 60", size, allocated)
		}
	})
	t.Run("ext4 small buffer", func(t *testing.T) {
		if size, _ := usage(writeDisk(t, tree, build.DiskOptions{Type: "ext4", SizeBufferMB: 1})); size < 41 || size > 56 {
			t.Errorf("%d MiB, want 41 and a little", size)
		}
	})
	t.Run("ext4 preallocated", func(t *testing.T) {
		if size, allocated := usage(writeDisk(t, tree, build.DiskOptions{Type: "ext4", SizeBufferMB: 300, Preallocate: true})); size < 340 || allocated < size {
			t.Errorf("%d MiB of which %d are allocated, want 340 and all", size, allocated)
		}
	})
	t.Run("squashfs level", func(t *testing.T) {
		name := writeDisk(t, tree, build.DiskOptions{Type: "squashfs", CompressionLevel: 3})
		if out, err := exec.Command("unsquashfs", "-s", name).CombinedOutput(); err != nil || !strings.Contains(string(out), "compression-level 3") {
			t.Errorf("unsquashfs -s = %s, %v; want level 3", out, err)
		}
	})
	t.Run("unknown type", func(t *testing.T) {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := build.WriteDisk(context.Background(), f, tree, build.DiskOptions{Type: "btrfs"}); err == nil || !strings.Contains(err.Error(), "use erofs, squashfs or ext4") {
			t.Errorf("WriteDisk of btrfs = %v, want a refusal", err)
		}
	})
	t.Run("program missing", func(t *testing.T) {
		if os.Getenv("VOLANT_TEST_MISSING") == "" {
			// Once more, in a mount namespace in which there are no such programs.
			const script = `for p in /usr/sbin/mke2fs /usr/bin/mksquashfs; do mount --bind /dev/null $p; done; exec "$0" "$@"`
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, self, "-test.run", "^TestWriteDiskOptions$/^program_missing$", "-test.v")
			cmd.Env = append(os.Environ(), "VOLANT_TEST_MISSING=1")
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestWriteDiskOptions/program_missing") {
				t.Errorf("%v\n%s", err, out)
			}
			return
		}
		for fstype, want := range map[string]string{"ext4": "install the package e2fsprogs", "squashfs": "install the package squashfs-tools"} {
			f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := build.WriteDisk(context.Background(), f, tree, build.DiskOptions{Type: fstype}); !errors.Is(err, build.ErrTool) || !strings.Contains(err.Error(), want) {
				t.Errorf("WriteDisk of %s = %v, want %q", fstype, err, want)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for _, fstype := range []string{"erofs", "ext4", "squashfs"} {
			f, err := os.Create(filepath.Join(dir, fstype))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := build.WriteDisk(ctx, f, tree, build.DiskOptions{Type: fstype}); !errors.Is(err, context.Canceled) {
				t.Errorf("WriteDisk of %s = %v, want %v", fstype, err, context.Canceled)
			}
			if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// TestWriteDiskFull has the disk be full at several points, in a file system of
// its own.
func TestWriteDiskFull(t *testing.T) {
	needTools(t, "mke2fs", "mksquashfs")
	tree, noise := layers.NewTree(), make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(noise) // which does not compress
	for i := range 10 {
		if err := tree.Add(fmt.Sprint("f", i), layers.NewFile(0o644, noise[i<<20:][:1<<20])); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for _, tt := range []struct{ fstype, size string }{{"erofs", "5m"}, {"ext4", "5m"}, {"ext4", "14m"}, {"squashfs", "5m"}, {"squashfs", "14m"}} {
		t.Run(tt.fstype+" "+tt.size, func(t *testing.T) {
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+tt.size, "volant-test", dir).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v\n%s", err, out)
			}
			defer exec.Command("umount", "--lazy", dir).Run()
			f, err := os.Create(filepath.Join(dir, "disk"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = build.WriteDisk(context.Background(), f, tree, build.DiskOptions{Type: tt.fstype})
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("WriteDisk = %v, want %v", err, syscall.ENOSPC)
			}
			if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestWriteInitramfs(t *testing.T) {
	needTools(t, "cpio")
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tree := randomTree(t, seed)
			f, err := os.Create(filepath.Join(t.TempDir(), "archive"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w, err := build.WriteInitramfs(context.Background(), f, tree, initramfs.None)
			if err != nil {
				t.Fatal(err)
			}
			if got := fileDigest(t, f.Name()); w.Digest != got.Digest || w.Size != got.Size {
				t.Errorf("WriteInitramfs = %+v, want %+v", w, got)
			}
			lost := 0
			for _, n := range tree.Index() {
				if len(n.Xattrs()) > 0 {
					lost++
				}
			}
			if w.XattrsLost != lost {
				t.Errorf("XattrsLost = %d, want %d", w.XattrsLost, lost)
			}
			// What the format does not hold.
			for _, n := range tree.Index() {
				if err := n.SetXattrs(nil); err != nil {
					t.Fatal(err)
				}
			}
			tree.Root.Inode = layers.NewDir(0o755)
			dir := t.TempDir()
			cpio := exec.Command("cpio", "-idmu", "--quiet", "--no-absolute-filenames", "-F", f.Name())
			cpio.Dir = dir
			if out, err := cpio.CombinedOutput(); err != nil {
				t.Fatalf("cpio: %v\n%s", err, out)
			}
			host, err := layers.FromDir(context.Background(), dir, layers.HostOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			host.Root.Inode = tree.Root.Inode
			if d := layertest.Diff(without(layertest.Dump(t, host), true), without(layertest.Dump(t, tree), true)); d != "" {
				t.Errorf("unpacked by cpio:\n%s", d)
			}
		})
	}
}
