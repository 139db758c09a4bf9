package ext4

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/testdata/need"
)

func options() Options {
	return Options{UUID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, Label: "volant", Now: time.Unix(1_790_000_000, 0)}
}

func format(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Format(f, size, options()); err != nil {
		t.Fatalf("Format(%d): %v", size, err)
	}
	return path
}

// tool finds a program of e2fsprogs.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path
		}
	}
	need.Missing(t, "%s, of e2fsprogs", name)
	return ""
}

// e2fsck finds nothing wrong but that there is no lost+found, at sizes around
// every border of the layout.
func TestE2fsck(t *testing.T) {
	e2fsck := tool(t, "e2fsck")
	const mib = 1 << 20
	for _, size := range []int64{
		MinSize, 16 * mib, 17*mib + 12345, 128 * mib, 128*mib + 4096, 129 * mib, 130 * mib, 133 * mib, 256 * mib, 511 * mib, 512 * mib, 1023 * mib, 1024 * mib,
		10240 * mib, 10241 * mib, 100 << 30, 1 << 40,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := format(t, size)
			out, _ := exec.Command(e2fsck, "-f", "-n", path).CombinedOutput()
			var wrong []string
			for line := range strings.Lines(string(out)) {
				switch line = strings.TrimSpace(line); {
				case line == "", strings.HasPrefix(line, "e2fsck "), strings.HasPrefix(line, "Pass "), strings.HasPrefix(line, "/lost+found not found"):
				case strings.Contains(line, "********** WARNING: Filesystem still has errors"): // that very one
				case strings.HasPrefix(line, "volant: "):
				default:
					wrong = append(wrong, line)
				}
			}
			if wrong != nil || !strings.Contains(string(out), "Pass 5") {
				t.Errorf("e2fsck: %q\n%s", wrong, out)
			}
		})
	}
}

func TestFeatures(t *testing.T) {
	out, err := exec.Command(tool(t, "dumpe2fs"), "-h", format(t, 10<<30)).CombinedOutput()
	if err != nil {
		t.Fatalf("dumpe2fs: %v\n%s", err, out)
	}
	for _, want := range []string{
		"has_journal ext_attr dir_index filetype extent 64bit sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		"Filesystem volume name:   volant", "Filesystem UUID:          01020304-0506-0708-090a-0b0c0d0e0f10", "Filesystem state:         clean",
		"Block count:              2621440", "Reserved block count:     0", "Inode count:              655360", "Total journal size:       64M",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("dumpe2fs does not say %q:\n%s", want, out)
		}
	}
}

// The file takes next to nothing, however large the file system is.
func TestSparse(t *testing.T) {
	for _, c := range []struct{ size, most int64 }{{64 << 20, 64 << 10}, {10 << 30, 256 << 10}, {1 << 40, 16 << 20}} {
		fi, err := os.Stat(format(t, c.size))
		if err != nil {
			t.Fatal(err)
		}
		taken := fi.Sys().(*syscall.Stat_t).Blocks * 512
		if fi.Size() != c.size || taken > c.most {
			t.Errorf("a file system of %d bytes: the file has %d and takes %d, want at most %d", c.size, fi.Size(), taken, c.most)
		}
		t.Logf("%d MiB take %d KiB", c.size>>20, taken>>10)
	}
}

func TestReproducible(t *testing.T) {
	var sums [2][32]byte
	for i := range sums {
		f, err := os.Open(format(t, 20<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		h.Sum(sums[i][:0])
	}
	if sums[0] != sums[1] {
		t.Error("the same options gave different bytes")
	}
}

func TestRefuses(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{-1, 0, MinSize - 1, MaxSize + 1} {
		if err := Format(f, size, options()); err == nil {
			t.Errorf("Format(%d) succeeded", size)
		}
	}
	if err := Format(f, MinSize, Options{Label: strings.Repeat("x", 17)}); err == nil {
		t.Error("a label of 17 bytes was accepted")
	}
}

// The kernel mounts it, writes to it, and finds it sound: on a loop device, in a
// mount namespace of the test's own.
func TestMount(t *testing.T) {
	need.Root(t, "to mount")
	if b, _ := os.ReadFile("/proc/filesystems"); !bytes.Contains(b, []byte("\text4\n")) {
		need.Elsewhere(t, "this kernel has no ext4")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		need.Elsewhere(t, "there are no loop devices here")
	}
	path, dir := format(t, 300<<20), t.TempDir()
	script := `set -e
mount -o loop "$1" "$2"
test -z "$(ls -A "$2")"
cp -r /etc "$2/etc" 2>/dev/null || test -d "$2/etc"
i=0; while [ $i -lt 3000 ]; do echo $i >"$2/f$i"; i=$((i+1)); done
dd if=/dev/zero of="$2/big" bs=1M count=200 status=none
umount "$2"`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", path, dir).CombinedOutput()
	if err != nil {
		// mount(8) names the loop device of a bad file system too: only this is
		// the want of one.
		if strings.Contains(string(out), "failed to setup loop device") {
			need.Elsewhere(t, "no loop device: %s", out)
		}
		t.Fatalf("mount: %v\n%s", err, out)
	}
	if out, _ := exec.Command(tool(t, "e2fsck"), "-f", "-n", path).CombinedOutput(); strings.Contains(string(out), "Fix?") {
		t.Errorf("e2fsck after use:\n%s", out)
	}
}

func BenchmarkFormat(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "x"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if err := Format(f, 10<<30, options()); err != nil {
			b.Fatal(err)
		}
	}
}
