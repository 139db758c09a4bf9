package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/budget"
	"github.com/volantvm/volant/testdata/need"
)

// manyVMs is how many VMs one node is built to remember.
const manyVMs = 5000

// footprint is what a daemon with many stored VMs was measured to take.
type footprint struct {
	ready             time.Duration // from nothing to looking after all of them
	get, list, create []time.Duration
	all               time.Duration // a list of every one
	rss               int64         // bytes
}

// measureStored starts a daemon with n VMs stored, which have ended, and uses it.
func measureStored(t *testing.T, n int) footprint {
	t.Helper()
	ctx := context.Background()
	w := newWorld(t)
	w.stored(n, api.VMStopped, api.DesiredStopped)
	debug.FreeOSMemory()
	var s footprint
	begin := time.Now()
	d := w.start(options{})
	<-d.Ready()
	s.ready = time.Since(begin)
	timed := func(into *[]time.Duration, fn func(i int) error) {
		for i := range 200 {
			begin := time.Now()
			if err := fn(i); err != nil {
				t.Fatal(err)
			}
			*into = append(*into, time.Since(begin))
		}
	}
	if n > 0 {
		timed(&s.get, func(i int) error {
			_, err := d.VM(ctx, fmt.Sprintf("stored-%d", i*31%n))
			return err
		})
		timed(&s.list, func(i int) error {
			vms, total, err := d.VMs(ctx, api.VMFilter{Limit: 100, Offset: i * 37 % n})
			if err == nil && (total != n || len(vms) == 0) {
				err = fmt.Errorf("a page of %d VMs of %d", len(vms), total)
			}
			return err
		})
	}
	debug.FreeOSMemory()
	s.rss = residentBytes(t)
	timed(&s.create, func(i int) error {
		_, err := d.CreateVM(ctx, api.VMCreate{Name: fmt.Sprintf("new-%d", i), Plugin: "serve", Stopped: true})
		return err
	})
	begin = time.Now()
	if vms, _, err := d.VMs(ctx, api.VMFilter{}); err != nil || len(vms) != n+len(s.create) {
		t.Fatalf("%d VMs, %v; want %d", len(vms), err, n+len(s.create))
	}
	s.all = time.Since(begin)
	d.stop()
	return s
}

func (s *footprint) String() string {
	ms := func(d []time.Duration) string {
		if len(d) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f/%.2f ms", budget.Millis(budget.Median(d)), budget.Millis(budget.Percentile(d, 99)))
	}
	return fmt.Sprintf("ready in %v, get %s, page of 100 %s, create %s, all %v, %d KiB", s.ready.Round(time.Millisecond), ms(s.get), ms(s.list), ms(s.create),
		s.all.Round(time.Millisecond), s.rss>>10)
}

// TestStored holds what stored VMs may cost, with room for a busy machine and the
// race detector, which takes memory for itself and under which SQLite takes minutes
// for manyVMs: TestBudgets holds those, and the budgets.
func TestStored(t *testing.T) {
	need.Long(t)
	const n = manyVMs / 5
	none, many := measureStored(t, 0), measureStored(t, n)
	t.Logf("%d VMs: %v", n, &many)
	const slack = 10
	if per := (many.rss - none.rss) / n; per > slack*50<<10 {
		t.Errorf("%d bytes for each stored VM, want 51200", per)
	}
	for _, c := range []struct {
		what        string
		took, limit time.Duration
	}{
		{"start", many.ready, time.Second},
		{"get", budget.Median(many.get), 10 * time.Millisecond},
		{"list of 100", budget.Median(many.list), 30 * time.Millisecond},
		{"create", budget.Median(many.create), 10 * time.Millisecond},
		{"list of all", many.all, time.Second},
	} {
		if c.took > slack*c.limit {
			t.Errorf("%s takes %v with %d VMs, want %v", c.what, c.took, n, c.limit)
		}
	}
}

// residentBytes is VmRSS of proc_pid_status(5): unlike the Go heap's size it
// holds SQLite's own memory too.
func residentBytes(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestBudgets measures what a daemon with many VMs takes; make bench runs it.
func TestBudgets(t *testing.T) {
	need.Bench(t)
	none, many := measureStored(t, 0), measureStored(t, manyVMs)
	how := func(what string) string { return fmt.Sprintf("%s, %d VMs stored", what, manyVMs) }
	ms := func(name string, d time.Duration, limit float64, what string) budget.Line {
		return budget.Line{Name: name, Value: budget.Millis(d), Limit: limit, Unit: "ms", How: how(what)}
	}
	lines := []budget.Line{
		ms("scale-start", many.ready, 1000, "daemon until it looks after all of them"),
		ms("scale-get-p50", budget.Median(many.get), 5, "one VM by name"),
		ms("scale-list-p50", budget.Median(many.list), 15, "a page of 100"),
		ms("scale-create-p50", budget.Median(many.create), 10, "create below HTTP, durable"),
		{Name: "scale-rss-per-vm", Value: max(0, float64(many.rss-none.rss)) / manyVMs / 1024, Limit: 50, Unit: "K", How: how("KiB resident for each")},
	}

	// A daemon that is started again takes up every machine, and tells of each in
	// a transaction of its own: nothing is faster than as many durable writes.
	const running = 1000
	w := newWorld(t)
	w.stored(running, api.VMPending, api.DesiredRunning)
	d := w.start(options{})
	d.settleWithin(10 * patience)
	d.stop()
	var ours, base []time.Duration
	for range 3 {
		begin := time.Now()
		f, err := os.Create(filepath.Join(w.root, "fsync"))
		if err != nil {
			t.Fatal(err)
		}
		for range running {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		base = append(base, time.Since(begin))
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		d := w.start(options{})
		begin = time.Now()
		if vms := d.settleWithin(10 * patience); len(vms) != running || vms[0].Incarnation != 1 {
			t.Fatalf("%d VMs, the first of incarnation %d", len(vms), vms[0].Incarnation)
		}
		ours = append(ours, time.Since(begin))
		d.stop()
	}
	l := budget.Ratio("reconcile-running", 6, ours, base, fmt.Sprintf("%d running VMs taken up after a restart ÷ as many durable writes of 4 KiB", running))
	// On a disk that writes in 0.1 ms the processor's part, nearly a second, would be
	// the breach.
	if slices.Max(ours) < 2*time.Second {
		l.Open = "the disk decides: by the clock it is met"
	}
	budget.Print(t, append(lines, l)...)
}
