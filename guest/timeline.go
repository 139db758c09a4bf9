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
// says when it began and ended, then the start of this program.
func (t *timeline) begin(shim string) {
	began, ended, ok := strings.Cut(shim, ",")
	from, err1 := strconv.ParseInt(began, 10, 64)
	to, err2 := strconv.ParseInt(ended, 10, 64)
	now := t.now()
	if !ok || err1 != nil || err2 != nil || from < 0 || to < from || int64(now) < to {
		t.steps = []wire.Step{{Name: "kernel", Took: now}}
		return
	}
	t.steps = []wire.Step{
		{Name: "kernel", Took: time.Duration(from)},
		{Name: "shim", Start: time.Duration(from), Took: time.Duration(to - from)},
		{Name: "kestrel", Start: time.Duration(to), Took: now - time.Duration(to)},
	}
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
