package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// selectImage selects whole images, with their references as a JSON array and
// how many VMs were made from them.
const selectImage = `SELECT i.id, i.platform, i.layers, i.disk, i.disk_size, i.initramfs, i.initramfs_size, i.config_json,
	i.created_at, i.pulled_at, i.last_used,
	(SELECT json_group_array(r.reference) FROM image_refs AS r WHERE r.image = i.id),
	(SELECT count(*) FROM vms WHERE vms.image_id = i.id)
	FROM images AS i`

func scanImage(sc scanner) (row.Image, error) {
	var img row.Image
	var created, pulled, used int64
	var config, refs []byte
	if err := sc.Scan(&img.ID, &img.Platform, &img.Layers, &img.Disk, &img.DiskSize, &img.Initramfs, &img.InitramfsSize, &config,
		&created, &pulled, &used, &refs, &img.VMs); err != nil {
		return row.Image{}, classify(err)
	}
	if err := json.Unmarshal(config, &img.Config); err != nil {
		return row.Image{}, fmt.Errorf("%w: configuration of image %s: %w", row.ErrCorrupt, img.ID, err)
	}
	if err := json.Unmarshal(refs, &img.References); err != nil {
		return row.Image{}, fmt.Errorf("%w: references of image %s: %w", row.ErrCorrupt, img.ID, err)
	}
	slices.Sort(img.References)
	img.Size = img.DiskSize + img.InitramfsSize
	img.CreatedAt, img.PulledAt, img.LastUsed = fromNanos(created), fromNanos(pulled), fromNanos(used)
	return img, nil
}

// PutImage adds an image that was made, or the form of it that was made to one
// that is there, and gives it references, which leave the images that had them.
// Times but CreatedAt are filled in. References, VMs and Size of img are not
// looked at.
func (s *Store) PutImage(ctx context.Context, img row.Image, references []string, ev api.Event) (row.Image, []api.Event, error) {
	config, err := json.Marshal(img.Config)
	if err != nil {
		return row.Image{}, nil, fmt.Errorf("put image %s: %w", img.ID, err)
	}
	var evs []api.Event
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		evs = nil
		now := s.now()
		// What is there already in another form keeps it.
		if _, err := tx.ExecContext(ctx, `INSERT INTO images
			(id, platform, layers, disk, disk_size, initramfs, initramfs_size, config_json, created_at, pulled_at, last_used)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET pulled_at = excluded.pulled_at, last_used = excluded.last_used,
				disk = iif(excluded.disk <> '', excluded.disk, disk), disk_size = iif(excluded.disk <> '', excluded.disk_size, disk_size),
				initramfs = iif(excluded.initramfs <> '', excluded.initramfs, initramfs),
				initramfs_size = iif(excluded.initramfs <> '', excluded.initramfs_size, initramfs_size)`,
			img.ID, img.Platform, img.Layers, img.Disk, img.DiskSize, img.Initramfs, img.InitramfsSize, string(config),
			nanos(img.CreatedAt), nanos(now), nanos(now)); err != nil {
			return err
		}
		for _, ref := range references {
			if err := tag(ctx, tx, img.ID, ref); err != nil {
				return err
			}
		}
		if img, err = scanImage(tx.QueryRowContext(ctx, selectImage+` WHERE i.id = ?`, img.ID)); err != nil {
			return err
		}
		evs, err = s.imageEvent(ctx, tx, &img, ev)
		return err
	})
	if err != nil {
		return row.Image{}, nil, fmt.Errorf("put image %s: %w", img.ID, err)
	}
	return img, evs, nil
}

func tag(ctx context.Context, tx *sql.Tx, id, reference string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO image_refs (reference, image) VALUES (?, ?)
		ON CONFLICT (reference) DO UPDATE SET image = excluded.image`, reference, id)
	return err
}

// imageEvent appends the event of an image, named by its first reference.
func (s *Store) imageEvent(ctx context.Context, tx *sql.Tx, img *row.Image, ev api.Event) ([]api.Event, error) {
	ev.Name, ev.Message, ev.Labels = img.ID, img.ID, img.Config.Labels
	if len(img.References) > 0 {
		ev.Name = img.References[0]
	}
	ev, err := s.appendEvent(ctx, tx, ev)
	return []api.Event{ev}, err
}

// TagImage gives an image that is there one more reference, if it does not have
// it, and marks it as used and pulled now. ev is appended only when the
// reference is new. It returns row.ErrNotFound when the image is not there.
func (s *Store) TagImage(ctx context.Context, id, reference string, ev api.Event) (row.Image, []api.Event, error) {
	var img row.Image
	var evs []api.Event
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		evs = nil
		now := nanos(s.now())
		if _, err := tx.ExecContext(ctx, `UPDATE images SET pulled_at = ?, last_used = ? WHERE id = ?`, now, now, id); err != nil {
			return err
		}
		before, err := scanImage(tx.QueryRowContext(ctx, selectImage+` WHERE i.id = ?`, id))
		if err != nil {
			return err
		}
		img = before
		if slices.Contains(before.References, reference) {
			return nil
		}
		if err := tag(ctx, tx, id, reference); err != nil {
			return err
		}
		img.References = append(img.References, reference)
		slices.Sort(img.References)
		evs, err = s.imageEvent(ctx, tx, &row.Image{Image: api.Image{ID: id, References: []string{reference}}}, ev)
		return err
	})
	if err != nil {
		return row.Image{}, nil, fmt.Errorf("tag image %s: %w", id, err)
	}
	return img, evs, nil
}

// Image returns the image of that ID.
func (s *Store) Image(ctx context.Context, id string) (row.Image, error) {
	img, err := scanImage(s.r.QueryRowContext(ctx, selectImage+` WHERE i.id = ?`, id))
	return img, wrap(err, "image %s", id)
}

// ImageByReference returns the image that has the reference.
func (s *Store) ImageByReference(ctx context.Context, reference string) (row.Image, error) {
	img, err := scanImage(s.r.QueryRowContext(ctx, selectImage+` WHERE i.id = (SELECT image FROM image_refs WHERE reference = ?)`, reference))
	return img, wrap(err, "image %s", reference)
}

// ImageIDs returns up to limit IDs that begin with prefix, in order.
func (s *Store) ImageIDs(ctx context.Context, prefix string, limit int) ([]string, error) {
	ids, err := queryStrings(ctx, s.r, `SELECT id FROM images WHERE id >= ?1 AND id < ?1 || x'7f' ORDER BY id LIMIT ?2`, prefix, limit)
	return ids, wrap(err, "list images")
}

// Images returns all images, the one used last first.
func (s *Store) Images(ctx context.Context) ([]row.Image, error) {
	rows, err := s.r.QueryContext(ctx, selectImage+` ORDER BY i.last_used DESC, i.id`)
	if err != nil {
		return nil, wrap(classify(err), "list images")
	}
	defer rows.Close()
	var imgs []row.Image
	for rows.Next() {
		img, err := scanImage(rows)
		if err != nil {
			return nil, wrap(err, "list images")
		}
		imgs = append(imgs, img)
	}
	return imgs, wrap(classify(rows.Err()), "list images")
}

// RemoveImage takes references from an image, all that it has with nil, and
// removes the image when none is left. removed says whether it did. It does
// nothing and returns a *row.InUseError, which names them, when that would take
// the image from VMs; row.ErrNotFound when there is no such image, or a
// reference is not its own any more.
func (s *Store) RemoveImage(ctx context.Context, id string, references []string, ev api.Event) (img row.Image, removed bool, evs []api.Event, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		evs, removed = nil, false
		if img, err = scanImage(tx.QueryRowContext(ctx, selectImage+` WHERE i.id = ?`, id)); err != nil {
			return err
		}
		if references == nil {
			references = img.References
		}
		for _, ref := range references {
			if !slices.Contains(img.References, ref) {
				return row.ErrNotFound
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM image_refs WHERE reference = ?`, ref); err != nil {
				return err
			}
		}
		if removed = len(references) == len(img.References); removed {
			users, err := queryStrings(ctx, tx, `SELECT name FROM vms WHERE image_id = ? ORDER BY name LIMIT ?`, id, maxUsers)
			if err != nil {
				return err
			}
			if len(users) > 0 {
				return &row.InUseError{By: users}
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM images WHERE id = ?`, id); err != nil {
				return err
			}
		}
		evs, err = s.imageEvent(ctx, tx, &row.Image{Image: api.Image{ID: id, References: references}}, ev)
		return err
	})
	if err != nil {
		return row.Image{}, false, nil, fmt.Errorf("remove image %s: %w", id, err)
	}
	return img, removed, evs, nil
}

// maxUsers is how many VMs a *row.InUseError names.
const maxUsers = 10

// touchImage marks an image as used now.
func (s *Store) touchImage(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `UPDATE images SET last_used = ? WHERE id = ?`, nanos(s.now()), id)
	return err
}
