package vmm

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// shareDir lets a VMM that runs as user make its sockets in its machine's
// directory. The directory stays ours and is sticky, so that the VMM cannot put
// another file in the place of one that is not its own, such as the record.
func shareDir(dir string, user *hv.User) error {
	if user == nil {
		return nil
	}
	if err := os.Chown(dir, -1, int(user.GID)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o770|fs.ModeSticky)
}

// Give makes user, which may be nil, the owner of a file or directory that a
// driver has made for the VMM.
func Give(path string, user *hv.User) error {
	if user == nil {
		return nil
	}
	return os.Lchown(path, int(user.UID), int(user.GID))
}

// openOwn opens a file in a directory where a VMM may make files too, and wants
// it to be a file that this process's user made.
func openOwn(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid()) {
		err = fmt.Errorf("%s: was not made by us", path)
	}
	if err != nil {
		f.Close() // only opened for reading
		return nil, err
	}
	return f, nil
}
