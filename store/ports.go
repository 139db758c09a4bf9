package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// publish lets choose pick the ports of a VM.
func publish(ctx context.Context, tx *sql.Tx, name string, choose func([]row.Published) ([]api.Port, error)) (_ []api.Port, err error) {
	var have int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM vms WHERE name = ?`, name).Scan(&have); err != nil {
		return nil, err
	}
	if have > 0 {
		return nil, &row.ExistsError{Column: "vms.name"} // a better answer than that its ports are taken
	}
	taken, err := published(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	return choose(taken)
}

// published returns the host's ports that VMs have, but for one VM.
func published(ctx context.Context, tx *sql.Tx, but string) (taken []row.Published, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT v.name, p.protocol, p.host_port, p.host_ip FROM vm_ports AS p JOIN vms AS v ON v.id = p.vm WHERE p.vm <> ?`, but)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var p row.Published
		if err := rows.Scan(&p.VM, &p.Port.Protocol, &p.Port.HostPort, &p.Port.HostIP); err != nil {
			return nil, err
		}
		taken = append(taken, p)
	}
	return taken, rows.Err()
}

// insertPorts keeps host ports for a VM.
func insertPorts(ctx context.Context, tx *sql.Tx, vm string, ports []api.Port) error {
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO vm_ports (protocol, host_port, host_ip, vm) VALUES (?, ?, ?, ?)`,
			p.Protocol, p.HostPort, p.HostIP, vm); err != nil {
			return err
		}
	}
	return nil
}

// keptPorts are the ports of the host that a VM has: those that it runs with, and
// those that it is to have.
func keptPorts(vm *row.VM) []api.Port {
	var out []api.Port
	lists := [][]api.Port{vm.Ports}
	if vm.Next != nil {
		lists = append(lists, vm.Next.Config.Ports)
	}
	for _, list := range lists {
		for _, p := range list {
			same := func(o api.Port) bool {
				return o.Protocol == p.Protocol && o.HostPort == p.HostPort && o.HostIP == p.HostIP
			}
			if p.HostPort != 0 && !slices.ContainsFunc(out, same) {
				out = append(out, p)
			}
		}
	}
	return out
}
