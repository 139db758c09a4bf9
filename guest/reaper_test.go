package guest

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/testdata/need"
)

// startReaper runs a reaper on real processes. Nothing else in this process may
// wait for children meanwhile.
func startReaper(t *testing.T) *reaper {
	t.Helper()
	r := newReaper(processes{}, discardLog())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func shell(script string) Process {
	return Process{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Dir: "/", Files: []uintptr{0, 1, 2}}
}

func await(t *testing.T, ch <-chan syscall.WaitStatus) syscall.WaitStatus {
	t.Helper()
	select {
	case ws := <-ch:
		return ws
	case <-time.After(time.Minute):
		t.Fatal("no status within a minute")
		return 0
	}
}

// TestReaperYields has children that are started while their parent stands back
// begin as any others.
func TestReaperYields(t *testing.T) {
	sys := &niceness{}
	r := newReaper(sys, discardLog())
	r.yield(true)
	if _, _, err := r.start(Process{}); err != nil {
		t.Fatal(err)
	}
	r.yield(false)
	if _, _, err := r.start(Process{}); err != nil {
		t.Fatal(err)
	}
	me := os.Getpid()
	if want := []int{me, 19, 4711, 0, me, 0, me, 0}; !slices.Equal(sys.set, want) {
		t.Errorf("nice values by process: %v, want %v", sys.set, want)
	}
	pid, err := processes{}.Spawn(Process{Path: "/bin/sleep", Args: []string{"sleep", "60"}, Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = processes{}.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}()
	if err := (processes{}).Nice(pid, 19); err != nil {
		t.Fatal(err)
	}
	// The system call answers 20 less the value, getpriority(2).
	if n, err := syscall.Getpriority(syscall.PRIO_PROCESS, pid); err != nil || n != 1 {
		t.Errorf("Getpriority() = %d, %v", n, err)
	}
}

// niceness notes who was given which value.
type niceness struct {
	Processes
	set []int
}

func (n *niceness) Spawn(Process) (int, error) { return 4711, nil }

func (n *niceness) Nice(pid, value int) error {
	n.set = append(n.set, pid, value)
	return nil
}

func TestReaperHandsStatusesOut(t *testing.T) {
	need.Root(t, "starting a process as another user")
	r := startReaper(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			// Processes that end at once are the ones that could be missed.
			_, exited, err := r.start(shell("exit " + string(rune('0'+i%10))))
			if err != nil {
				t.Error(err)
				return
			}
			if ws := await(t, exited); ws.ExitStatus() != i%10 {
				t.Errorf("exit status = %d, want %d", ws.ExitStatus(), i%10)
			}
		})
	}
	wg.Wait()
	if len(r.waiters) != 0 {
		t.Errorf("%d waiters are left", len(r.waiters))
	}
}

func TestReaperStartFails(t *testing.T) {
	need.Root(t, "starting a process as another user")
	r := startReaper(t)
	_, _, err := r.start(Process{Path: "/nonexistent", Args: []string{"x"}, Dir: "/"})
	if !errors.Is(err, os.ErrNotExist) || len(r.waiters) != 0 {
		t.Errorf("start() = %v with %d waiters, want ErrNotExist and none", err, len(r.waiters))
	}
}

func TestReaperSignalsTheGroup(t *testing.T) {
	need.Root(t, "starting a process as another user")
	r := startReaper(t)
	pid, exited, err := r.start(shell("sleep 60 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.signal(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ws := await(t, exited); ws.Signal() != syscall.SIGKILL {
		t.Errorf("status = %v, want SIGKILL", ws)
	}
	if err := r.signal(pid, syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end = %v, want ErrProcessDone", err)
	}
}

func TestReaperBuriesOrphans(t *testing.T) {
	need.Root(t, "starting a process as another user")
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	r := startReaper(t)
	_, exited, err := r.start(shell("sleep 0.05 & exit 4"))
	if err != nil {
		t.Fatal(err)
	}
	if ws := await(t, exited); ws.ExitStatus() != 4 {
		t.Errorf("exit status = %d, want 4", ws.ExitStatus())
	}
	for range 600 {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.ECHILD) {
			return // neither a zombie nor a child is left
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the orphan was not reaped")
}
