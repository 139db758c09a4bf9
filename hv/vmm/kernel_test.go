package vmm

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/volantvm/volant/hv"
)

func TestCheckKernel(t *testing.T) {
	sound := PVHKernel([]byte{0xf4})
	change := func(f func(b []byte)) []byte {
		b := append([]byte(nil), sound...)
		f(b)
		return b
	}
	note := len(sound) - 24 // name size, descriptor size, type, "Xen\0", descriptor
	tests := []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"sound", sound, true},
		{"empty", nil, false},
		{"cut in the header", sound[:40], false},
		{"cut before the note", sound[:note], false},
		{"32 bits", change(func(b []byte) { b[4] = 1 }), false},
		{"another machine", change(func(b []byte) { b[18] = 183 }), false},
		{"another note type", change(func(b []byte) { b[note+8] = 17 }), false},
		{"another note name", change(func(b []byte) { b[note+12] = 'x' }), false},
		{"note beyond the end", change(func(b []byte) { binary.LittleEndian.PutUint32(b[note+4:], 1<<31) }), false},
		{"huge name", change(func(b []byte) { binary.LittleEndian.PutUint32(b[note:], 1<<32-1) }), false},
	}
	for _, test := range tests {
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, test.b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckKernel(path); (err == nil) != test.ok || err != nil && !errors.Is(err, hv.ErrInvalidSpec) {
			t.Errorf("CheckKernel(%s) = %v, want ok %v", test.name, err, test.ok)
		}
	}
}

func FuzzHasPVHNote(f *testing.F) {
	kernel := PVHKernel([]byte{0xf4})
	f.Add(kernel[len(kernel)-24:])
	f.Add([]byte{})
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if hasPVHNote(b, binary.LittleEndian) && len(b) < 20 {
			t.Errorf("hasPVHNote(%x) = true, but a note with an entry needs 20 bytes", b)
		}
	})
}
