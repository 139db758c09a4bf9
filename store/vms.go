package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// CreateVM writes a new VM, its manifest, address and ports, and the event of
// its creation. The VM's manifest digest, times, address and ports, its name if
// it has none, and the event's fields but Type and Message, are filled in.
// Errors: row.ErrExists with the column ("vms.name", "vms.cid", …),
// row.ErrInUse when the plugin or image has gone meanwhile, and those of the
// functions of n.
func (s *Store) CreateVM(ctx context.Context, n row.NewVM, ev api.Event) (row.VM, api.Event, error) {
	vm := n.VM
	m, err := encodeManifest(&n.Manifest, n.Blobs)
	if err != nil {
		return row.VM{}, api.Event{}, fmt.Errorf("create VM %s: %w", vm.Name, err)
	}
	vm.Manifest = m.digest
	err = s.writeOnce(ctx, func() any { return vm.VM }, func(ctx context.Context, tx *sql.Tx) error {
		vm.CreatedAt = s.now()
		vm.UpdatedAt, vm.ConfigVersion = vm.CreatedAt, 1
		vm.SetTTL(vm.TTLSeconds)
		if n.VM.Name == "" {
			if vm.Name, err = freeName(ctx, tx, n.NamePrefix); err != nil {
				return err
			}
		}
		if _, err := tx.StmtContext(ctx, s.stmts.insertManifest).Exec(m.digest, m.body, m.blobs); err != nil {
			return err
		}
		if n.Publish != nil {
			if vm.Ports, err = publish(ctx, tx, vm.Name, n.Publish); err != nil {
				return err
			}
		}
		args, err := vmValues(&vm)
		if err != nil {
			return err
		}
		// The row before the lease: "the name is taken" is a better answer than
		// "no address is left".
		if _, err := tx.StmtContext(ctx, s.stmts.insertVM).Exec(args...); err != nil {
			return err
		}
		if err := insertPorts(ctx, tx, vm.ID, vm.Ports); err != nil {
			return err
		}
		if vm.ExpiresAt != nil {
			if err := setExpiry(ctx, tx, &vm); err != nil {
				return err
			}
		}
		for _, v := range n.Manifest.Volumes {
			if v.Name == "" {
				continue
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO vm_volumes (vm, volume, read_only, held) VALUES (?, ?, ?, 0)`,
				vm.ID, v.Name, v.ReadOnly); err != nil {
				return err
			}
		}
		if vm.ImageID != "" {
			if err := s.touchImage(ctx, tx, vm.ImageID); err != nil {
				return err
			}
		}
		if n.Lease != nil {
			if vm.IPAddress, err = s.lease(ctx, tx, vm.ID, n.Lease); err != nil {
				return err
			}
		}
		ev, err = s.appendEvent(ctx, tx, vmEvent(&vm, ev))
		return err
	})
	if err != nil {
		return row.VM{}, api.Event{}, fmt.Errorf("create VM %s: %w", vm.Name, err)
	}
	return vm, ev, nil
}

// freeName returns prefix, a hyphen and the lowest number from 1 on that no VM
// has.
func freeName(ctx context.Context, tx *sql.Tx, prefix string) (string, error) {
	prefix += "-"
	// '.' is the byte behind '-': the range holds just the names that begin so.
	names, err := queryStrings(ctx, tx, `SELECT name FROM vms WHERE name >= ? AND name < ?`, prefix, strings.TrimSuffix(prefix, "-")+".")
	if err != nil {
		return "", err
	}
	taken := make(map[string]bool, len(names))
	for _, n := range names {
		taken[n] = true
	}
	for i := 1; ; i++ {
		if name := prefix + strconv.Itoa(i); !taken[name] {
			return name, nil
		}
	}
}

func (s *Store) lease(ctx context.Context, tx *sql.Tx, vm string, choose func([]netip.Addr) (netip.Addr, error)) (string, error) {
	rows, err := tx.StmtContext(ctx, s.stmts.leases).Query()
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var taken []netip.Addr
	var text sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&text); err != nil {
			return "", err
		}
		a, err := netip.ParseAddr(string(text))
		if err != nil {
			return "", fmt.Errorf("%w: lease %.40q", row.ErrCorrupt, text)
		}
		taken = append(taken, a)
	}
	if err := rows.Err(); err != nil {
		return "", err
	}
	addr, err := choose(taken)
	if err != nil {
		return "", err
	}
	_, err = tx.StmtContext(ctx, s.stmts.insertLease).Exec(addr.String(), vm)
	return addr.String(), err
}

// ChangeVM reads a VM by id, lets change alter it, and writes it together with
// the events that change returns, in one transaction. Nothing is written when
// change altered nothing and returned no event, or failed. The id, name,
// address and creation time cannot be altered. A further incarnation
// marks the VM's image as used; the end of one gives back the VM's volumes. A
// status that changes without an event is refused with row.ErrSilent.
// change must not use the store.
func (s *Store) ChangeVM(ctx context.Context, id string, change func(vm *row.VM) ([]api.Event, error)) (row.VM, []api.Event, error) {
	var after row.VM
	var evs []api.Event
	err := s.writeOnce(ctx, func() any { return after.VM }, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		after, evs, err = s.changeVM(ctx, tx, id, change)
		return err
	})
	if err != nil {
		return row.VM{}, nil, fmt.Errorf("change VM %s: %w", id, err)
	}
	return after, evs, nil
}

// changeVM is ChangeVM within a transaction.
func (s *Store) changeVM(ctx context.Context, tx *sql.Tx, id string, change func(vm *row.VM) ([]api.Event, error)) (after row.VM, evs []api.Event, err error) {
	before, err := scanVM(tx.StmtContext(ctx, s.stmts.vmByID).QueryRow(id))
	if err != nil {
		return row.VM{}, nil, err
	}
	after = before
	told, err := change(&after)
	if err != nil {
		return row.VM{}, nil, err
	}
	after.ID, after.Name, after.IPAddress, after.CreatedAt = before.ID, before.Name, before.IPAddress, before.CreatedAt
	after.ConfigPending = after.Next != nil
	if len(told) == 0 && reflect.DeepEqual(before, after) {
		return after, nil, errUnchanged
	}
	if after.Status != before.Status && !slices.ContainsFunc(told, func(ev api.Event) bool { return ev.Type != "" }) {
		return row.VM{}, nil, fmt.Errorf("%w: from %s to %s", row.ErrSilent, before.Status, after.Status)
	}
	after.UpdatedAt = s.now()
	err = s.writeVM(ctx, tx, &before, &after)
	for _, ev := range told {
		if err == nil {
			ev, err = s.appendEvent(ctx, tx, vmEvent(&after, ev))
			evs = append(evs, ev)
		}
	}
	return after, evs, err
}

// writeVM writes a changed VM, and what follows from the change.
func (s *Store) writeVM(ctx context.Context, tx *sql.Tx, before, after *row.VM) error {
	args, err := vmValues(after)
	if err != nil {
		return err
	}
	if _, err := tx.StmtContext(ctx, s.stmts.updateVM).Exec(append(args, after.ID)...); err != nil {
		return err
	}
	if after.ImageID != "" && after.Incarnation > before.Incarnation {
		if err := s.touchImage(ctx, tx, after.ImageID); err != nil {
			return err
		}
	}
	if after.Ended() && !before.Ended() {
		if err := releaseVolumes(ctx, tx, after.ID); err != nil {
			return err
		}
	}
	if ports := keptPorts(after); !slices.Equal(ports, keptPorts(before)) {
		if _, err := tx.ExecContext(ctx, `DELETE FROM vm_ports WHERE vm = ?`, after.ID); err != nil {
			return err
		}
		if err := insertPorts(ctx, tx, after.ID, ports); err != nil {
			return err
		}
	}
	if before.TTLSeconds != after.TTLSeconds {
		return setExpiry(ctx, tx, after)
	}
	return nil
}

// DeleteVM removes a VM, its lease, and its manifest when nothing else needs
// that. It returns row.ErrNotFound when there is no such VM.
func (s *Store) DeleteVM(ctx context.Context, id string, ev api.Event) (api.Event, error) {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		vm, err := scanVM(tx.StmtContext(ctx, s.stmts.vmByID).QueryRow(id))
		if err != nil {
			return err
		}
		manifests, err := queryStrings(ctx, tx, `SELECT DISTINCT manifest FROM vm_configs WHERE vm = ?`, id)
		if err != nil {
			return err
		}
		if _, err := tx.StmtContext(ctx, s.stmts.deleteVM).Exec(id); err != nil {
			return err
		}
		for _, digest := range append(manifests, vm.Manifest) {
			if err := dropUnused(ctx, tx, digest); err != nil {
				return err
			}
		}
		if vm.ImageID != "" {
			if err := s.touchImage(ctx, tx, vm.ImageID); err != nil {
				return err
			}
		}
		vm.PID = 0
		ev, err = s.appendEvent(ctx, tx, vmEvent(&vm, ev))
		return err
	})
	if err != nil {
		return api.Event{}, fmt.Errorf("delete VM %s: %w", id, err)
	}
	return ev, nil
}

// VM returns the VM of that name or, failing that, of that id.
func (s *Store) VM(ctx context.Context, nameOrID string) (row.VM, error) {
	for _, stmt := range []*sql.Stmt{s.stmts.readVMByName, s.stmts.readVMByID} {
		vm, err := scanVM(stmt.QueryRowContext(ctx, nameOrID))
		if err != row.ErrNotFound { //nolint:errorlint // classify returns it bare
			return vm, wrap(err, "VM %s", nameOrID)
		}
	}
	return row.VM{}, fmt.Errorf("VM %s: %w", nameOrID, row.ErrNotFound)
}

// VMByID returns the VM of that id.
func (s *Store) VMByID(ctx context.Context, id string) (row.VM, error) {
	vm, err := scanVM(s.stmts.readVMByID.QueryRowContext(ctx, id))
	return vm, wrap(err, "VM %s", id)
}

// VMs returns the VMs that f selects, and how many there are without its limit
// and offset.
func (s *Store) VMs(ctx context.Context, f api.VMFilter) ([]row.VM, int, error) {
	var cond []string
	var args []any
	if len(f.Status) > 0 {
		cond = append(cond, `v.status IN (?`+strings.Repeat(", ?", len(f.Status)-1)+`)`)
		for _, st := range f.Status {
			args = append(args, string(st))
		}
	}
	if f.Plugin != "" {
		cond = append(cond, `v.plugin = ?`)
		args = append(args, f.Plugin)
	}
	if f.Query != "" {
		cond = append(cond, `instr(v.name, ?) > 0`)
		args = append(args, f.Query)
	}
	where := ""
	if len(cond) > 0 {
		where = ` WHERE ` + strings.Join(cond, ` AND `)
	}
	order, err := orderBy(f)
	if err != nil {
		return nil, 0, err
	}
	if f.Selector != nil {
		return s.selectVMs(ctx, f, where+order, args)
	}

	// One transaction, so that list and total are of the same moment.
	tx, err := s.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, 0, wrap(classify(err), "list VMs")
	}
	defer tx.Rollback() //nolint:errcheck // nothing to undo
	limit := ""
	listArgs := args
	if f.Limit > 0 || f.Offset > 0 {
		n := f.Limit
		if n <= 0 {
			n = -1 // SQLite's "no limit"
		}
		limit = ` LIMIT ? OFFSET ?`
		listArgs = append(append([]any{}, args...), n, max(f.Offset, 0))
	}
	vms, err := collectVMs(tx.QueryContext(ctx, selectVM+where+order+limit, listArgs...))
	if err != nil {
		return nil, 0, wrap(err, "list VMs")
	}
	total := len(vms)
	if limit != "" {
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM vms AS v`+where, args...).Scan(&total); err != nil {
			return nil, 0, wrap(classify(err), "count VMs")
		}
	}
	return vms, total, nil
}

// selectVMs is VMs for a selector, which SQL does not know: all VMs that meet
// the rest of f are looked at.
func (s *Store) selectVMs(ctx context.Context, f api.VMFilter, rest string, args []any) (_ []row.VM, total int, err error) {
	rows, err := s.r.QueryContext(ctx, selectVM+rest, args...)
	if err != nil {
		return nil, 0, wrap(classify(err), "list VMs")
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var vms []row.VM
	for rows.Next() {
		vm, err := scanVM(rows)
		if err != nil {
			return nil, 0, wrap(err, "list VMs")
		}
		if !f.Selector.Matches(vm.Labels) {
			continue
		}
		if total++; total > f.Offset && (f.Limit <= 0 || len(vms) < f.Limit) {
			vms = append(vms, vm)
		}
	}
	return vms, total, wrap(classify(rows.Err()), "list VMs")
}

// orderBy translates the sort key; the name makes every order total.
func orderBy(f api.VMFilter) (string, error) {
	dir := ""
	if f.Desc {
		dir = " DESC"
	}
	switch f.Sort {
	case "", "name":
		return ` ORDER BY v.name` + dir, nil
	case "created_at", "updated_at", "status":
		return ` ORDER BY v.` + f.Sort + dir + `, v.name`, nil
	}
	return "", api.Errorf(api.CodeInvalid, "sort: %.40q is not known; give one of name, created_at, updated_at, status", f.Sort)
}

// StoppedBefore returns the ids of the VMs that have ended and are to stay so,
// were started at least once, under another boot id than boot, and have that
// restart policy.
func (s *Store) StoppedBefore(ctx context.Context, boot, policy string) ([]string, error) {
	return queryStrings(ctx, s.r, `SELECT v.id FROM vms AS v JOIN manifests AS m ON m.digest = v.manifest
		WHERE v.desired = 'stopped' AND v.status IN ('stopped', 'crashed', 'failed') AND v.incarnation > 0 AND v.boot_id <> ?
		AND json_extract(CAST(m.body AS TEXT), '$.restart.policy') = ? ORDER BY v.name`, boot, policy)
}

// ActiveVMs returns the VMs that are not settled: those that run, or should,
// or are on their way to something.
func (s *Store) ActiveVMs(ctx context.Context) ([]row.VM, error) {
	vms, err := collectVMs(s.r.QueryContext(ctx, selectVM+` WHERE v.id IN (
		SELECT id FROM vms WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed')))`))
	return vms, wrap(err, "list active VMs")
}

// PromisedMemory returns how much memory the VMs that are not settled have or are
// to have, in MiB, but for the one with this id.
func (s *Store) PromisedMemory(ctx context.Context, but string) (int, error) {
	var sum int
	err := s.r.QueryRowContext(ctx, `SELECT coalesce(sum(max(memory_mib, coalesce(json_extract(details_json, '$.next.config.memory_mb'), 0))), 0) FROM vms WHERE id IN (
		SELECT id FROM vms WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed'))) AND id != ?`, but).Scan(&sum)
	return sum, wrap(classify(err), "add up memory")
}

// VMNames returns up to limit names, for "did you mean".
func (s *Store) VMNames(ctx context.Context, limit int) ([]string, error) {
	return queryStrings(ctx, s.r, `SELECT name FROM vms ORDER BY name LIMIT ?`, limit)
}

// VMCounts counts the VMs.
func (s *Store) VMCounts(ctx context.Context) (row.Counts, error) {
	c := row.Counts{ByStatus: map[api.VMState]int{}, ByRuntime: map[string]int{}}
	rows, err := s.r.QueryContext(ctx, `SELECT status, runtime, count(*) FROM vms GROUP BY status, runtime`)
	if err != nil {
		return c, wrap(classify(err), "count VMs")
	}
	defer rows.Close()
	for rows.Next() {
		var status, runtime string
		var n int
		if err := rows.Scan(&status, &runtime, &n); err != nil {
			return c, wrap(classify(err), "count VMs")
		}
		c.ByStatus[api.VMState(status)] += n
		c.ByRuntime[runtime] += n
	}
	return c, wrap(classify(rows.Err()), "count VMs")
}
