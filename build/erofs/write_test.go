package erofs_test

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
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/testdata/need"
)

func random(t testing.TB, seed uint64) *layers.Tree {
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

func add(t testing.TB, tree *layers.Tree, path string, i *layers.Inode) {
	t.Helper()
	i.ModSec = layertest.MTime
	if err := tree.Add(path, i); err != nil {
		t.Fatal(err)
	}
}

// edges is a tree of what lies at the edges of the format; huge ones only where
// they are not read under emulation.
func edges(t testing.TB, huge bool) *layers.Tree {
	t.Helper()
	// A host directory, because only files of the host and of layers are sparse
	// and have attributes.
	dir := t.TempDir()
	sparse := func(name string, size int64, at ...int64) {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, off := range at {
			if _, err := f.WriteAt([]byte(name), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	sparse("sparse-middle", 1<<20, 300_000)
	sparse("sparse-ends", 1<<20+17, 0, 1<<20)
	sparse("sparse-none", 12_345_678)
	sparse("sparse-chunks", 300<<20, 5<<20, 299<<20) // more blocks than a map has entries
	sparse("sparse-small", 4000)
	if huge {
		sparse("sparse-huge", 5<<30, 7, 1<<30, 3<<30+5, 5<<30-20)
	}
	for i := range 20 {
		name := filepath.Join(dir, fmt.Sprint("xattrs-shared-", i))
		write(t, name, strings.Repeat("s", 200*i))
		if err := unix.Setxattr(name, "trusted.same", []byte("the same"), 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(name, "security.own", []byte(name), 0); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := layers.FromDir(context.Background(), dir, layers.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	for _, n := range []int{1, 5, 100, 3000} { // entries of a directory: within an inode, in a block, in many
		for i := range n {
			add(t, tree, fmt.Sprintf("dir%d/%s%d", n, strings.Repeat("n", i%200), i), layers.NewFile(0o644, nil))
		}
	}
	for _, n := range []int{1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 3 << 20} {
		add(t, tree, fmt.Sprint("size", n), layers.NewFile(0o600, bytes.Repeat([]byte{'x'}, n)))
	}
	for _, n := range []int{1, 3900, 4095} {
		add(t, tree, fmt.Sprint("link", n), layers.NewSymlink(strings.Repeat("l", n)))
	}
	for _, d := range [][2]uint32{{1, 3}, {255, 255}, {4095, 1<<20 - 1}} {
		add(t, tree, fmt.Sprintf("char-%d-%d", d[0], d[1]), layers.NewDevice(layers.ModeChar|0o666, d[0], d[1]))
	}
	add(t, tree, "socket", layers.NewDevice(layers.ModeSocket|0o666, 0, 0))
	var xattrs []layers.Xattr
	for i := range 300 {
		xattrs = append(xattrs, layers.Xattr{Name: fmt.Sprintf("trusted.many-%d-%s", i, strings.Repeat("n", i%200)), Value: strings.Repeat("v", i*3)})
	}
	for _, n := range []int{5, 100, 300} { // of these attributes: the first are shared, and more than the format can share
		i := layers.NewFile(0o644, []byte("x"))
		if err := i.SetXattrs(slices.Clone(xattrs[:n])); err != nil {
			t.Fatal(err)
		}
		add(t, tree, fmt.Sprint("xattrs", n), i)
	}
	many := layers.NewFile(0o644, []byte("many names"))
	names := 70_000
	if !huge {
		names = 300
	}
	for i := range names { // more than 16 bits count
		add(t, tree, fmt.Sprintf("names/%d", i), many)
	}
	return tree
}

func write(t testing.TB, name, data string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// image writes tree's image to a file and checks what Write says of it.
func image(t testing.TB, tree *layers.Tree, o erofs.Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := erofs.Write(context.Background(), f, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", h.Sum(nil)); r.Digest != want || r.Size != n || n%4096 != 0 {
		t.Errorf("Write = %+v, want digest %s and %d bytes", r, want, n)
	}
	return f.Name()
}

// TestKernel has this machine's kernel mount images, and compares what it
// shows with the trees they were made of.
func TestKernel(t *testing.T) {
	need.Root(t, "to mount")
	exec.Command("modprobe", "erofs").Run()
	if list, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(list), "erofs") {
		need.Elsewhere(t, "this machine's kernel has no erofs; TestGuestKernel boots one that has")
	}
	check := func(t *testing.T, tree *layers.Tree, o erofs.Options) {
		t.Helper()
		name := image(t, tree, o)
		dir := filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", name, dir).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v\n%s", err, out)
		}
		defer func() {
			if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v\n%s", err, out)
			}
		}()
		got, err := layers.FromDir(context.Background(), dir, layers.HostOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if d := layertest.Diff(layertest.Dump(t, got), layertest.Dump(t, tree)); d != "" {
			t.Errorf("mounted:\n%.4000s", d)
		}
	}
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("random ", seed), func(t *testing.T) { check(t, random(t, seed), erofs.Options{}) })
	}
	t.Run("edges", func(t *testing.T) { check(t, edges(t, true), erofs.Options{Label: "volant"}) })
	t.Run("compact inodes", func(t *testing.T) {
		tree := layers.NewTree()
		tree.Root.ModSec = layertest.MTime
		for i := range 300 {
			add(t, tree, fmt.Sprintf("d%d/f%d", i%7, i), layers.NewFile(0o640, bytes.Repeat([]byte("z"), i*31)))
		}
		for _, n := range tree.Root.Children() {
			n.ModSec = layertest.MTime
		}
		check(t, tree, erofs.Options{BuildTime: time.Unix(layertest.MTime, 0)})
	})
	t.Run("empty", func(t *testing.T) { check(t, layers.NewTree(), erofs.Options{}) })
}

// TestFsck has erofs-utils check images.
func TestFsck(t *testing.T) {
	need.Tool(t, "fsck.erofs")
	need.Root(t, "to set attributes that only root may")
	for name, tree := range map[string]*layers.Tree{"random": random(t, 5), "edges": edges(t, true), "empty": layers.NewTree()} {
		t.Run(name, func(t *testing.T) {
			if out, err := exec.Command("fsck.erofs", image(t, tree, erofs.Options{})).CombinedOutput(); err != nil {
				t.Errorf("fsck.erofs: %v\n%s", err, out)
			}
		})
	}
}

func TestReproducible(t *testing.T) {
	write := func(seed uint64, o erofs.Options) []byte {
		var b bytes.Buffer
		if _, err := erofs.Write(context.Background(), &b, random(t, seed), o); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for seed := range uint64(5) {
		a, b := write(seed, erofs.Options{}), write(seed, erofs.Options{})
		if !bytes.Equal(a, b) {
			t.Errorf("seed %d: two images of one tree differ", seed)
		}
		if c := write(seed, erofs.Options{BuildTime: time.Unix(1, 0)}); bytes.Equal(a, c) {
			t.Errorf("seed %d: the build time makes no difference", seed)
		}
		if c := write(seed+100, erofs.Options{}); bytes.Equal(a[1024+48:][:16], c[1024+48:][:16]) {
			t.Errorf("seed %d: another tree has the same UUID", seed)
		}
	}
	// Twice of the very same tree.
	tree := random(t, 1)
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if _, err := erofs.Write(context.Background(), w, tree, erofs.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two images of the same tree differ")
	}
}

// failing fails after some bytes.
type failing struct{ left int }

func (w *failing) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	tree := layers.NewTree()
	for i := range 100 {
		add(t, tree, fmt.Sprint("f", i), layers.NewFile(0o644, make([]byte, 300<<10)))
	}
	t.Run("disk full", func(t *testing.T) {
		for _, left := range []int{0, 5 << 20, 28 << 20} {
			if _, err := erofs.Write(context.Background(), &failing{left}, tree, erofs.Options{}); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Write = %v, want %v", err, unix.ENOSPC)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := erofs.Write(ctx, io.Discard, tree, erofs.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Write = %v, want %v", err, context.Canceled)
		}
	})
	t.Run("label", func(t *testing.T) {
		if _, err := erofs.Write(context.Background(), io.Discard, tree, erofs.Options{Label: "sixteen bytes..."}); err == nil {
			t.Error("Write took a label of 16 bytes")
		}
	})
	t.Run("layer gone", func(t *testing.T) {
		b := layertest.Tar(t, layertest.Random(3)[0]...)
		l := layertest.Layer(b)
		tree, err := layers.Flatten(context.Background(), []layers.Layer{{Name: "l", R: l.R, Size: l.Size}}, layers.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		l.R.(*bytes.Reader).Reset(nil)
		if _, err := erofs.Write(context.Background(), io.Discard, tree, erofs.Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Write = %v, want %v", err, io.ErrUnexpectedEOF)
		}
	})
}

// BenchmarkWrite writes 64 MiB in 2,000 files to nowhere.
func BenchmarkWrite(b *testing.B) {
	tree := layers.NewTree()
	r := rand.New(rand.NewPCG(1, 2))
	total := int64(0)
	for i := range 2000 {
		n := r.IntN(64 << 10)
		total += int64(n)
		add(b, tree, fmt.Sprintf("%d/%d", i%50, i), layers.NewFile(0o644, make([]byte, n)))
	}
	b.SetBytes(total)
	for b.Loop() {
		if _, err := erofs.Write(context.Background(), io.Discard, tree, erofs.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
