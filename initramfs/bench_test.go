package initramfs_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// benchTree is a real tree of about 48 MB of programs and 2,000 small files,
// copied from this machine so that both sides read the same warm pages.
func benchTree(b *testing.B) (dir string, size int64) {
	b.Helper()
	dir = b.TempDir()
	found, err := filepath.Glob("/usr/bin/*")
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range found {
		data, err := os.ReadFile(p)
		if err != nil || len(data) > 16<<20 {
			continue
		}
		if size += int64(len(data)); size > 48<<20 {
			break
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(p)), data, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 2000 {
		p := filepath.Join(dir, "etc", string(rune('a'+i%26)), strings.Repeat("x", 1+i/26))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(p, bytes.Repeat([]byte("line\n"), i%200), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir, size
}

// assemble packs dir as fledge does: walk, add, write.
func assemble(dir string, c initramfs.Compression, out io.Writer) error {
	var a initramfs.Archive
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		e := initramfs.Entry{Name: p[len(dir)+1:], Mode: fi.Mode()}
		if fi.Mode().IsRegular() {
			e.Size = fi.Size()
			e.Open = func() (io.ReadCloser, error) { return os.Open(p) }
		}
		return a.Add(e)
	})
	if err != nil {
		return err
	}
	w, err := c.NewWriter(out)
	if err != nil {
		return err
	}
	if _, err := a.WriteTo(w); err != nil {
		return err
	}
	return w.Close()
}

// BenchmarkAssembly holds the budget "initramfs assembly / cpio | zstd on the
// same tree <= 1". Each round runs both, one behind the other, to files; the
// ratio is of the sums.
func BenchmarkAssembly(b *testing.B) {
	need.Tool(b, "cpio")
	need.Tool(b, "zstd")
	dir, size := benchTree(b)
	for _, c := range compressions() {
		b.Run(string(c), func(b *testing.B) {
			b.SetBytes(size)
			var ours, theirs time.Duration
			for b.Loop() {
				start := time.Now()
				f, err := os.Create(filepath.Join(b.TempDir(), "ours"))
				if err != nil {
					b.Fatal(err)
				}
				if err := assemble(dir, c, f); err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
				ours += time.Since(start)

				b.StopTimer()
				start = time.Now()
				cmd := exec.Command("sh", "-c", `find . | sort | cpio -o -H newc --quiet | zstd -q > "$0"`, filepath.Join(b.TempDir(), "theirs"))
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				theirs += time.Since(start)
				b.StartTimer()
			}
			b.ReportMetric(float64(ours)/float64(theirs), "ratio")
		})
	}
}
