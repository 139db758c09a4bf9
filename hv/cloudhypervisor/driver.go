package cloudhypervisor

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// Name is the driver's name as users write it.
const Name = "cloud-hypervisor"

// Config configures a Driver. The zero value is useful.
type Config struct {
	// Binary is the path of cloud-hypervisor; empty looks in PATH.
	Binary string
	// AnyKVM has the driver go by its trial machine alone where the processor
	// shows no extensions: a KVM for guests made for it, such as PVM's, is then
	// taken, with a notice.
	AnyKVM bool
}

// Driver starts machines with Cloud Hypervisor. It implements hv.Driver and is
// safe for concurrent use.
type Driver struct {
	config Config
	// checkKVM, openTap and budget are vmm.CheckKVM, vmm.OpenTap and budget, but for
	// tests.
	checkKVM func() error
	openTap  func(name string) (*os.File, error)
	budget   func(op string) time.Duration

	mu    sync.Mutex // held through a probe, so that there is one at a time
	found *findings  // guarded by mu; what the last probe found
}

var _ hv.Driver = (*Driver)(nil)

// New returns a Driver. It looks at nothing yet.
func New(config Config) *Driver {
	return &Driver{config: config, checkKVM: vmm.CheckKVM, openTap: vmm.OpenTap, budget: budget}
}

// Name implements hv.Driver.
func (d *Driver) Name() string { return Name }

// Limits of a machine. A PCI segment has 32 slots, of which the host bridge,
// vsock, the entropy device, the balloon, pvpanic and the memory that can grow take
// six; the disks are as many as with QEMU, so that VMs run with either.
const (
	maxVCPUs   = 32
	maxDisks   = 19
	maxNICs    = 4
	maxDevices = 25
)

const (
	// plugMiB is what virtio-mem's region must be a multiple of.
	plugMiB = 128
	// blockMiB is what virtio-mem adds and takes away at a time.
	blockMiB = 2
	// pmemAlign is what the size of persistent memory must be a multiple of, in
	// bytes.
	pmemAlign = 2 << 20
)

// minMemoryMiB leaves room for a kernel, which lies at 16 MiB, and itself.
const minMemoryMiB = 32

// Probe implements hv.Driver. The result is kept until the binary changes.
func (d *Driver) Probe(ctx context.Context) (hv.Capabilities, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return hv.Capabilities{}, err
	}
	return f.caps, nil
}

// probe returns what the host offers, looking again when the binary changed.
func (d *Driver) probe(ctx context.Context) (*findings, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, stamp, err := locate(d.config.Binary)
	if err != nil {
		return nil, err
	}
	if d.found != nil && d.found.caps.Binary == path && d.found.stamp == stamp {
		return d.found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	f, err := d.look(ctx, path)
	if err != nil {
		return nil, err
	}
	f.stamp = stamp
	d.found = f
	return f, nil
}

// probeTimeout bounds all of a probe, whose trial machine takes some 40 ms.
const probeTimeout = time.Minute

func eventsPath(dir string) string { return filepath.Join(dir, eventsFile) }
