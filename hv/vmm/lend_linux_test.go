package vmm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/need"
)

// owner returns whose a file is, and its mode.
func owner(t *testing.T, path string) (uid, gid int, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Uid), int(st.Gid), st.Mode & 0o777
}

// TestLend gives a directory to a process of another user, which keeps nothing of
// it, and takes back a link no further than itself.
func TestLend(t *testing.T) {
	need.Root(t, "to give a directory away")
	const nobody = 65534
	other := exec.CommandContext(t.Context(), "sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		other.Process.Kill()
		other.Wait() // reports the signal
	}()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	if err := Lend(dir, other.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if uid, gid, _ := owner(t, dir); uid != nobody || gid != nobody {
		t.Errorf("a lent directory is of %d:%d, want %d", uid, gid, nobody)
	}
	inside, link := filepath.Join(dir, "inside"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(inside, nil, 0o600), os.WriteFile(outside, nil, 0o600), os.Symlink(outside, link),
		os.Chown(inside, nobody, nobody), os.Chown(outside, nobody, nobody), os.Lchown(link, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	if err := Reclaim(dir); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{dir: 0, inside: 0, outside: nobody} {
		if uid, _, _ := owner(t, path); uid != want {
			t.Errorf("%s is of %d after Reclaim, want %d", path, uid, want)
		}
	}
	// To a process of our own there is nothing to give.
	if err := Lend(dir, os.Getpid()); err != nil {
		t.Error(err)
	}
	if uid, _, _ := owner(t, dir); uid != 0 {
		t.Errorf("a directory lent to ourselves is of %d", uid)
	}
	if err := LetRead(inside, nil); err != nil {
		t.Error(err)
	}
	if _, gid, mode := owner(t, inside); gid != 0 || mode != 0o600 {
		t.Errorf("a file for nobody else is of group %d and mode %o", gid, mode)
	}
	if err := LetRead(inside, &hv.User{UID: nobody, GID: nobody}); err != nil {
		t.Fatal(err)
	}
	if uid, gid, mode := owner(t, inside); uid != 0 || gid != nobody || mode != 0o640 {
		t.Errorf("a file to be read is of %d:%d and mode %o, want 0:%d and 640", uid, gid, mode, nobody)
	}
	if uid, gid, mode := owner(t, dir); uid != 0 || gid != nobody || mode&0o777 != 0o755 && mode != 0o750 {
		t.Errorf("its directory is of %d:%d and mode %o", uid, gid, mode)
	}
}
