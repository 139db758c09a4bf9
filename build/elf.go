package build

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// object is what the dynamic linker reads of an ELF file.
type object struct {
	class   elf.Class
	data    elf.Data
	machine elf.Machine
	interp  string   // PT_INTERP; empty in libraries and static programs
	needed  []string // DT_NEEDED, in order
	rpath   []string // DT_RPATH, ignored when there is a DT_RUNPATH
	runpath []string // DT_RUNPATH
}

// fits reports whether a process of a can load b.
func (a *object) fits(b *object) bool {
	return a.class == b.class && a.data == b.data && a.machine == b.machine
}

// Bounds of what is read of one file.
const (
	maxDynamic = 1 << 20  // bytes of dynamic section
	maxStrtab  = 16 << 20 // bytes of dynamic strings
)

// readObject reads an ELF executable or shared object; nil without error is a
// file that is neither. It goes by the program headers, as the loader does:
// section headers may be stripped.
func readObject(host string) (*object, error) {
	f, err := os.Open(host)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil {
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil
		}
		return nil, err
	}
	if string(magic[:]) != elf.ELFMAG {
		return nil, nil
	}
	o, err := parseObject(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	return o, nil
}

func parseObject(r io.ReaderAt) (*object, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, err
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, nil
	}
	o := &object{class: f.Class, data: f.Data, machine: f.Machine}
	var dynamic []byte
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			b, err := readBounded(p.ReaderAt, 0, p.Filesz, 4096)
			if err != nil {
				return nil, fmt.Errorf("interpreter: %w", err)
			}
			o.interp = strings.TrimRight(string(b), "\x00")
		case elf.PT_DYNAMIC:
			if dynamic, err = readBounded(p.ReaderAt, 0, p.Filesz, maxDynamic); err != nil {
				return nil, fmt.Errorf("dynamic section: %w", err)
			}
		}
	}
	if dynamic == nil {
		return o, nil
	}
	return o, o.readDynamic(f, dynamic)
}

func (o *object) readDynamic(f *elf.File, dynamic []byte) error {
	word := 8
	if f.Class == elf.ELFCLASS32 {
		word = 4
	}
	get := func(b []byte) uint64 {
		if word == 4 {
			return uint64(f.ByteOrder.Uint32(b))
		}
		return f.ByteOrder.Uint64(b)
	}
	var needed, rpath, runpath []uint64
	var strtab, strsz uint64
	for ; len(dynamic) >= 2*word; dynamic = dynamic[2*word:] {
		tag, val := elf.DynTag(int64(get(dynamic))), get(dynamic[word:])
		if tag == elf.DT_NULL {
			break
		}
		switch tag {
		case elf.DT_NEEDED:
			needed = append(needed, val)
		case elf.DT_RPATH:
			rpath = append(rpath, val)
		case elf.DT_RUNPATH:
			runpath = append(runpath, val)
		case elf.DT_STRTAB:
			strtab = val
		case elf.DT_STRSZ:
			strsz = val
		}
	}
	if len(needed)+len(rpath)+len(runpath) == 0 {
		return nil
	}
	strs, err := readAddress(f, strtab, strsz)
	if err != nil {
		return fmt.Errorf("dynamic strings: %w", err)
	}
	str := func(off uint64) (string, error) {
		if off >= uint64(len(strs)) {
			return "", fmt.Errorf("dynamic string at %d, beyond the table of %d", off, len(strs))
		}
		s, _, ok := strings.Cut(string(strs[off:min(uint64(len(strs)), off+4097)]), "\x00")
		if !ok || s == "" {
			return "", errors.New("dynamic string empty or without end")
		}
		return s, nil
	}
	for _, off := range needed {
		s, err := str(off)
		if err != nil {
			return err
		}
		o.needed = append(o.needed, s)
	}
	for _, p := range []struct {
		offs []uint64
		dst  *[]string
	}{{rpath, &o.rpath}, {runpath, &o.runpath}} {
		for _, off := range p.offs {
			if off < uint64(len(strs)) && strs[off] == 0 {
				continue // patched empty by chrpath
			}
			s, err := str(off)
			if err != nil {
				return err
			}
			for dir := range strings.SplitSeq(s, ":") {
				if dir != "" {
					*p.dst = append(*p.dst, dir)
				}
			}
		}
	}
	return nil
}

// readAddress reads size bytes at a virtual address.
func readAddress(f *elf.File, addr, size uint64) ([]byte, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < p.Filesz {
			off := addr - p.Vaddr
			return readBounded(p.ReaderAt, int64(off), min(size, p.Filesz-off), maxStrtab)
		}
	}
	return nil, fmt.Errorf("address %#x is in no segment", addr)
}

func readBounded(r io.ReaderAt, off int64, size uint64, limit int) ([]byte, error) {
	if size > uint64(limit) {
		return nil, fmt.Errorf("%d bytes, at most %d", size, limit)
	}
	b := make([]byte, size)
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}
