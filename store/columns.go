package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// vmColumns are the columns of vms, in the order that vmValues and scanVM use.
const vmColumns = `id, name, plugin, plugin_version, image, image_id, runtime, manifest, status, desired, reason,
	agent_up, healthy, auto_remove, vsock, mac, cid, cpu_cores, memory_mib, cmdline, want_kernel, kernel,
	hypervisor, accel, pid, incarnation, replace_to, restarts, boot_id, initramfs,
	created_at, updated_at, accepted_at, started_at, details_json`

// selectVM selects whole VMs, their addresses behind the columns.
const selectVM = `SELECT v.*, coalesce(l.address, '') FROM (SELECT ` + vmColumns + ` FROM vms) AS v LEFT JOIN leases AS l ON l.vm = v.id`

func insertVM() string {
	n := strings.Count(vmColumns, ",") + 1
	return `INSERT INTO vms (` + vmColumns + `) VALUES (?` + strings.Repeat(", ?", n-1) + `)`
}

// updateVM sets every column; the id stands first and once more at the end.
func updateVM() string {
	var set []string
	for c := range strings.SplitSeq(vmColumns, ",") {
		set = append(set, strings.TrimSpace(c)+" = ?")
	}
	return `UPDATE vms SET ` + strings.Join(set, ", ") + ` WHERE id = ?`
}

// details is what of a VM is never searched for.
type details struct {
	Labels map[string]string `json:"labels,omitempty"`
	Env    map[string]string `json:"env,omitempty"`
	Ports  []api.Port        `json:"ports,omitempty"`
	TTY    bool              `json:"tty,omitempty"`
	Stdin  bool              `json:"stdin,omitempty"`
	Attach bool              `json:"attach,omitempty"`
	Probed bool              `json:"probed,omitempty"` // HealthCheck
	Health *api.VMHealth     `json:"health,omitempty"`
	Policy *api.Restart      `json:"restart,omitempty"`
	Loop   bool              `json:"crash_loop,omitempty"`
	NextAt *time.Time        `json:"next_start_at,omitempty"`
	Tries  row.Tries         `json:"tries,omitzero"`
	Needs  []api.Dependency  `json:"depends_on,omitempty"`
	Waits  string            `json:"waiting_for,omitempty"`
	Exit   *api.VMExit       `json:"exit,omitempty"`
	Stop   api.VMStop        `json:"stop"`
	Paused bool              `json:"paused,omitempty"` // WantPaused
	Has    row.Size          `json:"has,omitzero"`
	Size   string            `json:"size_error,omitempty"`
	SizeBy string            `json:"size_by,omitempty"`
	Record json.RawMessage   `json:"record,omitempty"`
	Config int               `json:"config,omitempty"` // ConfigVersion, 0 for the first
	Next   *row.NextConfig   `json:"next,omitempty"`
	TTL    int64             `json:"ttl,omitempty"`
	Agent  string            `json:"agent,omitempty"` // AgentImage
}

func vmValues(v *row.VM) ([]any, error) {
	d, err := json.Marshal(details{
		Labels: v.Labels, Env: v.Env, Ports: v.Ports, TTY: v.TTY, Stdin: v.Stdin, Attach: v.Attach, Probed: v.HealthCheck, Health: &v.Health,
		Policy: v.Restart, Loop: v.CrashLoop, NextAt: v.NextStartAt, Tries: v.Tries, Needs: v.DependsOn, Waits: v.WaitingFor,
		Exit: v.Exit, Stop: v.Stop, Paused: v.WantPaused, Has: v.Has, Size: v.SizeError, SizeBy: v.SizeBy, Record: v.Record, Agent: v.AgentImage,
		Config: v.ConfigVersion, Next: v.Next, TTL: v.TTLSeconds,
	})
	if err != nil {
		return nil, fmt.Errorf("encode VM %s: %w", v.ID, err)
	}
	var started int64
	if v.StartedAt != nil {
		started = nanos(*v.StartedAt)
	}
	return []any{
		v.ID, v.Name, orNull(v.Plugin), v.PluginVersion, v.Image, orNull(v.ImageID), v.Runtime, v.Manifest, string(v.Status), string(v.Desired), v.Reason,
		v.AgentUp, v.Healthy, v.AutoRemove, v.Vsock, orNull(v.MACAddress), int64(v.VsockCID),
		v.CPUCores, v.MemoryMB, v.KernelCmdline, v.WantKernel, v.Kernel,
		v.Hypervisor, v.Accel, v.PID, v.Incarnation, v.Replace, v.RestartCount, v.BootID, v.Initramfs,
		nanos(v.CreatedAt), nanos(v.UpdatedAt), nanos(v.AcceptedAt), started, d,
	}, nil
}

// orNull is NULL for the empty string.
func orNull(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

// scanner is what *sql.Row and *sql.Rows share.
type scanner interface{ Scan(dst ...any) error }

func scanVM(sc scanner) (row.VM, error) {
	var (
		v                                   row.VM
		plugin, image, mac                  sql.NullString
		cid                                 int64
		created, updated, accepted, started int64
		body                                []byte
		d                                   details
	)
	err := sc.Scan(
		&v.ID, &v.Name, &plugin, &v.PluginVersion, &v.Image, &image, &v.Runtime, &v.Manifest, &v.Status, &v.Desired, &v.Reason,
		&v.AgentUp, &v.Healthy, &v.AutoRemove, &v.Vsock, &mac, &cid,
		&v.CPUCores, &v.MemoryMB, &v.KernelCmdline, &v.WantKernel, &v.Kernel,
		&v.Hypervisor, &v.Accel, &v.PID, &v.Incarnation, &v.Replace, &v.RestartCount, &v.BootID, &v.Initramfs,
		&created, &updated, &accepted, &started, &body, &v.IPAddress,
	)
	if err != nil {
		return row.VM{}, classify(err)
	}
	if err := json.Unmarshal(body, &d); err != nil {
		return row.VM{}, fmt.Errorf("%w: VM %s: %w", row.ErrCorrupt, v.ID, err)
	}
	v.Labels, v.Env, v.Exit, v.Stop, v.Record = d.Labels, d.Env, d.Exit, d.Stop, d.Record
	v.Has, v.SizeError, v.SizeBy = d.Has, d.Size, d.SizeBy
	v.Ports, v.TTY, v.Stdin, v.Attach, v.HealthCheck, v.WantPaused = d.Ports, d.TTY, d.Stdin, d.Attach, d.Probed, d.Paused
	v.Restart, v.CrashLoop, v.NextStartAt, v.Tries = d.Policy, d.Loop, d.NextAt, d.Tries
	v.DependsOn, v.WaitingFor, v.AgentImage = d.Needs, d.Waits, d.Agent
	switch {
	case d.Health != nil:
		v.Health = *d.Health
	case v.Healthy: // of an earlier version, which knew no more
		v.Health.Status = api.HealthHealthy
	default:
		v.Health.Status = api.HealthNone
	}
	v.Plugin, v.ImageID, v.MACAddress, v.VsockCID = plugin.String, image.String, mac.String, uint32(cid)
	v.CreatedAt, v.UpdatedAt, v.AcceptedAt = fromNanos(created), fromNanos(updated), fromNanos(accepted)
	if started != 0 {
		t := fromNanos(started)
		v.StartedAt = &t
	}
	v.ConfigVersion, v.Next, v.ConfigPending = max(d.Config, 1), d.Next, d.Next != nil
	v.SetTTL(d.TTL)
	return v, nil
}

func collectVMs(rows *sql.Rows, err error) ([]row.VM, error) {
	if err != nil {
		return nil, classify(err)
	}
	defer rows.Close()
	var vms []row.VM
	for rows.Next() {
		vm, err := scanVM(rows)
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	return vms, classify(rows.Err())
}
