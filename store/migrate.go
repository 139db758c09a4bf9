package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/volantvm/volant/store/row"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one numbered step of the schema.
type migration struct {
	version int
	name    string
	sql     string
}

// migrations lists the embedded files in order. Their numbers run from 1
// without gaps; a file that was released is never changed.
func migrations() ([]migration, error) {
	entries, err := fs.ReadDir(migrationFiles, "migrations") // sorted by name
	if err != nil {
		return nil, err
	}
	var ms []migration
	for _, e := range entries {
		number, _, ok := strings.Cut(e.Name(), "_")
		v, err := strconv.Atoi(number)
		if !ok || err != nil || v != len(ms)+1 {
			return nil, fmt.Errorf("migration %s: its number should be %04d", e.Name(), len(ms)+1)
		}
		text, err := fs.ReadFile(migrationFiles, "migrations/"+e.Name())
		if err != nil {
			return nil, err
		}
		ms = append(ms, migration{version: v, name: e.Name(), sql: string(text)})
	}
	return ms, nil
}

// latest is the version that this program knows.
const latest = -1

// migrate brings the schema up to the version to, one transaction a step, so
// that a kill in between leaves a schema that the next start goes on from. The
// version is SQLite's own user_version, which is part of the transaction.
func (s *Store) migrate(ctx context.Context, to int) error {
	ms, err := migrations()
	if err != nil {
		return err
	}
	have, err := s.schemaVersion(ctx)
	if err == nil && have < 0 {
		err = fmt.Errorf("%w: its schema is %d", row.ErrCorrupt, have)
	}
	if err != nil {
		return fmt.Errorf("open database %s: %w%s", s.path, err, advice(err))
	}
	if have > len(ms) {
		return fmt.Errorf("open database %s: %w: its schema is %d, this version knows %d%s",
			s.path, row.ErrNewer, have, len(ms), advice(row.ErrNewer))
	}
	if to == latest {
		to = len(ms)
	}
	for _, m := range ms[have:max(to, have)] {
		err := s.transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, m.sql); err != nil {
				return err
			}
			// A pragma takes no parameters.
			_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", m.version))
			return err
		})
		if err != nil {
			return fmt.Errorf("open database %s: migration %s: %w", s.path, m.name, err)
		}
	}
	return nil
}

func (s *Store) schemaVersion(ctx context.Context) (int, error) {
	var v int
	err := s.w.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&v)
	return v, classify(err)
}
