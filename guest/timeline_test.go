package guest

import (
	"slices"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

func TestTimelineBegin(t *testing.T) {
	const now = 900 * time.Millisecond
	kernel := []wire.Step{{Name: "kernel", Took: now}}
	for _, tt := range []struct {
		name, shim string
		want       []wire.Step
	}{
		{"started by the kernel", "", kernel},
		{"started by the shim", "600000000,650000000", []wire.Step{
			{Name: "kernel", Took: 600 * time.Millisecond},
			{Name: "shim", Start: 600 * time.Millisecond, Took: 50 * time.Millisecond},
			{Name: "kestrel", Start: 650 * time.Millisecond, Took: 250 * time.Millisecond},
		}},
		{"a plan", "600000000,650000000,610000000,640000000,2,10,12", []wire.Step{
			{Name: "kernel", Took: 600 * time.Millisecond},
			{Name: "shim", Start: 600 * time.Millisecond, Took: 10 * time.Millisecond},
			{Name: "plan", Start: 610 * time.Millisecond, Took: 30 * time.Millisecond},
			{Name: "kestrel", Start: 640 * time.Millisecond, Took: 260 * time.Millisecond},
		}},
		{"a plan after the shim", "600000000,650000000,610000000,660000000,2,10,12", kernel},
		{"a plan for process 1", "600000000,650000000,610000000,640000000,1,10,12", kernel},
		{"half a plan", "600000000,650000000,610000000", kernel},
		{"one number", "600000000", kernel},
		{"no numbers", "a,b", kernel},
		{"ends before it begins", "5,4", kernel},
		{"ends in the future", "5,900000001", kernel},
		{"before the clock", "-5,4", kernel},
	} {
		tl := &timeline{now: func() time.Duration { return now }}
		if p := tl.begin(tt.shim); (p != nil) != (tt.name == "a plan") || p != nil && *p != (planned{2, 10, 12, 260 * time.Millisecond}) {
			t.Errorf("%s: begin(%q) has %+v planned", tt.name, tt.shim, p)
		}
		if got := tl.snapshot(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: begin(%q) = %v, want %v", tt.name, tt.shim, got, tt.want)
		}
	}
}
