package qemu

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/volantvm/volant/hv"
)

const (
	// trialTimeout bounds a trial machine, which is done in under 0.2 s.
	trialTimeout = 20 * time.Second
	// trialPort is where QEMU's isa-debug-exit listens: a write of n ends QEMU
	// with exit status 2n+1.
	trialPort   = 0xf4
	trialValue  = 0x2a
	trialStatus = 2*trialValue + 1
)

// trial runs a guest of ten bytes and wants the exit status that only the
// guest can have caused.
func trial(ctx context.Context, path string, accel hv.Accel) error {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	f, err := os.CreateTemp("", "volant-trial-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(trialKernel())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path,
		"-M", "microvm", "-accel", string(accel), "-m", "16M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", trialPort), "-kernel", f.Name())
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &exit) && exit.ExitCode() == trialStatus:
		return nil
	case err == nil:
		return errors.New("the guest reset")
	}
	return fmt.Errorf("%w: %s", err, lastLine(stderr.Bytes()))
}

// trialKernel returns an ELF file with a PVH entry whose code writes trialValue
// to trialPort, for a processor in 32-bit protected mode.
func trialKernel() []byte {
	const (
		load    = 1 << 20
		headers = 64 + 2*56
		align   = 8
	)
	code := []byte{
		0xb8, trialValue, 0, 0, 0, // mov eax, trialValue
		0xe7, trialPort, // out trialPort, eax
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	}
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
