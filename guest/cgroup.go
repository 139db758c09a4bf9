package guest

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/guest/plan"
)

const (
	cgroupRoot     = plan.CgroupRoot
	workloadCgroup = plan.WorkloadCgroup
	sideCgroup     = workloadCgroup + "/side"
)

// cgroup is the control group of the workload. It ends everything that the
// workload started, whatever sessions it made, and tells whether the OOM killer
// was there. A nil *cgroup, where the kernel has none, does nothing. One
// goroutine uses it, but for side.
//
// Where the workload may be a container engine, the group is delegated: the
// kernel's controllers are on in it, and processes start in groups below it,
// each start of the workload in a new one, since no process can start in a
// group whose controllers somebody turned on. There is no cgroup namespace: in
// a machine of its own the workload may see, and manage, the whole hierarchy.
type cgroup struct {
	files     Files
	f         *os.File // the directory to start in
	delegated bool
	starts    int
	beside    *os.File // the directory of what runs beside the workload
}

// newCgroup makes the workload's control group.
func newCgroup(files Files, delegate bool) (*cgroup, error) {
	if err := files.MkdirAll(workloadCgroup, 0o755); err != nil {
		return nil, err
	}
	f, err := files.Open(workloadCgroup, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	c := &cgroup{files: files, f: f, beside: f}
	if !delegate {
		// Without the memory controller the OOM killer's work goes unnoticed.
		if err := writeControl(files, cgroupRoot+"/cgroup.subtree_control", "+memory +pids"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
		return c, nil
	}
	c.delegated = true
	for _, dir := range []string{cgroupRoot, workloadCgroup} {
		if err := enableControllers(files, dir); err != nil {
			return c, err
		}
	}
	if err := files.MkdirAll(sideCgroup, 0o755); err != nil {
		return c, err
	}
	beside, err := files.Open(sideCgroup, os.O_RDONLY)
	if err != nil {
		return c, err
	}
	c.beside = beside
	return c, nil
}

// enableControllers turns on, for the groups below dir, what dir has of what
// container engines use. What the kernel lacks is not there to be turned on.
func enableControllers(files Files, dir string) error {
	b, err := files.ReadFile(dir + "/cgroup.controllers")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var on []string
	for name := range strings.FieldsSeq(string(b)) {
		if slices.Contains(plan.Controllers(), name) {
			on = append(on, "+"+name)
		}
	}
	if len(on) == 0 {
		return nil
	}
	return writeControl(files, dir+"/cgroup.subtree_control", strings.Join(on, " "))
}

// dir is the group to start the workload's next process in, or nil.
func (c *cgroup) dir() *os.File {
	if c == nil {
		return nil
	}
	if !c.delegated {
		return c.f
	}
	c.starts++
	leaf := workloadCgroup + "/" + strconv.Itoa(c.starts)
	if err := c.files.MkdirAll(leaf, 0o755); err != nil {
		return c.f
	}
	f, err := c.files.Open(leaf, os.O_RDONLY)
	if err != nil {
		return c.f
	}
	if c.f != c.beside { // where that could not be made
		c.f.Close()
	}
	c.f = f
	return f
}

// side is the group of what runs beside the workload, or nil. It is safe for
// concurrent use.
func (c *cgroup) side() *os.File {
	if c == nil {
		return nil
	}
	return c.beside
}

// kill ends every process in the group, of which there may be none.
func (c *cgroup) kill() {
	if c != nil {
		// Missing before Linux 5.14; then only the process group is signalled.
		_ = writeControl(c.files, workloadCgroup+"/cgroup.kill", "1")
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
