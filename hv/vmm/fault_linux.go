package vmm

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// CanFault says that a VMM that runs as user, nil for whoever runs the driver, can
// have itself told of pages that its guest touches (userfaultfd(2)), as far as
// that is a matter of who it is: by the device, or where everybody may.
func CanFault(user *hv.User) bool {
	if user == nil {
		return true // a trial shows it
	}
	b, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd")
	if err == nil && strings.TrimSpace(string(b)) == "1" {
		return true
	}
	var st unix.Stat_t
	if unix.Stat("/dev/userfaultfd", &st) != nil {
		return false
	}
	return allows(&st, user)
}

// allows says that a file's mode lets a user without supplementary groups read and
// write it.
func allows(st *unix.Stat_t, user *hv.User) bool {
	shift := 0
	switch {
	case st.Uid == user.UID:
		shift = 6
	case st.Gid == user.GID:
		shift = 3
	}
	return st.Mode>>shift&6 == 6
}
