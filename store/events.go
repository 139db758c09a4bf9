package store

import (
	"context"
	"database/sql"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

const insertEvent = `INSERT INTO events (time, type, name, vm, status, address, pid, message) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`

// vmEvent fills in what an event says of its VM.
func vmEvent(vm *row.VM, ev api.Event) api.Event {
	ev.Name, ev.VMID = vm.Name, vm.ID
	ev.Status, ev.IPAddress, ev.PID = vm.Status, vm.IPAddress, vm.PID
	return ev
}

// appendEvent adds ev to the journal, with its sequence number and time.
func (s *Store) appendEvent(ctx context.Context, tx *sql.Tx, ev api.Event) (api.Event, error) {
	ev.Time = s.now()
	res, err := tx.StmtContext(ctx, s.stmts.insertEvent).Exec(nanos(ev.Time), string(ev.Type), ev.Name, ev.VMID,
		string(ev.Status), ev.IPAddress, ev.PID, ev.Message)
	if err != nil {
		return ev, err
	}
	seq, err := res.LastInsertId()
	ev.Seq = uint64(seq)
	return ev, err
}

// Events returns up to limit events that f selects, oldest first.
func (s *Store) Events(ctx context.Context, f api.EventFilter, limit int) ([]api.Event, error) {
	query := `SELECT seq, time, type, name, vm, status, address, pid, message FROM events WHERE seq > ?`
	args := []any{int64(min(f.After, 1<<62))}
	if f.VM != "" {
		query += ` AND name = ? AND vm <> ''`
		args = append(args, f.VM)
	}
	if len(f.Types) > 0 {
		query += ` AND type IN (?` + strings.Repeat(", ?", len(f.Types)-1) + `)`
		for _, t := range f.Types {
			args = append(args, string(t))
		}
	}
	rows, err := s.r.QueryContext(ctx, query+` ORDER BY seq LIMIT ?`, append(args, limit)...)
	if err != nil {
		return nil, wrap(classify(err), "read events")
	}
	defer rows.Close()
	var evs []api.Event
	for rows.Next() {
		var ev api.Event
		var at int64
		if err := rows.Scan(&ev.Seq, &at, &ev.Type, &ev.Name, &ev.VMID, &ev.Status, &ev.IPAddress, &ev.PID, &ev.Message); err != nil {
			return nil, wrap(classify(err), "read events")
		}
		ev.Time = fromNanos(at)
		evs = append(evs, ev)
	}
	return evs, wrap(classify(rows.Err()), "read events")
}

// LastEvent returns the highest sequence number, 0 for an empty journal.
func (s *Store) LastEvent(ctx context.Context) (uint64, error) {
	var seq sql.NullInt64
	err := s.r.QueryRowContext(ctx, `SELECT max(seq) FROM events`).Scan(&seq)
	return uint64(seq.Int64), wrap(classify(err), "read events")
}

// PruneEvents removes all but the newest keep events and returns how many it
// removed. At least one is kept: sequence numbers go on from it.
func (s *Store) PruneEvents(ctx context.Context, keep int) (int, error) {
	var n int64
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?`, max(keep, 1))
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err == nil && n == 0 {
			return errUnchanged
		}
		return err
	})
	return int(n), wrap(err, "prune events")
}
