package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// PutPlugin installs a plugin, or replaces the one of that name: VMs that were
// created before keep the manifest that they have. blobs are the digests that
// the manifest names. The times are filled in. Putting what is already there
// changes nothing and tells of nothing.
func (s *Store) PutPlugin(ctx context.Context, p api.Plugin, blobs []string, ev api.Event) (row.Plugin, []api.Event, error) {
	m, err := encodeManifest(&p.Manifest, blobs)
	if err != nil {
		return row.Plugin{}, nil, fmt.Errorf("put plugin %s: %w", p.Name, err)
	}
	out := row.Plugin{Plugin: p, Digest: m.digest}
	var evs []api.Event
	err = s.writeOnce(ctx, func() any { return out.Plugin }, func(ctx context.Context, tx *sql.Tx) error {
		evs = nil
		old, err := scanPlugin(tx.QueryRowContext(ctx, selectPlugin+` WHERE p.name = ?`, p.Name))
		found := err == nil
		if err != nil && !errors.Is(err, row.ErrNotFound) {
			return err
		}
		if found && old.Digest == out.Digest && old.Enabled == p.Enabled {
			out = old
			return errUnchanged
		}
		now := s.now()
		out.InstalledAt, out.UpdatedAt = now, now
		if found {
			out.InstalledAt = old.InstalledAt
		}
		if _, err := tx.StmtContext(ctx, s.stmts.insertManifest).Exec(m.digest, m.body, m.blobs); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO plugins (name, version, runtime, enabled, manifest, installed_at, updated_at)
			VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET version = excluded.version, runtime = excluded.runtime, enabled = excluded.enabled,
				manifest = excluded.manifest, updated_at = excluded.updated_at`,
			p.Name, p.Version, p.Runtime, p.Enabled, out.Digest, nanos(out.InstalledAt), nanos(out.UpdatedAt)); err != nil {
			return err
		}
		if found && old.Digest != out.Digest {
			if err := dropUnused(ctx, tx, old.Digest); err != nil {
				return err
			}
		}
		ev.Name, ev.Labels = p.Name, p.Manifest.Labels
		ev, err := s.appendEvent(ctx, tx, ev)
		evs = append(evs, ev)
		return err
	})
	if err != nil {
		return row.Plugin{}, nil, fmt.Errorf("put plugin %s: %w", p.Name, err)
	}
	return out, evs, nil
}

// insertManifest adds a manifest unless it is there.
const insertManifest = `INSERT INTO manifests (digest, body, blobs_json) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING`

// encodedManifest is a manifest as its row has it.
type encodedManifest struct{ digest, body, blobs string }

// encodeManifest makes the row of a manifest that names these blobs.
func encodeManifest(m *api.Manifest, blobs []string) (encodedManifest, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return encodedManifest{}, err
	}
	if blobs == nil {
		blobs = []string{}
	}
	list, err := json.Marshal(blobs)
	if err != nil {
		return encodedManifest{}, err
	}
	sum := sha256.Sum256(body)
	return encodedManifest{digest: "sha256:" + hex.EncodeToString(sum[:]), body: string(body), blobs: string(list)}, nil
}

const selectPlugin = `SELECT p.name, p.version, p.runtime, p.enabled, p.manifest, p.installed_at, p.updated_at, m.body
	FROM plugins AS p JOIN manifests AS m ON m.digest = p.manifest`

func scanPlugin(sc scanner) (row.Plugin, error) {
	var p row.Plugin
	var installed, updated int64
	var body []byte
	if err := sc.Scan(&p.Name, &p.Version, &p.Runtime, &p.Enabled, &p.Digest, &installed, &updated, &body); err != nil {
		return row.Plugin{}, classify(err)
	}
	if err := json.Unmarshal(body, &p.Manifest); err != nil {
		return row.Plugin{}, fmt.Errorf("%w: manifest of plugin %s: %w", row.ErrCorrupt, p.Name, err)
	}
	p.InstalledAt, p.UpdatedAt = fromNanos(installed), fromNanos(updated)
	return p, nil
}

// Plugin returns the plugin of that name.
func (s *Store) Plugin(ctx context.Context, name string) (row.Plugin, error) {
	p, err := scanPlugin(s.r.QueryRowContext(ctx, selectPlugin+` WHERE p.name = ?`, name))
	return p, wrap(err, "plugin %s", name)
}

// Plugins returns all plugins by name.
func (s *Store) Plugins(ctx context.Context) ([]row.Plugin, error) {
	rows, err := s.r.QueryContext(ctx, selectPlugin+` ORDER BY p.name`)
	if err != nil {
		return nil, wrap(classify(err), "list plugins")
	}
	defer rows.Close()
	var ps []row.Plugin
	for rows.Next() {
		p, err := scanPlugin(rows)
		if err != nil {
			return nil, wrap(err, "list plugins")
		}
		ps = append(ps, p)
	}
	return ps, wrap(classify(rows.Err()), "list plugins")
}

// EnablePlugin switches a plugin on or off. It writes and tells nothing when
// that changes nothing.
func (s *Store) EnablePlugin(ctx context.Context, name string, enabled bool, ev api.Event) (row.Plugin, []api.Event, error) {
	var p row.Plugin
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return p.Plugin }, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		evs = nil
		if p, err = scanPlugin(tx.QueryRowContext(ctx, selectPlugin+` WHERE p.name = ?`, name)); err != nil {
			return err
		}
		if p.Enabled == enabled {
			return errUnchanged
		}
		p.Enabled, p.UpdatedAt = enabled, s.now()
		if _, err := tx.ExecContext(ctx, `UPDATE plugins SET enabled = ?, updated_at = ? WHERE name = ?`, enabled, nanos(p.UpdatedAt), name); err != nil {
			return err
		}
		ev.Name, ev.Labels = name, p.Manifest.Labels
		ev, err := s.appendEvent(ctx, tx, ev)
		evs = append(evs, ev)
		return err
	})
	if err != nil {
		return row.Plugin{}, nil, fmt.Errorf("plugin %s: %w", name, err)
	}
	return p, evs, nil
}

// RemovePlugin removes a plugin and its manifest. It returns row.ErrInUse while
// VMs were created from it, row.ErrNotFound when it is not there.
func (s *Store) RemovePlugin(ctx context.Context, name string, ev api.Event) (api.Event, error) {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		p, err := scanPlugin(tx.QueryRowContext(ctx, selectPlugin+` WHERE p.name = ?`, name))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM plugins WHERE name = ?`, name); err != nil {
			return err
		}
		if err := dropUnused(ctx, tx, p.Digest); err != nil {
			return err
		}
		ev.Name, ev.Labels = name, p.Manifest.Labels
		ev, err = s.appendEvent(ctx, tx, ev)
		return err
	})
	if err != nil {
		return api.Event{}, fmt.Errorf("remove plugin %s: %w", name, err)
	}
	return ev, nil
}

// Manifest returns a manifest by the digest that a VM or plugin has of it.
func (s *Store) Manifest(ctx context.Context, digest string) (api.Manifest, error) {
	var m api.Manifest
	var body []byte
	if err := s.stmts.readManifest.QueryRowContext(ctx, digest).Scan(&body); err != nil {
		return m, wrap(classify(err), "manifest %s", digest)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w: %w", digest, row.ErrCorrupt, err)
	}
	return m, nil
}

// dropUnused removes a manifest that neither a plugin nor a VM refers to.
func dropUnused(ctx context.Context, tx *sql.Tx, digest string) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM manifests WHERE digest = ?1
		AND NOT EXISTS (SELECT 1 FROM plugins WHERE manifest = ?1)
		AND NOT EXISTS (SELECT 1 FROM vms WHERE manifest = ?1)
		AND NOT EXISTS (SELECT 1 FROM vm_configs WHERE manifest = ?1)`, digest)
	return err
}
