package guest

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// errSurvived marks the error of a step that the boot carries on without.
var errSurvived = errors.New("carried on")

// timeline records the steps of the boot. It is safe for concurrent use.
type timeline struct {
	now func() time.Duration // CLOCK_BOOTTIME

	mu    sync.Mutex
	steps []wire.Step
}

// begin records what was before this program: the kernel, then the shim, if that
// says when it began and ended, then the start of this program. It returns the
// workload that the shim has started, nil for none.
func (t *timeline) begin(shim string) *planned {
	now := t.now()
	t.steps = []wire.Step{{Name: "kernel", Took: now}}
	var n []int64
	for field := range strings.SplitSeq(shim, ",") {
		v, err := strconv.ParseInt(field, 10, 64)
		if err != nil || v < 0 {
			return nil
		}
		n = append(n, v)
	}
	if len(n) != 2 && len(n) != 7 || n[1] < n[0] || int64(now) < n[1] {
		return nil
	}
	step := func(name string, from, to int64) wire.Step {
		return wire.Step{Name: name, Start: time.Duration(from), Took: time.Duration(to - from)}
	}
	began, ended := n[0], n[1]
	if len(n) == 2 {
		t.steps = []wire.Step{step("kernel", 0, began), step("shim", began, ended), step("kestrel", ended, int64(now))}
		return nil
	}
	from, to := n[2], n[3]
	if from < began || to < from || ended < to || n[4] < 2 {
		return nil
	}
	t.steps = []wire.Step{
		step("kernel", 0, began), step("shim", began, from), step("plan", from, to), step("kestrel", to, int64(now)),
	}
	return &planned{pid: int(n[4]), out: int(n[5]), err: int(n[6]), since: now - time.Duration(to)}
}

// planned is a workload that the shim has started (package plan).
type planned struct {
	pid      int
	out, err int           // the near ends of its pipes
	since    time.Duration // it runs
}

// add records a step that began at start and ends now.
func (t *timeline) add(name string, start time.Duration, err error) {
	s := wire.Step{Name: name, Start: start, Took: t.now() - start}
	if err != nil {
		s.Error = err.Error()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, s)
}

// snapshot returns the steps in the order in which they began.
func (t *timeline) snapshot() []wire.Step {
	t.mu.Lock()
	steps := slices.Clone(t.steps)
	t.mu.Unlock()
	slices.SortStableFunc(steps, func(a, b wire.Step) int { return cmp.Compare(a.Start, b.Start) })
	return steps
}
