package client_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/archive"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// filesOf returns a client of a daemon with a VM called web, whose root is dir.
func filesOf(t *testing.T, svc *httpapitest.Service) *client.Client {
	t.Helper()
	if svc.Files == "" {
		svc.Files = t.TempDir()
	}
	c := connect(t, svc)
	install(t, c)
	if _, err := c.CreateVM(t.Context(), api.VMCreate{Name: "web", Plugin: "hello"}, client.Wait{For: api.WaitRunning}); err != nil {
		t.Fatal(err)
	}
	return c
}

func packed(t *testing.T, dir string) []byte {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	if err := archive.Pack(t.Context(), &b, root, ".", ".", archive.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestFiles takes a file in and out again.
func TestFiles(t *testing.T) {
	svc := &httpapitest.Service{}
	c := filesOf(t, svc)
	src := t.TempDir()
	data := bytes.Repeat([]byte("0\x00\n\xff"), 1<<20)
	if err := os.WriteFile(filepath.Join(src, "f"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := c.CopyTo(t.Context(), "web", "/", false, bytes.NewReader(packed(t, src))); err != nil {
		t.Fatal(err)
	}
	f, err := c.StatPath(t.Context(), "web", "/f", false)
	if err != nil || f.Name != "f" || f.Type != api.FileRegular || f.Size != int64(len(data)) || f.Mode != 0o640 {
		t.Errorf("StatPath = %+v, %v", f, err)
	}
	r, err := c.CopyFrom(t.Context(), "web", "/f", false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tr := tar.NewReader(r)
	h, err := tr.Next()
	if err != nil || h.Name != "f" {
		t.Fatalf("the archive begins with %+v, %v", h, err)
	}
	if got, err := io.ReadAll(tr); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(data), err)
	}
	for _, tc := range []struct {
		vm, path string
		want     api.Code
	}{{"web", "/none", api.CodeNotFound}, {"wob", "/f", api.CodeNotFound}, {"web", "f", api.CodeInvalid}, {"web", "/" + strings.Repeat("x", 5000), api.CodeTooLarge}} {
		if _, err := c.StatPath(t.Context(), tc.vm, tc.path, true); api.CodeOf(err) != tc.want {
			t.Errorf("StatPath(%s, %.20s) = %v, want %s", tc.vm, tc.path, err, tc.want)
		}
		if _, err := c.CopyFrom(t.Context(), tc.vm, tc.path, true); api.CodeOf(err) != tc.want {
			t.Errorf("CopyFrom(%s, %.20s) = %v, want %s", tc.vm, tc.path, err, tc.want)
		}
		// The refusal arrives although 4 MiB are on their way.
		if err := c.CopyTo(t.Context(), tc.vm, tc.path, true, bytes.NewReader(packed(t, src))); api.CodeOf(err) != tc.want {
			t.Errorf("CopyTo(%s, %.20s) = %v, want %s", tc.vm, tc.path, err, tc.want)
		}
	}
}

// endless yields zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestCopyToEndless is refused at once, though it would be sent for ever.
func TestCopyToEndless(t *testing.T) {
	c := filesOf(t, &httpapitest.Service{})
	start := time.Now()
	err := c.CopyTo(t.Context(), "web", "/none", false, endless{})
	if took := time.Since(start); api.CodeOf(err) != api.CodeNotFound || took > 5*time.Second {
		t.Errorf("CopyTo = %v after %v, want not_found at once", err, took)
	}
}

// brokenArchive yields some of an archive, and then an error.
type brokenArchive struct {
	io.Reader
	err error
}

func (b *brokenArchive) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}
func (b *brokenArchive) Close() error { return nil }

// TestCopyFromFails has archives that end early, even where one looks whole: the
// reason comes through, or that there is none, and never io.EOF.
func TestCopyFromFails(t *testing.T) {
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), make([]byte, 300<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	whole := packed(t, src)
	for name, tc := range map[string]struct {
		data []byte
		err  error
		want api.Code
		text string
	}{
		"said":                {whole[:2000], api.Errorf(api.CodeConflict, "it became shorter"), api.CodeConflict, "shorter"},
		"said, after nothing": {nil, api.Errorf(api.CodeConflict, "it became shorter"), api.CodeConflict, "shorter"},
		"cut":                 {whole[:2000], errors.New("the VM has gone"), api.CodeUnavailable, "cut short"},
		"cut after its end":   {whole, errors.New("the VM has gone"), api.CodeUnavailable, "cut short"},
	} {
		c := filesOf(t, &httpapitest.Service{CopyFrom: func(api.File) io.ReadCloser { return &brokenArchive{bytes.NewReader(tc.data), tc.err} }})
		r, err := c.CopyFrom(t.Context(), "web", "/", false)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		r.Close()
		if api.CodeOf(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %d bytes, %v; want %s: %s", name, n, err, tc.want, tc.text)
		}
	}
}

// TestCopyToFails has an upload that fails by itself, and one that is cancelled.
func TestCopyToFails(t *testing.T) {
	svc := &httpapitest.Service{}
	c := filesOf(t, svc)
	boom := errors.New("boom")
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), make([]byte, 300<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.CopyTo(t.Context(), "web", "/", false, &brokenArchive{bytes.NewReader(packed(t, src)[:200<<10]), boom}); err != boom { //nolint:errorlint // as it is
		t.Errorf("CopyTo = %v, want %v", err, boom)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := c.CopyTo(ctx, "web", "/", false, r); !errors.Is(err, context.Canceled) {
		t.Errorf("CopyTo = %v, want it cancelled", err)
	}
	for range 100 {
		entries, err := os.ReadDir(svc.Files)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a half file is left")
}

// TestCopyFromStranger meets a server that is none of ours.
func TestCopyFromStranger(t *testing.T) {
	c := against(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 4000))
		w.Header().Set(http.TrailerPrefix+api.TrailerError, "{")
	})
	r, err := c.CopyFrom(t.Context(), "web", "/", false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); api.CodeOf(err) != api.CodeInternal {
		t.Errorf("ReadAll = %v, want internal", err)
	}
}
