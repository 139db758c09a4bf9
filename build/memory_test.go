package build_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/layers/layertest"
)

// maxConversionKiB is how much memory a conversion may take beyond the idle
// program's, whatever the image's size.
const maxConversionKiB = 64 << 10

// TestConversionMemory makes a disk of a layer of 1 GiB in 20,000 files.
func TestConversionMemory(t *testing.T) {
	used := conversionMemory(t, 20_000, 1<<30)
	t.Logf("%d KiB beyond the idle program", used)
	if used > maxConversionKiB {
		t.Errorf("converting a layer of 1 GiB took %d KiB, want at most %d", used, maxConversionKiB)
	}
}

// conversionMemory returns the KiB of memory that a conversion takes of a layer
// with that many files and bytes.
func conversionMemory(t *testing.T, files int, size int64) int {
	t.Helper()
	dir := t.TempDir()
	program, layer := filepath.Join(dir, "convert"), filepath.Join(dir, "layer.tar")
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	cmd.Dir = "testdata/convert"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	holeyLayer(t, layer, files, size/int64(files))
	out, err := exec.Command(program, layer, filepath.Join(dir, "disk.img")).CombinedOutput()
	var used int
	if _, scanErr := fmt.Sscan(string(out), &used); err != nil || scanErr != nil {
		t.Fatalf("convert: %v\n%s", err, out)
	}
	return used
}

// holeyLayer writes a tar whose content is a hole of the file: it takes room
// only once it is a disk.
func holeyLayer(t *testing.T, name string, files int, each int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(0)
	for i := range files {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib%d/d%d/%s-%d", i%10, i%200, strings.Repeat("n", i%40), i), Size: each, Mode: 0o644}
		if i%50 == 0 {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": strings.Repeat("c", 20)}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b.Bytes(), at); err != nil {
			t.Fatal(err)
		}
		at += int64(b.Len()) + (each+511)&^511
	}
	if _, err := f.WriteAt(layertest.Tar(t), at); err != nil {
		t.Fatal(err)
	}
}
