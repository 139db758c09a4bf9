package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// Where in a disk's file QEMU says what it does with it, in bytes: it locks one
// byte for each permission that it uses, and one for each that it denies others
// (block/file-posix.c).
const (
	lockUses   = 100
	lockDenies = 200
	lockKinds  = 64
	lockWrites = lockUses + 1 // permission "write"
)

// checkLocks says which of the disks another machine has in a way that excludes
// the use that is meant: with hv.ErrDiskInUse. At a launch QEMU says so itself; a
// restored machine would say it only when it is resumed.
func checkLocks(disks []hv.Disk) error {
	for _, d := range disks {
		start, size := int64(lockUses), int64(lockDenies+lockKinds-lockUses)
		if d.ReadOnly {
			start, size = lockWrites, 1
		}
		locked, err := isLocked(d.Path, start, size)
		if err != nil {
			return fmt.Errorf("locks of disk %s: %w", d.Path, err)
		}
		if locked {
			return diskInUse(d.Path)
		}
	}
	return nil
}

func isLocked(path string, start, size int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: start, Len: size}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return false, nil // a file system without locks
		}
		return false, err
	}
	return lock.Type != unix.F_UNLCK, nil
}
