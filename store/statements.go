package store

import (
	"context"
	"database/sql"
)

// statements are those of the ways that must be fast, prepared once on the
// writing connection.
type statements struct {
	vmByID, insertVM, updateVM, deleteVM *sql.Stmt
	leases, insertLease                  *sql.Stmt
	insertManifest                       *sql.Stmt
	insertEvent                          *sql.Stmt
}

func (s *Store) prepare(ctx context.Context) error {
	for _, p := range []struct {
		dst  **sql.Stmt
		text string
	}{
		{&s.stmts.vmByID, selectVM + ` WHERE v.id = ?`},
		{&s.stmts.insertVM, insertVM()},
		{&s.stmts.updateVM, updateVM()},
		{&s.stmts.deleteVM, `DELETE FROM vms WHERE id = ?`},
		{&s.stmts.leases, `SELECT address FROM leases`},
		{&s.stmts.insertLease, `INSERT INTO leases (address, vm) VALUES (?, ?)`},
		{&s.stmts.insertManifest, insertManifest},
		{&s.stmts.insertEvent, insertEvent},
	} {
		stmt, err := s.w.PrepareContext(ctx, p.text)
		if err != nil {
			return err
		}
		*p.dst = stmt
	}
	return nil
}

func (st *statements) close() {
	for _, stmt := range []*sql.Stmt{
		st.vmByID, st.insertVM, st.updateVM, st.deleteVM, st.leases, st.insertLease, st.insertManifest, st.insertEvent,
	} {
		if stmt != nil {
			stmt.Close() //nolint:errcheck // closing the database, which follows, tells of trouble
		}
	}
}
