// Package budget says what was measured beside what was promised. The
// benchmarks of every room end in it, and `make bench` gathers their lines.
package budget

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"testing"
	"time"
)

// File is the environment variable that names a file to which Print appends
// every line as a JSON object.
const File = "VOLANT_BENCH_LINES"

// Line is one measured value beside its limit.
type Line struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Limit float64 `json:"limit"` // Value may be as large as this
	Unit  string  `json:"unit"`  // "x" for a ratio, "ms", "M" (MiB), "K" (KiB)
	// Ours and Base are the samples behind a ratio, nil for other values.
	Ours *Spread `json:"ours,omitempty"`
	Base *Spread `json:"base,omitempty"`
	How  string  `json:"how"` // what was compared with what
	// Open names the work that will meet a limit that is not met yet: a breach is
	// then printed but is no failure.
	Open string `json:"open,omitempty"`
}

// Spread is what a number of samples have in common, in milliseconds.
type Spread struct {
	N      int     `json:"n"`
	P25    float64 `json:"p25_ms"`
	Median float64 `json:"median_ms"`
	P75    float64 `json:"p75_ms"`
}

// Ratio compares two lists of samples that were taken in turns, so that
// whatever else the machine did met both: median ÷ median.
func Ratio(name string, limit float64, ours, base []time.Duration, how string) Line {
	o, b := spread(ours), spread(base)
	return Line{Name: name, Value: o.Median / b.Median, Limit: limit, Unit: "x", Ours: o, Base: b, How: how}
}

func spread(d []time.Duration) *Spread {
	return &Spread{N: len(d), P25: Millis(Percentile(d, 25)), Median: Millis(Median(d)), P75: Millis(Percentile(d, 75))}
}

// Median is the 50th percentile of d, which is not empty.
func Median(d []time.Duration) time.Duration { return Percentile(d, 50) }

// Percentile returns the p-th percentile of d, which is not empty, by the
// nearest-rank method.
func Percentile[T cmp.Ordered](d []T, p int) T {
	s := slices.Sorted(slices.Values(d))
	return s[max(0, (len(s)*p+99)/100-1)]
}

// Millis is d in milliseconds.
func Millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Verdict is "ok", "open" or "BREACH". What is not a number is no measurement,
// and a breach.
func (l *Line) Verdict() string {
	switch {
	case l.Value <= l.Limit:
		return "ok"
	case l.Open != "" && !math.IsNaN(l.Value):
		return "open"
	}
	return "BREACH"
}

// Print writes the lines as a table to standard output, appends them to the
// file that File names, and fails t for each that breaches its limit.
func Print(t testing.TB, lines ...Line) {
	t.Helper()
	write(os.Stdout, lines)
	for _, l := range lines {
		if l.Verdict() == "BREACH" {
			t.Errorf("%s is %.2f %s, over its limit of %.2f", l.Name, l.Value, l.Unit, l.Limit)
		}
	}
	path := os.Getenv(File)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			t.Fatal(err)
		}
	}
}

func write(w io.Writer, lines []Line) {
	fmt.Fprintf(w, "\n%-28s %9s %9s  %-8s %s\n", "name", "measured", "limit", "verdict", "how")
	for _, l := range lines {
		how := l.How
		if l.Ours != nil {
			how += fmt.Sprintf(" (%s ÷ %s ms)", l.Ours, l.Base)
		}
		if l.Verdict() == "open" {
			how += "; over the limit until " + l.Open
		}
		fmt.Fprintf(w, "%-28s %7.2f %-2s %6.2f %-2s %-8s %s\n", l.Name, l.Value, l.Unit, l.Limit, l.Unit, l.Verdict(), how)
	}
	fmt.Fprintln(w)
}

// String is the median and, in brackets, the quartiles around it.
func (s *Spread) String() string {
	digits := 0
	if s.Median < 10 {
		digits = 1
	}
	return fmt.Sprintf("%.*f [%.*f-%.*f]", digits, s.Median, digits, s.P25, digits, s.P75)
}
