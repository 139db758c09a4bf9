package daemon

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/volantvm/volant/hv"
)

// abilities are what a kernel can do with a machine without being given modules.
type abilities struct {
	pmem   bool // a disk that is persistent memory becomes a block device
	memory bool // takes memory that is added by virtio-mem
	cpus   bool // takes vCPUs that are added by ACPI
}

// kernelAbilities knows those of kernels. The zero value is ready for use; it is
// safe for concurrent use.
type kernelAbilities struct {
	mu    sync.Mutex
	known map[string]abilities // by digest; guarded by mu
}

// of returns those of the kernel with this digest, whose image is at path. It is
// read once.
func (k *kernelAbilities) of(digest, path string) (abilities, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a, ok := k.known[digest]; ok {
		return a, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return abilities{}, &missingError{digest}
	}
	if err != nil {
		return abilities{}, err
	}
	defer f.Close()
	a, err := findAbilities(f)
	if err != nil {
		return abilities{}, err
	}
	if k.known == nil {
		k.known = make(map[string]abilities)
	}
	k.known[digest] = a
	return a, nil
}

// limit leaves of a hypervisor's capabilities those that a kernel can make use of.
func (a abilities) limit(caps hv.Capabilities) hv.Capabilities {
	caps.Pmem = caps.Pmem && a.pmem
	caps.ResizeMemory = caps.ResizeMemory && a.memory
	caps.ResizeCPU = caps.ResizeCPU && a.cpus
	return caps
}

// findAbilities looks in the image of a kernel for names and words of what it takes:
// for persistent memory the driver, and one of the two kinds of namespace
// (CONFIG_NVDIMM_PFN, CONFIG_BTT) that bring ND_CLAIM, without which there is the
// memory, but never a block device; for memory the driver; for vCPUs what
// drivers/acpi says of them (CONFIG_ACPI_HOTPLUG_CPU). A kernel in which they are
// modules does not hold them. guest/shim's tests boot one that has the first.
func findAbilities(r io.Reader) (abilities, error) {
	words := [...][]byte{
		[]byte("\x00virtio_pmem\x00"), []byte("\x00nd_pfn\x00"), []byte("\x00nd_btt\x00"),
		[]byte("\x00virtio_mem\x00"), []byte("CPU%d has been hot-added"),
	}
	const overlap = 32 // bytes; longer than each of the words
	var found [len(words)]bool
	b := make([]byte, 256<<10)
	for kept := 0; ; {
		n, err := io.ReadFull(r, b[kept:])
		part := b[:kept+n]
		for i, word := range words {
			found[i] = found[i] || bytes.Contains(part, word)
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return abilities{pmem: found[0] && (found[1] || found[2]), memory: found[3], cpus: found[4]}, nil
		case err != nil:
			return abilities{}, err
		}
		kept = copy(b, part[len(part)-overlap:])
	}
}
