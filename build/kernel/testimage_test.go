package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/volantvm/volant/testdata/need"
)

const testVersion = "6.12.107-test"

// testELF builds a small x86_64 ELF executable: a loaded segment with a version banner
// and, if pvh is set, a note segment with the PVH entry after a note of another kind.
func testELF(pvh bool) []byte {
	text := append(bytes.Repeat([]byte{0x90, 0xe8, 1, 2, 3, 0}, 5000),
		"Linux version %s (%s)\x00Linux version "+testVersion+" (volant@volant) (gcc) #1\x00"...)
	var notes []byte
	if pvh {
		notes = note("Linux\x00", 0x101, []byte{1, 2, 3})
		notes = append(notes, note("Xen\x00", xenNotePVH, []byte{0, 0, 0, 1, 0, 0, 0, 0})...)
	}
	le := binary.LittleEndian
	textAt := uint64(elfHeaderSize + 2*elfProgramSize)
	notesAt := textAt + uint64(len(text))
	h := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	h = le.AppendUint16(h, typeExec)
	h = le.AppendUint16(h, machineX86_64)
	h = le.AppendUint32(h, 1)
	h = le.AppendUint64(h, 0x1000000) // entry
	h = le.AppendUint64(h, elfHeaderSize)
	h = le.AppendUint64(h, 0)
	h = le.AppendUint32(h, 0)
	for _, v := range []uint16{elfHeaderSize, elfProgramSize, 2, 0, 0, 0} {
		h = le.AppendUint16(h, v)
	}
	segment := func(kind uint32, at, size, align uint64) {
		h = le.AppendUint32(h, kind)
		h = le.AppendUint32(h, 5)
		for _, v := range []uint64{at, 0x1000000, 0x1000000, size, size, align} {
			h = le.AppendUint64(h, v)
		}
	}
	segment(segmentLoad, textAt, uint64(len(text)), 4096)
	segment(segmentNote, notesAt, uint64(len(notes)), 4)
	return append(append(h, text...), notes...)
}

func note(name string, kind uint32, desc []byte) []byte {
	pad := func(b []byte) []byte {
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	var b []byte
	for _, v := range []uint32{uint32(len(name)), uint32(len(desc)), kind} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = pad(append(b, name...))
	return pad(append(b, desc...))
}

// testBzImage wraps an ELF image as arch/x86/boot does: setup code with its header,
// some protected-mode code, the packed payload, its size unless gzip tells it.
func testBzImage(t testing.TB, compression string, elf []byte) []byte {
	t.Helper()
	payload := pack(t, compression, elf)
	if compression != "gzip" && compression != "none" {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(elf)))
	}
	return wrapPayload(payload)
}

func wrapPayload(payload []byte) []byte {
	const sects, stub = 3, 0x123
	b := make([]byte, (sects+1)*sectorSize+stub)
	b[offSetupSects] = sects
	le := binary.LittleEndian
	le.PutUint16(b[offBootFlag:], 0xaa55)
	copy(b[offHeaderMagic:], "HdrS")
	le.PutUint16(b[offProtocol:], 0x20f)
	le.PutUint32(b[offPayloadOffset:], stub)
	le.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "the file goes on"...)
}

func pack(t testing.TB, compression string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch compression {
	case "none":
		return bytes.Clone(data)
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case "lz4":
		z := lz4.NewWriter(&out)
		if err := z.Apply(lz4.LegacyOption(true)); err != nil {
			t.Fatal(err)
		}
		w = z
	case "xz":
		// as Linux's scripts/xz_wrap.sh does on x86
		return runXZ(t, data, "--check=crc32", "--x86", "--lzma2=preset=6,dict=32MiB")
	default:
		t.Fatalf("no packer for %s", compression)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func runXZ(t testing.TB, data []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("xz", append([]string{"--stdout", "--threads=1"}, args...)...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		need.Missing(t, "xz, of xz-utils")
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}
