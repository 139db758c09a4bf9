package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/volantvm/volant/client/api"
)

func (q *query) stats() api.StatsQuery {
	return api.StatsQuery{Follow: q.bool("follow", false), Interval: q.duration("interval", api.MinStatsInterval, api.MaxStatsInterval)}
}

func (s *Server) vmStats(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	sq := q.stats()
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	sq.VMs = []string{name}
	return s.sendStats(w, r, sq, func(sample api.StatsSample) (any, error) {
		if len(sample.VMs) == 0 {
			return nil, api.Errorf(api.CodeNotFound, "VM %s was deleted", name)
		}
		return &sample.VMs[0], nil
	})
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	sq := q.stats()
	for _, v := range q.values["vm"] {
		for name := range strings.SplitSeq(v, ",") {
			if err := api.ValidateName("VM", name); err != nil {
				return err
			}
			sq.VMs = append(sq.VMs, name)
		}
	}
	if q.err != nil {
		return q.err
	}
	return s.sendStats(w, r, sq, func(sample api.StatsSample) (any, error) {
		sample.VMs = notNil(sample.VMs)
		return &sample, nil
	})
}

// sendStats sends what line makes of each sample.
func (s *Server) sendStats(w http.ResponseWriter, r *http.Request, q api.StatsQuery, line func(api.StatsSample) (any, error)) error {
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	out := newStream(w, mediaNDJSON)
	err := s.svc.Stats(ctx, q, func(sample api.StatsSample) error {
		v, err := line(sample)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(v); err != nil {
			return err
		}
		return out.flush()
	})
	return s.endLines(ctx, out, r, err)
}
