package vmm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv/vmm"
)

func TestConsoleKeepsTheEnd(t *testing.T) {
	const limit = 100
	tests := []struct {
		name   string
		writes []int // sizes
	}{
		{"nothing", nil},
		{"below the limit", []int{99}},
		{"at the limit", []int{100}},
		{"just above", []int{100, 1}},
		{"small pieces", []int{30, 30, 30, 30, 30, 30, 30, 30, 30}},
		{"one far above", []int{1234}},
		{"far above after a little", []int{7, 555}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "console.log")
			c, err := vmm.OpenConsole(path, limit)
			if err != nil {
				t.Fatal(err)
			}
			var all []byte
			for _, size := range test.writes {
				b := make([]byte, size)
				for i := range b {
					b[i] = byte('a' + (len(all)+i)%26)
				}
				all = append(all, b...)
				if n, err := c.Write(b); n != size || err != nil {
					t.Fatalf("Write(%d bytes) = %d, %v", size, n, err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			older, err := os.ReadFile(path + ".1")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			newer, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(older) > limit || len(newer) > limit {
				t.Errorf("files of %d and %d bytes, limit %d", len(older), len(newer), limit)
			}
			kept := append(older, newer...)
			if !bytes.HasSuffix(all, kept) || len(kept) < min(len(all), limit) {
				t.Errorf("kept %q of %q, want at least %d bytes of the end", kept, all, min(len(all), limit))
			}
		})
	}
}

func TestConsoleAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	for i := range 3 {
		c, err := vmm.OpenConsole(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "life %d\n", i)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("late")); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Write after Close: %v, want ErrClosed", err)
		}
	}
	want := "life 0\nlife 1\nlife 2\n"
	if got := string(vmm.Tail(path, 1000)); got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
	if got := string(vmm.Tail(path, 7)); got != "life 2\n" {
		t.Errorf("Tail(7) = %q, want the last line", got)
	}
	if got := vmm.Tail(path+".missing", 7); got != nil {
		t.Errorf("Tail of a missing file = %q, want nothing", got)
	}
}

func TestConsoleGoesOnAfterAnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "console.log")
	c, err := vmm.OpenConsole(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte(strings.Repeat("x", 25))); err == nil {
		t.Errorf("Write to a removed directory = %d, want an error at the first rotation", n)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("again")); err != nil {
		t.Errorf("Write once the directory is back: %v", err)
	}
	if got := string(vmm.Tail(path, 100)); got != "again" {
		t.Errorf("log = %q, want %q", got, "again")
	}
}
