package budget

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRatio(t *testing.T) {
	ours := []time.Duration{30 * time.Millisecond, 20 * time.Millisecond, 900 * time.Millisecond, 10 * time.Millisecond}
	base := []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond}
	l := Ratio("x", 2, ours, base, "how")
	if l.Value != 2 || l.Ours.N != 4 || l.Ours.P25 != 10 || l.Ours.Median != 20 || l.Ours.P75 != 30 || l.Base.P75 != 40 {
		t.Errorf("Ratio() = %+v, ours %+v, base %+v", l, l.Ours, l.Base)
	}
	if s := l.Ours.String(); s != "20 [10-30]" {
		t.Errorf("String() = %q", s)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		line Line
		want string
	}{
		{Line{Value: 1, Limit: 1}, "ok"},
		{Line{Value: 1.01, Limit: 1}, "BREACH"},
		{Line{Value: 1.01, Limit: 1, Open: "later"}, "open"},
		{Line{Value: math.NaN(), Limit: 1, Open: "later"}, "BREACH"},
	} {
		if got := c.line.Verdict(); got != c.want {
			t.Errorf("Verdict() of %+v = %q, want %q", c.line, got, c.want)
		}
	}
}

// failing is a test whose failures are counted.
type failing struct {
	testing.TB
	failures []string
}

func (f *failing) Helper()                           {}
func (f *failing) Errorf(format string, args ...any) { f.failures = append(f.failures, format) }

func TestPrint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	t.Setenv(File, path)
	f := &failing{TB: t}
	Print(f, Line{Name: "good", Value: 1, Limit: 2, Unit: "ms"}, Line{Name: "bad", Value: 3, Limit: 2, Unit: "x"})
	Print(f, Line{Name: "more", Value: 1, Limit: 2, Unit: "M", Open: "never"})
	if len(f.failures) != 1 {
		t.Errorf("%d failures, want that of one breach: %q", len(f.failures), f.failures)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		var l Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		names = append(names, l.Name)
	}
	if got := strings.Join(names, " "); got != "good bad more" {
		t.Errorf("the file has %q", got)
	}
}
