package httpapitest

import (
	"context"

	"github.com/volantvm/volant/client/api"
)

// keptAnswer is what the Service keeps of a request with an idempotency key.
type keptAnswer struct {
	digest string
	answer api.Answer
}

type onceKey struct{}

// BeginOnce knows of requests that are over only, and of their responses only.
func (s *Service) BeginOnce(ctx context.Context, key, digest string) (context.Context, api.Answer, bool, error) {
	s.lock()
	defer s.mu.Unlock()
	if a, ok := s.Answers[key]; ok {
		return ctx, a, true, nil
	}
	a, done := s.answers[key]
	if done && a.digest != digest {
		return ctx, api.Answer{}, false, api.Errorf(api.CodeConflict, "the idempotency key was used by another request")
	}
	return context.WithValue(ctx, onceKey{}, [2]string{key, digest}), a.answer, done, nil
}

func (s *Service) EndOnce(ctx context.Context, a api.Answer, undone bool) error {
	s.lock()
	defer s.mu.Unlock()
	if undone || a.Status == 0 {
		return nil
	}
	of := ctx.Value(onceKey{}).([2]string)
	if s.answers == nil {
		s.answers = make(map[string]keptAnswer)
	}
	s.answers[of[0]] = keptAnswer{of[1], a}
	return nil
}
