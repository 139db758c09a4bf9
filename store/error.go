package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/ncruces/go-sqlite3"

	"github.com/volantvm/volant/store/row"
)

// errUnchanged is returned inside a transaction that turned out to have
// nothing to write. It never leaves the package.
var errUnchanged = errors.New("nothing changed")

// classify puts one of package row's errors in front of what SQLite says. It
// passes on errors that are none of SQLite's, and those it has no word for.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return row.ErrNotFound
	case errors.Is(err, sqlite3.CONSTRAINT_UNIQUE), errors.Is(err, sqlite3.CONSTRAINT_PRIMARYKEY):
		return &row.ExistsError{Column: constraintColumn(err)}
	case errors.Is(err, sqlite3.CONSTRAINT_FOREIGNKEY):
		return fmt.Errorf("%w: %w", row.ErrInUse, err)
	case errors.Is(err, sqlite3.FULL), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", row.ErrFull, err)
	case errors.Is(err, sqlite3.BUSY), errors.Is(err, sqlite3.LOCKED):
		return fmt.Errorf("%w: %w", row.ErrBusy, err)
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB),
		errors.Is(err, sqlite3.ERROR) && strings.Contains(err.Error(), "unsupported file format"): // it has no code of its own
		return fmt.Errorf("%w: %w", row.ErrCorrupt, err)
	}
	return err
}

// constraintColumn takes "vms.name" out of SQLite's message, "UNIQUE constraint
// failed: vms.name". There is no other way to learn it.
func constraintColumn(err error) string {
	const mark = "constraint failed: "
	msg := err.Error()
	i := strings.LastIndex(msg, mark)
	if i < 0 {
		return "a value"
	}
	col, _, _ := strings.Cut(msg[i+len(mark):], ",")
	return strings.TrimSpace(col)
}

// advice is what an operator can do about a database that does not open.
func advice(err error) string {
	switch {
	case errors.Is(err, row.ErrCorrupt):
		return "; volantd --recover keeps the file, saves what can still be read of it, and finds the running VMs again; or restore a backup together with its -wal file"
	case errors.Is(err, row.ErrRecovering):
		return "; run volantd --recover again"
	case errors.Is(err, row.ErrNewer):
		return "; run that version or a later one, or restore the backup made before the upgrade"
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return "; volantd must be able to write there: mount it read-write, or choose another folder with --data-dir"
	}
	return ""
}

// wrap puts the operation in front of err, nil for nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
