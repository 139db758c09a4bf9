package guest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mountEntry is a file system that every guest has.
type mountEntry struct {
	Mount
	essential bool // the guest cannot work without
}

// mountTable lists what is mounted, in order. /proc comes from Guard.
func mountTable() []mountEntry {
	const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mountEntry{
		{Mount{"sysfs", "/sys", "sysfs", strict, ""}, true},
		{Mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"}, true},
		{Mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"}, false},
		{Mount{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"}, false},
		{Mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"}, false},
		{Mount{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"}, false},
		{Mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", strict, "nsdelegate,memory_recursiveprot"}, false},
	}
}

// deviceLinks are the symbolic links in /dev that programs expect and devtmpfs
// does not make.
func deviceLinks() [][2]string {
	return [][2]string{
		{"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	}
}

// mountAll mounts the table. It stops at an essential entry that fails and
// reports the others together, as errSurvived.
func mountAll(sys Sys) error {
	var survived []error
	for _, m := range mountTable() {
		err := sys.MkdirAll(m.Target, 0o755)
		if err == nil {
			err = sys.Mount(m.Mount)
			if errors.Is(err, unix.EBUSY) {
				err = nil // mounted before us, by the kernel
			}
		}
		if err != nil && m.essential {
			return err
		}
		if err != nil {
			survived = append(survived, err)
		}
	}
	for _, l := range deviceLinks() {
		if err := sys.Symlink(l[0], l[1]); err != nil && !errors.Is(err, unix.EEXIST) {
			survived = append(survived, err)
		}
	}
	if len(survived) > 0 {
		return fmt.Errorf("%w: %w", errSurvived, errors.Join(survived...))
	}
	return nil
}
