package volar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/kernel"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
	"github.com/volantvm/volant/testdata/need"
)

// TestImportDebianKernel imports a real kernel with its modules.
func TestImportDebianKernel(t *testing.T) {
	dir := need.Env(t, "VOLANT_TEST_DEBIAN_KERNEL")
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("images in %s: %q, %v, want one", dir, images, err)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	socket := filepath.Join(t.TempDir(), "v.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := httpapi.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	svc := &httpapitest.Service{}
	done := make(chan error, 1)
	go func() { done <- httpapi.New(httpapi.Config{Service: svc, Version: "1.2.3"}).Serve(ctx, ln) }()
	defer func() { cancel(); <-done }()
	t.Setenv("VOLANT_HOST", "unix://"+socket)
	t.Setenv("TMPDIR", t.TempDir())
	if status, out, errOut := run(t, "kernels", "import", images[0], "--modules", dir); status != 0 || !strings.Contains(out, version+" imported, the default kernel") {
		t.Fatalf("import = %d, %q, %q", status, out, errOut)
	}
	// The same again by another name uploads nothing.
	before := svc.Puts()
	if status, _, errOut := run(t, "kernels", "import", images[0], "--modules", filepath.Join(dir, "lib/modules", version), "--name", "debian"); status != 0 {
		t.Fatalf("second import = %d, %q", status, errOut)
	}
	if svc.Puts() != before {
		t.Errorf("the second import uploaded %d blobs", svc.Puts()-before)
	}
	if _, out, _ := run(t, "kernels", "list"); !strings.Contains(out, "debian") || strings.Count(out, " yes ") != 3 {
		t.Errorf("list:\n%s", out)
	}
	if status, out, _ := run(t, "kernels", "remove", "debian", "-o", "json"); status != 0 || !strings.Contains(out, `"name": "debian"`) {
		t.Errorf("remove = %d:\n%s", status, out)
	}
	if status, _, errOut := run(t, "kernels", "import", images[0], "--modules", t.TempDir()); status != 1 || !strings.Contains(errOut, "hint: give /lib/modules/"+version) {
		t.Errorf("import without modules = %d, %q", status, errOut)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "volar-kernel-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %q %v", left, err)
	}
}

func TestKernelErrors(t *testing.T) {
	for err, hint := range map[error]string{
		kernel.ErrNoPVH: "linux-image-cloud-amd64", kernel.ErrNotKernel: "bzImage", kernel.ErrArch: "x86-64", kernel.ErrCompression: "vmlinux",
		os.ErrNotExist: "path", errors.New("other"): "",
	} {
		var buf bytes.Buffer
		c := &cli{stderr: &buf}
		if status := c.fail(kernelError(fmt.Errorf("x: %w", err))); status != exitFailed {
			t.Errorf("%v: status %d", err, status)
		}
		if got := strings.Contains(buf.String(), "hint: "); got != (hint != "") || !strings.Contains(buf.String(), hint) {
			t.Errorf("%v prints %q, want hint %q", err, buf.String(), hint)
		}
	}
}

func TestKernelName(t *testing.T) {
	for in, want := range map[string]string{
		"6.1.0-56-cloud-amd64": "6-1-0-56-cloud-amd64", "6.12.107-Volant_x+": "6-12-107-volant-x", "": "", "...": "",
		strings.Repeat("a", 62) + ".b": strings.Repeat("a", 62),
	} {
		if got := kernelName(in); got != want {
			t.Errorf("kernelName(%q) = %q, want %q", in, got, want)
		}
	}
}
