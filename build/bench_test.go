package build_test

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/layers"
)

// TestBudgets measures what DESIGN promises of image conversion; make bench
// runs it. A ratio is taken against a baseline of the same run, interleaved
// with it, since machines are noisy.
func TestBudgets(t *testing.T) {
	if os.Getenv("VOLANT_BENCH") == "" {
		t.Skip("measures for a minute; make bench runs it")
	}
	needTools(t, "tar", "mke2fs")
	fmt.Printf("\n%-28s %9s %9s  %-8s %s\n", "name", "measured", "limit", "verdict", "how")
	line := func(name string, value, limit float64, unit, how string) {
		verdict := "ok"
		if value > limit {
			verdict = "BREACH"
			t.Errorf("%s is %.2f %s, over its limit of %.2f", name, value, unit, limit)
		}
		fmt.Printf("%-28s %7.2f %-2s %6.2f %-2s %-8s %s\n", name, value, unit, limit, unit, verdict, how)
	}

	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	files := benchArchive(t, archive, 400<<20)
	var base, ours []time.Duration
	for i := range 4 {
		b, o := tarAndMke2fs(t, dir, archive), flattenAndWrite(t, dir, archive)
		if i > 0 { // the first of each warms caches
			base, ours = append(base, b), append(ours, o)
		}
	}
	b, o := median(base), median(ours)
	line("layers-to-disk", float64(o)/float64(b), 0.6, "x",
		fmt.Sprintf("layers to erofs %d ms ÷ tar x and mke2fs -d %d ms, 400 MiB in %d files", o.Milliseconds(), b.Milliseconds(), files))

	used := conversionMemory(t, 20_000, 1<<30)
	line("conversion-memory", float64(used)/1024, maxConversionKiB/1024, "M", "MiB above the idle program, 1 GiB in 20,000 files")
	fmt.Println()
}

func median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[len(d)/2]
}

// benchArchive writes a tar of about size bytes, with files as a distribution
// has them: most small, most bytes in the large. It returns how many.
func benchArchive(t *testing.T, name string, size int64) int {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	r := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	files := 0
	for d := 0; size > 0; d++ {
		sub := fmt.Sprintf("usr/lib%d/d%d/", d%10, d)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: sub, Mode: 0o755, ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		for i := range 12 {
			n := int64(r.IntN(8 << 10))
			switch {
			case i == 0:
				n = int64(r.IntN(2 << 20))
			case i < 4:
				n = int64(r.IntN(100 << 10))
			}
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile-%d", sub, i), Size: n, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}); err != nil {
				t.Fatal(err)
			}
			at := r.IntN(len(content) - int(n))
			if _, err := w.Write(content[at:][:n]); err != nil {
				t.Fatal(err)
			}
			size -= n
			files++
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return files
}

func tarAndMke2fs(t *testing.T, dir, archive string) time.Duration {
	t.Helper()
	root, img := filepath.Join(dir, "root"), filepath.Join(dir, "base.img")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if out, err := exec.Command("sh", "-ec", `tar -xf "$0" -C "$1"; truncate -s 600M "$2"; mke2fs -q -F -t ext4 -d "$1" "$2"`, archive, root, img).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	took := time.Since(start)
	clean(t, root, img)
	return took
}

func flattenAndWrite(t *testing.T, dir, archive string) time.Duration {
	t.Helper()
	img := filepath.Join(dir, "ours.img")
	start := time.Now()
	l, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := layers.Flatten(context.Background(), []layers.Layer{{Name: "bench", R: l, Size: st.Size()}}, layers.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := build.WriteDisk(context.Background(), f, tree, build.DiskOptions{}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	clean(t, img)
	return took
}

// clean removes files and has the disk be quiet before the next measurement.
func clean(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	exec.Command("sync").Run()
}
