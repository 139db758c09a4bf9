package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

const insertEvent = `INSERT INTO events (time, type, name, old_name, vm, status, address, pid, message, labels) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

// vmEvent fills in what an event says of its VM.
func vmEvent(vm *row.VM, ev api.Event) api.Event {
	ev.Name, ev.VMID = vm.Name, vm.ID
	ev.Status, ev.IPAddress, ev.PID, ev.Labels = vm.Status, vm.IPAddress, vm.PID, vm.Labels
	return ev
}

// appendEvent adds ev to the journal, with its sequence number and time.
func (s *Store) appendEvent(ctx context.Context, tx *sql.Tx, ev api.Event) (api.Event, error) {
	ev.Time = s.now()
	labels, err := s.labelSet(ctx, tx, ev.Labels)
	if err != nil {
		return ev, err
	}
	res, err := tx.StmtContext(ctx, s.stmts.insertEvent).Exec(nanos(ev.Time), string(ev.Type), ev.Name, ev.OldName, ev.VMID,
		string(ev.Status), ev.IPAddress, ev.PID, ev.Message, labels)
	if err != nil {
		return ev, err
	}
	seq, err := res.LastInsertId()
	ev.Seq = uint64(seq)
	return ev, err
}

// labelSet returns the number of a set of labels, which is added unless it is
// there; 0 for none.
func (s *Store) labelSet(ctx context.Context, tx *sql.Tx, labels map[string]string) (id int64, err error) {
	if len(labels) == 0 {
		return 0, nil
	}
	body, err := json.Marshal(labels) // sorted by key
	if err != nil {
		return 0, err
	}
	err = tx.StmtContext(ctx, s.stmts.labelSet).QueryRow(string(body)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, `INSERT INTO label_sets (labels_json) VALUES (?) RETURNING id`, string(body)).Scan(&id)
	}
	return id, err
}

// Events returns up to limit events that f selects, oldest first, and the bounds
// of the journal at that moment. f.Selector is for the reader: events that it does
// not select are among them.
func (s *Store) Events(ctx context.Context, f api.EventFilter, limit int) (page row.EventPage, err error) {
	defer func() { err = wrap(classify(err), "read events") }()
	tx, err := s.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return page, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing to undo
	var oldest, newest sql.NullInt64
	// Two lookups: min and max in one would read the whole table.
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)`).Scan(&oldest, &newest); err != nil {
		return page, err
	}
	page.Oldest, page.Newest = uint64(oldest.Int64), uint64(newest.Int64)
	where, args := eventConditions(f)
	rows, err := tx.QueryContext(ctx, `SELECT seq, time, type, name, old_name, vm, status, address, pid, message, coalesce(labels_json, '') FROM events LEFT JOIN label_sets ON id = labels WHERE `+
		where+` ORDER BY seq LIMIT ?`, append(args, limit)...)
	if err != nil {
		return page, err
	}
	defer rows.Close()
	for rows.Next() {
		var ev api.Event
		var at int64
		var labels []byte
		if err := rows.Scan(&ev.Seq, &at, &ev.Type, &ev.Name, &ev.OldName, &ev.VMID, &ev.Status, &ev.IPAddress, &ev.PID, &ev.Message, &labels); err != nil {
			return page, err
		}
		if len(labels) > 0 {
			if err := json.Unmarshal(labels, &ev.Labels); err != nil {
				return page, fmt.Errorf("%w: labels of event %d: %w", row.ErrCorrupt, ev.Seq, err)
			}
		}
		ev.Time = fromNanos(at)
		page.Events = append(page.Events, ev)
	}
	return page, rows.Err()
}

// eventConditions is f in SQL.
func eventConditions(f api.EventFilter) (where string, args []any) {
	where, args = `seq > ?`, []any{int64(min(f.After, 1<<62))}
	and := func(cond string, more ...any) {
		where, args = where+` AND `+cond, append(args, more...)
	}
	if f.VM != "" {
		and(`(name = ? OR old_name = ?) AND vm <> ''`, f.VM, f.VM)
	}
	if f.Name != "" {
		and(`name = ?`, f.Name)
	}
	if len(f.Types) > 0 {
		types := make([]any, len(f.Types))
		for i, t := range f.Types {
			types[i] = string(t)
		}
		and(`type IN (?`+strings.Repeat(", ?", len(types)-1)+`)`, types...)
	}
	if !f.Since.IsZero() {
		and(`time >= ?`, nanos(f.Since))
	}
	if !f.Until.IsZero() {
		and(`time < ?`, nanos(f.Until))
	}
	return where, args
}

// PruneEvents removes all but the newest keep events, and those before the first
// that is not older than before, and returns how many it removed. At least one is
// kept: sequence numbers go on from it. A zero before removes none for their age.
func (s *Store) PruneEvents(ctx context.Context, keep int, before time.Time) (int, error) {
	var n int64
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		// From the front, whatever a clock that jumped wrote behind it: the journal
		// has no holes.
		res, err := tx.ExecContext(ctx, `DELETE FROM events WHERE seq < max(
			(SELECT max(seq) FROM events) - ? + 1,
			coalesce((SELECT seq FROM events WHERE time >= ? ORDER BY seq LIMIT 1), (SELECT max(seq) FROM events)))`,
			max(keep, 1), nanos(before))
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err == nil && n == 0 {
			return errUnchanged
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM label_sets WHERE id NOT IN (SELECT labels FROM events)`)
		return err
	})
	return int(n), wrap(err, "prune events")
}
