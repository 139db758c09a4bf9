package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"reflect"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// writeOnce is write for a transaction that does what a request asked for. If the
// request is to take effect once, its last step writes that it has, and what
// result says then; also when fn has found nothing to change.
func (s *Store) writeOnce(ctx context.Context, result func() any, fn func(ctx context.Context, tx *sql.Tx) error) error {
	claim := row.ClaimOf(ctx)
	if claim == nil || claim.Taken {
		return s.write(ctx, fn)
	}
	var data []byte
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := fn(ctx, tx); err != nil && err != errUnchanged {
			return err
		}
		var err error
		if data, err = json.Marshal(result()); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO answers (key, digest, at, kind, result_json, status, media, body) VALUES (?, ?, ?, ?, ?, 0, '', '')`,
			claim.Key, claim.Digest, nanos(s.now()), reflect.TypeOf(result()).Name(), string(data))
		return err
	})
	if err == nil {
		claim.Taken, claim.Result = true, data
	}
	return err
}

// Answer returns what is kept of the request with that idempotency key, and the
// request's digest. Without one it returns row.ErrNotFound.
func (s *Store) Answer(ctx context.Context, key string) (digest string, a api.Answer, err error) {
	var result string
	err = s.r.QueryRowContext(ctx, `SELECT digest, kind, result_json, status, media, body FROM answers WHERE key = ?`, key).
		Scan(&digest, &a.Kind, &result, &a.Status, &a.Media, &a.Body)
	a.Result = json.RawMessage(result)
	return digest, a, wrap(classify(err), "answer of an earlier request")
}

// KeepAnswer writes how a request was answered.
func (s *Store) KeepAnswer(ctx context.Context, key, digest string, a api.Answer) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO answers (key, digest, at, kind, result_json, status, media, body) VALUES (?, ?, ?, '', 'null', ?, ?, ?)
			ON CONFLICT (key) DO UPDATE SET status = excluded.status, media = excluded.media, body = excluded.body`,
			key, digest, nanos(s.now()), a.Status, a.Media, string(a.Body))
		return err
	})
	return wrap(err, "keep answer")
}

// DropAnswer forgets a request whose effect was undone.
func (s *Store) DropAnswer(ctx context.Context, key string) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM answers WHERE key = ?`, key)
		return err
	})
	return wrap(err, "drop answer")
}

// PruneAnswers forgets all but the newest keep requests, and those before a time.
func (s *Store) PruneAnswers(ctx context.Context, keep int, before time.Time) (int, error) {
	var n int64
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM answers WHERE seq <= (SELECT max(seq) FROM answers) - ? OR at < ?`, keep, nanos(before))
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err == nil && n == 0 {
			return errUnchanged
		}
		return err
	})
	return int(n), wrap(err, "prune answers")
}
