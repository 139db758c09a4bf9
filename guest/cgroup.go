package guest

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

const (
	cgroupRoot     = "/sys/fs/cgroup"
	workloadCgroup = cgroupRoot + "/workload"
)

// cgroup is the control group of the workload. It ends everything that the
// workload started, whatever sessions it made, and tells whether the OOM killer
// was there. A nil *cgroup, where the kernel has none, does nothing.
type cgroup struct {
	files Files
	f     *os.File // the directory
}

// newCgroup makes the workload's control group.
func newCgroup(files Files) (*cgroup, error) {
	if err := files.MkdirAll(workloadCgroup, 0o755); err != nil {
		return nil, err
	}
	f, err := files.Open(workloadCgroup, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	c := &cgroup{files: files, f: f}
	// Without the memory controller the OOM killer's work goes unnoticed.
	if err := c.write(cgroupRoot+"/cgroup.subtree_control", "+memory +pids"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	return c, nil
}

func (c *cgroup) dir() *os.File {
	if c == nil {
		return nil
	}
	return c.f
}

// kill ends every process in the group, of which there may be none.
func (c *cgroup) kill() {
	if c != nil {
		// Missing before Linux 5.14; then only the process group is signalled.
		_ = c.write(workloadCgroup+"/cgroup.kill", "1")
	}
}

// oomKills counts the processes of the group that the OOM killer ended.
func (c *cgroup) oomKills() int64 {
	if c == nil {
		return 0
	}
	b, err := c.files.ReadFile(workloadCgroup + "/memory.events")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

// write writes to a control file, which must not be replaced.
func (c *cgroup) write(path, value string) error {
	f, err := c.files.Open(path, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
