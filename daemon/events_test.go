package daemon

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

func TestEvents(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()

	// A follower that is much slower than what happens misses nothing.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var got []api.Event
	done := make(chan error, 1)
	go func() {
		done <- d.Events(ctx, api.EventFilter{}, true, func(ev api.Event) error {
			time.Sleep(time.Millisecond)
			got = append(got, ev)
			if ev.Type == api.EventVMDeleted && ev.Name == "vm9" {
				return io.EOF
			}
			return nil
		})
	}()
	for i := range 10 {
		d.create(fmt.Sprintf("vm%d", i), "serve")
	}
	for i := range 10 {
		name := fmt.Sprintf("vm%d", i)
		d.must(name, api.WaitHealthy)
		if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
	}
	if err := <-done; err != io.EOF {
		t.Fatalf("Events = %v, want the follower's error", err)
	}
	for i, ev := range got {
		if ev.Seq != uint64(i+1) {
			t.Fatalf("event %d has number %d", i+1, ev.Seq)
		}
	}
	// Taken up in the middle.
	var again []api.Event
	if err := d.Events(ctx, api.EventFilter{After: 7}, false, func(ev api.Event) error { again = append(again, ev); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(again) < len(got)-7 || again[0].Seq != 8 {
		t.Errorf("%d events after 7, from %d; want %d", len(again), again[0].Seq, len(got)-7)
	}
	// A follower ends when its request does, or the daemon.
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := d.Events(short, api.EventFilter{After: 1 << 40}, true, nil); err != nil {
		t.Errorf("Events until the request ended = %v, want ok", err)
	}
	go func() { done <- d.Events(ctx, api.EventFilter{After: 1 << 40}, true, nil) }()
	time.Sleep(10 * time.Millisecond)
	d.cancel()
	if err := <-done; api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("Events of a daemon that stops = %v, want unavailable", err)
	}
}

// A reader that comes back after the journal has dropped what it was to read
// next is told so, one that follows and is overtaken too, and one that begins is
// not.
func TestEventsLost(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := newWorld(t)
	d := w.start(options{notRunning: true})
	volume := func(n int) {
		if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: fmt.Sprintf("v%d", n), SizeMB: 16}); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 8 {
		volume(n) // 1 to 8
	}
	if _, err := d.db.PruneEvents(ctx, 3, time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := func(f api.EventFilter) (out []string) {
		t.Helper()
		if err := d.Events(ctx, f, false, func(ev api.Event) error {
			out = append(out, fmt.Sprintf("%d %s %d", ev.Seq, ev.Type, ev.Lost))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	made := []string{"6 VOLUME_CREATED 0", "7 VOLUME_CREATED 0", "8 VOLUME_CREATED 0"}
	for _, tc := range []struct {
		name string
		f    api.EventFilter
		want []string
	}{
		{"from the beginning", api.EventFilter{}, made},
		{"nothing missing", api.EventFilter{After: 5}, made},
		{"one missing", api.EventFilter{After: 4}, append([]string{"5 EVENTS_LOST 1"}, made...)},
		{"told whatever is selected", api.EventFilter{After: 2, Types: []api.EventType{api.EventVMCreated}}, []string{"5 EVENTS_LOST 3"}},
		{"later ones", api.EventFilter{After: 7}, made[2:]},
	} {
		if got := read(tc.f); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}

	var got []string
	stop := fmt.Errorf("stop")
	err := d.Events(ctx, api.EventFilter{Name: "v7"}, true, func(ev api.Event) error {
		got = append(got, fmt.Sprintf("%d %s %d", ev.Seq, ev.Type, ev.Lost))
		if ev.Type == api.EventsLost {
			return stop
		}
		for n := 10; n < 14; n++ {
			volume(n) // 9 to 12
		}
		if _, err := d.db.PruneEvents(ctx, 1, time.Time{}); err != nil {
			return err
		}
		return nil
	})
	if want := []string{"8 VOLUME_CREATED 0", "11 EVENTS_LOST 3"}; err != stop || !slices.Equal(got, want) {
		t.Errorf("follower got %q, %v; want %q", got, err, want)
	}
}

// What is asked for until a time ends then, with what came before.
func TestEventsUntil(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := newWorld(t)
	d := w.start(options{notRunning: true})
	until := time.Now().Add(300 * time.Millisecond)
	n := 0
	another := func() {
		n++
		if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: fmt.Sprintf("v%d", n), SizeMB: 16}); err != nil {
			t.Error(err)
		}
	}
	another()
	var got []api.Event
	if err := d.Events(ctx, api.EventFilter{Until: until}, true, func(ev api.Event) error {
		got = append(got, ev)
		if n == 1 {
			another()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if time.Now().Before(until) || len(got) != 2 {
		t.Errorf("%d events, and over %v before the time", len(got), time.Until(until))
	}
	if err := d.Events(ctx, api.EventFilter{Since: until}, false, func(ev api.Event) error { return fmt.Errorf("%+v is older", ev) }); err != nil {
		t.Error(err)
	}
}

// A selector of events looks at the labels of the time: also of what is no more.
func TestEventsByLabel(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	for name, tier := range map[string]string{"web": "front", "db": "back"} {
		if _, err := d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve", Labels: map[string]string{"tier": tier}}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitHealthy)
	}
	if _, err := d.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 16, Labels: map[string]string{"tier": "back"}}); err != nil {
		t.Fatal(err)
	}
	d.patch("web", `{"labels": {"tier": "back"}}`)
	for _, name := range []string{"web", "db"} {
		if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
			t.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
	}
	if err := d.RemoveVolume(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	selected := func(selector string, types ...api.EventType) (list []string) {
		t.Helper()
		s, err := api.ParseSelector(selector)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Events(ctx, api.EventFilter{Selector: s, Types: types}, false, func(e api.Event) error {
			list = append(list, e.Name+" "+string(e.Type))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		return list
	}
	ends := []api.EventType{api.EventVMCreated, api.EventVMDeleted, api.EventVolumeCreated, api.EventVolumeRemoved, api.EventKernelImported}
	for selector, want := range map[string][]string{
		"tier=front":  {"web VM_CREATED"},
		"tier=back":   {"data VOLUME_CREATED", "data VOLUME_REMOVED", "db VM_CREATED", "db VM_DELETED", "web VM_DELETED"},
		"!tier":       {"generic KERNEL_IMPORTED"},
		"tier=middle": nil,
	} {
		if got := selected(selector, ends...); !slices.Equal(got, want) {
			t.Errorf("events of %s: %q, want %q", selector, got, want)
		}
	}
	if all, front := selected(""), selected("tier=front"); len(front) < 4 || len(front) >= len(all) {
		t.Errorf("%d events of %d are of the front", len(front), len(all))
	}
	// What no event needs any more is not kept.
	if _, err := d.db.PruneEvents(ctx, 1, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if got := selected("tier"); len(got) != 1 {
		t.Errorf("events that are kept: %q, want the last one", got)
	}
}
