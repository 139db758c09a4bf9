// Package layertest makes layers and prints trees for the tests of whatever
// makes something of them: a tree that was written as a disk, mounted and read
// back prints as it did before.
package layertest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/layers"
)

// Entry is an entry of a layer; Data is a regular file's content.
type Entry struct {
	tar.Header
	Data string
}

// Tar returns a tar archive of entries. Entries without a time get MTime.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(MTime, 0)
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.Data))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// MTime is the time of entries that have none, in seconds since 1970.
const MTime = 1700000000

// Layer returns a layer of a tar archive.
func Layer(b []byte) layers.Layer {
	return layers.Layer{Name: "test", R: bytes.NewReader(b), Size: int64(len(b))}
}

// Dump prints a tree, one line a name: type, permission bits, owner, time if it
// is not MTime, what it holds. Hard links of a file bear one number, in the
// order of their first names. Large content is printed as its digest.
func Dump(t testing.TB, tree *layers.Tree) string {
	t.Helper()
	s, err := Text(tree)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Text is Dump outside of a test.
func Text(tree *layers.Tree) (string, error) {
	tree.Index()
	var out strings.Builder
	numbers := make(map[*layers.Inode]int)
	line := func(path string, n *layers.Node) error {
		fmt.Fprintf(&out, "%q %c%o %d:%d", path, "?pc?d?b?-?l?s???"[n.Mode>>12], n.Mode&0o7777, n.UID, n.GID)
		if n.ModSec != MTime || n.ModNsec != 0 {
			fmt.Fprintf(&out, " @%d.%09d", n.ModSec, n.ModNsec)
		}
		if n.Nlink > 1 && !n.IsDir() {
			if numbers[n.Inode] == 0 {
				numbers[n.Inode] = len(numbers) + 1
			}
			fmt.Fprintf(&out, " #%d/%d", numbers[n.Inode], n.Nlink)
		}
		switch n.Type() {
		case layers.ModeRegular:
			text, err := content(n)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			out.WriteString(text)
		case layers.ModeSymlink:
			fmt.Fprintf(&out, " -> %s", n.Target())
		case layers.ModeChar, layers.ModeBlock:
			major, minor := n.Device()
			fmt.Fprintf(&out, " %d,%d", major, minor)
		}
		for _, x := range n.Xattrs() {
			fmt.Fprintf(&out, " %s=%q", x.Name, x.Value)
		}
		out.WriteByte('\n')
		return nil
	}
	if err := line(".", tree.Root); err != nil {
		return "", err
	}
	err := tree.Walk(line)
	return out.String(), err
}

func content(n *layers.Node) (string, error) {
	f, err := n.Open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	if n.Size <= 64 {
		b, err := io.ReadAll(f.Reader())
		return fmt.Sprintf(" %q", b), err
	}
	// Zeros are skipped: hashing the holes of large files would take the most
	// of a test's time.
	h, buf, zero := sha256.New(), make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < n.Size; off += int64(len(buf)) {
		got, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return "", err
		}
		if !bytes.Equal(buf[:got], zero[:got]) {
			fmt.Fprintf(h, "%d:", off)
			h.Write(buf[:got])
		}
	}
	return fmt.Sprintf(" %d:%x", n.Size, h.Sum(nil)[:8]), nil
}

// Diff compares two texts by lines and returns the lines that only one has.
func Diff(got, want string) string {
	lines := func(s string) map[string]bool {
		m := make(map[string]bool)
		for l := range strings.Lines(s) {
			m[l] = true
		}
		return m
	}
	g, w := lines(got), lines(want)
	var out strings.Builder
	for l := range strings.Lines(got) {
		if !w[l] {
			out.WriteString("got  " + l)
		}
	}
	for l := range strings.Lines(want) {
		if !g[l] {
			out.WriteString("want " + l)
		}
	}
	if out.Len() == 0 && got != want {
		return "the order differs\n"
	}
	return out.String()
}
