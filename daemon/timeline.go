package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

const (
	timelineFile = "timeline.json"
	maxTimeline  = 256 << 10 // bytes of that file
	// maxGuestSteps bounds what a guest can make the host remember.
	maxGuestSteps = 64
	maxStepText   = 256 // bytes of a guest's step name or error
)

// timeline collects the steps of one boot, from the accepted wish to the
// healthy workload. It is safe for concurrent use.
//
// The host's steps are measured on the host's clock. The guest counts from the
// moment its kernel starts its clock, which it cannot relate to the host's; the
// moment at which Launch returned stands in for it. The VMM lets the guest run
// a little before that, so guest steps are shown up to a few milliseconds late,
// never early.
type timeline struct {
	mu          sync.Mutex
	incarnation int                // guarded by mu, like all below
	origin      time.Time          // when the start was accepted
	launched    time.Time          // the guest's zero
	host        []api.TimelineStep // in order of their end
	guest       []wire.Step
}

func newTimeline(incarnation int, origin time.Time) *timeline {
	return &timeline{incarnation: incarnation, origin: origin}
}

// step begins a step and returns what ends it.
func (t *timeline) step(name string) (end func(err error)) {
	begin := time.Now()
	return func(err error) {
		s := api.TimelineStep{Where: "host", Name: name, StartMS: ms(begin.Sub(t.origin)), TookMS: ms(time.Since(begin))}
		if err != nil {
			s.Error = clip(err.Error(), maxStepText)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.host = append(t.host, s)
	}
}

// launch notes that the guest runs.
func (t *timeline) launch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.launched = time.Now()
}

// setGuest replaces the guest's steps by a newer, longer list. What a guest
// says is bounded here.
func (t *timeline) setGuest(steps []wire.Step) (changed bool) {
	steps = slices.Clone(steps[:min(len(steps), maxGuestSteps)])
	for i := range steps {
		steps[i].Name = clip(steps[i].Name, maxStepText)
		steps[i].Error = clip(steps[i].Error, maxStepText)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = !slices.Equal(t.guest, steps)
	t.guest = steps
	return changed
}

// api returns the steps of both sides in order of their start.
func (t *timeline) api(vm string) api.Timeline {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := api.Timeline{VM: vm, Incarnation: t.incarnation, Steps: slices.Clone(t.host)}
	zero := t.launched.Sub(t.origin)
	for _, s := range t.guest {
		out.Steps = append(out.Steps, api.TimelineStep{Where: "guest", Name: s.Name, StartMS: ms(zero + s.Start), TookMS: ms(s.Took), Error: s.Error})
	}
	slices.SortStableFunc(out.Steps, func(a, b api.TimelineStep) int { return cmp.Compare(a.StartMS, b.StartMS) })
	if out.Steps == nil {
		out.Steps = []api.TimelineStep{}
	}
	return out
}

// maxSummary bounds how many steps a summary names, and maxStepName the bytes of
// a name that is worth it.
const (
	maxSummary  = 16
	maxStepName = 32
)

// summary is the boot so far in a line, for the journal: what took it, and the
// steps that took 1 % of that or more.
func (t *timeline) summary() string {
	total := ms(time.Since(t.origin))
	b := fmt.Appendf(nil, "after %.0f ms", total)
	sep, named := ": ", 0
	for _, s := range t.api("").Steps {
		if s.Where == "host" && s.Name == "guest" || s.TookMS < total/100 || named == maxSummary || !plainName(s.Name) {
			continue // the first is the wait for all that follows
		}
		b = fmt.Appendf(b, "%s%s %.0f", sep, s.Name, s.TookMS)
		sep = ", "
		named++
	}
	return string(b)
}

// plainName keeps what a guest calls its steps out of lines that people read,
// unless it is a word.
func plainName(s string) bool {
	return s != "" && len(s) <= maxStepName && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && r != '-' })
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// savedTimeline is a timeline as it is kept in the VM's data directory, for
// after the daemon's or the VM's end.
type savedTimeline struct {
	Incarnation int                `json:"incarnation"`
	Origin      time.Time          `json:"origin"`
	Launched    time.Time          `json:"launched"`
	Host        []api.TimelineStep `json:"host"`
	Guest       []wire.Step        `json:"guest"`
}

func (t *timeline) save(dir string) error {
	t.mu.Lock()
	b, err := json.Marshal(savedTimeline{t.incarnation, t.origin, t.launched, t.host, t.guest})
	t.mu.Unlock()
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, timelineFile), b, 0o600)
}

// loadTimeline reads what save wrote, an empty one when there is none.
func loadTimeline(dir string) (*timeline, error) {
	f, err := os.Open(filepath.Join(dir, timelineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newTimeline(0, time.Time{}), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAtMost(f, maxTimeline)
	if err != nil {
		return nil, err
	}
	var s savedTimeline
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	return &timeline{incarnation: s.Incarnation, origin: s.Origin, launched: s.Launched, host: s.Host, guest: s.Guest}, nil
}

// VMTimeline returns the steps of the VM's latest boot, so far as they are
// done. Codes: not_found.
func (d *Daemon) VMTimeline(ctx context.Context, name string) (api.Timeline, error) {
	vm, err := d.find(ctx, name)
	if err != nil {
		return api.Timeline{}, err
	}
	if w := d.worker(vm.ID); w != nil {
		if t := w.timeline.Load(); t != nil {
			return t.api(vm.Name), nil
		}
	}
	t, err := loadTimeline(d.dataDir(vm.ID))
	if err != nil {
		return api.Timeline{}, d.publicError("read timeline", err)
	}
	return t.api(vm.Name), nil
}
