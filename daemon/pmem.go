package daemon

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
)

// pmemKernels knows which kernels find a disk that is persistent memory without
// modules. The zero value is ready for use; it is safe for concurrent use.
type pmemKernels struct {
	mu    sync.Mutex
	known map[string]bool // by digest; guarded by mu
}

// has says whether the kernel with this digest does, whose image is at path. It is
// read once.
func (p *pmemKernels) has(digest, path string) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if has, ok := p.known[digest]; ok {
		return has, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, &missingError{digest}
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	has, err := hasPmem(f)
	if err != nil {
		return false, err
	}
	if p.known == nil {
		p.known = make(map[string]bool)
	}
	p.known[digest] = has
	return has, nil
}

// hasPmem looks in the image of a kernel for the names of what it takes: the driver,
// and one of the two kinds of namespace (CONFIG_NVDIMM_PFN, CONFIG_BTT) that bring
// ND_CLAIM, without which there is the memory, but never a block device. A kernel in
// which they are modules does not hold them. guest/shim's tests boot one that does.
func hasPmem(r io.Reader) (bool, error) {
	driver, namespace := []byte("\x00virtio_pmem\x00"), [][]byte{[]byte("\x00nd_pfn\x00"), []byte("\x00nd_btt\x00")}
	const overlap = 16 // bytes; longer than each of the names
	var hasDriver, hasNamespace bool
	b := make([]byte, 256<<10)
	for kept := 0; ; {
		n, err := io.ReadFull(r, b[kept:])
		part := b[:kept+n]
		hasDriver = hasDriver || bytes.Contains(part, driver)
		for _, name := range namespace {
			hasNamespace = hasNamespace || bytes.Contains(part, name)
		}
		switch {
		case hasDriver && hasNamespace:
			return true, nil
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return false, nil
		case err != nil:
			return false, err
		}
		kept = copy(b, part[len(part)-overlap:])
	}
}
