package vmm

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

func TestAllows(t *testing.T) {
	user := &hv.User{UID: 7, GID: 8}
	for _, c := range []struct {
		uid, gid, mode uint32
		want           bool
	}{
		{0, 0, 0o600, false},
		{0, 0, 0o666, true},
		{0, 8, 0o660, true},
		{0, 8, 0o640, false},
		{7, 0, 0o600, true},
		{7, 8, 0o066, false}, // its owner has no more than the owner's
		{0, 8, 0o606, false},
	} {
		st := unix.Stat_t{Uid: c.uid, Gid: c.gid, Mode: unix.S_IFCHR | c.mode}
		if got := allows(&st, user); got != c.want {
			t.Errorf("a device of %d:%d with mode %o allows %+v: %v, want %v", c.uid, c.gid, c.mode, *user, got, c.want)
		}
	}
	if !CanFault(nil) {
		t.Error("CanFault of whoever runs the driver: no")
	}
}
