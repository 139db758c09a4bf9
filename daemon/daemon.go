package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store/row"
)

// Store is what the daemon needs to remember. *store.Store is one; its methods
// are documented there. Errors are those of package row.
type Store interface {
	CreateVM(ctx context.Context, vm row.NewVM, ev api.Event) (row.VM, api.Event, error)
	ChangeVM(ctx context.Context, id string, change func(vm *row.VM) ([]api.Event, error)) (row.VM, []api.Event, error)
	DeleteVM(ctx context.Context, id string, ev api.Event) (api.Event, error)
	ChangeConfig(ctx context.Context, id string, c row.ConfigChange, change func(vm *row.VM) ([]api.Event, error)) (row.VM, []api.Event, error)
	Configs(ctx context.Context, vm string, version, limit int) ([]api.VMConfigVersion, error)
	RenameVM(ctx context.Context, id, name string, allowed func(vm *row.VM) error, ev api.Event) (row.VM, []api.Event, error)
	Expiries(ctx context.Context) ([]row.Expiry, error)
	VM(ctx context.Context, nameOrID string) (row.VM, error)
	VMByID(ctx context.Context, id string) (row.VM, error)
	VMs(ctx context.Context, f api.VMFilter) ([]row.VM, int, error)
	ActiveVMs(ctx context.Context) ([]row.VM, error)
	StoppedBefore(ctx context.Context, boot, policy string) ([]string, error)
	PromisedMemory(ctx context.Context, but string) (int, error)
	VMNames(ctx context.Context, limit int) ([]string, error)
	VMCounts(ctx context.Context) (row.Counts, error)

	PutPlugin(ctx context.Context, p api.Plugin, blobs []string, ev api.Event) (row.Plugin, []api.Event, error)
	EnablePlugin(ctx context.Context, name string, enabled bool, ev api.Event) (row.Plugin, []api.Event, error)
	RemovePlugin(ctx context.Context, name string, ev api.Event) (api.Event, error)
	Plugin(ctx context.Context, name string) (row.Plugin, error)
	Plugins(ctx context.Context) ([]row.Plugin, error)
	Manifest(ctx context.Context, digest string) (api.Manifest, error)

	CreateKernel(ctx context.Context, k api.Kernel, ev api.Event) (api.Kernel, []api.Event, error)
	DefaultKernel(ctx context.Context, name string) (api.Kernel, []api.Event, error)
	RemoveKernel(ctx context.Context, name string, ev api.Event) (api.Event, error)
	Kernel(ctx context.Context, name string) (api.Kernel, error)
	Kernels(ctx context.Context) ([]api.Kernel, error)

	PutImage(ctx context.Context, img row.Image, references []string, ev api.Event) (row.Image, []api.Event, error)
	TagImage(ctx context.Context, id, reference string, ev api.Event) (row.Image, []api.Event, error)
	RemoveImage(ctx context.Context, id string, references []string, ev api.Event) (img row.Image, removed bool, evs []api.Event, err error)
	Image(ctx context.Context, id string) (row.Image, error)
	ImageByReference(ctx context.Context, reference string) (row.Image, error)
	ImageIDs(ctx context.Context, prefix string, limit int) ([]string, error)
	Images(ctx context.Context) ([]row.Image, error)

	CreateVolume(ctx context.Context, v api.Volume, ev api.Event) (row.Volume, []api.Event, error)
	VolumeReady(ctx context.Context, name string) error
	ClaimVolumes(ctx context.Context, vm string, mounts []api.VolumeMount, ev api.Event) ([]row.Volume, []api.Event, error)
	LabelVolume(ctx context.Context, name string, ev api.Event, change func(labels map[string]string) (map[string]string, error)) (row.Volume, []api.Event, error)
	CondemnVolume(ctx context.Context, name string) error
	RemoveVolume(ctx context.Context, name string, ev api.Event) (api.Event, error)
	Volume(ctx context.Context, name string) (row.Volume, error)
	Volumes(ctx context.Context) ([]row.Volume, error)

	Answer(ctx context.Context, key string) (digest string, a api.Answer, err error)
	KeepAnswer(ctx context.Context, key, digest string, a api.Answer) error
	DropAnswer(ctx context.Context, key string) error
	PruneAnswers(ctx context.Context, keep int, before time.Time) (int, error)

	BlobRefs(ctx context.Context) ([]string, error)
	Events(ctx context.Context, f api.EventFilter, limit int) (row.EventPage, error)
	PruneEvents(ctx context.Context, keep int, before time.Time) (int, error)
}

// Config is what a Daemon is made of. Fields without a default are required.
type Config struct {
	Store Store

	// Driver starts new VMs. With nil VMs can be created but not started, and
	// DriverError says why.
	Driver      hv.Driver
	DriverError error
	// Others are further drivers, to take up VMs that were started by them
	// before Driver was another.
	Others []hv.Driver

	// Network connects VMs. With nil only VMs without a NIC can be created.
	Network Network
	// VMs that run, or are to, may have HostMemoryMiB times MemoryOvercommit less
	// MemoryReserveMiB of memory together; what would go beyond is refused. Without
	// MemoryOvercommit there is no limit. HostMemoryMiB is by default what the kernel
	// says.
	HostMemoryMiB    int
	MemoryOvercommit float64
	MemoryReserveMiB int
	// VMMUser is who VMMs run as; nil for whoever runs the daemon. A hypervisor that
	// cannot is not used then.
	VMMUser *hv.User
	// KeepFreePages leaves guests without the balloon by which they return what
	// they have freed, where the hypervisor has one.
	KeepFreePages bool
	// MergeMemory is hv.Spec's, where the hypervisor can: for operators whose VMs
	// may learn of each other what they hold.
	MergeMemory bool
	// Cgroups keeps VMMs in groups of their own. With nil, and as far as the host
	// has none to give, VMs run without limits.
	Cgroups Cgroups
	// Pool is where addresses come from; its gateway is the guests'.
	Pool ipam.Pool
	// Bridge is the name of the bridge, for information.
	Bridge string
	// Nameservers are the guests' DNS servers; none leaves guests without.
	Nameservers []netip.Addr

	DataDir    string // absolute; kept across reboots
	RuntimeDir string // absolute, at most 64 bytes: socket paths below it are bounded
	// AgentBinary is the program that becomes the agent of guests; default
	// /proc/self/exe.
	AgentBinary string
	// AgentImage writes to w a read-only file system whose root has the first size
	// bytes of program as wire.AgentProgram, so that they can be mapped from there.
	// Equal programs give equal bytes. With nil the agent is in every initramfs.
	AgentImage func(ctx context.Context, w io.Writer, program io.ReaderAt, size int64) error
	Version    string // of this binary
	Listen     string // where the API is served, for information

	// BootTimeout is how long a guest may take until its workload was started;
	// default 90 s, which is enough for an emulated guest on a busy host.
	BootTimeout time.Duration
	// MaxBlob is the largest artifact accepted, in bytes; default 16 GiB.
	MaxBlob int64
	// MinFree is how much of the data directory's file system uploads leave
	// free, in bytes; default 64 MiB.
	MinFree uint64
	// Images builds disks of OCI images. With nil there are none but those that
	// are stored.
	Images Images
	// ImageCap is how many bytes the disks of images may take, 0 for no limit.
	// When there is more, the images that were used longest ago go, of those that
	// no VM uses.
	ImageCap int64
	// KeepEvents is how many events the journal keeps; default 100,000.
	KeepEvents int
	// KeepEventsFor is how old they may be, 0 for any age.
	KeepEventsFor time.Duration

	Log *slog.Logger     // default: discards
	Now func() time.Time // default time.Now
	// BootID is the host's boot id; default: as the kernel says.
	BootID string
}

const (
	defaultBootTimeout = 90 * time.Second
	defaultMaxBlob     = 16 << 30
	defaultMinFree     = 64 << 20
	defaultKeepEvents  = 100_000
	// maxRuntimeDir leaves room in a socket path of 107 bytes for
	// /vms/<id>/<incarnation>/ and a file name of 20 bytes.
	maxRuntimeDir = 64
)

// timing is how long things may take. Tests shorten it.
type timing struct {
	launch     time.Duration // of Driver.Launch: a VMM that loads its files slowly is still alive
	kill       time.Duration // of VM.Kill
	call       time.Duration // of a short request to the agent
	powerOff   time.Duration // beyond the grace, for the guest to sync and power off
	stats      time.Duration // of one sample of what VMs use; a guest under emulation answers in some 20 ms
	drain      time.Duration // of the last log lines after a machine's end
	silence    time.Duration // after which an agent that does not answer is down
	network    time.Duration // of one change to tap or rules
	retryMin   time.Duration // pause after a step that failed for the host's sake (store, driver), doubling
	retryMax   time.Duration
	stalled    time.Duration // before a guest that its VMM has stopped is let go on
	restartMin time.Duration // pause before an automatic restart, doubling
	restartMax time.Duration
	steady     time.Duration // a VM that ran this long begins anew with restartMin
	tick       time.Duration // between two looks at everything
	grace      time.Duration // an unreferenced blob, cached file or unfinished pull is kept this long
	fresh      time.Duration // an image used this recently is not evicted: its VM may be about to be created
}

func defaultTiming() timing {
	return timing{
		launch: time.Minute, kill: 20 * time.Second, call: 5 * time.Second, powerOff: 10 * time.Second,
		stats: 2 * time.Second, drain: 2 * time.Second, silence: 15 * time.Second, network: 30 * time.Second,
		retryMin: 250 * time.Millisecond, retryMax: 30 * time.Second, stalled: 5 * time.Second,
		restartMin: time.Second, restartMax: time.Minute, steady: time.Minute,
		tick: 30 * time.Second, grace: time.Hour, fresh: time.Minute,
	}
}

// Daemon is one node's control plane. Make it with New; its methods are safe
// for concurrent use, before, during and after Run.
type Daemon struct {
	cfg   Config
	store Store
	log   *slog.Logger
	t     timing
	lock  *os.File // holds the lock on DataDir; set once by New

	bus     bus
	logNews bus    // tells of new lines in the workloads' logs
	visits  visits // who is attached to workloads
	ports   *ports // nil without a network
	cache   *cache // initramfs and agent images
	program *program
	able    kernelAbilities
	disks   *verifiedFiles
	jobs    imageJobs
	ends    ends
	onces   onces // requests with an idempotency key
	// admission is held from the sum of all VMs' memory to the wish that adds to it.
	admission chan struct{}
	// expiries are VMs that are to be deleted at some time.
	expiries expiries
	// volumes is held while disks of volumes are made or removed, and what is
	// known of them is changed.
	volumes chan struct{}
	// boots bounds how many VMs are prepared and launched at once: more only
	// make each of them slower.
	boots chan struct{}
	// blobs is held for reading by those who check that a blob is there and
	// then refer to it, for writing by the collector.
	blobs sync.RWMutex

	// foreign has the ids of machines of other daemons that were told of. Only
	// lookAtMachines uses it.
	foreign map[string]bool

	caps capabilities

	ready    chan struct{} // closed when Run has looked at everything once
	network  chan struct{} // closed when the rules of the VMs that Run found are in force
	prepared chan struct{} // closed when Run has made ready what every boot needs
	stopping chan struct{} // closed when Run's context has ended

	mu      sync.Mutex
	base    context.Context        // guarded by mu; of workers, nil before Run and after its end
	workers map[string]*worker     // guarded by mu; by VM id
	strays  map[string][]hv.Record // guarded by mu; machines that run without their directory, by VM id
	wg      sync.WaitGroup         // workers; Add under mu with base set
	ran     bool                   // guarded by mu
}

// New checks cfg, makes the directories and locks them against a second
// daemon. It starts nothing; call Run, and Close in the end.
func New(cfg Config) (*Daemon, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("daemon: no store")
	case !filepath.IsAbs(cfg.DataDir) || !filepath.IsAbs(cfg.RuntimeDir):
		return nil, fmt.Errorf("daemon: data directory %q and runtime directory %q must be absolute", cfg.DataDir, cfg.RuntimeDir)
	case len(cfg.RuntimeDir) > maxRuntimeDir:
		return nil, fmt.Errorf("daemon: runtime directory %s has %d bytes, at most %d fit into the paths of sockets", cfg.RuntimeDir, len(cfg.RuntimeDir), maxRuntimeDir)
	}
	if cfg.Driver == nil && cfg.DriverError == nil {
		cfg.DriverError = fmt.Errorf("%w: none is configured", hv.ErrUnavailable)
	}
	if cfg.AgentBinary == "" {
		cfg.AgentBinary = "/proc/self/exe"
	}
	if cfg.BootTimeout == 0 {
		cfg.BootTimeout = defaultBootTimeout
	}
	if cfg.MaxBlob == 0 {
		cfg.MaxBlob = defaultMaxBlob
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = defaultMinFree
	}
	if cfg.KeepEvents == 0 {
		cfg.KeepEvents = defaultKeepEvents
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.HostMemoryMiB == 0 {
		n, err := hostMemoryMiB()
		if err != nil {
			return nil, fmt.Errorf("daemon: memory of the host: %w", err)
		}
		cfg.HostMemoryMiB = n
	}
	if cfg.BootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("daemon: boot id of the host: %w", err)
		}
		cfg.BootID = string(bytes.TrimSpace(b))
	}

	d := &Daemon{
		cfg: cfg, store: cfg.Store, log: cfg.Log, t: defaultTiming(),
		boots:     make(chan struct{}, max(4, 2*runtime.GOMAXPROCS(0))),
		disks:     newVerifiedFiles(),
		program:   &program{path: cfg.AgentBinary},
		jobs:      newImageJobs(),
		expiries:  newExpiries(),
		volumes:   make(chan struct{}, 1),
		admission: make(chan struct{}, 1),
		ready:     make(chan struct{}),
		network:   make(chan struct{}),
		prepared:  make(chan struct{}),
		stopping:  make(chan struct{}),
		workers:   make(map[string]*worker),
	}
	if cfg.Network != nil {
		d.ports = newPorts(cfg.Network)
	}
	for _, dir := range []string{cfg.RuntimeDir, filepath.Join(cfg.RuntimeDir, "vms"), cfg.DataDir, filepath.Join(cfg.DataDir, "vms"),
		d.blobTemp(), filepath.Join(cfg.DataDir, "cache"), d.volumesDir(), d.stagingDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("daemon: %w", err)
		}
	}
	d.cache = newCache(filepath.Join(cfg.DataDir, "cache"), d.disks)
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	d.lock = lock
	if err := d.sweepTemp(); err != nil {
		return nil, errors.Join(fmt.Errorf("daemon: %w", err), lock.Close())
	}
	return d, nil
}

// lockDir keeps a second daemon off the directory for as long as the file is
// open; a killed process lets go by itself.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "volantd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("data directory %s is in use by another volantd: stop that one, or choose another directory", dir)
		} else {
			err = fmt.Errorf("lock %s: %w", dir, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Run brings the host in line with the store and then works until ctx ends.
// It then lets go of the VMs, which run on, waits for its goroutines and
// returns nil. An error means that it could not begin. Run may be called once.
func (d *Daemon) Run(ctx context.Context) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	d.mu.Lock()
	if d.ran {
		d.mu.Unlock()
		return errors.New("daemon: Run was called before")
	}
	d.ran = true
	d.base = base
	d.wg.Go(func() {
		defer close(d.prepared)
		d.prepare(base)
	})
	d.mu.Unlock()

	err := d.begin(ctx)
	if err == nil {
		close(d.ready)
		d.wg.Go(func() { d.watchExpiries(base) })
		ticker := time.NewTicker(d.t.tick)
		defer ticker.Stop()
		for ctx.Err() == nil {
			select {
			case <-ticker.C:
				d.tick(ctx)
			case <-ctx.Done():
			}
		}
	}
	if ctx.Err() != nil {
		err = nil
	}

	close(d.stopping)
	d.mu.Lock()
	d.base = nil // no further workers
	d.mu.Unlock()
	cancel()
	d.wg.Wait()
	return err
}

// Ready is closed once Run has made the network, and every VM that was active
// has its worker.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// Close releases the lock on the data directory. Run must have returned, or
// never been called.
func (d *Daemon) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	return nil
}
