package build_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/testdata/budget"
	"github.com/volantvm/volant/testdata/need"
)

// TestBudgets measures what DESIGN promises of image conversion; make bench
// runs it. A ratio is taken against a baseline of the same run, interleaved
// with it, since machines are noisy.
func TestBudgets(t *testing.T) {
	need.Bench(t)
	needTools(t, "tar", "mke2fs")
	var lines []budget.Line
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer.tar")
	files := benchLayer(t, layer, 400<<20)
	for _, c := range []struct {
		name, layer string
		compression ocitest.Compression
	}{{"archive-to-disk", layer, ocitest.None}, {"gzip-archive-to-disk", layer + ".gz", ocitest.Gzip}} {
		archive := filepath.Join(dir, c.name+".tar")
		benchImage(t, archive, layer, c.compression)
		var base, ours []time.Duration
		for i := range 4 {
			b, o := tarAndMke2fs(t, dir, c.layer), loadAndWrite(t, dir, archive)
			if i > 0 { // the first of each warms caches
				base, ours = append(base, b), append(ours, o)
			}
		}
		lines = append(lines, budget.Ratio(c.name, 0.6, ours, base,
			fmt.Sprintf("OCI archive to erofs ÷ tar x of %s and mke2fs -d, 400 MiB in %d files", filepath.Base(c.layer), files)))
		if err := os.Remove(archive); err != nil {
			t.Fatal(err)
		}
	}

	used := conversionMemory(t, 20_000, 1<<30)
	lines = append(lines, budget.Line{Name: "conversion-memory", Value: float64(used) / 1024, Limit: maxConversionKiB / 1024, Unit: "M", How: "MiB above the idle program, 1 GiB in 20,000 files"})
	budget.Print(t, lines...)
}

// benchLayer writes a tar of about size bytes, with files as a distribution has
// them: most small, most bytes in the large, their content a program's. It
// writes it once more, compressed, and returns how many files there are.
func benchLayer(t *testing.T, name string, size int64) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	r := rand.New(rand.NewPCG(1, 2))
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
	if out, err := exec.Command("gzip", "--keep", name).CombinedOutput(); err != nil {
		t.Fatalf("gzip: %v\n%s", err, out)
	}
	return files
}

// benchImage writes an OCI archive of one layer.
func benchImage(t *testing.T, name, layer string, c ocitest.Compression) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = ocitest.WriteArchive(f, ocitest.Image{Reference: "docker.io/library/bench:latest", Layers: []ocitest.Layer{{Compression: c, Write: func(w io.Writer) error {
		l, err := os.Open(layer)
		if err != nil {
			return err
		}
		defer l.Close()
		_, err = io.Copy(w, l)
		return err
	}}}})
	if err != nil {
		t.Fatal(err)
	}
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

// loadAndWrite is what a conversion does, digests verified.
func loadAndWrite(t *testing.T, dir, archive string) time.Duration {
	t.Helper()
	img, staging, ctx := filepath.Join(dir, "ours.img"), filepath.Join(dir, "staging"), context.Background()
	start := time.Now()
	images, err := oci.LoadPath(ctx, archive, oci.Options{Staging: staging})
	if err != nil || len(images) != 1 || len(images[0].Layers) != 1 {
		t.Fatalf("LoadPath = %v, %v; want one image of one layer", images, err)
	}
	l, err := images[0].Layers[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := layers.Flatten(ctx, []layers.Layer{{Name: "bench", R: l, Size: l.Size()}}, layers.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := build.WriteDisk(ctx, f, tree, build.DiskOptions{}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	clean(t, img, staging)
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
