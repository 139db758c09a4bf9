package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	elfMagic = "\x7fELF"

	elfHeaderSize  = 64 // ELF64
	elfProgramSize = 56
	machineX86_64  = 62
	typeExec       = 2 // x86_64 vmlinux
	typeDyn        = 3 // a vmlinux linked as PIE
	segmentLoad    = 1
	segmentNote    = 4

	maxSegments  = 64       // vmlinux has about five
	maxNoteBytes = 64 << 10 // vmlinux has below 1 KiB

	// xenNotePVH is XEN_ELFNOTE_PHYS32_ENTRY: the 32-bit physical address at which a
	// hypervisor enters the image (xen/include/public/elfnote.h).
	xenNotePVH = 18
)

// checkELF makes sure that r holds a whole x86_64 ELF executable with a PVH entry.
// Segments are what loaders read, so sections are not looked at.
func checkELF(r io.ReaderAt, size int64) error {
	h := make([]byte, elfHeaderSize)
	if size < elfHeaderSize {
		return fmt.Errorf("%w: %d bytes are too few for an ELF file", ErrNotKernel, size)
	}
	if _, err := r.ReadAt(h, 0); err != nil && err != io.EOF {
		return err
	}
	le := binary.LittleEndian
	switch {
	case string(h[:4]) != elfMagic:
		return fmt.Errorf("%w: not an ELF file", ErrNotKernel)
	case h[4] != 2 || h[5] != 1 || le.Uint16(h[18:]) != machineX86_64:
		return fmt.Errorf("%w: ELF class %d, data %d, machine %d", ErrArch, h[4], h[5], le.Uint16(h[18:]))
	case le.Uint16(h[16:]) != typeExec && le.Uint16(h[16:]) != typeDyn:
		return fmt.Errorf("%w: ELF type %d is no executable", ErrNotKernel, le.Uint16(h[16:]))
	}
	phoff, phentsize, phnum := le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])
	if phnum == 0 || phnum > maxSegments || phentsize != elfProgramSize {
		return fmt.Errorf("%w: ELF file with %d segments of %d bytes", ErrNotKernel, phnum, phentsize)
	}
	table := make([]byte, int(phnum)*elfProgramSize)
	if !within(phoff, uint64(len(table)), size) {
		return fmt.Errorf("%w: ELF file is cut short in its segment table", ErrNotKernel)
	}
	if _, err := r.ReadAt(table, int64(phoff)); err != nil && err != io.EOF {
		return err
	}
	pvh, loads := false, 0
	for p := table; len(p) > 0; p = p[elfProgramSize:] {
		kind, offset, filesz, align := le.Uint32(p), le.Uint64(p[8:]), le.Uint64(p[32:]), le.Uint64(p[48:])
		if kind != segmentLoad && kind != segmentNote {
			continue
		}
		if !within(offset, filesz, size) {
			return fmt.Errorf("%w: ELF file is cut short: a segment of %d bytes at %d, the file has %d", ErrNotKernel, filesz, offset, size)
		}
		if kind == segmentLoad {
			loads++
			continue
		}
		if filesz > maxNoteBytes {
			return fmt.Errorf("%w: ELF note segment of %d bytes", ErrNotKernel, filesz)
		}
		notes := make([]byte, filesz)
		if _, err := r.ReadAt(notes, int64(offset)); err != nil && err != io.EOF {
			return err
		}
		pvh = pvh || hasPVHNote(notes, align)
	}
	if loads == 0 {
		return fmt.Errorf("%w: ELF file without a segment to load", ErrNotKernel)
	}
	if !pvh {
		return ErrNoPVH
	}
	return nil
}

// within says whether length bytes at offset lie in a file of size bytes.
func within(offset, length uint64, size int64) bool {
	return offset <= uint64(size) && length <= uint64(size)-offset
}

// hasPVHNote looks for the Xen note with an entry address. Descriptors and the next
// note begin at multiples of the segment's alignment, 4 or 8 bytes (gABI, "Note
// Section"). What follows a malformed note is not seen.
func hasPVHNote(notes []byte, align uint64) bool {
	if align != 8 {
		align = 4
	}
	up := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	le := binary.LittleEndian
	const header = 12
	for at, end := uint64(0), uint64(len(notes)); at+header <= end; {
		nameLen, descLen, kind := uint64(le.Uint32(notes[at:])), uint64(le.Uint32(notes[at+4:])), le.Uint32(notes[at+8:])
		nameAt := at + header
		descAt := up(nameAt + nameLen) // no overflow: the lengths are below 2^32
		if nameAt+nameLen > end || descAt+descLen > end {
			return false
		}
		name, desc := notes[nameAt:nameAt+nameLen], notes[descAt:descAt+descLen]
		at = up(descAt + descLen)
		if kind == xenNotePVH && string(name) == "Xen\x00" {
			return (descLen == 4 || descLen == 8) && len(bytes.Trim(desc, "\x00")) > 0
		}
	}
	return false
}
