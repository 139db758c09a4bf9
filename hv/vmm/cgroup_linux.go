package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// cgroups are open directories that a process is to be born into.
type cgroups struct {
	v2 *os.File   // of the unified hierarchy, nil for none
	v1 []*os.File // the file tasks of each of the others
}

// openCgroups opens the directories of a Spec. Its errors wrap hv.ErrInvalidSpec.
func openCgroups(dirs []string) (g cgroups, err error) {
	defer func() {
		if err != nil {
			g.close()
			err = fmt.Errorf("%w: %w", hv.ErrInvalidSpec, err)
		}
	}()
	for _, dir := range dirs {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			return g, fmt.Errorf("cgroup %s: %w", dir, err)
		}
		switch {
		case fs.Type == unix.CGROUP2_SUPER_MAGIC && g.v2 != nil:
			return g, fmt.Errorf("cgroups %s and %s are of one hierarchy", g.v2.Name(), dir)
		case fs.Type == unix.CGROUP2_SUPER_MAGIC:
			g.v2, err = os.Open(dir)
		case fs.Type == unix.CGROUP_SUPER_MAGIC:
			var f *os.File
			if f, err = os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0); err == nil {
				g.v1 = append(g.v1, f)
			}
		default:
			err = fmt.Errorf("%s is no cgroup", dir)
		}
		if err != nil {
			return g, err
		}
	}
	return g, nil
}

func (g *cgroups) close() {
	for _, f := range append(g.v1, g.v2) {
		if f != nil {
			f.Close() // nothing was buffered
		}
	}
}

// start is os.StartProcess for a process that is in the cgroups from its birth:
// not one of its instructions, and not a page of its memory, is charged to this
// process's own.
//
// clone3(2) does that for version 2, CLONE_INTO_CGROUP. Version 1 has no such
// flag, but there each thread has a cgroup, which its children inherit
// (cgroups(7), "tasks"): a thread goes into them, forks, and ends.
func (g *cgroups) start(argv []string, attr *os.ProcAttr) (p *os.Process, err error) {
	if g.v2 != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.v2.Fd())
	}
	if len(g.v1) == 0 {
		return os.StartProcess(argv[0], argv, attr)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with this goroutine. Only a process's first
		// one does not, and that must not be moved; while it waits here, another is
		// found.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			p, err = g.start(argv, attr)
			return
		}
		tid := []byte(strconv.Itoa(unix.Gettid()))
		for _, f := range g.v1 {
			if _, err = f.Write(tid); err != nil {
				err = fmt.Errorf("enter cgroup: %w", err)
				return
			}
		}
		p, err = os.StartProcess(argv[0], argv, attr)
	}()
	<-done
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("%w (is the limit of processes of its cgroup too low?)", err)
	}
	return p, err
}
