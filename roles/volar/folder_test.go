package volar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// TestUploadFolder checks that a folder becomes an EROFS image with its digest,
// which is sent once.
func TestUploadFolder(t *testing.T) {
	svc := &httpapitest.Service{}
	_, c := daemonFor(t, svc)
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "hello", "b": strings.Repeat("x", 10000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	cl, err := c.daemon()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	first, err := c.uploadFolder(cl, dir)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := cl.Blob(t.Context(), first)
	if err != nil || blob.Size < 10000 || blob.Size%4096 != 0 {
		t.Errorf("the daemon has %+v, %v", blob, err)
	}
	again, err := c.uploadFolder(cl, dir)
	if err != nil || again != first || svc.Puts() != 1 {
		t.Errorf("the same folder again is %s, %v, want %s; %d uploads", again, err, first, svc.Puts())
	}
	if err := os.Chtimes(filepath.Join(dir, "a"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if other, err := c.uploadFolder(cl, dir); err != nil || other == first {
		t.Errorf("a folder that has changed is %s, %v", other, err)
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}
