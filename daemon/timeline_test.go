package daemon

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

func TestTimelineSummary(t *testing.T) {
	tl := newTimeline(1, time.Now().Add(-time.Second))
	launch, wait := tl.step("launch"), tl.step("guest")
	time.Sleep(20 * time.Millisecond)
	launch(nil)
	tl.launch()
	wait(nil)
	steps := []wire.Step{{Name: "kernel", Took: 300 * time.Millisecond}, {Name: "mounts", Start: 300 * time.Millisecond, Took: time.Millisecond}}
	for _, name := range []string{"a\nb", "", "\x1b[2J", "Upper", strings.Repeat("x", 33)} {
		steps = append(steps, wire.Step{Name: name, Start: 400 * time.Millisecond, Took: time.Second})
	}
	steps = append(steps, wire.Step{Name: "ready", Start: 500 * time.Millisecond, Took: 90 * time.Millisecond})
	tl.setGuest(steps)
	got := tl.summary()
	if !regexp.MustCompile(`^after 1\d{3} ms: launch \d\d+, kernel 300, ready 90$`).MatchString(got) {
		t.Errorf("summary() = %q", got)
	}
	for range maxGuestSteps {
		steps = append(steps, steps[0])
	}
	tl.setGuest(steps)
	if n := strings.Count(tl.summary(), ","); n != maxSummary-1 {
		t.Errorf("it names %d steps, want %d", n+1, maxSummary)
	}
}
