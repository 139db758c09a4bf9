package superblock_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/superblock"
	"github.com/volantvm/volant/testdata/need"
)

// image makes a file system of a small tree with the tool that its authors give.
func image(t *testing.T, argv ...string) []byte {
	t.Helper()
	need.Tool(t, argv[0])
	dir := t.TempDir()
	tree, file := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range argv {
		argv[i] = strings.NewReplacer("TREE", tree, "FILE", file).Replace(argv[i])
	}
	if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const someUUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func erofs(t *testing.T) []byte {
	return image(t, "mkfs.erofs", "-U", someUUID, "FILE", "TREE")
}

func ext4(t *testing.T) []byte {
	return image(t, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-U", someUUID, "-d", "TREE", "FILE", "8M")
}

func squashfs(t *testing.T) []byte {
	return image(t, "mksquashfs", "TREE", "FILE", "-quiet", "-no-progress", "-comp", "zstd")
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		image func(*testing.T) []byte
		want  superblock.Superblock // Size as the image's, if it is not said
	}{
		{"erofs", erofs, superblock.Superblock{Type: superblock.Erofs, BlockSize: 4096, Inodes: 3, UUID: someUUID}},
		{"ext4", ext4, superblock.Superblock{Type: superblock.Ext4, BlockSize: 1024, Size: 8 << 20, Inodes: 13, Label: "root", UUID: someUUID}}, // 11 are ext4's own
		{"squashfs", squashfs, superblock.Superblock{Type: superblock.Squashfs, BlockSize: 128 << 10, Inodes: 3, Compression: "zstd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.image(t)
			got, err := superblock.Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Size == 0 {
				if got.Size < int64(len(b))-4096 || got.Size > int64(len(b)) {
					t.Errorf("Size = %d of an image of %d", got.Size, len(b))
				}
				tt.want.Size = got.Size
			}
			if got != tt.want {
				t.Errorf("Read = %+v, want %+v", got, tt.want)
			}
			short := b[:got.Size-1]
			if _, err := superblock.Read(bytes.NewReader(short), int64(len(short))); err == nil || !strings.Contains(err.Error(), "truncated: the "+tt.name) {
				t.Errorf("Read of an image one byte short = %v, want truncated", err)
			}
		})
	}
}

// TestReadRefuses edits sound superblocks.
func TestReadRefuses(t *testing.T) {
	le := binary.LittleEndian
	for name, tt := range map[string]struct {
		image func(*testing.T) []byte
		edit  func([]byte)
		want  string
	}{
		"erofs block":          {erofs, func(b []byte) { b[1024+12] = 40 }, "erofs: block size 2^40"},
		"ext4 block":           {ext4, func(b []byte) { le.PutUint32(b[1024+24:], 50) }, "ext4: block size"},
		"ext4 blocks":          {ext4, func(b []byte) { le.PutUint32(b[1024+96:], 0x80); le.PutUint32(b[1024+336:], 1<<31) }, "ext4: 9223372036854784000 blocks"},
		"ext4 inodes":          {ext4, func(b []byte) { le.PutUint32(b[1024+16:], 1<<30) }, "inodes are free"},
		"squashfs block":       {squashfs, func(b []byte) { le.PutUint32(b[12:], 3) }, "squashfs: block size 3"},
		"squashfs version":     {squashfs, func(b []byte) { le.PutUint16(b[28:], 3) }, "squashfs: version 3.0"},
		"squashfs size":        {squashfs, func(b []byte) { le.PutUint64(b[40:], 1<<63) }, "bytes used"},
		"squashfs compression": {squashfs, func(b []byte) { le.PutUint16(b[20:], 99) }, "squashfs: compression 99"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tt.image(t)
			tt.edit(b)
			if got, err := superblock.Read(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read = %+v, %v; want %q", got, err, tt.want)
			}
		})
	}
	for _, b := range [][]byte{nil, []byte("hs"), []byte("070701"), make([]byte, 4096)} {
		if _, err := superblock.Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, superblock.ErrUnknown) {
			t.Errorf("Read of %d bytes %.6q = %v, want ErrUnknown", len(b), b, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	head := make([]byte, 2048)
	for at, magic := range map[int]uint32{0: 0x73717368, 1024: 0xE0F5E1E2, 1024 + 56: 0xEF53} {
		b := bytes.Clone(head)
		binary.LittleEndian.PutUint32(b[at:], magic)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := superblock.Read(bytes.NewReader(b), int64(len(b)))
		if err == nil && (s.Type == "" || s.Size < 0 || s.Size > int64(len(b)) || s.BlockSize < 512) {
			t.Errorf("Read = %+v of %d bytes", s, len(b))
		}
	})
}
