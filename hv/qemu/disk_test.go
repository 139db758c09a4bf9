package qemu_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/qemu"
)

// TestSparse looks how much of a disk's file is there after the guest wrote,
// discarded, and wrote zeros.
func TestSparse(t *testing.T) {
	const (
		size  = 64 << 20
		part  = 4 << 20
		slack = 1 << 20 // what a file system may take for itself
	)
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	spec := b.spec(t)
	spec.Disks = []hv.Disk{{Serial: "data", Path: path}}
	vm, err := qemu.New(qemu.Config{}).Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())

	call := func(method, query string, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://agent/disk?serial=data&"+query, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := agentClient(vm, false).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %s", method, query, resp.Status)
		}
	}
	want := func(what string, bytes int64) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Blocks * 512; got < bytes || got > bytes+slack || st.Size != size {
			t.Errorf("%s: the file takes %d of %d bytes, want %d of %d", what, got, st.Size, bytes, size)
		}
	}
	data := bytes.Repeat([]byte("volant. "), part/8)
	want("new", 0)
	call(http.MethodPut, "offset=0", data)
	call(http.MethodPut, fmt.Sprintf("offset=%d", 2*part), data)
	want("written", 2*part)
	call(http.MethodDelete, fmt.Sprintf("offset=0&size=%d", part), nil)
	want("discarded", part)
	call(http.MethodPut, fmt.Sprintf("offset=%d", 8*part), make([]byte, part))
	want("zeros to a hole", part)
	call(http.MethodPut, fmt.Sprintf("offset=%d", 2*part), make([]byte, part))
	want("zeros over data", 0)
}
