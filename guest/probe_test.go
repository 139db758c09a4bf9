package guest

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

func TestExecProbe(t *testing.T) {
	w := newTestWorkload(t, "exit 0", func(c *wire.WorkloadConfig) {
		c.User, c.Env = "12:34", []string{"A=b"}
	})
	tests := []struct {
		name   string
		args   []string
		want   string // in the error; "" for none
		absent string
	}{
		{"healthy", []string{"sh", "-c", `[ "$A $(id -u) $(id -g)" = "b 12 34" ]`}, "", ""},
		{"sick", []string{"sh", "-c", "echo not this; head -c 2000 /dev/zero | tr '\\0' x; echo; echo the last line; echo and this >&2; exit 3"},
			"\"sh\" exited with 3: xxx", "not this"},
		{"its words", []string{"sh", "-c", "echo the last line; echo and this >&2; exit 3"}, "\"sh\" exited with 3: the last line\nand this", ""},
		{"killed", []string{"sh", "-c", "kill -SEGV $$"}, `"sh" was killed by SIGSEGV`, ""},
		{"slow", []string{"sh", "-c", "echo so far; sleep 60"}, `"sh" took longer than 300ms: so far`, ""},
		{"missing", []string{"nope"}, `command "nope" is in none`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			timeout := time.Minute
			if tt.name == "slow" {
				timeout = 300 * time.Millisecond
			}
			err := w.newExecProbe(wire.Health{Exec: tt.args, Timeout: timeout})(t.Context())
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("probe = %v, want %q", err, tt.want)
			}
			if err != nil && (len(err.Error()) > probeTail+200 || tt.absent != "" && strings.Contains(err.Error(), tt.absent)) {
				t.Errorf("probe says too much: %v", err)
			}
		})
	}
}

// unkillable are processes that never end.
type unkillable struct {
	Processes
	spawned int
}

func (u *unkillable) Spawn(Process) (int, error)             { u.spawned++; return 1 << 22, nil }
func (u *unkillable) Kill(int, syscall.Signal) error         { return nil }
func (u *unkillable) Wait() (int, syscall.WaitStatus, error) { return 0, 0, nil }

// TestExecProbeStuck has a probe that the kernel cannot end: it is not joined by
// another.
func TestExecProbeStuck(t *testing.T) {
	t.Parallel() // it waits for killTimeout
	w := newTestWorkload(t, "exit 0", nil)
	stuck := &unkillable{}
	w.reaper = newReaper(stuck, discardLog())
	ask := w.newExecProbe(wire.Health{Exec: []string{"sh"}, Timeout: time.Millisecond})
	for range 3 {
		if err := ask(t.Context()); err == nil || !strings.Contains(err.Error(), `"sh" cannot be killed`) {
			t.Errorf("probe = %v", err)
		}
	}
	if stuck.spawned != 1 {
		t.Errorf("%d commands were started, want 1", stuck.spawned)
	}
}

// TestExecProbeEndsWithItsGroup has a probe that hangs in a child, and a
// workload that ends meanwhile.
func TestExecProbeEndsWithItsGroup(t *testing.T) {
	w := newTestWorkload(t, "exit 0", nil)
	file := t.TempDir() + "/pid"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.newExecProbe(wire.Health{Exec: []string{"sh", "-c", "sleep 60 & echo $! > " + file + ".new; mv " + file + ".new " + file + "; wait"}})(ctx)
	}()
	pid := 0
	for range 600 {
		if b, err := os.ReadFile(file); err == nil {
			pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the probe succeeded")
	}
	if pid < 2 {
		t.Fatalf("the child's pid is %d", pid)
	}
	for range 600 {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	t.Error("its child lives")
}
