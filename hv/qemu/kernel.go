package qemu

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/volantvm/volant/hv"
)

const (
	// noteXenPHYS32Entry is XEN_ELFNOTE_PHYS32_ENTRY: the note with the
	// address where a PVH kernel begins (xen/include/public/elfnote.h).
	noteXenPHYS32Entry = 18
	// maxNotes bounds what is read of a kernel's notes, in bytes.
	maxNotes = 1 << 20
)

// checkKernel wants an uncompressed x86-64 ELF with a PVH entry. QEMU would
// take others too, but what it says of those that it cannot start is useless.
func checkKernel(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: kernel: %w", hv.ErrInvalidSpec, err)
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		if isBzImage(f) {
			return fmt.Errorf("%w: kernel %s is a compressed bzImage: import it first, which unpacks it", hv.ErrInvalidSpec, path)
		}
		return fmt.Errorf("%w: kernel %s is no ELF file: %w", hv.ErrInvalidSpec, path, err)
	}
	if e.Class != elf.ELFCLASS64 || e.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%w: kernel %s is for %s (%s), want x86-64", hv.ErrInvalidSpec, path, e.Machine, e.Class)
	}
	for _, p := range e.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), maxNotes))
		if err == nil && hasPVHNote(notes, e.ByteOrder) {
			return nil
		}
	}
	return fmt.Errorf("%w: kernel %s has no PVH entry note: use one built with CONFIG_PVH", hv.ErrInvalidSpec, path)
}

// hasPVHNote walks ELF notes: sizes of name and descriptor, type, name and
// descriptor, both padded to four bytes (elf(5), "Notes").
func hasPVHNote(b []byte, order binary.ByteOrder) bool {
	for len(b) >= 12 {
		nameLen, descLen, typ := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		b = b[12:]
		name, desc := (nameLen+3)&^3, (descLen+3)&^3
		if name+descLen > uint64(len(b)) {
			return false
		}
		if typ == noteXenPHYS32Entry && descLen >= 4 && string(b[:nameLen]) == "Xen\x00" {
			return true
		}
		b = b[min(name+desc, uint64(len(b))):]
	}
	return false
}

// isBzImage looks for the magic of the Linux x86 boot protocol.
func isBzImage(r io.ReaderAt) bool {
	var magic [4]byte
	_, err := r.ReadAt(magic[:], 0x202)
	return err == nil && string(magic[:]) == "HdrS"
}
