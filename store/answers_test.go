package store

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

func TestAnswers(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Now: func() time.Time { return now }})
	ctx := context.Background()
	claim := &row.Claim{Key: "a", Digest: "d"}
	once := row.WithClaim(ctx, claim)

	if _, _, err := s.ChangeVM(once, "none", func(*row.VM) ([]api.Event, error) { return nil, nil }); err == nil || claim.Taken {
		t.Fatalf("a change that failed: %v, claim %+v", err, claim)
	}
	if _, _, err := s.Answer(ctx, "a"); !errors.Is(err, row.ErrNotFound) {
		t.Fatalf("Answer = %v, want not found", err)
	}
	if _, _, err := s.CreateVolume(once, api.Volume{Name: "data", SizeMB: 16}, api.Event{Type: api.EventVolumeCreated}); err != nil || !claim.Taken {
		t.Fatalf("CreateVolume: %v, claim %+v", err, claim)
	}
	digest, a, err := s.Answer(ctx, "a")
	if err != nil || digest != "d" || a.Kind != "Volume" || !strings.Contains(string(a.Result), `"name":"data"`) || a.Status != 0 || string(a.Result) != string(claim.Result) {
		t.Errorf("Answer = %q, %+v, %v", digest, a, err)
	}
	// One effect a claim: the next write is not about it.
	if _, _, err := s.CreateVolume(once, api.Volume{Name: "more", SizeMB: 16}, api.Event{Type: api.EventVolumeCreated}); err != nil {
		t.Fatal(err)
	}
	if err := s.KeepAnswer(ctx, "a", "d", api.Answer{Status: 201, Media: "m", Body: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	if _, a, err := s.Answer(ctx, "a"); err != nil || a.Status != 201 || a.Media != "m" || string(a.Body) != "b" || a.Kind != "Volume" {
		t.Errorf("Answer = %+v, %v", a, err)
	}

	for _, key := range []string{"b", "c", "e"} {
		now = now.Add(time.Hour)
		if err := s.KeepAnswer(ctx, key, "d", api.Answer{Status: 200}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DropAnswer(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.PruneAnswers(ctx, 10, now.Add(-2*time.Hour)); err != nil || n != 1 {
		t.Errorf("PruneAnswers by age = %d, %v; want 1", n, err)
	}
	if n, err := s.PruneAnswers(ctx, 1, time.Time{}); err != nil || n != 1 {
		t.Errorf("PruneAnswers by number = %d, %v; want 1", n, err)
	}
	if _, _, err := s.Answer(ctx, "e"); err != nil {
		t.Errorf("the newest is gone: %v", err)
	}
}
