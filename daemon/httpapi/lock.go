package httpapi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a file that one process holds. The kernel lets it go when the process
// ends, however it ends; the file stays.
type Lock struct{ f *os.File }

// lastBreath is how long a process that was killed may take to let go of its
// locks: the kernel first gives back its memory and ends its writes to disks.
const lastBreath = 2 * time.Second

// LockFile takes the lock at path, which it creates with mode 0600. It waits 2 s
// for a process that ends just now; after that an error wrapping ErrInUse names
// the process that has the lock.
func LockFile(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	for late := time.Now().Add(lastBreath); ; time.Sleep(lastBreath / 100) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(late) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 20)) // only to be helpful
		return nil, errors.Join(fmt.Errorf("%s is %w by process %q", path, ErrInUse, strings.TrimSpace(string(holder))), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return &Lock{f: f}, nil
}

// Close lets the lock go.
func (l *Lock) Close() error { return l.f.Close() }
