package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Namespaces are the process and mount namespaces of a workload that is process 1
// of its own. Who runs beside it joins them, and ends with it. It is safe for
// concurrent use; the nil pointer stands for those of the guest.
type Namespaces struct {
	mu       sync.RWMutex // held by those who join, against close
	pid, mnt *os.File     // nil once closed
	root     Files        // below the root directory of its first process
}

// errNamespaceGone is why nobody can join.
var errNamespaceGone = errors.New("the workload has just ended")

// use calls f with the file descriptors of the namespaces.
func (n *Namespaces) use(f func(pid, mnt int) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.pid == nil {
		return errNamespaceGone
	}
	return f(int(n.pid.Fd()), int(n.mnt.Fd()))
}

// files are those that the namespaces' first process sees; nil when it has ended,
// and for the guest's own.
func (n *Namespaces) files() Files {
	if n == nil {
		return nil
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.pid == nil {
		return nil
	}
	return n.root
}

// close lets go of the namespaces, which end when nobody is in them.
func (n *Namespaces) close() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid != nil {
		n.pid.Close()
		n.mnt.Close()
	}
	n.pid, n.mnt = nil, nil
}

// openNamespaces opens those of a process.
func openNamespaces(files Files, pid int) (*Namespaces, error) {
	n := &Namespaces{root: rooted(fmt.Sprintf("/proc/%d/root", pid))}
	var err error
	if n.pid, err = files.Open(fmt.Sprintf("/proc/%d/ns/pid", pid), os.O_RDONLY); err != nil {
		return nil, err
	}
	if n.mnt, err = files.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), os.O_RDONLY); err != nil {
		n.pid.Close()
		return nil, err
	}
	return n, nil
}
