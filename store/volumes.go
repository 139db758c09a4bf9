package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// selectVolume selects whole volumes, with the names of the VMs that mount them
// as a JSON array, and the one that has them now.
const selectVolume = `SELECT v.name, v.size_mib, v.state, v.labels_json, v.created_at,
	(SELECT json_group_array(n.name) FROM (SELECT m.name FROM vm_volumes AS u JOIN vms AS m ON m.id = u.vm
		WHERE u.volume = v.name ORDER BY m.name) AS n),
	coalesce((SELECT m.name FROM vm_volumes AS u JOIN vms AS m ON m.id = u.vm
		WHERE u.volume = v.name AND u.held = 1 ORDER BY u.read_only, m.name LIMIT 1), '')
	FROM volumes AS v`

func scanVolume(sc scanner) (row.Volume, error) {
	var v row.Volume
	var created int64
	var labels, vms []byte
	if err := sc.Scan(&v.Name, &v.SizeMB, &v.State, &labels, &created, &vms, &v.Running); err != nil {
		return row.Volume{}, classify(err)
	}
	if err := errors.Join(json.Unmarshal(labels, &v.Labels), json.Unmarshal(vms, &v.VMs)); err != nil {
		return row.Volume{}, fmt.Errorf("%w: volume %s: %w", row.ErrCorrupt, v.Name, err)
	}
	v.CreatedAt = fromNanos(created)
	return v, nil
}

// CreateVolume adds a volume whose disk is not made yet. One that is there is
// row.ErrExists.
func (s *Store) CreateVolume(ctx context.Context, v api.Volume, ev api.Event) (row.Volume, []api.Event, error) {
	var out row.Volume
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return out.Volume }, func(ctx context.Context, tx *sql.Tx) error {
		evs = nil
		ev, err := s.insertVolume(ctx, tx, v, ev)
		if err != nil {
			return err
		}
		evs = append(evs, ev)
		out, err = scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ?`, v.Name))
		return err
	})
	if err != nil {
		return row.Volume{}, nil, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	return out, evs, nil
}

func (s *Store) insertVolume(ctx context.Context, tx *sql.Tx, v api.Volume, ev api.Event) (api.Event, error) {
	labels, err := json.Marshal(v.Labels)
	if err != nil {
		return ev, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO volumes (name, size_mib, state, labels_json, created_at) VALUES (?, ?, ?, ?, ?)`,
		v.Name, v.SizeMB, row.VolumeNew, string(labels), nanos(s.now())); err != nil {
		return ev, err
	}
	ev.Name, ev.Labels = v.Name, v.Labels
	return s.appendEvent(ctx, tx, ev)
}

// VolumeReady notes that a volume's disk was made. For one that is ready, or is
// to go, it changes nothing.
func (s *Store) VolumeReady(ctx context.Context, name string) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE volumes SET state = ? WHERE name = ? AND state = ?`, row.VolumeReady, name, row.VolumeNew)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err == nil && n == 0 {
			return errUnchanged
		}
		return err
	})
	return wrap(err, "volume %s", name)
}

// LabelVolume changes a volume's labels to what change makes of them. A volume that
// is to go is row.ErrNotFound.
func (s *Store) LabelVolume(ctx context.Context, name string, ev api.Event, change func(labels map[string]string) (map[string]string, error)) (row.Volume, []api.Event, error) {
	var v row.Volume
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return v.Volume }, func(ctx context.Context, tx *sql.Tx) (err error) {
		evs = nil
		if v, err = scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ? AND v.state <> ?`, name, row.VolumeRemoving)); err != nil {
			return err
		}
		labels, err := change(maps.Clone(v.Labels))
		if err != nil {
			return err
		}
		if maps.Equal(labels, v.Labels) {
			return errUnchanged
		}
		v.Labels = labels
		data, err := json.Marshal(labels)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE volumes SET labels_json = ? WHERE name = ?`, string(data), name); err != nil {
			return err
		}
		ev := ev
		ev.Name, ev.Labels = name, labels
		ev, err = s.appendEvent(ctx, tx, ev)
		evs = append(evs, ev)
		return err
	})
	if err != nil {
		return row.Volume{}, nil, fmt.Errorf("label volume %s: %w", name, err)
	}
	return v, evs, nil
}

// ClaimVolumes gives a VM, which is about to be launched, the volumes that it
// mounts: those that are not there are added, and each is the VM's own until it
// has ended, but that those who only read may share. It does nothing and returns
// a *row.VolumeBusyError when another VM has one. The volumes come in the order
// of mounts.
func (s *Store) ClaimVolumes(ctx context.Context, vm string, mounts []api.VolumeMount, ev api.Event) ([]row.Volume, []api.Event, error) {
	var out []row.Volume
	var evs []api.Event
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		out, evs = nil, nil
		for _, m := range mounts {
			var holder string
			err := tx.QueryRowContext(ctx, `SELECT m.name FROM vm_volumes AS u JOIN vms AS m ON m.id = u.vm
				WHERE u.volume = ? AND u.held = 1 AND u.vm <> ? AND (u.read_only = 0 OR ? = 0) LIMIT 1`, m.Name, vm, m.ReadOnly).Scan(&holder)
			if err == nil {
				return &row.VolumeBusyError{Volume: m.Name, VM: holder}
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO vm_volumes (vm, volume, read_only, held) VALUES (?, ?, ?, 1)
				ON CONFLICT (vm, volume) DO UPDATE SET held = 1, read_only = excluded.read_only`, vm, m.Name, m.ReadOnly); err != nil {
				return err
			}
			v, err := scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ?`, m.Name))
			if errors.Is(err, row.ErrNotFound) {
				var made api.Event
				if made, err = s.insertVolume(ctx, tx, api.Volume{Name: m.Name, SizeMB: m.SizeMB}, ev); err != nil {
					return err
				}
				evs = append(evs, made)
				v, err = scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ?`, m.Name))
			}
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("claim volumes of VM %s: %w", vm, err)
	}
	return out, evs, nil
}

// releaseVolumes ends what ClaimVolumes gave to a VM.
func releaseVolumes(ctx context.Context, tx *sql.Tx, vm string) error {
	_, err := tx.ExecContext(ctx, `UPDATE vm_volumes SET held = 0 WHERE vm = ? AND held = 1`, vm)
	return err
}

// Volume returns one volume.
func (s *Store) Volume(ctx context.Context, name string) (row.Volume, error) {
	v, err := scanVolume(s.r.QueryRowContext(ctx, selectVolume+` WHERE v.name = ?`, name))
	return v, wrap(err, "volume %s", name)
}

// Volumes returns all volumes by name.
func (s *Store) Volumes(ctx context.Context) ([]row.Volume, error) {
	rows, err := s.r.QueryContext(ctx, selectVolume+` ORDER BY v.name`)
	if err != nil {
		return nil, wrap(classify(err), "list volumes")
	}
	defer rows.Close()
	var vs []row.Volume
	for rows.Next() {
		v, err := scanVolume(rows)
		if err != nil {
			return nil, wrap(err, "list volumes")
		}
		vs = append(vs, v)
	}
	return vs, wrap(classify(rows.Err()), "list volumes")
}

// CondemnVolume notes that a volume is to go: its disk may be removed from now
// on, and its row with RemoveVolume. It returns a *row.InUseError while VMs
// mount it.
func (s *Store) CondemnVolume(ctx context.Context, name string) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		v, err := scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ?`, name))
		if err != nil {
			return err
		}
		if v.State == row.VolumeRemoving {
			return errUnchanged
		}
		if len(v.VMs) > 0 {
			return &row.InUseError{By: v.VMs[:min(len(v.VMs), maxUsers)]}
		}
		_, err = tx.ExecContext(ctx, `UPDATE volumes SET state = ? WHERE name = ?`, row.VolumeRemoving, name)
		return err
	})
	return wrap(err, "remove volume %s", name)
}

// RemoveVolume removes the row of a condemned volume.
func (s *Store) RemoveVolume(ctx context.Context, name string, ev api.Event) (api.Event, error) {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		v, err := scanVolume(tx.QueryRowContext(ctx, selectVolume+` WHERE v.name = ? AND v.state = ?`, name, row.VolumeRemoving))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM volumes WHERE name = ?`, name); err != nil {
			return err
		}
		ev.Name, ev.Labels = name, v.Labels
		ev, err = s.appendEvent(ctx, tx, ev)
		return err
	})
	if err != nil {
		return api.Event{}, fmt.Errorf("remove volume %s: %w", name, err)
	}
	return ev, nil
}
