package httpapi_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/daemon/httpapi"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "v:1.sock")
	ln, err := httpapi.Listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]os.FileMode{path: 0o660, filepath.Dir(path): 0o750} {
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v %v, want %v", file, st.Mode(), err, want)
		}
	}
	if _, err := httpapi.Listen(t.Context(), path); !errors.Is(err, httpapi.ErrInUse) {
		t.Errorf("second Listen = %v, want ErrInUse", err)
	}
	// The lock beside it gone, it is still not taken from a daemon that answers.
	if err := os.Remove(path + ".lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := httpapi.Listen(t.Context(), path); !errors.Is(err, httpapi.ErrInUse) || !strings.Contains(err.Error(), "answers there already") {
		t.Errorf("Listen without a lock = %v, want ErrInUse", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is there after Close: %v", err)
	}
}

func TestListenReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as a killed daemon leaves it
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := httpapi.Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("Listen over a stale socket = %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"tcp://0.0.0.0:7777":               "TLS and tokens",
		"http://127.0.0.1:7777":            "TLS and tokens",
		"vsock://3:1":                      "unix:///path",
		"volantd.sock":                     "must be absolute",
		"":                                 "must be absolute",
		"unix://" + file:                   "not a socket",
		"/tmp/" + strings.Repeat("x", 110): "115 bytes",
		filepath.Join(file, "below", "x", "sock"): "not a directory",
	} {
		_, err := httpapi.Listen(t.Context(), addr)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q) = %v, want %q", addr, err, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("beside the file there are %v %v, want nothing", left, err)
	}
	if data, err := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file is %q %v", data, err)
	}
}

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := httpapi.LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := httpapi.LockFile(path); !errors.Is(err, httpapi.ErrInUse) || !strings.Contains(err.Error(), "by process") {
		t.Errorf("second LockFile = %v, want ErrInUse", err)
	}
	// Whoever has it lets go while another waits, as the kernel does for a process
	// that was killed.
	held := l
	go func() {
		time.Sleep(100 * time.Millisecond)
		held.Close()
	}()
	l, err = httpapi.LockFile(path)
	if err != nil {
		t.Fatalf("LockFile around Close = %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
