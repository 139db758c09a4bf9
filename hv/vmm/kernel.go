package vmm

import (
	"bytes"
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

// CheckKernel wants an uncompressed x86-64 ELF with a PVH entry. VMMs would take
// others too, but what they say of those that they cannot start is useless. Its
// errors wrap hv.ErrInvalidSpec.
func CheckKernel(path string) error {
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

// PVHKernel returns an ELF file with a PVH entry whose code is run by a processor
// in 32-bit protected mode, at 1 MiB and without a stack: the smallest guest.
func PVHKernel(code []byte) []byte {
	const (
		load    = 1 << 20
		headers = 64 + 2*56
		align   = 8
	)
	le := binary.LittleEndian
	entry := uint64(load + headers)
	note := le.AppendUint32(nil, 4) // size of the name
	note = le.AppendUint32(note, 8) // size of the descriptor
	note = le.AppendUint32(note, noteXenPHYS32Entry)
	note = append(note, "Xen\x00"...)
	note = le.AppendUint64(note, entry)

	noteOffset := uint64(headers+len(code)+align-1) &^ (align - 1)
	size := noteOffset + uint64(len(note))
	var b bytes.Buffer
	// Writing to a bytes.Buffer fails only for a type without a fixed size.
	put := func(v any) {
		if err := binary.Write(&b, le, v); err != nil {
			panic(err)
		}
	}
	put(elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: entry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: load, Paddr: load, Filesz: size, Memsz: size, Align: 4096,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_NOTE), Flags: uint32(elf.PF_R), Off: noteOffset,
		Vaddr: load + noteOffset, Paddr: load + noteOffset, Filesz: uint64(len(note)), Memsz: uint64(len(note)), Align: 4,
	})
	b.Write(code)
	b.Write(make([]byte, int(noteOffset)-b.Len()))
	b.Write(note)
	return b.Bytes()
}
