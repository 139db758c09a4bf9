package daemon

import (
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
)

// The agent of a guest is this very program. It is on a read-only disk that all
// guests share, made once of each version of the program; a shim of a few
// kilobytes in the initramfs enters it. So the program is neither copied at
// every boot nor held in every guest's memory.
//
// Where there is no shim for this architecture, the program is in the initramfs
// itself.

// agentFormat is part of the key. It changes when what is written does.
const agentFormat = "volant agent image 1"

// pmemAlign is the size of which a file that is persistent memory must be a
// multiple, in bytes: Cloud Hypervisor maps it by pages of that size.
const pmemAlign = 2 << 20

// program is the file that becomes the agent of guests. Safe for concurrent use.
type program struct {
	path string

	mu  sync.Mutex
	sum string // guarded by mu; its digest, "" before it was read
}

// digest reads the program once: a running program's file does not change.
func (p *program) digest() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sum != "" {
		return p.sum, nil
	}
	if err := checkStatic(p.path); err != nil {
		return "", fmt.Errorf("agent binary: %w", err)
	}
	sum, _, err := fileDigest(p.path)
	if err != nil {
		return "", fmt.Errorf("agent binary: %w", err)
	}
	p.sum = sum
	return sum, nil
}

// checkStatic refuses a program that asks for a dynamic loader: as process 1 of a
// guest, which has none, it could not be executed, and the guest would end in a
// panic that does not say why.
func checkStatic(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is only read
	magic := make([]byte, len(elf.ELFMAG))
	if n, _ := file.ReadAt(magic, 0); string(magic[:n]) != elf.ELFMAG {
		return nil // no ELF file, so no loader is asked for
	}
	f, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and cannot be process 1 of a guest: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// agentOnDisk reports whether a VM of this manifest has its agent on a disk.
func (d *Daemon) agentOnDisk(m *api.Manifest) bool {
	return agentKind(m) == api.AgentHost && d.cfg.AgentImage != nil && shim.Binary() != ""
}

// agentDisk returns the disk of the agent, verified, and the kernel parameter
// that names it.
func (d *Daemon) agentDisk(ctx context.Context, caps hv.Capabilities) (hv.Disk, string, error) {
	path, err := d.agentImage(ctx)
	if err != nil {
		return hv.Disk{}, "", err
	}
	name := wire.AgentSerial
	if caps.Pmem {
		name = wire.AgentDevice // it is the first of a machine's disks
	}
	return hv.Disk{Serial: wire.AgentSerial, Path: path, ReadOnly: true, Pmem: caps.Pmem}, wire.ParamAgent + "=" + name, nil
}

// agentImage returns the path of the image of this program. The first call makes
// it, when no daemon of this version has done so before.
func (d *Daemon) agentImage(ctx context.Context) (string, error) {
	sum, err := d.program.digest()
	if err != nil {
		return "", err
	}
	return d.cache.file(ctx, cacheKey(agentFormat, sum), func(w io.Writer) error {
		f, err := os.Open(d.program.path)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		out := &countingWriter{w: w}
		if err := d.cfg.AgentImage(ctx, out, f, fi.Size()); err != nil {
			return fmt.Errorf("make the agent's disk: %w", err)
		}
		_, err = w.Write(make([]byte, -out.n&(pmemAlign-1)))
		return err
	})
}

// countingWriter counts what it passes on.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// prepare makes and reads ahead of time what every boot needs, so that the first
// one is as fast as those that follow. What fails here fails there too, and is
// said there.
func (d *Daemon) prepare(ctx context.Context) {
	if d.cfg.AgentImage == nil || shim.Binary() == "" {
		return
	}
	path, err := d.agentImage(ctx)
	if err != nil {
		d.log.Debug("agent's disk not prepared", keyErr, err)
		return
	}
	d.log.Debug("agent's disk prepared", keyPath, filepath.Base(path))
	debug.FreeOSMemory() // what making it took, six megabytes: volantd will not need them again
}
