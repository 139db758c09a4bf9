package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// createOnce creates a VM as a request with an idempotency key does, and returns
// what such a request is answered.
func (in *instance) createOnce(ctx context.Context, key string) (id string, replayed bool, err error) {
	in.w.t.Helper()
	ctx, kept, done, err := in.BeginOnce(ctx, key, "digest of the request")
	if err != nil {
		return "", false, err
	}
	if done {
		return idIn(kept), true, nil
	}
	vm, err := in.CreateVM(ctx, api.VMCreate{Plugin: "serve"})
	if endErr := in.EndOnce(ctx, api.Answer{}, err != nil); err == nil {
		err = endErr
	}
	return vm.ID, false, err
}

// idIn takes a VM's id out of the result of its creation.
func idIn(a api.Answer) string {
	const before = `"id":"`
	s := string(a.Result)
	for i := range len(s) - len(before) - 12 {
		if s[i:i+len(before)] == before {
			return s[i+len(before) : i+len(before)+12]
		}
	}
	return ""
}

func TestOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	id, replayed, err := d.createOnce(ctx, "key")
	if err != nil || replayed {
		t.Fatalf("first: %v, replayed %v", err, replayed)
	}
	for range 2 { // the second time by another process
		if again, replayed, err := d.createOnce(ctx, "key"); err != nil || !replayed || again != id {
			t.Errorf("again: VM %q, replayed %v, %v; want %s", again, replayed, err, id)
		}
		if _, _, _, err := d.BeginOnce(ctx, "key", "another digest"); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("another request: %v, want conflict", err)
		}
		d.stop()
		d = w.start(options{})
	}

	// What changed nothing took effect too: later it must not.
	onceCtx, _, _, err := d.BeginOnce(ctx, "start", "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartVM(onceCtx, id); err != nil {
		t.Fatal(err)
	}
	// While it is being done, the same one waits and another one is refused.
	type result struct {
		a    api.Answer
		done bool
		err  error
	}
	same := make(chan result, 1)
	go func() {
		_, a, done, err := d.BeginOnce(ctx, "start", "x")
		same <- result{a, done, err}
	}()
	if _, _, _, err := d.BeginOnce(ctx, "start", "y"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("another one meanwhile: %v, want conflict", err)
	}
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if _, _, _, err := d.BeginOnce(short, "start", "x"); api.CodeOf(err) != api.CodeTimeout {
		t.Errorf("the same one, with little time: %v, want timeout", err)
	}
	select {
	case r := <-same:
		t.Fatalf("the same one did not wait: %+v", r)
	case <-time.After(20 * time.Millisecond):
	}
	if err := d.EndOnce(onceCtx, api.Answer{Status: 200, Media: "text/plain", Body: []byte("started")}, false); err != nil {
		t.Fatal(err)
	}
	if r := <-same; r.err != nil || !r.done || r.a.Status != 200 || string(r.a.Body) != "started" || idIn(r.a) != id {
		t.Errorf("the same one got %+v", r)
	}

	// What was undone may be done again.
	onceCtx, _, _, err = d.BeginOnce(ctx, "undone", "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartVM(onceCtx, id); err != nil {
		t.Fatal(err)
	}
	if err := d.EndOnce(onceCtx, api.Answer{}, true); err != nil {
		t.Fatal(err)
	}
	if onceCtx, _, done, err := d.BeginOnce(ctx, "undone", "y"); err != nil || done {
		t.Errorf("after it was undone: done %v, %v", done, err)
	} else if err := d.EndOnce(onceCtx, api.Answer{}, true); err != nil {
		t.Error(err)
	}
}

// A pull writes no claim: cut off after its effect and before its answer it is
// done again, which finds what is there, and fetches nothing.
func TestPullOnceMore(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := newWorld(t)
	d := w.start(options{})
	<-d.Ready()
	pull := func(answer bool) api.Image {
		t.Helper()
		ctx, _, done, err := d.BeginOnce(ctx, "key", "digest of the request")
		if err != nil || done {
			t.Fatalf("BeginOnce = %v, %v; want that it is to be done", done, err)
		}
		img, err := d.PullImage(ctx, api.ImagePull{Reference: "nginx"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if answer {
			if err := d.EndOnce(ctx, api.Answer{Status: 200, Body: []byte(img.ID)}, false); err != nil {
				t.Fatal(err)
			}
		}
		return img
	}
	first := pull(false)
	d.kill()
	d = w.start(options{})
	<-d.Ready()
	again := pull(true)
	if fetched, built := w.imgs.counts(); again.ID != first.ID || fetched != 1 || built != 1 {
		t.Errorf("pulled %s and then %s, with %d layers fetched and %d images built; want one of each", first.ID, again.ID, fetched, built)
	}
	// Answered, it is replayed.
	if _, a, done, err := d.BeginOnce(ctx, "key", "digest of the request"); err != nil || !done || string(a.Body) != first.ID {
		t.Errorf("BeginOnce = %+v, %v, %v; want the answer", a, done, err)
	}
}
