// Package store remembers: it keeps VMs, their addresses, plugins, kernels and
// the journal of events in one SQLite database, and is the only user of
// SQLite.
//
// # The contract
//
// A method that changes something does so in one transaction that also writes
// the events telling of it, and returns when both are on disk. A call either
// happens whole or not at all, also when the process is killed in it, and also
// when the disk is full. Errors are those of package row, wrapped.
//
// All methods are safe for concurrent use. Writers take turns; readers see the
// last committed state and wait for nobody.
//
// # Why these settings
//
// Write-ahead logging lets readers and the writer work at the same time, and
// costs one fsync a transaction. synchronous is FULL: under NORMAL a committed
// wish could be lost with the power, and every action of the daemon relies on
// its intent being on disk before it. Each connection costs some 2 MB of
// memory, so there is one for writing and at most two for reading, of which
// one is kept.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"

	"github.com/volantvm/volant/store/row"
)

// busyTimeout is how long a statement waits for another process (a backup, the
// sqlite3 shell) to let go of the database.
const busyTimeout = 5 * time.Second

// cacheKiB bounds the page cache of each connection. 1,000 VMs take some 2 MB;
// beyond it pages come from the kernel's cache, which is nearly as fast.
const cacheKiB = 1024

// Options configure a Store. The zero value is useful.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// AroundWrite, when set, is given the transaction of every method that writes,
	// to run it once and return its error, or to refuse it: its error is then the
	// method's, and nothing is written. Tests of faults put theirs here.
	AroundWrite func(transact func() error) error
	// AfterCommit, when set, is called after each durable write transaction,
	// before the method that made it returns, with the number of such
	// transactions since Open. Crash tests kill the daemon in it.
	AfterCommit func(n int)
}

// Store is an open database.
type Store struct {
	path string
	opt  Options
	w    *sql.DB // one connection
	r    *sql.DB // query_only

	commits atomic.Int64
	stmts   statements // set once by Open
}

// Open opens the database at path, making it, mode 0600, when it does not
// exist, and brings its schema up to date. It refuses a database that is
// damaged (row.ErrCorrupt), was written by a newer version (row.ErrNewer), or
// whose recovery was not finished (row.ErrRecovering).
func Open(ctx context.Context, path string, opt Options) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if recoveryUnderWay(path) {
		return nil, fmt.Errorf("open database %s: %w%s", path, row.ErrRecovering, advice(row.ErrRecovering))
	}
	return openFile(ctx, path, opt)
}

// openFile is Open without a look at recoveries.
func openFile(ctx context.Context, path string, opt Options) (*Store, error) {
	s, err := connect(path, opt)
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.finish(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// connect makes the file, if there is none, and the connections to it.
func connect(path string, opt Options) (*Store, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	// SQLite would make it with the umask's mode; it may hold secrets.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w%s", classify(err), advice(err))
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", classify(err))
	}

	s := &Store{path: path, opt: opt}
	s.w, err = driver.Open(dsn(path, "journal_mode(wal)", "synchronous(full)") + "&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, classify(err))
	}
	s.w.SetMaxOpenConns(1)
	s.w.SetMaxIdleConns(1)
	s.r, err = driver.Open(dsn(path, "query_only(1)"))
	if err != nil {
		s.w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, classify(err))
	}
	s.r.SetMaxOpenConns(2)
	s.r.SetMaxIdleConns(1)
	return s, nil
}

// finish brings the schema up to date, and makes the Store ready for use.
func (s *Store) finish(ctx context.Context) error {
	if err := s.migrate(ctx, latest); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("open database %s: %w", s.path, classify(err))
	}
	return nil
}

// dsn names the database. busy_timeout stands first: with any pragma given the
// library sets none of its own, and the later ones already need it.
func dsn(path string, pragmas ...string) string {
	q := url.Values{}
	for _, p := range append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		fmt.Sprintf("cache_size(-%d)", cacheKiB),
		"foreign_keys(1)",
	}, pragmas...) {
		q.Add("_pragma", p)
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

// check reads the whole database once and refuses a damaged one: pages and
// trees, and whether JSON is JSON. What else stands in a cell SQLite cannot
// judge.
func (s *Store) check(ctx context.Context) error {
	var verdict string
	err := classify(s.w.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict))
	if err == nil && verdict != "ok" {
		err = fmt.Errorf("%w: %.200s", row.ErrCorrupt, verdict)
	}
	if err == nil {
		err = s.checkJSON(ctx)
	}
	if err != nil {
		return fmt.Errorf("open database %s: %w%s", s.path, err, advice(err))
	}
	return nil
}

// checkJSON looks at every column whose name says that it holds JSON.
func (s *Store) checkJSON(ctx context.Context) error {
	columns, err := queryStrings(ctx, s.w, `SELECT format('SELECT ''%w.%w'' FROM "%w" WHERE NOT json_valid("%w")', t.name, c.name, t.name, c.name)
		FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table' AND c.name LIKE '%\_json' ESCAPE '\'`)
	if err != nil || len(columns) == 0 {
		return err
	}
	bad, err := queryStrings(ctx, s.w, strings.Join(columns, " UNION ALL ")+" LIMIT 1")
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%w: %s holds something else than JSON", row.ErrCorrupt, bad[0])
	}
	return err
}

// querier is what *sql.DB and *sql.Tx share.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// queryStrings returns the first column of a query.
func queryStrings(ctx context.Context, from querier, query string, args ...any) (out []string, err error) {
	rows, err := from.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, classify(err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, classify(err)
		}
		out = append(out, v)
	}
	return out, classify(rows.Err())
}

// Close closes the database. No other method may be running.
func (s *Store) Close() error {
	s.unprepare()
	rerr := s.r.Close()
	if err := s.w.Close(); err != nil {
		return fmt.Errorf("close database: %w", classify(err))
	}
	if rerr != nil {
		return fmt.Errorf("close database: %w", classify(rerr))
	}
	return nil
}

// write runs fn in a write transaction. What fn does is kept only when it
// returns nil and the commit succeeds. The request that asked may go away at
// any time; a transaction that has begun is finished all the same, so that
// nobody has to guess whether it was: fn gets a context that nobody cancels.
func (s *Store) write(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	transact := func() error { return s.transact(ctx, fn) }
	var err error
	if s.opt.AroundWrite != nil {
		err = s.opt.AroundWrite(transact)
	} else {
		err = transact()
	}
	if err == errUnchanged {
		return nil
	}
	if err != nil {
		return err
	}
	n := s.commits.Add(1)
	if s.opt.AfterCommit != nil {
		s.opt.AfterCommit(int(n))
	}
	return nil
}

// transact is write without the hooks.
func (s *Store) transact(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	err := s.attempt(ctx, fn)
	// Where a file cannot grow SQLite says that the disk is full, or that some
	// input or output failed, as it comes.
	if errors.Is(err, sqlite3.IOERR) && noRoom(filepath.Dir(s.path)) {
		return fmt.Errorf("%w: %w", row.ErrFull, err)
	}
	return err
}

// noRoom reports whether the file system of dir is full, but for a few blocks.
func noRoom(dir string) bool {
	var st syscall.Statfs_t
	return syscall.Statfs(dir, &st) == nil && st.Bavail < 16
}

// attempt is transact that takes SQLite at its word.
func (s *Store) attempt(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return classify(err)
	}
	if err := fn(ctx, tx); err != nil {
		tx.Rollback() //nolint:errcheck // the first error counts; an unfinished transaction dies with its connection
		return classify(err)
	}
	return classify(tx.Commit())
}

func (s *Store) now() time.Time { return s.opt.Now().UTC() }

// nanos and fromNanos translate times; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
