package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3/driver"

	"github.com/volantvm/volant/store/row"
)

// Names beside the database. While one of the first two is there, Open refuses:
// an older state, or an empty one, would have volantd end what it does not know.
const (
	recoveringSuffix = ".recovering" // the new database, not complete
	recoveredSuffix  = ".recovered"  // the new database, to be put in the place of the old
	sourceSuffix     = ".recovery-source"
	damagedSuffix    = ".damaged-" // and the time: the old database, for good
)

// maxExtended bounds what a damaged header makes of a file, in bytes, none of
// which are written.
const maxExtended = 16 << 30

func recoveryUnderWay(path string) bool {
	for _, suffix := range []string{recoveringSuffix, recoveredSuffix} {
		if _, err := os.Lstat(path + suffix); err == nil {
			return true
		}
	}
	return false
}

// Recovery is a database that is being recovered. Its Store is for whoever knows
// of more rows than the old file gave; Commit or Abandon ends it.
type Recovery struct {
	*Store
	// Sound is set when the database was not damaged: Store is the database itself.
	Sound bool
	// Tables says what was saved of a damaged one.
	Tables []SavedTable

	path string // of the database
	kept string // where Commit has put the damaged file
}

// SavedTable is what was saved of one table.
type SavedTable struct {
	Name  string
	Saved int
	// Dropped counts rows that were read, but cannot be right: what is no JSON, or
	// refers to a row that is lost.
	Dropped int
	// Torn is set when a part of the table could not be read: rows may be lost.
	Torn bool
}

// Recover opens the database at path if it is sound. Else it makes a new one
// beside it, and saves into that whatever SQLite can still read. The caller has
// seen to it that nobody else uses it.
func Recover(ctx context.Context, path string, opt Options) (*Recovery, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("recover database: %w", err)
	}
	r := &Recovery{path: path}
	if _, err := os.Lstat(path + recoveredSuffix); err == nil { // was killed at the very end
		if err := r.replace(opt); err != nil {
			return nil, fmt.Errorf("recover database %s: %w", path, err)
		}
	}
	f, err := os.OpenFile(path+recoveringSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("recover database: %w%s", classify(err), advice(err))
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("recover database: %w", classify(err))
	}
	if err = syncDir(filepath.Dir(path)); err == nil {
		err = r.open(ctx, opt)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recover database: %w", err), r.Abandon())
	}
	return r, nil
}

// open fills in r.
func (r *Recovery) open(ctx context.Context, opt Options) error {
	_, err := os.Lstat(r.path)
	switch {
	case err == nil:
		s, err := openFile(ctx, r.path, opt)
		if err == nil {
			r.Store, r.Sound = s, true
			return nil
		}
		if !errors.Is(err, row.ErrCorrupt) {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// Opening it replays its log, which changes it: that is for a copy.
	if err := errors.Join(removeDatabase(r.path+sourceSuffix), removeDatabase(r.path+recoveringSuffix)); err != nil {
		return err
	}
	for _, part := range []string{"", "-wal"} {
		if err := copyFile(r.path+part, r.path+sourceSuffix+part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := extend(r.path + sourceSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Store, err = connect(r.path+recoveringSuffix, opt); err != nil {
		return err
	}
	src, err := driver.Open(dsn(r.path + sourceSuffix))
	if err != nil {
		return classify(err)
	}
	defer src.Close()
	src.SetMaxOpenConns(1)
	return r.salvage(ctx, src)
}

// Commit puts the new database in the place of the old, which is kept under the
// name that it returns, "" when there was none to keep.
func (r *Recovery) Commit() (kept string, err error) {
	if err := r.Close(); err != nil {
		return "", err
	}
	if r.Sound {
		return "", r.forget()
	}
	if err := os.Rename(r.path+recoveringSuffix, r.path+recoveredSuffix); err != nil {
		return "", err
	}
	if err := r.replace(r.opt); err != nil {
		return "", fmt.Errorf("recover database %s: %w", r.path, err)
	}
	return r.kept, r.forget()
}

// replace is the end of a recovery whose new database is complete. It can be cut
// anywhere, and done again.
func (r *Recovery) replace(opt Options) error {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if err := syncDir(filepath.Dir(r.path)); err != nil {
		return err
	}
	kept := r.path + damagedSuffix + opt.Now().UTC().Format("20060102T150405Z")
	err := os.Link(r.path, kept)
	switch {
	case err == nil:
		r.kept = kept
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist):
		return err
	}
	// A log that stayed would be played into the new database.
	if err := os.Rename(r.path+"-wal", kept+"-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(r.path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(r.path+recoveredSuffix, r.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(r.path))
}

// Abandon leaves everything as it was before Recover.
func (r *Recovery) Abandon() error {
	var err error
	if r.Store != nil {
		err = r.Close()
	}
	return errors.Join(err, r.forget())
}

// forget removes what a recovery works with, the mark that it is under way last.
func (r *Recovery) forget() error {
	return errors.Join(removeDatabase(r.path+sourceSuffix), removeDatabase(r.path+recoveringSuffix), syncDir(filepath.Dir(r.path)))
}

// removeDatabase removes a database's files, itself last.
func removeDatabase(path string) error {
	for _, part := range []string{"-shm", "-wal", ""} {
		if err := os.Remove(path + part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// extend gives a file that was cut short the size that its header says: SQLite
// reads nothing of one that is shorter.
func extend(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [32]byte // the database file format: page size at 16, pages at 28
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil //nolint:nilerr // nothing can be read of it anyway
	}
	page, pages := int64(binary.BigEndian.Uint16(head[16:])), int64(binary.BigEndian.Uint32(head[28:]))
	if page == 1 {
		page = 64 << 10
	}
	if size := page * pages; size > fi.Size() && size <= maxExtended {
		return f.Truncate(size)
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return classify(err)
	}
	_, err = io.Copy(out, in)
	return classify(errors.Join(err, out.Close()))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
