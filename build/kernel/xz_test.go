package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func unxz(data []byte) ([]byte, error) { return io.ReadAll(newXZReader(bytes.NewReader(data))) }

// branchy is data in which opcode bytes, operands that look like branches and ones that
// overlap are as dense as they can be.
func branchy(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	alphabet := []byte{0xe8, 0xe9, 0x00, 0xff, 0x01, 0xfe, 0x90, 0x7f}
	b := make([]byte, size)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return b
}

func TestXZ(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe") // real x86 code
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []struct {
		name string
		data []byte
	}{
		{"empty", nil},
		{"one byte", []byte{0xe8}},
		{"four bytes", []byte{0xe8, 0, 0, 0}},
		{"five bytes", []byte{0xe8, 0, 0, 0, 0}},
		{"text", []byte(strings.Repeat("Linux ", 30000))},
		{"branches", branchy(1 << 18)},
		{"code", self[:min(len(self), 1<<20)]},
	} {
		for _, args := range [][]string{
			{"--check=crc32", "--x86", "--lzma2=preset=1"},
			{"--check=crc64", "--lzma2=preset=1"},
			{"--check=sha256", "--x86", "--lzma2=preset=1,dict=4KiB"},
			{"--check=none", "--lzma2=preset=0"},
			{"--check=crc32", "--block-size=100000", "--x86", "--lzma2=preset=1"}, // several blocks
		} {
			got, err := unxz(runXZ(t, in.data, args...))
			if err != nil || !bytes.Equal(got, in.data) {
				t.Errorf("%s, xz %s: got %d bytes, %v, want the %d packed", in.name, strings.Join(args, " "), len(got), err, len(in.data))
			}
		}
	}
}

// The filter's state must survive any split of its input.
func TestBranchReaderSplits(t *testing.T) {
	in := branchy(1 << 12)
	want, err := io.ReadAll(&branchReader{r: bytes.NewReader(in)})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []io.Reader{
		iotest.OneByteReader(bytes.NewReader(in)),
		iotest.HalfReader(bytes.NewReader(in)),
		iotest.DataErrReader(bytes.NewReader(in)),
	} {
		got, err := io.ReadAll(&branchReader{r: r})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%T: got %d bytes, %v, differing from the whole", r, len(got), err)
		}
	}
	broken := errors.New("broken")
	_, err = io.ReadAll(&branchReader{r: io.MultiReader(bytes.NewReader(in), iotest.ErrReader(broken))})
	if !errors.Is(err, broken) {
		t.Errorf("error of the reader below = %v, want %v", err, broken)
	}
}

func TestXZRefuses(t *testing.T) {
	data := []byte(strings.Repeat("kernel ", 1000))
	good := runXZ(t, data, "--check=crc32", "--lzma2=preset=1")
	for i := range len(good) - 32 { // the index and the footer are not read
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		// The library needs no chunk's compressed size and does not look at it.
		if got, err := unxz(bad); err == nil && !bytes.Equal(got, data) {
			t.Errorf("byte %d changed: got other data and no error", i)
		}
		if got, err := unxz(good[:i]); err == nil {
			t.Errorf("cut after %d bytes: got %d bytes, want an error", i, len(got))
		}
	}

	// A stream that ends with its first block header: a length in words, less one, what
	// is given, zero bytes, a CRC32.
	block := func(given ...byte) []byte {
		h := append([]byte{0}, given...)
		for len(h)%4 != 0 {
			h = append(h, 0)
		}
		h[0] = byte(len(h) / 4)
		h = binary.LittleEndian.AppendUint32(h, crc32.ChecksumIEEE(h))
		return append(bytes.Clone(good[:12]), h...)
	}
	if _, err := unxz(block(0, xzFilterLZMA2, 1, 0)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("good block header without a block: %v, want %v", err, io.ErrUnexpectedEOF)
	}
	for name, bad := range map[string][]byte{
		"dictionary of 4 GiB":   block(0, 0x21, 1, 40, 0, 0, 0),
		"dictionary too coded":  block(0, 0x21, 1, 41, 0, 0, 0),
		"ARM filter":            block(1, 0x07, 0, 0x21, 1, 0, 0),
		"x86 filter last":       block(0, 0x04, 0, 0, 0, 0, 0),
		"reserved flag":         block(4, 0x21, 1, 0, 0, 0, 0),
		"properties beyond end": block(0, 0x21, 100, 0, 0, 0, 0),
		"endless number":        block(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
	} {
		if _, err := unxz(bad); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v, want a refusal of the header", name, err)
		}
	}
}
