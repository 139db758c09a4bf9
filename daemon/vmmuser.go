package daemon

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
)

// employ has the VMM of spec run as Config.VMMUser, and gives that user what the
// machine is made of, and no more: it may read what others have too, write to the
// VM's own disks, and pass through the directories on the way, whose other names
// it cannot list.
func (d *Daemon) employ(ctx context.Context, spec *hv.Spec, caps hv.Capabilities) error {
	user := d.cfg.VMMUser
	if user == nil {
		return nil
	}
	if !caps.Unprivileged {
		return api.Errorf(api.CodeUnsupported, "%s cannot run as another user here", caps.Driver).WithHint("start volantd without --vmm-user, or choose another hypervisor")
	}
	spec.User = user
	disks := append([]hv.Disk{{Path: spec.Kernel, ReadOnly: true}}, spec.Disks...)
	if spec.Initramfs != "" {
		disks = append(disks, hv.Disk{Path: spec.Initramfs, ReadOnly: true})
	}
	for _, disk := range disks {
		if err := ctx.Err(); err != nil {
			return err
		}
		uid, mode := uint32(os.Geteuid()), fs.FileMode(0o640)
		if !disk.ReadOnly {
			uid, mode = user.UID, 0o600
		}
		if err := hand(disk.Path, uid, user.GID, mode); err != nil {
			return err
		}
		if err := d.pass(filepath.Dir(disk.Path), user.GID); err != nil {
			return err
		}
	}
	return d.pass(filepath.Dir(spec.Dir), user.GID) // the directory itself is the driver's to share
}

// pass lets a group through dir and what is above it, up to the daemon's own
// directories.
func (d *Daemon) pass(dir string, gid uint32) error {
	for ; within(dir, d.cfg.DataDir) || within(dir, d.cfg.RuntimeDir); dir = filepath.Dir(dir) {
		if err := hand(dir, uint32(os.Geteuid()), gid, 0o710); err != nil {
			return err
		}
	}
	return nil
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// hand makes a file or directory somebody's. One that is so already is left
// alone: whoever has hashed it can tell by its times that it is the same.
func hand(path string, uid, gid uint32, mode fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("%s is a symbolic link", path)
	}
	if st.Uid != uid || st.Gid != gid {
		if err := os.Chown(path, int(uid), int(gid)); err != nil {
			return err
		}
	}
	if fs.FileMode(st.Mode&0o7777) == mode {
		return nil
	}
	return os.Chmod(path, mode)
}
