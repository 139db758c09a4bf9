package store

import (
	"context"
	"database/sql"
)

// statements are those of the ways that must be fast, prepared once: to compile
// one takes four times as long as to find a VM by it.
type statements struct {
	// On the writing connection.
	vmByID, insertVM, updateVM, deleteVM *sql.Stmt
	leases, insertLease                  *sql.Stmt
	insertManifest                       *sql.Stmt
	insertEvent, labelSet                *sql.Stmt
	// On those for reading.
	readVMByID, readVMByName, readManifest *sql.Stmt
}

// statement is what is prepared, and where.
type statement struct {
	dst  **sql.Stmt
	on   *sql.DB
	text string
}

func (s *Store) statements() []statement {
	st := &s.stmts
	return []statement{
		{&st.vmByID, s.w, selectVM + ` WHERE v.id = ?`},
		{&st.insertVM, s.w, insertVM()},
		{&st.updateVM, s.w, updateVM()},
		{&st.deleteVM, s.w, `DELETE FROM vms WHERE id = ?`},
		{&st.leases, s.w, `SELECT address FROM leases`},
		{&st.insertLease, s.w, `INSERT INTO leases (address, vm) VALUES (?, ?)`},
		{&st.insertManifest, s.w, insertManifest},
		{&st.insertEvent, s.w, insertEvent},
		{&st.labelSet, s.w, `SELECT id FROM label_sets WHERE labels_json = ?`},
		{&st.readVMByID, s.r, selectVM + ` WHERE v.id = ?`},
		{&st.readVMByName, s.r, selectVM + ` WHERE v.name = ?`},
		{&st.readManifest, s.r, `SELECT body FROM manifests WHERE digest = ?`},
	}
}

func (s *Store) prepare(ctx context.Context) error {
	for _, p := range s.statements() {
		stmt, err := p.on.PrepareContext(ctx, p.text)
		if err != nil {
			return err
		}
		*p.dst = stmt
	}
	return nil
}

// unprepare closes what prepare has opened.
func (s *Store) unprepare() {
	for _, p := range s.statements() {
		if *p.dst != nil {
			(*p.dst).Close() //nolint:errcheck // closing the database, which follows, tells of trouble
		}
	}
}
