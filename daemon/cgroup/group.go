package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits are what a VMM may have. Zero is no limit.
type Limits struct {
	MemoryBytes int64
	Pids        int // processes and threads
	CPUWeight   int // 1 to 10000, 100 for one of ordinary weight
	CPUPercent  int // of one processor: 250 for two and a half
}

// cpuPeriod is over how long CPUPercent is measured, in microseconds: the
// kernel's default.
const cpuPeriod = 100_000

// setting is one file of a group and what is written to it.
type setting struct {
	controller, file, value string
}

// settings returns l as files of a version. What cannot be said exactly is
// rounded to what is nearest.
func (l Limits) settings(version int) (s []setting) {
	add := func(controller, file string, value int64) {
		if value > 0 {
			s = append(s, setting{controller, file, strconv.FormatInt(value, 10)})
		}
	}
	if version == 2 {
		add(ctlMemory, "memory.max", l.MemoryBytes)
		if l.MemoryBytes > 0 {
			s = append(s, setting{ctlMemory, "memory.oom.group", "1"})
		}
		add(ctlPids, "pids.max", int64(l.Pids))
		add(ctlCPU, "cpu.weight", int64(l.CPUWeight))
		if l.CPUPercent > 0 {
			s = append(s, setting{ctlCPU, "cpu.max", fmt.Sprintf("%d %d", l.CPUPercent*cpuPeriod/100, cpuPeriod)})
		}
		return s
	}
	add(ctlMemory, "memory.limit_in_bytes", l.MemoryBytes)
	add(ctlPids, "pids.max", int64(l.Pids))
	// 1024 is a group's ordinary weight there, and 262144 the most.
	add(ctlCPU, "cpu.shares", min(int64(l.CPUWeight)*1024/100, 262144))
	if l.CPUPercent > 0 {
		add(ctlCPU, "cpu.cfs_period_us", cpuPeriod)
		add(ctlCPU, "cpu.cfs_quota_us", int64(l.CPUPercent)*cpuPeriod/100)
	}
	return s
}

// checkID wants a name that is one part of a path, and none of the kernel's own.
func checkID(id string) error {
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		return fmt.Errorf("cgroup of VM %q: not the id of a VM", id)
	}
	return nil
}

// Make makes the groups of a VM, with limits, and returns their directories, one
// of each hierarchy: hv.Spec.Cgroups. What is there already is only limited.
func (h *Host) Make(id string, l Limits) (dirs []string, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	for _, r := range h.roots {
		dir := filepath.Join(r.dir, id)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, h.Limit(id, l)
}

// Limit changes the limits of a VM's groups, which exist.
func (h *Host) Limit(id string, l Limits) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, r := range h.roots {
		for _, s := range l.settings(r.version) {
			if !slices.Contains(r.controllers, s.controller) {
				continue
			}
			if err := write(filepath.Join(r.dir, id, s.file), s.value); err != nil {
				return fmt.Errorf("limit VM %s: %w", id, err)
			}
		}
	}
	return nil
}

// IDs lists the VMs that have a group.
func (h *Host) IDs() (ids []string, err error) {
	for _, r := range h.roots {
		entries, err := os.ReadDir(r.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && checkID(e.Name()) == nil && !slices.Contains(ids, e.Name()) {
				ids = append(ids, e.Name())
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Remove ends every process that is in a VM's groups and removes them. It is no
// error if there are none. It returns when they have gone, or with ctx.
func (h *Host) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	var errs []error
	for _, r := range h.roots {
		if err := h.remove(ctx, r, filepath.Join(r.dir, id)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup of VM %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) remove(ctx context.Context, r root, dir string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := h.removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		if r.version == 2 && write(filepath.Join(dir, "cgroup.kill"), "1") == nil { // from Linux 5.14 on
			err = nil
		} else {
			err = killAll(dir)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s still has processes: %w", dir, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// removeTree removes a group, and what a VMM that runs as root may have made in it.
func (h *Host) removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		if err := h.rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// killAll sends SIGKILL to the processes in a group and below.
func killAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		pids, err := members(path)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := killMember(path, pid); err != nil {
				return err
			}
		}
		return nil
	})
}

// killMember kills a process that is in a group: the number alone may have become
// another's, so that it is held before it is looked for once more.
func killMember(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	pids, err := members(dir)
	if err != nil || !slices.Contains(pids, pid) {
		return err
	}
	if pid == os.Getpid() {
		return errors.New("volantd itself is in it")
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// members lists the processes in a group; those of another namespace are 0, and
// left out.
func members(dir string) (pids []int, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it was removed meanwhile
		return nil, nil
	}
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, err
}
