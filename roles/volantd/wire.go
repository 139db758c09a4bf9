package volantd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon"
	"github.com/volantvm/volant/daemon/cgroup"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/netdev"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store"
)

// databaseFile is the database's name in the data folder.
const databaseFile = "state.db"

// Run assembles a daemon and runs it until ctx ends, which is no error. Its VMs
// run on. What it took (locks, socket, database) is given back when it returns.
func Run(ctx context.Context, opt Options) (err error) {
	if err := opt.check(); err != nil {
		return err
	}
	if err := checkRoot(os.Geteuid()); err != nil {
		return err
	}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()

	// The lock before the database: opening it may bring its schema up to date.
	lock, err := lockData(opt.DataDir)
	if err != nil {
		return err
	}
	undo = append(undo, lock.Close)
	ln, err := httpapi.Listen(ctx, opt.Listen)
	if err != nil {
		return err
	}
	undo = append(undo, ln.Close)
	claim, err := netdev.Claim(ctx)
	if err != nil {
		return err
	}
	undo = append(undo, claim.Close)

	if opt.VMMUser != nil {
		// VMMs pass through the data folder: what is in it is root's alone, unless it
		// is given to them.
		unix.Umask(0o077)
		for _, name := range []string{"state.db", "state.db-wal", "state.db-shm"} {
			if err := os.Chmod(filepath.Join(opt.DataDir, name), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	st, err := store.Open(ctx, filepath.Join(opt.DataDir, databaseFile), store.Options{AfterCommit: opt.AfterCommit})
	if err != nil {
		return err
	}
	undo = append(undo, st.Close)
	pool, err := ipam.NewPool(opt.Subnet, opt.HostIP)
	if err != nil {
		return err
	}
	nd, err := netdev.New(netdev.Config{Bridge: opt.Bridge, Prefix: netip.PrefixFrom(opt.HostIP, opt.Subnet.Bits())})
	if err != nil {
		return err
	}
	groups, err := cgroups(opt)
	if err != nil {
		return err
	}
	if groups != nil {
		undo = append(undo, groups.Close)
	}
	driver, others := chooseDriver(ctx, opt)
	cfg := daemon.Config{
		Store: st, Driver: driver, Others: others, Network: network{nd, opt.Log}, Pool: pool,
		Bridge: opt.Bridge, Nameservers: opt.DNS, DataDir: opt.DataDir, RuntimeDir: opt.RuntimeDir, AgentBinary: opt.AgentBinary, AgentImage: agentImage,
		Version: opt.Version, Listen: "unix:" + ln.Addr().String(), BootTimeout: opt.BootTimeout, Log: opt.Log,
		Images: images{&opt.Registry}, ImageCap: opt.ImageCap,
		VMMUser: opt.VMMUser, MemoryOvercommit: opt.MemoryOvercommit, MemoryReserveMiB: opt.MemoryReserveMiB, KeepFreePages: opt.KeepFreePages, MergeMemory: opt.MergeMemory,
		KeepEvents: opt.KeepEvents, KeepEventsFor: opt.KeepEventsFor,
	}
	if groups != nil {
		cfg.Cgroups = groups
	}
	d, err := daemon.New(cfg)
	if err != nil {
		return err
	}
	undo = append(undo, d.Close)
	srv := httpapi.New(httpapi.Config{Service: d, Version: opt.Version, Logger: opt.Log})

	// The API ends first, then the daemon; whichever fails ends the other.
	daemonCtx, endDaemon := context.WithCancel(context.WithoutCancel(ctx))
	defer endDaemon()
	apiCtx, endAPI := context.WithCancel(ctx)
	defer endAPI()
	var wg sync.WaitGroup
	var runErr error
	wg.Go(func() {
		defer endAPI()
		runErr = d.Run(daemonCtx)
	})
	wg.Go(func() { announce(apiCtx, opt, d) })
	serveErr := srv.Serve(apiCtx, ln)
	endAPI()
	endDaemon()
	wg.Wait()
	opt.Log.Info("volantd ends; VMs run on")
	return errors.Join(runErr, serveErr)
}

// lockData makes the data folder, and sees to it that one volantd uses it.
func lockData(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, dataError(err)
	}
	lock, err := httpapi.LockFile(filepath.Join(dir, "state.lock"))
	if errors.Is(err, httpapi.ErrInUse) {
		err = fmt.Errorf("another volantd uses it: %w", err)
	}
	if err != nil {
		return nil, dataError(err)
	}
	return lock, nil
}

// dataError is an error of the data folder.
func dataError(err error) error {
	err = fmt.Errorf("data folder: %w", err)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return &readOnlyError{err}
	}
	return err
}

// readOnlyError says that nothing can be kept.
type readOnlyError struct{ error }

func (e *readOnlyError) Unwrap() error { return e.error }
func (*readOnlyError) Hint() string {
	return "volantd must be able to write there: mount it read-write, or choose another folder with --data-dir"
}

// announce says that volantd is ready, and on what, once it is.
func announce(ctx context.Context, opt Options, d *daemon.Daemon) {
	select {
	case <-d.Ready():
	case <-ctx.Done():
		return
	}
	info, err := d.SystemInfo(ctx)
	if err != nil {
		info.Hypervisor = api.Hypervisor{Error: err.Error()}
	}
	h := info.Hypervisor
	attrs := []any{"version", opt.Version, "listen", opt.Listen, "subnet", opt.Subnet}
	if h.Error != "" {
		opt.Log.Warn("volantd is ready, but cannot start VMs", append(attrs, "err", h.Error)...)
	} else {
		attrs = append(attrs, "hypervisor", h.Driver+" "+h.Version, "accel", h.Accel)
		if h.Notice != "" {
			attrs = append(attrs, "notice", h.Notice)
		}
		opt.Log.Info("volantd is ready", attrs...)
	}
	socket := os.Getenv("NOTIFY_SOCKET")
	if err := notify(socket, "READY=1"); err != nil {
		opt.Log.Warn("the service manager was not told", "err", err)
	}
	context.AfterFunc(ctx, func() { _ = notify(socket, "STOPPING=1") }) // too late to do anything about it
	if opt.Ready != nil {
		opt.Ready()
	}
}

// instanceFile holds what tells the groups of this data directory from those of
// others on the host.
const instanceFile = "instance"

// cgroups opens the groups of the VMs of a data directory, nil where none are
// wanted.
func cgroups(opt Options) (*cgroup.Host, error) {
	if opt.Cgroup == "" || opt.Cgroup == "none" {
		return nil, nil
	}
	path := filepath.Join(opt.DataDir, instanceFile)
	id, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id = []byte(strings.ToLower(rand.Text()[:16]))
		err = writeWhole(path, id)
	}
	if err != nil {
		return nil, fmt.Errorf("identity of the data folder: %w", err)
	}
	host, err := cgroup.Open(cgroup.Config{Parent: opt.Cgroup, Instance: string(id)})
	if err != nil {
		return nil, fmt.Errorf("--cgroup: %w", err)
	}
	return host, nil
}

// writeWhole writes a file whole or not at all, also when the host dies.
func writeWhole(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
