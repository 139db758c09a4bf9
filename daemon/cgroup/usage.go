package cgroup

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what the processes of a VM have used. What was not measured is -1.
type Usage struct {
	CPU        time.Duration // since the group was made, of all processors together
	Memory     int64         // bytes in use now, without what can be dropped at once
	ReadBytes  int64         // from disks, since the group was made
	WriteBytes int64
	Pids       int // processes and threads now
}

// none is a Usage of which nothing is known.
func none() Usage { return Usage{CPU: -1, Memory: -1, ReadBytes: -1, WriteBytes: -1, Pids: -1} }

// Usage reads what a VM's groups have counted.
func (h *Host) Usage(id string) (Usage, error) {
	if err := checkID(id); err != nil {
		return none(), err
	}
	u := none()
	for _, r := range h.roots {
		dir := filepath.Join(r.dir, id)
		if r.version == 2 {
			u.readV2(dir)
		} else {
			u.readV1(dir)
		}
	}
	return u, nil
}

func (u *Usage) readV2(dir string) {
	if n, ok := keyed(dir, "cpu.stat", "usage_usec"); ok && u.CPU < 0 {
		u.CPU = time.Duration(n) * time.Microsecond
	}
	if n, ok := number(dir, "memory.current"); ok {
		cache, _ := keyed(dir, "memory.stat", "inactive_file")
		u.Memory = max(0, n-cache)
	}
	if n, ok := number(dir, "pids.current"); ok {
		u.Pids = int(n)
	}
	// A line a disk: "8:0 rbytes=1 wbytes=2 rios=3 …".
	if b, ok := read(dir, "io.stat"); ok {
		u.ReadBytes, u.WriteBytes = 0, 0
		for f := range strings.FieldsSeq(b) {
			name, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseInt(value, 10, 64)
			switch {
			case err != nil:
			case name == "rbytes":
				u.ReadBytes += n
			case name == "wbytes":
				u.WriteBytes += n
			}
		}
	}
}

func (u *Usage) readV1(dir string) {
	if n, ok := number(dir, "cpuacct.usage"); ok {
		u.CPU = time.Duration(n)
	}
	if n, ok := number(dir, "memory.usage_in_bytes"); ok {
		cache, _ := keyed(dir, "memory.stat", "total_inactive_file")
		u.Memory = max(0, n-cache)
	}
	if n, ok := number(dir, "pids.current"); ok {
		u.Pids = int(n)
	}
	// A line a disk and direction, "8:0 Read 4096", and at the end "Total 4096".
	if b, ok := read(dir, "blkio.throttle.io_service_bytes_recursive"); ok {
		u.ReadBytes, u.WriteBytes = 0, 0
		for line := range strings.Lines(b) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue
			}
			n, err := strconv.ParseInt(f[2], 10, 64)
			switch {
			case err != nil:
			case f[1] == "Read":
				u.ReadBytes += n
			case f[1] == "Write":
				u.WriteBytes += n
			}
		}
	}
}

// maxFile bounds what is read of a file, in bytes: memory.stat has some 2 KiB,
// io.stat a line a disk.
const maxFile = 64 << 10

func read(dir, file string) (string, bool) {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return "", false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err == nil
}

func number(dir, file string) (int64, bool) {
	s, ok := read(dir, file)
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n, ok && err == nil
}

// keyed reads the value of a key from a file of "key value" lines.
func keyed(dir, file, key string) (int64, bool) {
	s, ok := read(dir, file)
	if !ok {
		return 0, false
	}
	for line := range strings.Lines(s) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), " "); found && name == key {
			n, err := strconv.ParseInt(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// clockTick is how long a unit of CPU time in proc_pid_stat(5) is: USER_HZ is 100
// on all that Linux runs VMs on.
const clockTick = 10 * time.Millisecond

// Process reads what one process has used, for hosts without groups: the process
// that has this number, if it started when it should have (clock ticks since
// boot). Memory is what it has resident.
func Process(pid int, start uint64) (Usage, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	s, _ := read(dir, "stat")
	u, began, err := parseStat(s)
	if err != nil {
		return none(), fmt.Errorf("process %d: %w", pid, err)
	}
	if began != start {
		return none(), fmt.Errorf("process %d is another one by now", pid)
	}
	if s, ok := read(dir, "io"); ok {
		for line := range strings.Lines(s) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			n, err := strconv.ParseInt(value, 10, 64)
			switch {
			case err != nil:
			case name == "read_bytes":
				u.ReadBytes = n
			case name == "write_bytes":
				u.WriteBytes = n
			}
		}
	}
	return u, nil
}

// parseStat reads proc_pid_stat(5): utime and stime are its fields 14 and 15,
// num_threads 20, starttime 22, rss (pages) 24.
func parseStat(s string) (u Usage, start uint64, err error) {
	u = none()
	// The second field, the command in parentheses, may hold anything.
	i := bytes.LastIndexByte([]byte(s), ')')
	f := strings.Fields(s[i+1:])
	if i < 0 || len(f) < 22 {
		return u, 0, fmt.Errorf("proc_pid_stat: %.200q", s)
	}
	var n [5]int64
	for k, field := range []int{14, 15, 20, 22, 24} {
		if n[k], err = strconv.ParseInt(f[field-3], 10, 64); err != nil {
			return u, 0, fmt.Errorf("proc_pid_stat: %w", err)
		}
	}
	u.CPU = time.Duration(n[0]+n[1]) * clockTick
	u.Pids = int(n[2])
	u.Memory = n[4] * int64(os.Getpagesize())
	return u, uint64(n[3]), nil
}
