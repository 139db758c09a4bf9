package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

const selectKernel = `SELECT name, version, digest, size, modules, is_default, created_at FROM kernels`

func scanKernel(sc scanner) (api.Kernel, error) {
	var k api.Kernel
	var created int64
	if err := sc.Scan(&k.Name, &k.Version, &k.Digest, &k.Size, &k.Modules, &k.Default, &created); err != nil {
		return api.Kernel{}, classify(err)
	}
	k.CreatedAt = fromNanos(created)
	return k, nil
}

// CreateKernel adds a kernel. It becomes the default when it asks to, or when
// there is none. Adding one that is there with the same blobs changes nothing;
// a different one under its name is row.ErrExists.
func (s *Store) CreateKernel(ctx context.Context, k api.Kernel, ev api.Event) (api.Kernel, []api.Event, error) {
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return k }, func(ctx context.Context, tx *sql.Tx) error {
		evs = nil
		old, err := scanKernel(tx.QueryRowContext(ctx, selectKernel+` WHERE name = ?`, k.Name))
		switch {
		case err == nil && old.Digest == k.Digest && old.Modules == k.Modules && old.Version == k.Version && (old.Default || !k.Default):
			k = old
			return errUnchanged
		case err == nil && (old.Digest != k.Digest || old.Modules != k.Modules || old.Version != k.Version):
			return &row.ExistsError{Column: "kernels.name"}
		case err == nil: // the same, to be made the default
			k = old
			k.Default = true
			if err := makeDefault(ctx, tx, k.Name); err != nil {
				return err
			}
			evs, err = s.kernelEvent(ctx, tx, evs, api.Event{Type: api.EventKernelDefault, Name: k.Name})
			return err
		case err != row.ErrNotFound: //nolint:errorlint // classify returns it bare
			return err
		}
		if !k.Default {
			var have int
			if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM kernels WHERE is_default = 1`).Scan(&have); err != nil {
				return err
			}
			k.Default = have == 0
		}
		k.CreatedAt = s.now()
		if _, err := tx.ExecContext(ctx, `INSERT INTO kernels (name, version, digest, size, modules, is_default, created_at) VALUES (?, ?, ?, ?, ?, 0, ?)`,
			k.Name, k.Version, k.Digest, k.Size, k.Modules, nanos(k.CreatedAt)); err != nil {
			return err
		}
		ev.Name = k.Name
		if evs, err = s.kernelEvent(ctx, tx, evs, ev); err != nil || !k.Default {
			return err
		}
		if err := makeDefault(ctx, tx, k.Name); err != nil {
			return err
		}
		evs, err = s.kernelEvent(ctx, tx, evs, api.Event{Type: api.EventKernelDefault, Name: k.Name})
		return err
	})
	if err != nil {
		return api.Kernel{}, nil, fmt.Errorf("add kernel %s: %w", k.Name, err)
	}
	return k, evs, nil
}

func (s *Store) kernelEvent(ctx context.Context, tx *sql.Tx, evs []api.Event, ev api.Event) ([]api.Event, error) {
	ev, err := s.appendEvent(ctx, tx, ev)
	return append(evs, ev), err
}

func makeDefault(ctx context.Context, tx *sql.Tx, name string) error {
	if _, err := tx.ExecContext(ctx, `UPDATE kernels SET is_default = 0 WHERE is_default = 1`); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `UPDATE kernels SET is_default = 1 WHERE name = ?`, name)
	return err
}

// DefaultKernel makes the kernel of that name the default.
func (s *Store) DefaultKernel(ctx context.Context, name string) (api.Kernel, []api.Event, error) {
	var k api.Kernel
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return k }, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		evs = nil
		if k, err = scanKernel(tx.QueryRowContext(ctx, selectKernel+` WHERE name = ?`, name)); err != nil {
			return err
		}
		if k.Default {
			return errUnchanged
		}
		k.Default = true
		if err := makeDefault(ctx, tx, name); err != nil {
			return err
		}
		evs, err = s.kernelEvent(ctx, tx, evs, api.Event{Type: api.EventKernelDefault, Name: name})
		return err
	})
	if err != nil {
		return api.Kernel{}, nil, fmt.Errorf("kernel %s: %w", name, err)
	}
	return k, evs, nil
}

// Kernel returns the kernel of that name, or the default one for "".
func (s *Store) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	if name == "" {
		k, err := scanKernel(s.r.QueryRowContext(ctx, selectKernel+` WHERE is_default = 1`))
		return k, wrap(err, "default kernel")
	}
	k, err := scanKernel(s.r.QueryRowContext(ctx, selectKernel+` WHERE name = ?`, name))
	return k, wrap(err, "kernel %s", name)
}

// Kernels returns all kernels by name.
func (s *Store) Kernels(ctx context.Context) ([]api.Kernel, error) {
	rows, err := s.r.QueryContext(ctx, selectKernel+` ORDER BY name`)
	if err != nil {
		return nil, wrap(classify(err), "list kernels")
	}
	defer rows.Close()
	var ks []api.Kernel
	for rows.Next() {
		k, err := scanKernel(rows)
		if err != nil {
			return nil, wrap(err, "list kernels")
		}
		ks = append(ks, k)
	}
	return ks, wrap(classify(rows.Err()), "list kernels")
}

// RemoveKernel removes a kernel. It returns row.ErrInUse while a VM asks for it
// by name or has not ended since it booted it.
func (s *Store) RemoveKernel(ctx context.Context, name string, ev api.Event) (api.Event, error) {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := scanKernel(tx.QueryRowContext(ctx, selectKernel+` WHERE name = ?`, name)); err != nil {
			return err
		}
		var users int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM vms WHERE want_kernel = ?1
			OR (kernel = ?1 AND status NOT IN ('stopped', 'crashed', 'failed'))`, name).Scan(&users); err != nil {
			return err
		}
		if users > 0 {
			return fmt.Errorf("%w by %d VMs", row.ErrInUse, users)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM kernels WHERE name = ?`, name); err != nil {
			return err
		}
		var err error
		ev.Name = name
		ev, err = s.appendEvent(ctx, tx, ev)
		return err
	})
	if err != nil {
		return api.Event{}, fmt.Errorf("remove kernel %s: %w", name, err)
	}
	return ev, nil
}

// BlobRefs returns the digests of all blobs that are still needed.
func (s *Store) BlobRefs(ctx context.Context) ([]string, error) {
	refs, err := queryStrings(ctx, s.r, `SELECT digest FROM blob_refs`)
	return refs, wrap(err, "list blob references")
}
