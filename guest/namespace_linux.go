package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Spawn implements Processes.
func (k kernel) Spawn(p Process) (int, error) {
	switch {
	case p.Own:
		if err := mine("make namespaces"); err != nil {
			return 0, err
		}
		if p.Init {
			return spawnInit(p)
		}
		return spawnOwn(p, p.Files)
	case p.Join != nil:
		if err := mine("join namespaces"); err != nil {
			return 0, err
		}
		return spawnInside(k.processes, p)
	}
	return k.processes.Spawn(p)
}

// Namespaces implements Sys.
func (k kernel) Namespaces(pid int) (*Namespaces, error) { return openNamespaces(k.rooted, pid) }

// spawnInit starts kestrel as the first process of a process and a mount
// namespace, and p as its child. It returns when p's program runs.
func spawnInit(p Process) (int, error) {
	spec, err := specFile(p)
	if err != nil {
		return 0, err
	}
	defer spec.Close()
	told, report, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer told.Close()
	pid, err := spawnOwn(Process{
		Path: "/proc/self/exe", Args: []string{"kestrel", InitStep}, Dir: "/", TTY: p.TTY, Cgroup: p.Cgroup,
	}, append(p.Files[:3:3], spec.Fd(), report.Fd()))
	report.Close()
	if err != nil {
		return 0, fmt.Errorf("start an init for the workload: %w", err)
	}
	if err := forkReport(told); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // it is about to end, if it has not; the reaper buries it
		return 0, err
	}
	return pid, nil
}

// specFile is a file in memory that holds p.
func specFile(p Process) (*os.File, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(initSpecName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), initSpecName)
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// spawnInside starts a process in the namespaces of p.Join. Which namespaces the
// children of a thread begin in is the thread's own affair: one is put there for
// the purpose, and ends.
func spawnInside(start processes, p Process) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		if unix.Gettid() == os.Getpid() {
			// The process's first thread does not end, and is who it is for others.
			pid, err = spawnInside(start, p)
			runtime.UnlockOSThread()
			return
		}
		err = p.Join.use(func(pidNS, mntNS int) error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil { // root and directory are the thread's own
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Setns(mntNS, unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("setns", err)
			}
			if err := unix.Setns(pidNS, unix.CLONE_NEWPID); err != nil {
				return os.NewSyscallError("setns", err)
			}
			var err error
			pid, err = start.Spawn(p)
			return err
		})
		if errors.Is(err, unix.ENOMEM) { // pid_namespaces(7): its first process has ended
			err = errNamespaceGone
		}
	}()
	<-done
	return pid, err
}
