package daemon

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	p := pacer{rate: 100, burst: 1000}
	now := time.Unix(1e9, 0)
	for _, step := range []struct {
		after time.Duration
		n     int
		want  time.Duration
	}{
		{0, 1000, 0},                          // a burst
		{0, 100, time.Second},                 // and no more
		{time.Second, 100, time.Second},       // then at the rate
		{time.Second / 2, 0, time.Second / 2}, // who did not wait is told again
		{time.Second / 2, 50, time.Second / 2},
		{time.Hour, 1000, 0}, // it fills, but not beyond the burst
		{0, 1, 10 * time.Millisecond},
	} {
		now = now.Add(step.after)
		if got := p.spend(now, step.n); got != step.want {
			t.Errorf("spend(%d) %v later = %v, want %v", step.n, step.after, got, step.want)
		}
	}
}
