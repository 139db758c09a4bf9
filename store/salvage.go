package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// maxSalvage bounds how many rows of a table are read in one go: a damaged tree
// may lead in a circle.
const maxSalvage = 2_000_000

// table is what must be known of one to read it from a damaged database.
type table struct {
	name    string
	columns []column
	indexes []string
}

type column struct {
	name string
	kind string // INTEGER or TEXT
	key  bool   // of the primary key
}

// salvage copies what can be read of src. Its schema is that of the version that
// src has, or else the newest.
func (r *Recovery) salvage(ctx context.Context, src *sql.DB) error {
	ms, err := migrations()
	if err != nil {
		return err
	}
	var version int
	if src.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version) != nil || version == 0 {
		version = len(ms)
	}
	if version > len(ms) { // a number that nobody wrote, or what this program must not touch
		return fmt.Errorf("%s: %w: its schema is %d, this version knows %d%s", r.path, row.ErrNewer, version, len(ms), advice(row.ErrNewer))
	}
	if err := r.migrate(ctx, version); err != nil {
		return err
	}
	tables, err := r.tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		saved, err := r.salvageTable(ctx, src, t)
		if err != nil {
			return fmt.Errorf("save table %s: %w", t.name, err)
		}
		r.Tables = append(r.Tables, saved)
	}
	return r.dropBroken(ctx)
}

// tables lists the tables of the new database, those that others refer to first.
func (r *Recovery) tables(ctx context.Context) ([]table, error) {
	names, err := queryStrings(ctx, r.w, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY rowid`)
	if err != nil {
		return nil, err
	}
	var out []table
	for len(names) > 0 {
		var wait []string
		for _, name := range names {
			parents, err := queryStrings(ctx, r.w, `SELECT "table" FROM pragma_foreign_key_list(?)`, name)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(parents, func(p string) bool { return p != name && slices.Contains(names, p) }) {
				wait = append(wait, name)
				continue
			}
			t := table{name: name}
			rows, err := r.w.QueryContext(ctx, `SELECT name, type, pk > 0 FROM pragma_table_info(?) ORDER BY cid`, name)
			if err != nil {
				return nil, classify(err)
			}
			for rows.Next() {
				var c column
				if err := rows.Scan(&c.name, &c.kind, &c.key); err != nil {
					return nil, errors.Join(classify(err), rows.Close())
				}
				t.columns = append(t.columns, c)
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return nil, classify(err)
			}
			if t.indexes, err = queryStrings(ctx, r.w, `SELECT name FROM pragma_index_list(?) WHERE NOT partial AND origin <> 'pk'`, name); err != nil {
				return nil, err
			}
			out = append(out, t)
		}
		if len(wait) == len(names) {
			return nil, fmt.Errorf("tables %v refer to each other", names)
		}
		names = wait
	}
	return out, nil
}

// list joins the columns that are wanted, each followed by suffix.
func (t *table) list(keys bool, suffix, sep string) string {
	var out []string
	for _, c := range t.columns {
		if c.key || !keys {
			out = append(out, c.name+suffix)
		}
	}
	return strings.Join(out, sep)
}

// salvageTable reads a table from its beginning. Where that ends in damage it is
// read from its end as well, and what lies between is looked for by its keys,
// which the indexes have too.
func (r *Recovery) salvageTable(ctx context.Context, src *sql.DB, t table) (SavedTable, error) {
	out := SavedTable{Name: t.name}
	tx, err := r.w.BeginTx(ctx, nil)
	if err != nil {
		return out, classify(err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	insert, err := tx.PrepareContext(ctx, `INSERT OR IGNORE INTO `+t.name+` (`+t.list(false, "", ", ")+`) VALUES (?`+strings.Repeat(", ?", len(t.columns)-1)+`)`)
	if err != nil {
		return out, classify(err)
	}
	defer insert.Close()
	keep := func(values []any) error {
		if !t.plausible(values) {
			out.Dropped++
			return nil
		}
		res, err := insert.ExecContext(ctx, values...)
		err = classify(err)
		var exists *row.ExistsError
		switch {
		case errors.Is(err, row.ErrFull):
			return err
		case err != nil && (errors.Is(err, row.ErrInUse) || errors.As(err, &exists) || strings.Contains(err.Error(), "constraint failed")):
			out.Dropped++
			return nil
		case err != nil:
			return err
		}
		n, err := res.RowsAffected()
		out.Saved += int(n)
		return err
	}
	all := `SELECT ` + t.list(false, "", ", ") + ` FROM ` + t.name
	read := func(query string, each func([]any) error, args ...any) (whole bool, err error) {
		return readRows(ctx, src, query, args, each)
	}
	whole, err := read(all+` ORDER BY `+t.list(true, "", ", "), keep)
	if err != nil {
		return out, err
	}
	if !whole {
		out.Torn = true
		if _, err := read(all+` ORDER BY `+t.list(true, " DESC", ", "), keep); err != nil {
			return out, err
		}
		single := all + ` WHERE ` + t.list(true, " = ?", " AND ")
		for _, index := range t.indexes {
			for _, order := range []string{"ASC", "DESC"} {
				var keys [][]any
				if _, err := read(`SELECT `+t.list(true, "", ", ")+` FROM `+t.name+` INDEXED BY `+index+` ORDER BY 1 `+order,
					func(key []any) error { keys = append(keys, key); return nil }); err != nil {
					return out, err
				}
				for _, key := range keys {
					if _, err := read(single, keep, key...); err != nil {
						return out, err
					}
				}
			}
		}
	}
	return out, classify(tx.Commit())
}

// readRows gives each the rows of a query. whole is false when damage, or a
// table that is not there, ended it; the error is each's.
func readRows(ctx context.Context, src *sql.DB, query string, args []any, each func([]any) error) (whole bool, err error) {
	rows, err := src.QueryContext(ctx, query, args...)
	if err != nil {
		return false, ctx.Err()
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return false, nil
	}
	for range maxSalvage {
		if !rows.Next() {
			return rows.Err() == nil, ctx.Err()
		}
		values, into := make([]any, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if rows.Scan(into...) != nil {
			continue
		}
		if err := each(values); err != nil {
			return false, err
		}
	}
	return false, nil
}

// plausible reports whether the values of a row can be what was written.
func (t *table) plausible(values []any) bool {
	var digest, body string
	for i, c := range t.columns {
		if c.kind != "INTEGER" && c.kind != "TEXT" {
			continue
		}
		var text string
		switch v := values[i].(type) {
		case nil:
			continue // whether that may be is for the table to say
		case int64:
			if c.kind != "INTEGER" {
				return false
			}
			continue
		case string:
			text = v
		case []byte:
			text = string(v)
		default:
			return false
		}
		if c.kind != "TEXT" || !utf8.ValidString(text) || strings.HasSuffix(c.name, "_json") && !json.Valid([]byte(text)) {
			return false
		}
		switch c.name {
		case "digest":
			digest = text
		case "body":
			body = text
		}
	}
	if t.name == "manifests" {
		return digest == fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(body)))
	}
	return true
}

// dropBroken removes VMs that were saved and that nobody could work with, and
// gives the others back what is theirs alone.
func (r *Recovery) dropBroken(ctx context.Context) error {
	if err := r.finish(ctx); err != nil {
		return err
	}
	// An address that the leases have lost the journal may still have.
	if _, err := r.w.ExecContext(ctx, `INSERT OR IGNORE INTO leases (address, vm) SELECT address, vm FROM (
		SELECT address, vm, max(seq) FROM events WHERE address <> '' AND vm IN (SELECT id FROM vms WHERE NOT vsock AND id NOT IN (SELECT vm FROM leases)) GROUP BY vm)`); err != nil {
		return classify(err)
	}
	ids, err := queryStrings(ctx, r.w, `SELECT id FROM vms`)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(r.Tables, func(t SavedTable) bool { return t.Name == "vms" })
	for _, id := range ids {
		vm, err := r.VMByID(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && workable(&vm) {
			if err := r.giveBack(ctx, &vm); err != nil {
				return err
			}
			continue
		}
		if _, err := r.w.ExecContext(ctx, `DELETE FROM vms WHERE id = ?`, id); err != nil {
			return classify(err)
		}
		r.Tables[i].Saved--
		r.Tables[i].Dropped++
	}
	return nil
}

// workable reports whether a daemon can go by the row. One that lost its address
// is none: whoever knows the VM from elsewhere knows that too.
func workable(vm *row.VM) bool {
	return slices.Contains(api.VMStates(), vm.Status) && vm.Incarnation >= 0 && (vm.Vsock || vm.IPAddress != "") &&
		slices.Contains([]api.VMDesired{api.DesiredRunning, api.DesiredStopped, api.DesiredAbsent}, vm.Desired)
}

// giveBack makes the rows again that say which ports and volumes are the VM's.
func (r *Recovery) giveBack(ctx context.Context, vm *row.VM) error {
	for _, p := range vm.Ports {
		if p.HostPort == 0 {
			continue
		}
		if _, err := r.w.ExecContext(ctx, `INSERT OR IGNORE INTO vm_ports (protocol, host_port, host_ip, vm) VALUES (?, ?, ?, ?)`,
			p.Protocol, p.HostPort, p.HostIP, vm.ID); err != nil {
			return classify(err)
		}
	}
	m, err := r.Manifest(ctx, vm.Manifest)
	if err != nil {
		return err
	}
	for _, v := range m.Volumes {
		if v.Name == "" {
			continue
		}
		if _, err := r.w.ExecContext(ctx, `INSERT OR IGNORE INTO vm_volumes (vm, volume, read_only, held) VALUES (?, ?, ?, ?)`,
			vm.ID, v.Name, v.ReadOnly, !vm.Ended()); err != nil {
			return classify(err)
		}
	}
	return nil
}
