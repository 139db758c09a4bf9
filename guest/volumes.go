package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
)

// volumes mounts what is mounted in the guest beside its root.
type volumes struct {
	sys   Sys
	disks *disks
	// copying is called before a new volume is filled, which may take long.
	copying func()
}

// mount mounts everything, in order. The root is the guest's own by now: no
// target leads out of it.
func (v volumes) mount(ctx context.Context, mounts []wire.MountConfig) error {
	for i, m := range mounts {
		var err error
		if m.Type == wire.MountTmpfs {
			err = v.mountTmpfs(m)
		} else {
			err = v.mountDisk(ctx, m, wire.VolumeSerial(i))
		}
		if err != nil {
			return fmt.Errorf("%s at %s: %w", m.Type, m.Target, err)
		}
	}
	return nil
}

// mountTmpfs mounts with the options that container engines give.
func (v volumes) mountTmpfs(m wire.MountConfig) error {
	at, err := v.target(m.Target)
	if err != nil {
		return err
	}
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	return v.sys.Mount(Mount{"tmpfs", at, "tmpfs", flags, plan.TmpfsOptions(mode, m.SizeMiB)})
}

func (v volumes) mountDisk(ctx context.Context, m wire.MountConfig, serial string) error {
	device, err := v.disks.await(ctx, serial, diskTimeout)
	if err != nil {
		return err
	}
	at, err := v.target(m.Target)
	if err != nil {
		return err
	}
	if !m.Copy {
		_, err = mountDisk(v.sys, device, at, m.ReadOnly)
		return err
	}
	// Open before it is covered.
	src, err := v.sys.Open(at, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer src.Close()
	kind, err := mountDisk(v.sys, device, at, false)
	if err != nil || kind != fsExt4 {
		return err
	}
	dst, err := v.sys.Open(at, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = fillVolume(ctx, dst, src, v.copying)
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("fill the new volume with what the image has there: %w", err)
	}
	if m.ReadOnly {
		return v.sys.Mount(Mount{"", at, "", unix.MS_REMOUNT | unix.MS_RDONLY, ""})
	}
	return nil
}

// target finds the directory to mount at, and makes it where it is missing.
func (v volumes) target(name string) (string, error) {
	at, err := resolveOwn(v.sys, name)
	if err != nil {
		return "", err
	}
	info, err := v.sys.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return at, v.sys.MkdirAll(at, 0o755)
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("the image has something else than a directory there (mode %v)", info.Mode())
	}
	return at, err
}

// beganXattr marks the root directory of a volume from before the first file is
// copied to it until after the last is on the disk. Only the superuser sees it.
const beganXattr = "trusted.volant.filling"

// fillVolume copies what src has into the volume whose root directory is dst, if
// that is empty or was not filled to the end. Whatever happens meanwhile, the
// next call finds the volume full, or begins anew.
func fillVolume(ctx context.Context, dst, src *os.File, copying func()) error {
	keep := func(name string) bool { return name == "lost+found" } // of the file system itself
	_, err := unix.Fgetxattr(int(dst.Fd()), beganXattr, nil)
	began := err == nil
	if !began {
		empty, err := isEmpty(dst, keep)
		if err != nil || !empty {
			return err
		}
	}
	if nothing, err := isEmpty(src, nil); err != nil {
		return err
	} else if nothing && !began {
		return copyAttributes(dst, src)
	}
	copying()
	if err := unix.Fsetxattr(int(dst.Fd()), beganXattr, []byte("1"), 0); err != nil {
		return &fs.PathError{Op: "setxattr", Path: dst.Name(), Err: err}
	}
	if err := dst.Sync(); err != nil {
		return err
	}
	if err := removeContents(dst, keep); err != nil {
		return err
	}
	if err := copyContents(ctx, dst, src); err != nil {
		return err
	}
	// The mark must not go before the files are there, and not come back after
	// the workload changed them.
	if err := unix.Syncfs(int(dst.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	if err := unix.Fremovexattr(int(dst.Fd()), beganXattr); err != nil {
		return &fs.PathError{Op: "removexattr", Path: dst.Name(), Err: err}
	}
	return dst.Sync()
}

// errNotEmpty ends the search of isEmpty.
var errNotEmpty = errors.New("not empty")

func isEmpty(dir *os.File, ignore func(name string) bool) (bool, error) {
	err := eachEntry(dir, func(name string) error {
		if ignore != nil && ignore(name) {
			return nil
		}
		return errNotEmpty
	})
	if errors.Is(err, errNotEmpty) {
		return false, nil
	}
	return err == nil, err
}
