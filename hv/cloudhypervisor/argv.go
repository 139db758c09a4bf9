package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/transport"
	"github.com/volantvm/volant/hv/vmm"
)

// Names of the files in an incarnation's directory, beside those of vmm.
const (
	apiSocket     = "api.sock"
	apiLock       = "api.sock.lock" // made beside the socket, from version 53 on
	eventsFile    = "events.json"
	logFile       = vmm.LogFile
	ioDir         = "io"
	consoleSocket = "io/console.sock"
	agentSocket   = "io/agent.sock"
	stageDir      = "restore" // what a restore is made from, while it is made
)

// longestSocket is as long as the longest of the socket names, that of
// transport.ReadySocket.
const longestSocket = agentSocket + "_1025"

// maxCmdline is COMMAND_LINE_SIZE of x86 Linux less the terminating zero byte.
const maxCmdline = 2047

// ownFiles lists what a machine makes in its directory.
func ownFiles() []string {
	return append(sockets(), ioDir, stageDir, vmm.RecordFile, vmm.ExitFile, eventsFile, logFile)
}

// sockets lists those of ownFiles that a machine that has ended leaves none of.
func sockets() []string {
	return []string{consoleSocket, consoleSocket + ".lock", agentSocket, transport.ReadySocket(agentSocket), apiSocket, apiLock}
}

// checkLaunch wants a machine that this driver can launch on this host. It starts
// nothing and changes nothing.
func checkLaunch(spec *hv.Spec, f *findings) error {
	if err := checkMachine(spec, f); err != nil {
		return err
	}
	switch more := spec.MaxMemoryMiB - spec.MemoryMiB; {
	case more <= 0:
	case !f.caps.ResizeMemory:
		return fmt.Errorf("%w: this host's Cloud Hypervisor adds no memory", hv.ErrInvalidSpec)
	case more%plugMiB != 0:
		return fmt.Errorf("%w: %d MiB of memory, at most %d: the most must be more by a multiple of %d MiB", hv.ErrInvalidSpec, spec.MemoryMiB, spec.MaxMemoryMiB, plugMiB)
	case spec.MemoryFile != "":
		return fmt.Errorf("%w: memory that is the file %s cannot grow", hv.ErrInvalidSpec, spec.MemoryFile)
	}
	if spec.MemoryFile != "" {
		if _, err := os.Lstat(spec.MemoryFile); err == nil {
			return fmt.Errorf("%w: memory file %s is there already", hv.ErrInvalidSpec, spec.MemoryFile)
		}
	}
	if err := vmm.CheckHost(spec, ownFiles()); err != nil {
		return err
	}
	if err := vmm.CheckBoot(spec); err != nil {
		return err
	}
	return checkLocks(spec.Disks)
}

// checkMachine wants what Launch and Restore want of a machine.
func checkMachine(spec *hv.Spec, f *findings) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.MergeMemory {
		return fmt.Errorf("%w: memory that is merged: it is a shared mapping here, which the kernel never merges (see its capabilities)", hv.ErrUnsupported)
	}
	if n := len(spec.Dir) + 1 + len(longestSocket); n > hv.MaxSocketPath {
		return fmt.Errorf("%w: directory %s is too long: its sockets would have paths of %d bytes, at most %d are possible",
			hv.ErrInvalidSpec, spec.Dir, n, hv.MaxSocketPath)
	}
	if strings.ContainsAny(spec.Dir, `,[]"`) {
		return fmt.Errorf("%w: directory %s: the characters , [ ] and \" have a meaning in Cloud Hypervisor's options", hv.ErrInvalidSpec, spec.Dir)
	}
	body, err := json.Marshal(newConfig(spec, f))
	if err != nil {
		return err
	}
	limits := []struct {
		what     string
		got, max int
	}{
		{"vCPUs", max(spec.VCPUs, spec.MaxVCPUs), f.caps.MaxVCPUs},
		{"disks", len(spec.Disks), f.caps.MaxDisks},
		{"NICs", len(spec.NICs), f.caps.MaxNICs},
		{"disks, NICs, shares and PCI devices", len(spec.Disks) + len(spec.NICs) + len(spec.Shares) + len(spec.Devices), maxDevices},
		{"bytes of kernel command line", len(cmdline(spec)), maxCmdline},
		{"bytes of configuration", len(body), f.traits.maxBody},
	}
	for _, l := range limits {
		if l.got > l.max {
			return fmt.Errorf("%w: %d %s, at most %d are possible", hv.ErrInvalidSpec, l.got, l.what, l.max)
		}
	}
	if spec.MemoryMiB < minMemoryMiB {
		return fmt.Errorf("%w: %d MiB of memory, at least %d are needed", hv.ErrInvalidSpec, spec.MemoryMiB, minMemoryMiB)
	}
	if spec.User != nil && !f.caps.Unprivileged {
		return fmt.Errorf("%w: only root can have it run as user %d", hv.ErrInvalidSpec, spec.User.UID)
	}
	for _, d := range spec.Disks {
		if !d.Pmem {
			continue
		}
		fi, err := os.Stat(d.Path)
		if err != nil {
			return fmt.Errorf("%w: %w", hv.ErrInvalidSpec, err)
		}
		if fi.Size() == 0 || fi.Size()%pmemAlign != 0 {
			return fmt.Errorf("%w: disk %s has %d bytes: to be persistent memory they must be a multiple of 2 MiB", hv.ErrInvalidSpec, d.Path, fi.Size())
		}
	}
	return nil
}

// checkLocks says which of the disks another program has in a way that excludes
// the use that is meant: with hv.ErrDiskInUse. The VMM locks them itself (F_OFD_SETLK
// of fcntl(2)), but what it says of one that it cannot lock differs from version
// to version.
func checkLocks(disks []hv.Disk) error {
	for _, d := range disks {
		if d.Pmem {
			continue // it is mapped, and not locked
		}
		locked, err := isLocked(d)
		if err != nil {
			return fmt.Errorf("locks of disk %s: %w", d.Path, err)
		}
		if locked {
			return fmt.Errorf("%w: %s: another machine has it, and one of the two means to write to it", hv.ErrDiskInUse, d.Path)
		}
	}
	return nil
}

func isLocked(d hv.Disk) (bool, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if d.ReadOnly {
		lock.Type = unix.F_RDLCK
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return false, nil // a file system without locks
		}
		return false, err
	}
	return lock.Type != unix.F_UNLCK, nil
}

// argv returns the whole command. It holds what belongs to the process; the
// machine is told to its API.
func argv(spec *hv.Spec, f *findings) []string {
	return []string{
		f.caps.Binary,
		"--api-socket", socketArgument(spec.Dir),
		"--event-monitor", "path=" + filepath.Join(spec.Dir, eventsFile),
		"--seccomp", "true",
	}
}

// socketArgument is the argument that no other process has: Find knows the
// machine of a directory by it.
func socketArgument(dir string) string { return "path=" + filepath.Join(dir, apiSocket) }
