package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestImport(t *testing.T) {
	elf := testELF(true)
	sum := sha256.Sum256(elf)
	hexSum := hex.EncodeToString(sum[:])
	for _, compression := range []string{"", "none", "gzip", "lz4", "xz", "zstd"} {
		t.Run("from "+compression, func(t *testing.T) {
			in := elf
			if compression != "" {
				in = testBzImage(t, compression, elf)
			}
			dir := t.TempDir()
			img, err := Import(t.Context(), bytes.NewReader(in), int64(len(in)), dir)
			if err != nil {
				t.Fatal(err)
			}
			want := Image{
				Path:        filepath.Join(dir, hexSum+".vmlinux"),
				Digest:      "sha256:" + hexSum,
				Size:        int64(len(elf)),
				Version:     testVersion,
				Arch:        "x86_64",
				Compression: compression,
			}
			if img != want {
				t.Errorf("Import = %+v, want %+v", img, want)
			}
			got, err := os.ReadFile(img.Path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, elf) {
				t.Errorf("the file differs from the image that was packed")
			}
			if again, err := Import(t.Context(), bytes.NewReader(in), int64(len(in)), dir); err != nil || again != want {
				t.Errorf("second Import = %+v, %v, want %+v", again, err, want)
			}
			if names := list(t, dir); len(names) != 1 {
				t.Errorf("the folder holds %q, want the image alone", names)
			}
		})
	}
}

// A block of a legacy LZ4 frame holds 8 MiB; kernels have several.
func TestImportSeveralLZ4Blocks(t *testing.T) {
	elf := append(testELF(true), bytes.Repeat([]byte("relocations "), 2<<20)...)
	in := testBzImage(t, "lz4", elf)
	img, err := Import(t.Context(), bytes.NewReader(in), int64(len(in)), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(elf); img.Digest != fmt.Sprintf("sha256:%x", sum) {
		t.Errorf("Import = %d bytes, digest %s, want %d bytes, %x", img.Size, img.Digest, len(elf), sum)
	}
}

func TestImportRefuses(t *testing.T) {
	elf := testELF(true)
	edit := func(b []byte, f func(b []byte)) []byte {
		b = bytes.Clone(b)
		f(b)
		return b
	}
	le := binary.LittleEndian
	bz := testBzImage(t, "gzip", elf)
	zst := testBzImage(t, "zstd", elf)
	for _, tc := range []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, ErrNotKernel},
		{"a script", bytes.Repeat([]byte("#!/bin/sh\n"), 100), ErrNotKernel},
		{"ELF without PVH", testELF(false), ErrNoPVH},
		{"bzImage without PVH", testBzImage(t, "lz4", testELF(false)), ErrNoPVH},
		{"no banner", bytes.ReplaceAll(elf, []byte("Linux version 6"), []byte("Linux version x")), ErrNotKernel},
		{"shared object of arm64", edit(elf, func(b []byte) { le.PutUint16(b[18:], 183) }), ErrArch},
		{"32-bit ELF", edit(elf, func(b []byte) { b[4] = 1 }), ErrArch},
		{"object file", edit(elf, func(b []byte) { le.PutUint16(b[16:], 1) }), ErrNotKernel},
		{"arm64 Image", edit(make([]byte, 4096), func(b []byte) { copy(b[56:], "ARM\x64") }), ErrArch},
		{"ELF cut short", elf[:len(elf)-1], ErrNotKernel},
		{"ELF cut in its segment table", elf[:elfHeaderSize+10], ErrNotKernel},
		{"segment beyond 2^64", edit(elf, func(b []byte) { le.PutUint64(b[elfHeaderSize+8:], 1<<64-1) }), ErrNotKernel},
		{"no segments", edit(elf, func(b []byte) { le.PutUint16(b[56:], 0) }), ErrNotKernel},
		{"65535 segments", edit(elf, func(b []byte) { le.PutUint16(b[56:], 0xffff) }), ErrNotKernel},
		{"bzImage cut short", bz[:len(bz)-100], ErrNotKernel},
		{"bzImage of protocol 2.07", edit(bz, func(b []byte) { le.PutUint16(b[offProtocol:], 0x207) }), ErrNotKernel},
		{"bzImage without payload", edit(bz, func(b []byte) { le.PutUint32(b[offPayloadLength:], 0) }), ErrNotKernel},
		{"payload offset of 4 GiB", edit(bz, func(b []byte) { le.PutUint32(b[offPayloadOffset:], 1<<32-1) }), ErrNotKernel},
		{"payload of 4 GiB", edit(bz, func(b []byte) { le.PutUint32(b[offPayloadLength:], 1<<32-1) }), ErrNotKernel},
		{"payload shorter than it says", wrapPayload(le.AppendUint32(pack(t, "zstd", elf), uint32(len(elf)+1))), ErrNotKernel},
		{"payload longer than it says", wrapPayload(le.AppendUint32(pack(t, "zstd", elf), uint32(len(elf)-1))), ErrNotKernel},
		{"payload above the limit", wrapPayload(le.AppendUint32(pack(t, "zstd", elf), MaxImageSize+1)), ErrTooLarge},
		{"payload is no kernel", testBzImage(t, "zstd", bytes.Repeat([]byte("text"), 100)), ErrNotKernel},
		{"bzip2", wrapPayload([]byte("BZh91AY&SY and so on")), ErrCompression},
		{"lzma", wrapPayload([]byte("\x5d\x00\x00\x80\x00\xff\xff\xff")), ErrCompression},
		{"lzo", wrapPayload([]byte("\x89LZO\x00\r\n\x1a\n")), ErrCompression},
		{"unknown payload", wrapPayload([]byte("something else")), ErrCompression},
		{"damaged gzip", edit(bz, func(b []byte) { b[len(b)-40] ^= 1 }), nil},
		{"damaged zstd", edit(zst, func(b []byte) { b[len(b)-40] ^= 1 }), nil},
		{"lz4 block of 4 GiB", wrapPayload([]byte("\x02\x21\x4c\x18\xff\xff\xff\xff\x00\x00\x01\x00")), nil},
		{"lz4 block cut short", wrapPayload([]byte("\x02\x21\x4c\x18\x10\x00\x00\x00\x00\x00\x01\x00")), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			img, err := Import(t.Context(), bytes.NewReader(tc.in), int64(len(tc.in)), dir)
			if err == nil {
				t.Fatalf("Import = %+v, want an error", img)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("Import = %q, want %q", err, tc.want)
			}
			if names := list(t, dir); len(names) != 0 {
				t.Errorf("left behind %q", names)
			}
		})
	}
}

func TestImportTooLarge(t *testing.T) {
	_, err := Import(t.Context(), bytes.NewReader(nil), MaxImageSize+1, t.TempDir())
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("Import = %v, want %v", err, ErrTooLarge)
	}
}

func TestImportCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	elf, dir := testELF(true), t.TempDir()
	if _, err := Import(ctx, bytes.NewReader(elf), int64(len(elf)), dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Import = %v, want %v", err, context.Canceled)
	}
	if names := list(t, dir); len(names) != 0 {
		t.Errorf("left behind %q", names)
	}
}

func TestImportFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := ImportFile(t.Context(), dir, dir); !errors.Is(err, ErrNotKernel) {
		t.Errorf("ImportFile(folder) = %v, want %v", err, ErrNotKernel)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ImportFile(t.Context(), fifo, dir); !errors.Is(err, ErrNotKernel) {
		t.Errorf("ImportFile(FIFO) = %v, want %v", err, ErrNotKernel)
	}
	if _, err := ImportFile(t.Context(), filepath.Join(dir, "none"), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ImportFile(absent) = %v, want %v", err, os.ErrNotExist)
	}
	file := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(file, testELF(true), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := ImportFile(t.Context(), file, dir)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(img.Path); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode of the image: %v, %v, want 0644", st.Mode(), err)
	}
}

func TestHasPVHNote(t *testing.T) {
	entry := []byte{0, 0, 0, 1}
	for _, tc := range []struct {
		name  string
		notes []byte
		align uint64
		want  bool
	}{
		{"alone", note("Xen\x00", 18, entry), 4, true},
		{"no alignment given", note("Xen\x00", 18, entry), 0, true},
		{"64-bit entry", note("Xen\x00", 18, append(entry, 0, 0, 0, 0)), 4, true},
		{"padding of the last missing", note("Xen\x00", 18, entry)[:20], 4, true},
		{"after another", append(note("GNU\x00", 3, make([]byte, 20)), note("Xen\x00", 18, entry)...), 4, true},
		{"padded to 8", append(append(note("GNU\x00", 3, make([]byte, 4)), 0, 0, 0, 0), note("Xen\x00", 18, append(entry, 0, 0, 0, 0))...), 8, true},
		{"other name", note("GNU\x00", 18, entry), 4, false},
		{"other kind", note("Xen\x00", 17, entry), 4, false},
		{"entry of zero", note("Xen\x00", 18, make([]byte, 4)), 4, false},
		{"entry of three bytes", note("Xen\x00", 18, entry[:3]), 4, false},
		{"name beyond the end", []byte{0xff, 0xff, 0xff, 0xff, 4, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0}, 4, false},
		{"entry beyond the end", note("Xen\x00", 18, entry)[:18], 4, false},
		{"nothing", nil, 4, false},
	} {
		if got := hasPVHNote(tc.notes, tc.align); got != tc.want {
			t.Errorf("%s: hasPVHNote = %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestBannerScanner(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"Linux version 6.1.0-56-cloud-amd64 (debian)", "6.1.0-56-cloud-amd64"},
		{"Linux version %s (%s)\nLinux version 6.12.0~rc1+b_2 (x)", "6.12.0~rc1+b_2"},
		{"Linux version 6.12 a Linux version 6.13 b", "6.12"},
		{"Linux version 6.12", ""},
		{"Linux version 6.12/../x y", ""},
		{"Linux version 6" + string(bytes.Repeat([]byte{'1'}, 63)) + " x", "6" + string(bytes.Repeat([]byte{'1'}, 63))},
		{"Linux version 6" + string(bytes.Repeat([]byte{'1'}, 64)) + " x", ""},
		{"linux version 6.12 ", ""},
	} {
		for chunk := 1; chunk <= len(tc.in); chunk++ {
			var s bannerScanner
			for rest := []byte(tc.in); len(rest) > 0; {
				n, err := s.Write(rest[:min(chunk, len(rest))])
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if s.version != tc.want {
				t.Errorf("%q in writes of %d: version = %q, want %q", tc.in, chunk, s.version, tc.want)
			}
		}
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
