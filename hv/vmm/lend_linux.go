package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// Lend makes whoever the VMM runs as the owner of a directory, for it to write
// to, until Reclaim.
func Lend(dir string, pid int) error {
	// The directory is its user's whether or not what is in it is (proc_pid(5)).
	fi, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return os.Chown(dir, int(st.Uid), int(st.Gid))
}

// Reclaim takes a directory back, and what was put into it. Once it has returned
// nothing can be added.
func Reclaim(dir string) error {
	uid, gid := os.Geteuid(), os.Getegid()
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Type().IsRegular() {
			err = errors.Join(err, os.Lchown(filepath.Join(dir, e.Name()), uid, gid))
		}
	}
	return err
}

// LetRead lets user, which may be nil, read a file, by its group, and reach it in
// its directory. The directories above that are the caller's.
func LetRead(path string, user *hv.User) error {
	if user == nil {
		return nil
	}
	dir := filepath.Dir(path)
	return errors.Join(
		os.Chown(dir, -1, int(user.GID)), addMode(dir, 0o050),
		os.Chown(path, -1, int(user.GID)), addMode(path, 0o040),
	)
}

func addMode(path string, mode uint32) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	return unix.Chmod(path, st.Mode&0o7777|mode)
}
