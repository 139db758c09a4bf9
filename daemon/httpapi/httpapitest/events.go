package httpapitest

import (
	"context"
	"slices"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error {
	if err := s.Err["Events"]; err != nil {
		return err
	}
	for after := f.After; ; {
		s.lock()
		todo, changed := slices.Clone(s.journal[min(after, uint64(len(s.journal))):]), s.changed
		s.mu.Unlock()
		for _, e := range todo {
			after = e.Seq
			if (f.VM != "" && (e.VMID == "" || e.Name != f.VM)) || (f.Name != "" && e.Name != f.Name) ||
				e.Time.Before(f.Since) || (!f.Until.IsZero() && !e.Time.Before(f.Until)) || (f.Types != nil && !slices.Contains(f.Types, e.Type)) || !f.Selector.Matches(e.Labels) {
				continue
			}
			if err := yield(e); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
