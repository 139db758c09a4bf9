package qemu

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// memoryID names the guest's memory, the same whatever is behind it: QEMU finds
// a block of memory in a snapshot by its name.
const memoryID = "ram"

// memory returns the argument for what is behind the guest's memory.
//
// A template's file is shared, so that it holds what the guest has written; its
// forks map it privately, and write to copies of their own. Shares are served by
// another process, which must see the memory too.
func memory(spec *hv.Spec, f *findings, from *hv.Snapshot) string {
	size := ",id=" + memoryID + ",size=" + strconv.Itoa(spec.MemoryMiB) + "M"
	file := func(path, how string) string {
		return "memory-backend-file" + size + ",mem-path=" + escape(path) + how
	}
	switch {
	case from != nil && from.MemoryFile != "" && f.readonlyFile:
		return file(from.MemoryFile, ",share=off,readonly=on,rom=off")
	case from != nil && from.MemoryFile != "":
		return file(from.MemoryFile, ",share=off")
	case spec.MemoryFile != "":
		return file(spec.MemoryFile, ",share=on")
	case len(spec.Shares) > 0:
		return "memory-backend-memfd" + size + ",share=on"
	}
	return "memory-backend-ram" + size
}

// balloon returns the argument for the balloon, of which only the reporting of
// free pages is used. A template has none, and so its forks have none: QEMU
// frees a reported page by a hole in the file, also where it has mapped that
// privately, and the hole is in the memory of all forks.
func balloon(spec *hv.Spec, from *hv.Snapshot) string {
	const device = "virtio-balloon-device,deflate-on-oom=on"
	if spec.MemoryFile != "" || from != nil && from.MemoryFile != "" {
		return device
	}
	return device + ",free-page-reporting=on"
}

// mergesMemory says whether the host's kernel can merge memory at all. It does so
// once somebody has set /sys/kernel/mm/ksm/run to 1.
func mergesMemory() bool {
	_, err := os.Stat("/sys/kernel/mm/ksm/run")
	return err == nil
}

// makeMemory makes the file that a machine's memory is to be in, for its user.
func makeMemory(spec *hv.Spec) error {
	if spec.MemoryFile == "" {
		return nil
	}
	f, err := os.OpenFile(spec.MemoryFile, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%w: memory file: %w", hv.ErrInvalidSpec, err)
	}
	err = errors.Join(f.Truncate(int64(spec.MemoryMiB)<<20), f.Close(), vmm.Give(spec.MemoryFile, spec.User))
	if err != nil {
		return errors.Join(err, os.Remove(spec.MemoryFile))
	}
	return nil
}
