package httpapitest

import (
	"context"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) VMLogs(ctx context.Context, name string, q api.LogQuery, yield func([]api.LogEntry) error) error {
	if err := s.Err["VMLogs"]; err != nil && len(s.Logs) == 0 {
		return err
	}
	var out []api.LogEntry
	for _, e := range s.Logs {
		of := api.LogWorkload
		switch e.Stream {
		case api.StreamConsole:
			of = api.LogConsole
		case api.StreamVMM:
			of = api.LogVMM
		}
		in := (q.Since.IsZero() || !e.Time.Before(q.Since)) && (q.Until.IsZero() || e.Time.Before(q.Until))
		if e.Seq > q.After && in && (of == q.Log || q.Log == "" && of == api.LogWorkload) {
			out = append(out, e)
		}
	}
	if q.Tail != 0 {
		out = out[max(0, len(out)-max(q.Tail, 0)):]
	}
	if len(out) > 0 {
		if err := yield(out); err != nil {
			return err
		}
	}
	if err := s.Err["VMLogs"]; err != nil || !q.Follow {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}
