package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/ext4"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/store/row"
)

// guestMount is one mount of a guest and, for a disk, what is on it.
type guestMount struct {
	wire.MountConfig
	volume api.VolumeMount // of a disk
	own    int             // number of a disk of the VM's own, from 0
}

// guestMounts lists what a manifest has mounted, in the order in which that is
// to be done: what lies below another mount comes after it. Their places in the
// list name the disks; see wire.VolumeSerial.
func guestMounts(m *api.Manifest) ([]guestMount, error) {
	var out []guestMount
	own := 0
	for _, v := range m.Volumes {
		g := guestMount{
			MountConfig: wire.MountConfig{Type: wire.MountDisk, Target: v.Target, ReadOnly: v.ReadOnly || v.Blob != ""},
			volume:      v,
		}
		g.Copy = v.Blob == "" && !v.ReadOnly && !v.NoCopy
		if v.Name == "" && v.Blob == "" {
			g.own = own
			own++
		}
		out = append(out, g)
	}
	for _, t := range m.Tmpfs {
		mode, err := t.Permissions()
		if err != nil {
			return nil, err
		}
		out = append(out, guestMount{MountConfig: wire.MountConfig{Type: wire.MountTmpfs, Target: t.Target, SizeMiB: t.SizeMB, Mode: mode}})
	}
	slices.SortFunc(out, func(a, b guestMount) int { return strings.Compare(a.Target, b.Target) })
	return out, nil
}

// rootConfig is what the guest is told of its root; nil for an initramfs.
func rootConfig(m *api.Manifest) *wire.RootConfig {
	if m.Rootfs == nil {
		return nil
	}
	r := rootOf(m)
	switch r.Mode {
	case api.RootMemory:
		return &wire.RootConfig{Upper: wire.UpperMemory, SizeMiB: r.SizeMB}
	case api.RootReadOnly:
		return &wire.RootConfig{Upper: wire.UpperReadOnly}
	}
	return &wire.RootConfig{Upper: wire.UpperDisk}
}

// rootOf is the manifest's root with its defaults.
func rootOf(m *api.Manifest) api.Root {
	var r api.Root
	if m.Root != nil {
		r = *m.Root
	}
	if r.Mode == "" {
		r.Mode = api.RootDisk
	}
	if r.SizeMB == 0 && r.Mode == api.RootDisk {
		r.SizeMB = api.DefaultRootMB
	}
	return r
}

// diskCount is how many disks a VM of this manifest has.
func diskCount(m *api.Manifest) int {
	n := len(m.Volumes)
	switch agentKind(m) {
	case api.AgentHost:
		n += 2 // the agent and the boot configuration
	case api.AgentImage:
		n++
	}
	if m.Rootfs != nil {
		n++
		if rootOf(m).Mode == api.RootDisk {
			n++
		}
	}
	return n
}

// checkDisks refuses a manifest whose VMs need more disks than max.
func checkDisks(m *api.Manifest, caps hv.Capabilities) error {
	if n := diskCount(m); caps.MaxDisks > 0 && n > caps.MaxDisks {
		return api.Errorf(api.CodeUnsupported, "volumes: the VM needs %d disks, its root, agent and configuration included; %s attaches at most %d", n, caps.Driver, caps.MaxDisks).
			WithHint("mount fewer volumes")
	}
	return nil
}

// Disks of one VM, in its data directory.
const (
	upperDisk = "upper.img"
	ownDisk   = "volume-" // and a number
)

// rootDisks verifies the root's disk, and makes the VM's own one over it.
func (d *Daemon) rootDisks(ctx context.Context, vm *row.VM, m *api.Manifest) ([]hv.Disk, error) {
	base := d.blobRef(m.Rootfs.Checksum)
	if err := d.disks.verify(ctx, base); err != nil {
		return nil, err
	}
	disks := []hv.Disk{{Serial: wire.RootSerial, Path: base.path, ReadOnly: true}}
	if r := rootOf(m); r.Mode == api.RootDisk {
		path := filepath.Join(d.dataDir(vm.ID), upperDisk)
		if err := d.makeDisk(path, r.SizeMB, "root"); err != nil {
			return nil, err
		}
		disks = append(disks, hv.Disk{Serial: wire.UpperSerial, Path: path})
	}
	return disks, nil
}

// makeDisk makes an empty file system of mib MiB at path, unless there is a file
// already. It is there whole or not at all.
func (d *Daemon) makeDisk(path string, mib int, label string) (err error) {
	_, err = os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	size := int64(mib) << 20
	if err := d.checkSpace(1<<20+uint64(size)/50_000, "a new disk"); err != nil { // some 10 bytes a MiB are written
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(f.Close()), removeIfThere(f.Name()))
		}
	}()
	opt := ext4.Options{Label: label, Now: d.cfg.Now()}
	rand.Read(opt.UUID[:]) // never fails: crypto/rand
	// Version 4, variant 1: RFC 9562, section 5.4.
	opt.UUID[6], opt.UUID[8] = opt.UUID[6]&0x0f|0x40, opt.UUID[8]&0x3f|0x80
	if err := ext4.Format(f, size, opt); err != nil {
		return err
	}
	return commitFile(f, path)
}

// verifiedFiles verifies files that many VMs share, each once in the life of the
// daemon and again when it has changed: a digest of a GiB takes longer than a
// boot, and that of a kernel a tenth of it. Safe for concurrent use.
type verifiedFiles struct {
	turn chan struct{} // held while a file is read: two at a time only compete for the disk

	mu   sync.Mutex
	seen map[string]fileState // guarded by mu; by path
}

// fileState tells whether a file has changed. Its ctime cannot be set by
// anybody but the kernel.
type fileState struct {
	digest       string
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func newVerifiedFiles() *verifiedFiles {
	return &verifiedFiles{turn: make(chan struct{}, 1), seen: make(map[string]fileState)}
}

func stateOf(b blobFile) (fileState, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(b.path, &st); err != nil {
		return fileState{}, &fs.PathError{Op: "stat", Path: b.path, Err: err}
	}
	return fileState{b.digest, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func (v *verifiedFiles) verify(ctx context.Context, b blobFile) error {
	if ok, err := v.known(b); ok || err != nil {
		return err
	}
	select {
	case v.turn <- struct{}{}:
		defer func() { <-v.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// Another may have read it meanwhile.
	if ok, err := v.known(b); ok || err != nil {
		return err
	}
	before, err := stateOf(b)
	if err != nil {
		return err
	}
	if err := b.verify(); err != nil {
		return err
	}
	after, err := stateOf(b)
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("artifact %s was changed while it was read", b.digest)
	}
	v.mu.Lock()
	v.seen[b.path] = after
	v.mu.Unlock()
	return nil
}

// written notes a file that was hashed while it was written.
func (v *verifiedFiles) written(b blobFile) error {
	now, err := stateOf(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen[b.path] = now
	return nil
}

// known reports whether the file is as it was when it was last verified.
func (v *verifiedFiles) known(b blobFile) (bool, error) {
	now, err := stateOf(b)
	v.mu.Lock()
	defer v.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		delete(v.seen, b.path)
		return false, b.missing()
	}
	return err == nil && v.seen[b.path] == now, err
}

// volumeDisks makes the disks of a VM's volumes ready and returns them. Named
// ones are the VM's until it has ended.
func (d *Daemon) volumeDisks(ctx context.Context, vm *row.VM, mounts []guestMount) ([]hv.Disk, error) {
	if err := d.claimVolumes(ctx, vm, mounts); err != nil {
		return nil, err
	}
	var disks []hv.Disk
	for i, g := range mounts {
		if g.Type != wire.MountDisk {
			continue
		}
		disk := hv.Disk{Serial: wire.VolumeSerial(i), ReadOnly: g.ReadOnly}
		switch v := g.volume; {
		case v.Blob != "":
			b := d.blobRef(v.Blob)
			if err := d.disks.verify(ctx, b); err != nil {
				return nil, err
			}
			disk.Path = b.path
		case v.Name != "":
			disk.Path = d.volumePath(v.Name)
		default:
			disk.Path = filepath.Join(d.dataDir(vm.ID), ownDisk+strconv.Itoa(g.own)+".img")
			if err := d.makeDisk(disk.Path, volumeSize(v.SizeMB), "volume"); err != nil {
				return nil, err
			}
		}
		disks = append(disks, disk)
	}
	return disks, nil
}
