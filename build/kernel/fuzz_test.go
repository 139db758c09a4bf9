package kernel

import (
	"bytes"
	"io"
	"testing"
)

// fuzzUnpacked bounds what a fuzzed stream may unpack to, for speed.
const fuzzUnpacked = 1 << 20

func FuzzOpen(f *testing.F) {
	elf := testELF(true)
	f.Add(elf)
	for _, c := range []string{"none", "gzip", "lz4", "zstd"} {
		f.Add(testBzImage(f, c, elf))
	}
	f.Add(wrapPayload([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x00\x00\x00\x00\x1c\xdf\x44\x21")))
	f.Fuzz(func(t *testing.T, in []byte) {
		body, _, err := open(bytes.NewReader(in), int64(len(in)))
		if err != nil {
			return
		}
		out, err := io.ReadAll(io.LimitReader(body, fuzzUnpacked))
		body.Close()
		if err == nil {
			checkELF(bytes.NewReader(out), int64(len(out)))
		}
	})
}

func FuzzCheckELF(f *testing.F) {
	f.Add(testELF(true))
	f.Add(testELF(false))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := checkELF(bytes.NewReader(in), int64(len(in)))
		if whole == nil && len(in) < elfHeaderSize+elfProgramSize {
			t.Errorf("%d bytes pass as a kernel", len(in))
		}
	})
}

func FuzzHasPVHNote(f *testing.F) {
	f.Add(note("Xen\x00", xenNotePVH, []byte{0, 0, 0, 1}), uint64(4))
	f.Add(note("GNU\x00", 3, make([]byte, 20)), uint64(8))
	f.Fuzz(func(t *testing.T, notes []byte, align uint64) {
		if hasPVHNote(notes, align) && !bytes.Contains(notes, []byte("Xen\x00")) {
			t.Errorf("found a note of Xen's in %q", notes)
		}
	})
}

func FuzzXZReader(f *testing.F) {
	f.Add(runXZ(f, []byte("some text, some text"), "--check=crc32", "--x86", "--lzma2=preset=1,dict=4KiB"))
	f.Add(runXZ(f, branchy(300), "--check=sha256", "--lzma2=preset=1,dict=4KiB"))
	f.Fuzz(func(t *testing.T, in []byte) {
		io.Copy(io.Discard, io.LimitReader(newXZReader(bytes.NewReader(in)), fuzzUnpacked))
	})
}

func FuzzLZ4Reader(f *testing.F) {
	f.Add(pack(f, "lz4", []byte("some text, some text")))
	f.Fuzz(func(t *testing.T, in []byte) {
		io.Copy(io.Discard, io.LimitReader(newLZ4Reader(bytes.NewReader(in)), fuzzUnpacked))
	})
}

func FuzzBannerScanner(f *testing.F) {
	f.Add([]byte("Linux version %s Linux version 6.12.1-x (a)"), 7)
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		if chunk < 1 {
			return
		}
		var whole, split bannerScanner
		whole.Write(in)
		for rest := in; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
			split.Write(rest[:min(chunk, len(rest))])
		}
		if whole.version != split.version {
			t.Errorf("in writes of %d: version = %q, want %q", chunk, split.version, whole.version)
		}
	})
}
