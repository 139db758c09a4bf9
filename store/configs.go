package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// ChangeConfig gives a VM a further version of its configuration, which it takes
// over at once unless it has a machine and c.AtOnce is not set, and alters it as ChangeVM does. It
// returns row.ErrStale when the VM's newest version is not the one before.
func (s *Store) ChangeConfig(ctx context.Context, id string, c row.ConfigChange, change func(vm *row.VM) ([]api.Event, error)) (after row.VM, evs []api.Event, err error) {
	v := c.Version
	m, err := encodeManifest(&c.Manifest, c.Blobs)
	if err != nil {
		return row.VM{}, nil, fmt.Errorf("configure VM %s: %w", id, err)
	}
	result := func() any {
		if c.OfVM {
			return after.VM
		}
		return v
	}
	err = s.writeOnce(ctx, result, func(ctx context.Context, tx *sql.Tx) error {
		vm, err := scanVM(tx.StmtContext(ctx, s.stmts.vmByID).QueryRow(id))
		if err != nil {
			return err
		}
		if vm.ConfigVersion+1 != v.Version {
			return row.ErrStale
		}
		taken, err := published(ctx, tx, id)
		if err == nil {
			err = c.Check(taken)
		}
		if err != nil {
			return err
		}
		if _, err := tx.StmtContext(ctx, s.stmts.insertManifest).Exec(m.digest, m.body, m.blobs); err != nil {
			return err
		}
		if v.Version == 2 {
			if err := insertConfig(ctx, tx, id, c.First, vm.Manifest); err != nil {
				return err
			}
		}
		v.Time = s.now()
		if err := insertConfig(ctx, tx, id, v, m.digest); err != nil {
			return err
		}
		after, evs, err = s.changeVM(ctx, tx, id, func(vm *row.VM) ([]api.Event, error) {
			waits := vm.Next != nil
			vm.ConfigVersion = v.Version
			vm.Next = &row.NextConfig{Config: v.Config, Manifest: m.digest, Probed: c.Probed}
			switch {
			case vm.Ended(), vm.Status == api.VMPending:
				vm.TakeNext()
			case c.AtOnce && !waits:
				vm.Next = nil
			}
			return change(vm)
		})
		if err != nil {
			return err
		}
		v.VM, v.Pending = after.Name, after.Next != nil
		return pruneConfigs(ctx, tx, id, v.Version-api.MaxConfigVersions)
	})
	if err != nil {
		return row.VM{}, nil, fmt.Errorf("configure VM %s: %w", id, err)
	}
	return after, evs, nil
}

func insertConfig(ctx context.Context, tx *sql.Tx, vm string, v api.VMConfigVersion, manifest string) error {
	changed, err := json.Marshal(v.Changed)
	if err != nil {
		return err
	}
	config, err := json.Marshal(v.Config)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO vm_configs (vm, version, at, by, taken_from, changed_json, config_json, manifest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		vm, v.Version, nanos(v.Time), v.By, v.From, string(changed), string(config), manifest)
	return err
}

// pruneConfigs forgets the versions up to last, and the manifests that were
// theirs alone.
func pruneConfigs(ctx context.Context, tx *sql.Tx, vm string, last int) error {
	if last < 1 {
		return nil
	}
	manifests, err := queryStrings(ctx, tx, `SELECT DISTINCT manifest FROM vm_configs WHERE vm = ? AND version <= ?`, vm, last)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_configs WHERE vm = ? AND version <= ?`, vm, last); err != nil {
		return err
	}
	for _, digest := range manifests {
		if err := dropUnused(ctx, tx, digest); err != nil {
			return err
		}
	}
	return nil
}

// Configs returns up to limit versions of a VM's configuration, the newest first;
// with a version above 0 that one alone. Before the first change there are none.
func (s *Store) Configs(ctx context.Context, vm string, version, limit int) (_ []api.VMConfigVersion, err error) {
	defer func() { err = wrap(classify(err), "configuration of VM %s", vm) }()
	rows, err := s.r.QueryContext(ctx, `SELECT c.version, c.at, c.by, c.taken_from, c.changed_json, c.config_json, v.name FROM vm_configs AS c JOIN vms AS v ON v.id = c.vm
		WHERE c.vm = ?1 AND (?2 = 0 OR c.version = ?2) ORDER BY c.version DESC LIMIT ?3`, vm, version, limit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []api.VMConfigVersion
	for rows.Next() {
		var v api.VMConfigVersion
		var at int64
		var changed, config []byte
		if err := rows.Scan(&v.Version, &at, &v.By, &v.From, &changed, &config, &v.VM); err != nil {
			return nil, err
		}
		if err := errors.Join(json.Unmarshal(changed, &v.Changed), json.Unmarshal(config, &v.Config)); err != nil {
			return nil, fmt.Errorf("%w: %w", row.ErrCorrupt, err)
		}
		v.Time = fromNanos(at)
		out = append(out, v)
	}
	return out, rows.Err()
}

// RenameVM gives a VM another name. One that another VM has is row.ErrExists.
func (s *Store) RenameVM(ctx context.Context, id, name string, allowed func(vm *row.VM) error, ev api.Event) (row.VM, []api.Event, error) {
	var vm row.VM
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return vm.VM }, func(ctx context.Context, tx *sql.Tx) (err error) {
		evs = nil
		if vm, err = scanVM(tx.StmtContext(ctx, s.stmts.vmByID).QueryRow(id)); err != nil {
			return err
		}
		if err := allowed(&vm); err != nil {
			return err
		}
		if vm.Name == name {
			return errUnchanged
		}
		ev.OldName = vm.Name
		vm.Name, vm.UpdatedAt = name, s.now()
		if _, err := tx.ExecContext(ctx, `UPDATE vms SET name = ?, updated_at = ? WHERE id = ?`, name, nanos(vm.UpdatedAt), id); err != nil {
			return err
		}
		ev, err = s.appendEvent(ctx, tx, vmEvent(&vm, ev))
		evs = append(evs, ev)
		return err
	})
	if err != nil {
		return row.VM{}, nil, fmt.Errorf("rename VM %s: %w", id, err)
	}
	return vm, evs, nil
}

// setExpiry writes when a VM is to be deleted.
func setExpiry(ctx context.Context, tx *sql.Tx, vm *row.VM) error {
	if vm.ExpiresAt == nil {
		_, err := tx.ExecContext(ctx, `DELETE FROM vm_expiries WHERE vm = ?`, vm.ID)
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO vm_expiries (vm, at) VALUES (?, ?) ON CONFLICT (vm) DO UPDATE SET at = excluded.at`, vm.ID, nanos(*vm.ExpiresAt))
	return err
}

// Expiries returns when VMs are to be deleted, the next first.
func (s *Store) Expiries(ctx context.Context) (_ []row.Expiry, err error) {
	defer func() { err = wrap(classify(err), "times of VMs") }()
	rows, err := s.r.QueryContext(ctx, `SELECT vm, at FROM vm_expiries ORDER BY at, vm`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []row.Expiry
	for rows.Next() {
		var e row.Expiry
		var at int64
		if err := rows.Scan(&e.VM, &at); err != nil {
			return nil, err
		}
		e.At = fromNanos(at)
		out = append(out, e)
	}
	return out, rows.Err()
}
