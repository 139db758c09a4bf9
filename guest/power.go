package guest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyTimeout is how long file systems may be busy after everything that
	// used them was killed, which the kernel does in its own time.
	busyTimeout = 2 * time.Second
	busyPause   = 10 * time.Millisecond
)

// mounted is one line of proc_pid_mounts(5).
type mounted struct{ source, target, kind string }

// kept says whether what is written there outlives the machine, itself or
// through what is below it.
func (m mounted) kept() bool { return strings.HasPrefix(m.source, "/dev/") || m.kind == "overlay" }

// below says whether m is mounted somewhere in another file system.
func (m mounted) below(n mounted) bool {
	return strings.HasPrefix(m.target, strings.TrimRight(n.target, "/")+"/")
}

// unmountDisks unmounts every file system that lives on a block device, and the
// overlays of such. What cannot be unmounted becomes read-only. What is in
// memory goes with the machine, but must not keep the others busy.
func unmountDisks(sys Sys) error {
	all, err := readMounts(sys)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	disks := slices.Clone(all)
	disks = slices.DeleteFunc(disks, func(m mounted) bool { return !m.kept() })
	for _, m := range all {
		if !m.kept() && slices.ContainsFunc(disks, m.below) {
			_ = sys.Detach(m.target) // it may have gone with its parent
		}
	}
	var errs []error
	deadline := time.Now().Add(busyTimeout)
	for _, m := range disks {
		err := sys.Unmount(m.target)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(busyPause)
			err = sys.Unmount(m.target)
		}
		if err != nil {
			// The disk is whole then, whoever still looks at it.
			errs = append(errs, err, sys.Mount(Mount{"", m.target, "", unix.MS_REMOUNT | unix.MS_RDONLY, ""}))
		}
	}
	return errors.Join(errs...)
}

// readMounts lists what is mounted in the order in which it can be unmounted:
// the deepest first, and of two in one place the later.
func readMounts(sys Sys) ([]mounted, error) {
	b, err := sys.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var all []mounted
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 3 {
			all = append(all, mounted{unescapeMount(f[0]), unescapeMount(f[1]), f[2]})
		}
	}
	slices.Reverse(all)
	depth := func(m mounted) int { return strings.Count(strings.TrimRight(m.target, "/"), "/") }
	slices.SortStableFunc(all, func(a, b mounted) int { return cmp.Compare(depth(b), depth(a)) })
	return all, nil
}

// unescapeMount undoes the octal escapes of proc_pid_mounts(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}

// powerOff ends the machine. It returns only when that cannot be done.
func (k *kestrel) powerOff() error {
	// Whatever hangs below, in a device that does not answer, is left behind.
	done := make(chan error, 1)
	go func() {
		done <- k.guarded(func() error {
			k.sys.KillAll()
			k.bury()
			k.sys.Sync()
			return errors.Join(k.leaveRoot(), unmountDisks(k.sys))
		})
	}()
	t := time.NewTimer(offTimeout)
	defer t.Stop()
	select {
	case err := <-done:
		k.fatal(err)
	case <-t.C:
		k.fatal(fmt.Errorf("sync and unmount took longer than %s", offTimeout))
	}
	err := k.sys.PowerOff()
	k.fatal(err)
	return err
}

// bury waits until everything that was killed has ended, at most buryTimeout: a
// mount namespace keeps file systems mounted until the last who is in it has gone.
func (k *kestrel) bury() {
	for deadline := time.Now().Add(buryTimeout); time.Now().Before(deadline); {
		pid, _, err := k.sys.Wait()
		if pid < 0 || err != nil {
			return
		}
		if pid == 0 {
			time.Sleep(busyPause)
		}
	}
}

// leaveRoot takes kestrel itself out of the file systems that are to be
// unmounted.
func (k *kestrel) leaveRoot() error {
	if k.root == nil {
		return nil
	}
	k.root.close()
	if k.root.leave == nil {
		return nil
	}
	return k.root.leave(rootDir)
}
