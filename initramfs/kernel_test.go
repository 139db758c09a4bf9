package initramfs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// bootDeadline is generous: software emulation on a loaded machine.
const bootDeadline = 3 * time.Minute

// TestKernelUnpacks lets a real kernel judge: it boots one image of segments
// in every compression, in an order that has each follow each kind of end, and
// compares what is in the root file system. The kernel is that of the Debian
// package unpacked at $VOLANT_TEST_DEBIAN_KERNEL, by testdata/debian-kernel.sh.
func TestKernelUnpacks(t *testing.T) {
	qemu := need.Tool(t, "qemu-system-x86_64")
	debian := need.Env(t, "VOLANT_TEST_DEBIAN_KERNEL")
	kernels, err := filepath.Glob(filepath.Join(debian, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels in %s: %q, %v, want one", debian, kernels, err)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), ".")
	build.Dir = "testdata/probe"
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	probe, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		t.Fatal(err)
	}

	base := pack(t, append(sample(),
		initramfs.Entry{Name: "init", Mode: 0o755, Data: probe},
		initramfs.Entry{Name: "overlaid", Mode: 0o644, Data: []byte("first")}))
	segments := [][]byte{base}
	want := []string{
		"-rw-r--r-- 0:0 n1 /overlaid " + digest("last"),
		"-r--r--r-- 0:0 n1 /a file with spaces and ünïcode " + digest("streamed"),
		"Lrwxrwxrwx 0:0 n1 /bin usr/bin",
		"Dcrw------- 0:0 n1 /dev/console 5,1",
		"Drw-rw---- 0:0 n1 /dev/vda 254,17",
		"-rw------- 0:0 n1 /empty " + digest(""),
		"-rw-r--r-- 1000:100 n1 /etc/motd " + digest("hello"),
		"prw------- 0:0 n1 /run/pipe ",
		"Srw------- 0:0 n1 /run/sock ",
		"dtrwxrwxrwx 0:0 n0 /tmp ",
		"-rwxr-xr-x 0:0 n3 /usr/bin/alias-a " + digest("#!/bin/sh\necho tool\n"),
		"-rwxr-xr-x 0:0 n3 /usr/bin/tool " + digest("#!/bin/sh\necho tool\n"),
		"-rwxr-xr-x 0:0 n3 /usr/bin/z-alias " + digest("#!/bin/sh\necho tool\n"),
		"ugrwxr-xr-x 0:0 n1 /usr/bin/su " + digest("su"),
	}
	for i, c := range []initramfs.Compression{
		initramfs.None, initramfs.Gzip, initramfs.Gzip, initramfs.Zstd, initramfs.Zstd, initramfs.LZ4, initramfs.LZ4,
		initramfs.None, initramfs.LZ4, initramfs.Gzip, initramfs.LZ4, initramfs.Zstd, initramfs.None, initramfs.Zstd,
		initramfs.Gzip, initramfs.None, initramfs.LZ4,
	} {
		// Sizes that end at every remainder of four.
		content := strings.Repeat(fmt.Sprintf("%s segment %d\n", c, i), 1000+i)
		name := fmt.Sprintf("seg/%02d-%s", i, c)
		last := "not yet"
		if i == 16 {
			last = "last"
		}
		segments = append(segments, compress(t, c, pack(t, []initramfs.Entry{
			{Name: name, Mode: 0o640, Data: []byte(content)},
			{Name: name + "-link", Linkname: name},
			{Name: "overlaid", Mode: 0o644, Data: []byte(last)},
		})))
		want = append(want, "-rw-r----- 0:0 n2 /"+name+" "+digest(content), "-rw-r----- 0:0 n2 /"+name+"-link "+digest(content))
	}
	// A large one, of several lz4 blocks and zstd windows.
	big := large()
	segments = append(segments, compress(t, initramfs.LZ4, pack(t, []initramfs.Entry{{Name: "big", Data: big}})))
	want = append(want, "---------- 0:0 n1 /big "+digest(string(big)))

	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	var readers []io.Reader
	for _, s := range segments {
		readers = append(readers, bytes.NewReader(s))
	}
	if _, err := initramfs.Concat(image, readers...); err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-machine", "q35", "-m", "384", "-display", "none", "-nodefaults", "-no-reboot",
		"-serial", "stdio", "-kernel", kernels[0], "-initrd", image.Name(), "-append", "console=ttyS0 panic=-1 quiet random.trust_cpu=on")
	out, err := cmd.CombinedOutput()
	console := strings.ReplaceAll(string(out), "\r\n", "\n")
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, tail(console))
	}
	if !strings.Contains(console, "PROBE END <nil>\n") {
		t.Fatalf("the guest did not finish:\n%s", tail(console))
	}
	lines := strings.Split(console, "\n")
	for _, w := range want {
		if !slices.Contains(lines, "PROBE "+w) {
			_, path, _ := strings.Cut(w, " /")
			path, _, _ = strings.Cut(path, " ")
			got := "nothing"
			for _, l := range lines {
				if strings.Contains(l, " /"+path+" ") {
					got = l
				}
			}
			t.Errorf("the kernel has %q, want %q", got, w)
		}
	}
	if t.Failed() {
		t.Logf("console:\n%s", tail(console))
	}
}

func digest(s string) string { return fmt.Sprintf("%d %.4x", len(s), sha256.Sum256([]byte(s))) }

func tail(s string) string { return s[max(0, len(s)-4000):] }
