package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
)

const (
	lowerDir = plan.LowerDir
	upperDir = plan.UpperDir
	rootDir  = plan.RootDir
)

// root is the root file system of a guest whose root is not its initramfs.
type root struct {
	sys   Sys
	disks *disks
	leave func(at string) error // set once the root was changed
	upper *os.File              // upperDir
	own   []ownFile             // of which the staged copies are open
}

// close lets go of what would keep the file systems busy.
func (r *root) close() {
	if r.upper != nil {
		r.upper.Close()
	}
	for _, o := range r.own {
		o.f.Close()
	}
	r.upper, r.own = nil, nil
}

// enter mounts the root, makes it look as a container's does, and changes to
// it. An error that is errSurvived came after nothing that matters failed. Where
// a plan was followed, the root is mounted, and the workload has changed to it.
func (r *root) enter(ctx context.Context, cfg wire.BootConfig, planned bool) error {
	var survived error
	if !planned {
		if err := r.mount(ctx, *cfg.Root); err != nil {
			return err
		}
		survived = mountAt(r.sys, plan.Queues())
		if err := graft(r.sys); err != nil {
			return err
		}
	}
	var err error
	if r.upper, err = r.sys.Open(upperDir, os.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return err
	}
	if r.own, err = openOwn(r.sys, cfg.Identity(), planned); err != nil {
		return err
	}
	if r.leave, err = r.sys.SwitchRoot(rootDir); err != nil {
		return err
	}
	if survived != nil {
		return fmt.Errorf("%w: %w", errSurvived, survived)
	}
	return nil
}

// mount mounts the overlay at rootDir. It has neither nosuid nor nodev: a
// container's root has neither, and what a process may do with a device is for
// the virtual machine to bound.
func (r *root) mount(ctx context.Context, cfg wire.RootConfig) error {
	for _, dir := range []string{lowerDir, upperDir, rootDir} {
		if err := r.sys.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	device, err := r.disks.await(ctx, wire.RootSerial, diskTimeout)
	if err == nil {
		_, err = mountDisk(r.sys, device, lowerDir, true)
	}
	if err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	switch cfg.Upper {
	case wire.UpperDisk:
		if err = r.mountUpper(ctx); err != nil {
			return fmt.Errorf("disk of the root's changes: %w", err)
		}
	case wire.UpperMemory:
		err = r.sys.Mount(Mount{"tmpfs", upperDir, "tmpfs", 0, plan.TmpfsOptions(0o755, cfg.SizeMiB)})
	default:
		// Nothing but directories to mount on, which a tmpfs does not count.
		err = r.sys.Mount(Mount{"tmpfs", upperDir, "tmpfs", 0, plan.TmpfsOptions(0o755, 1)})
	}
	if err != nil {
		return err
	}
	if err := makeUpper(r.sys); err != nil {
		return fmt.Errorf("disk of the root's changes: %w", err)
	}
	return r.sys.Mount(Mount{"overlay", rootDir, "overlay", 0, plan.OverlayOptions()})
}

func (r *root) mountUpper(ctx context.Context) error {
	device, err := r.disks.await(ctx, wire.UpperSerial, diskTimeout)
	if err != nil {
		return err
	}
	kind, err := mountDisk(r.sys, device, upperDir, false)
	if err == nil && kind != fsExt4 {
		err = fmt.Errorf("%s: is %s, which cannot be written to", device, kind)
	}
	return err
}

// makeUpper makes the overlay's two directories on an upper file system that
// has none. The directory of the changes is the root directory that everybody
// sees: it has the owner and mode of the image's.
func makeUpper(sys Sys) error {
	const dir, made = upperDir + "/upper", upperDir + "/upper.new"
	if err := sys.MkdirAll(upperDir+"/work", 0o700); err != nil {
		return err
	}
	if _, err := sys.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := sys.MkdirAll(made, 0o755); err != nil {
		return err
	}
	info, err := sys.Stat(lowerDir)
	if err != nil {
		return err
	}
	f, err := sys.Open(made, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	uid, gid := owner(info)
	err = errors.Join(f.Chown(uid, gid), f.Chmod(info.Mode()), f.Close())
	if err != nil {
		return err
	}
	return sys.Rename(made, dir) // whole or not at all
}

// graft shows what is mounted in the initramfs in the new root too. The
// image's own /run and /tmp stay, as in a container. Nothing is moved away, so
// that a boot that fails later can still be told of.
func graft(sys Sys) error {
	for _, dir := range plan.Grafted() {
		at := rootDir + dir
		info, err := sys.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			if err = sys.MkdirAll(at, 0o755); err == nil {
				info, err = sys.Lstat(at)
			}
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s of the image is no directory (mode %v)", dir, info.Mode())
		}
		if err := sys.Mount(Mount{dir, at, "", unix.MS_BIND | unix.MS_REC, ""}); err != nil {
			return err
		}
	}
	return nil
}

// ownFile is a file that is the machine's, whatever the image has there.
type ownFile struct {
	plan.File
	f *os.File // of the staged copy, to read and to write
}

// openOwn writes the machine's files where the new root does not lead, if a plan
// has not, and opens them.
func openOwn(sys Sys, id wire.Identity, planned bool) ([]ownFile, error) {
	var files []ownFile
	for _, file := range plan.OwnFiles(id) {
		files = append(files, ownFile{File: file})
	}
	for i := range files {
		o, err := &files[i], error(nil)
		if !planned { // else somebody may be reading
			err = sys.WriteFile(o.Staged(), o.Content, o.Perm)
		}
		if err == nil {
			o.f, err = sys.Open(o.Staged(), os.O_RDWR)
		}
		if err != nil {
			return files[:i], err
		}
	}
	return files, nil
}

// finish does what comes after the volumes: the machine's own files over the
// image's, the working directory, the limits of a container; then it makes a
// read-only root read-only. All but the last is survived.
func (r *root) finish(cfg wire.BootConfig) error {
	var survived []error
	for _, o := range r.own {
		if err := o.mount(r.sys); err != nil {
			survived = append(survived, fmt.Errorf("%s: %w", o.Path, err))
		}
	}
	if dir, err := resolve(r.sys, cfg.Workload.Workdir); err != nil {
		survived = append(survived, fmt.Errorf("working directory: %w", err))
	} else if err := r.sys.MkdirAll(dir, 0o755); err != nil {
		survived = append(survived, fmt.Errorf("working directory: %w", err))
	}
	survived = append(survived, linkMtab(r.sys), setSysctls(r.sys), r.sys.RaiseLimits())
	if cfg.Root.Upper == wire.UpperReadOnly {
		if err := r.seal(); err != nil {
			return err
		}
	}
	if err := errors.Join(survived...); err != nil {
		return fmt.Errorf("%w: %w", errSurvived, err)
	}
	return nil
}

// mount mounts the staged file over the image's, which is made where it is
// missing: the image's own content stays as it is. The mount is on the file
// that the path leads to, as in a container.
func (o ownFile) mount(sys Sys) error {
	at, err := resolveOwn(sys, o.Path)
	if err != nil {
		return err
	}
	info, err := sys.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := sys.WriteFile(at, nil, o.Perm); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s of the image is no regular file (mode %v)", at, info.Mode())
	}
	return sys.Mount(Mount{procFD(o.f), at, "", unix.MS_BIND, ""})
}

// rename rewrites the machine's own files, which stay where they are mounted:
// whoever has one open, or sees it in another mount namespace, sees the new
// content. A file that the machine had no content for at its boot becomes one of
// the root's.
func (r *root) rename(id wire.Identity) error {
	var errs []error
	for _, o := range plan.OwnFiles(id) {
		i := slices.IndexFunc(r.own, func(own ownFile) bool { return own.Path == o.Path })
		if i >= 0 {
			errs = append(errs, r.own[i].rewrite(o.Content))
			continue
		}
		at, err := resolveOwn(r.sys, o.Path)
		if err == nil {
			err = r.sys.WriteFile(at, o.Content, o.Perm)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// rewrite gives the staged file another content. Nobody reads none at all.
func (o ownFile) rewrite(content []byte) error {
	_, err := o.f.WriteAt(content, 0)
	if err == nil {
		err = o.f.Truncate(int64(len(content)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.Path, err)
	}
	return nil
}

// linkMtab gives programs that read the table of mounts where it used to be
// what container engines give them, if the image has nothing there.
func linkMtab(sys Sys) error {
	at, err := resolve(sys, "/etc")
	if err != nil {
		return err
	}
	if _, err := sys.Lstat(at + "/mtab"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return sys.Symlink("/proc/mounts", at+"/mtab")
}

// procFD is a path to an open file, wherever that is.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// seal makes the root read-only, and what is above the image too, so that the
// workload cannot take it back.
func (r *root) seal() error {
	if err := r.sys.Mount(Mount{"", "/", "", unix.MS_REMOUNT | unix.MS_RDONLY, ""}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return r.sys.Mount(Mount{"", procFD(r.upper), "", unix.MS_REMOUNT | unix.MS_RDONLY, ""})
}

func setSysctls(sys Sys) error {
	var errs []error
	for _, s := range plan.Sysctls() {
		if err := writeControl(sys, s[0], s[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeControl writes to a control file of the kernel, which must not be
// replaced.
func writeControl(files Files, path, value string) error {
	f, err := files.Open(path, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
