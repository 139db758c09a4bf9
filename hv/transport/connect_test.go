package transport

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLetConnect: what a VMM puts in the place of our socket stays as it was.
func TestLetConnect(t *testing.T) {
	dir := t.TempDir()
	path, file := filepath.Join(dir, "sock"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func() error{
		"link":      func() error { return os.Symlink(file, path) },
		"hard link": func() error { return os.Link(file, path) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if err := letConnect(path); err == nil || !strings.Contains(err.Error(), "not the socket") {
			t.Errorf("letConnect of a %s: %v, want an error", name, err)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("the file behind a %s: %v, %v, want its mode as it was", name, fi, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := letConnect(path); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("the socket: %v, %v, want mode 0666", fi, err)
	}
}
