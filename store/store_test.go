package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3/driver"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
	"github.com/volantvm/volant/testdata/need"
)

// open opens a database that must still be one when the test ends: whatever a
// Store has written the next Open takes.
func open(t testing.TB, path string, opt Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), path, opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if again, err := Open(context.Background(), path, opt); err != nil {
			t.Errorf("Open at the end: %v", err)
		} else if err := again.Close(); err != nil {
			t.Errorf("Close at the end: %v", err)
		}
	})
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "state.db"), Options{})
}

const helloBlob = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

func manifest(name, version string) api.Manifest {
	return api.Manifest{
		Name: name, Version: version,
		Initramfs: &api.Initramfs{URL: "hello.cpio", Checksum: helloBlob},
		Resources: api.Resources{CPUCores: 1, MemoryMB: 128},
		Workload:  &api.Workload{Type: api.WorkloadExec, Entrypoint: []string{"/hello"}},
	}
}

func putPlugin(t testing.TB, s *Store, name, version string) row.Plugin {
	t.Helper()
	p, _, err := s.PutPlugin(context.Background(),
		api.Plugin{Name: name, Version: version, Runtime: name, Enabled: true, Manifest: manifest(name, version)},
		[]string{helloBlob}, api.Event{Type: api.EventPluginInstalled})
	if err != nil {
		t.Fatalf("PutPlugin: %v", err)
	}
	return p
}

func newVM(p row.Plugin, n int) row.VM {
	return row.VM{
		VM: api.VM{
			ID: fmt.Sprintf("id%d", n), Name: fmt.Sprintf("vm%d", n), Plugin: p.Name, Runtime: p.Runtime,
			Status: api.VMPending, Desired: api.DesiredRunning, MACAddress: fmt.Sprintf("02:00:00:00:%02x:%02x", n>>8, n&255), VsockCID: uint32(3 + n),
			CPUCores: 1, MemoryMB: 128, Labels: map[string]string{"tier": "web"},
		},
		Manifest: p.Digest, PluginVersion: p.Version,
	}
}

// nth leases 10.0.0.0 plus how many are taken.
func nth(taken []netip.Addr) (netip.Addr, error) {
	n := len(taken)
	return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), nil
}

// ofPlugin makes what CreateVM takes of a VM made from p.
func ofPlugin(p row.Plugin, vm row.VM, lease func([]netip.Addr) (netip.Addr, error)) row.NewVM {
	return row.NewVM{VM: vm, Manifest: p.Manifest, Blobs: []string{helloBlob}, Lease: lease}
}

func createVM(t testing.TB, s *Store, p row.Plugin, vm row.VM) row.VM {
	t.Helper()
	vm, _, err := s.CreateVM(context.Background(), ofPlugin(p, vm, nth), api.Event{Type: api.EventVMCreated})
	if err != nil {
		t.Fatalf("CreateVM: %v", err)
	}
	return vm
}

func TestVMRoundTrip(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "a dir?with#odd%20chars.db")
	s := open(t, path, Options{})
	p := putPlugin(t, s, "hello", "1")
	want := newVM(p, 1)
	want.Env = map[string]string{"KEY": "värde"}
	want.WantKernel, want.Vsock = "generic", true
	want.AutoRemove, want.TTY, want.Stdin = true, true, true
	want = createVM(t, s, p, want)

	started := time.Unix(5, 7).UTC()
	want, _, err := s.ChangeVM(ctx, want.ID, func(vm *row.VM) ([]api.Event, error) {
		vm.Status, vm.Desired, vm.Reason, vm.AgentUp, vm.Healthy = api.VMCrashed, api.DesiredStopped, "why", true, true
		vm.Exit = &api.VMExit{Code: 137, Signal: "SIGKILL", OOMKilled: true, Time: started}
		vm.Stop = api.VMStop{GraceSeconds: 3, Force: true}
		vm.Health = api.VMHealth{Status: api.HealthUnhealthy, FailingStreak: 2, Output: "refused"}
		vm.Restart, vm.CrashLoop, vm.NextStartAt = &api.Restart{Policy: "on-failure", MaxRetries: 3}, true, &started
		vm.Tries = row.Tries{Auto: true, Streak: 5, Guest: 1}
		vm.DependsOn, vm.WaitingFor = []api.Dependency{{VM: "db", Condition: "healthy"}}, "VM db"
		vm.Replace, vm.RestartCount, vm.Incarnation, vm.PID = 2, 4, 3, 99
		vm.AcceptedAt, vm.StartedAt = time.Unix(4, 1).UTC(), &started
		vm.Record = []byte(`{"pid":99}`)
		vm.BootID, vm.Initramfs, vm.AgentImage, vm.Kernel, vm.Hypervisor, vm.Accel, vm.KernelCmdline = "b", "i", "a", "k", "qemu", "tcg", "quiet"
		return []api.Event{{Type: api.EventVMCrashed}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{want.Name, want.ID} {
		got, err := s.VM(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := fmt.Sprintf("%+v", deref(got)), fmt.Sprintf("%+v", deref(want)); g != w {
			t.Errorf("VM(%q) =\n%s, want\n%s", key, g, w)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, %v; want mode 0600", fi.Mode(), err)
	}
}

// deref makes a VM printable for comparison.
func deref(v row.VM) any {
	exit, started := *v.Exit, *v.StartedAt
	v.Exit, v.StartedAt = nil, nil
	return []any{v, exit, started}
}

func TestCreateVMConstraints(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	createVM(t, s, p, newVM(p, 1))
	before, _ := lastEvent(s)

	errLease := errors.New("none left")
	fixed := func(a string) func([]netip.Addr) (netip.Addr, error) {
		return func([]netip.Addr) (netip.Addr, error) { return netip.MustParseAddr(a), nil }
	}
	for _, tc := range []struct {
		name   string
		alter  func(*row.VM)
		lease  func([]netip.Addr) (netip.Addr, error)
		column string
		err    error
	}{
		{name: "name taken", alter: func(v *row.VM) { v.Name = "vm1" }, lease: nth, column: "vms.name"},
		{name: "id taken", alter: func(v *row.VM) { v.ID = "id1" }, lease: nth, column: "vms.id"},
		{name: "cid taken", alter: func(v *row.VM) { v.VsockCID = 4 }, lease: nth, column: "vms.cid"},
		{name: "mac taken", alter: func(v *row.VM) { v.MACAddress = "02:00:00:00:00:01" }, lease: nth, column: "vms.mac"},
		{name: "address taken", alter: func(*row.VM) {}, lease: fixed("10.0.0.0"), column: "leases.address"},
		{name: "no address", alter: func(*row.VM) {}, lease: func([]netip.Addr) (netip.Addr, error) { return netip.Addr{}, errLease }, err: errLease},
		{name: "plugin gone", alter: func(v *row.VM) { v.Plugin = "gone" }, lease: nth, err: row.ErrInUse},
	} {
		t.Run(tc.name, func(t *testing.T) {
			vm := newVM(p, 2)
			tc.alter(&vm)
			_, _, err := s.CreateVM(ctx, ofPlugin(p, vm, tc.lease), api.Event{Type: api.EventVMCreated})
			var exists *row.ExistsError
			if tc.column != "" && (!errors.As(err, &exists) || exists.Column != tc.column || !errors.Is(err, row.ErrExists)) {
				t.Errorf("CreateVM = %v, want a taken %s", err, tc.column)
			}
			if tc.err != nil && !errors.Is(err, tc.err) {
				t.Errorf("CreateVM = %v, want %v", err, tc.err)
			}
		})
	}
	if _, total, _ := s.VMs(ctx, api.VMFilter{}); total != 1 {
		t.Errorf("%d VMs after refused creations, want 1", total)
	}
	if after, _ := lastEvent(s); after != before {
		t.Errorf("refused creations wrote events %d to %d", before+1, after)
	}
	// The refused ones left no lease behind.
	if vm := createVM(t, s, p, newVM(p, 3)); vm.IPAddress != "10.0.0.1" {
		t.Errorf("next address = %s, want 10.0.0.1", vm.IPAddress)
	}
}

// Many VMs without a NIC have no address and no MAC; neither collides.
func TestVsockVMsDoNotCollide(t *testing.T) {
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	for n := range 3 {
		vm := newVM(p, n)
		vm.MACAddress, vm.Vsock = "", true
		if _, _, err := s.CreateVM(context.Background(), ofPlugin(p, vm, nil), api.Event{Type: api.EventVMCreated}); err != nil {
			t.Fatalf("CreateVM %d: %v", n, err)
		}
	}
}

func TestChangeVM(t *testing.T) {
	ctx := context.Background()
	commits := 0
	s := open(t, filepath.Join(t.TempDir(), "db"), Options{AfterCommit: func(n int) { commits = n }})
	p := putPlugin(t, s, "hello", "1")
	vm := createVM(t, s, p, newVM(p, 1))
	base := commits

	t.Run("unchanged writes nothing", func(t *testing.T) {
		got, evs, err := s.ChangeVM(ctx, vm.ID, func(*row.VM) ([]api.Event, error) { return nil, nil })
		if err != nil || len(evs) != 0 || commits != base || !got.UpdatedAt.Equal(vm.UpdatedAt) {
			t.Errorf("ChangeVM = %v, %v, %d commits; want no write", evs, err, commits-base)
		}
	})
	t.Run("refused writes nothing", func(t *testing.T) {
		errNo := errors.New("no")
		_, _, err := s.ChangeVM(ctx, vm.ID, func(v *row.VM) ([]api.Event, error) { v.Reason = "x"; return nil, errNo })
		if got, _ := s.VMByID(ctx, vm.ID); !errors.Is(err, errNo) || got.Reason != "" || commits != base {
			t.Errorf("ChangeVM = %v, reason %q, %d commits", err, got.Reason, commits-base)
		}
	})
	t.Run("state and event together", func(t *testing.T) {
		got, evs, err := s.ChangeVM(ctx, vm.ID, func(v *row.VM) ([]api.Event, error) {
			v.Status, v.PID, v.Name = api.VMRunning, 7, "renamed"
			return []api.Event{{Type: api.EventVMRunning, Message: "m"}, {Type: api.EventVMHealthy}}, nil
		})
		if err != nil || commits != base+1 {
			t.Fatalf("ChangeVM: %v, %d commits, want 1", err, commits-base)
		}
		if got.Name != "vm1" {
			t.Errorf("name = %q, want it unalterable", got.Name)
		}
		last, _ := lastEvent(s)
		stored, _ := s.Events(ctx, api.EventFilter{After: last - 2}, 10)
		if len(evs) != 2 || !reflect.DeepEqual(stored.Events, evs) {
			t.Fatalf("events = %v, stored %v", evs, stored)
		}
		if e := evs[0]; e.Status != api.VMRunning || e.PID != 7 || e.Name != "vm1" || e.VMID != vm.ID || e.IPAddress != vm.IPAddress || e.Message != "m" {
			t.Errorf("event = %+v", e)
		}
	})
	t.Run("silent", func(t *testing.T) {
		_, _, err := s.ChangeVM(ctx, vm.ID, func(v *row.VM) ([]api.Event, error) { v.Status = api.VMCrashed; return nil, nil })
		if now, _ := s.VMByID(ctx, vm.ID); !errors.Is(err, row.ErrSilent) || now.Status == api.VMCrashed {
			t.Errorf("ChangeVM = %v, and the VM is %s; want ErrSilent and no change", err, now.Status)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		if _, _, err := s.ChangeVM(ctx, "none", func(*row.VM) ([]api.Event, error) { return nil, nil }); !errors.Is(err, row.ErrNotFound) {
			t.Errorf("ChangeVM = %v, want not found", err)
		}
	})
}

func TestDeleteVMFreesEverything(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	vm := createVM(t, s, p, newVM(p, 1))
	putPlugin(t, s, "hello", "2") // the VM alone refers to manifest 1 now
	if _, err := s.Manifest(ctx, vm.Manifest); err != nil {
		t.Fatalf("manifest of a VM after an upgrade: %v", err)
	}
	if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(ctx, vm.Manifest); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("manifest that nobody needs: %v, want not found", err)
	}
	for _, table := range []string{"vms", "leases"} {
		var n int
		if err := s.r.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s has %d rows, %v; want 0", table, n, err)
		}
	}
	if _, err := s.DeleteVM(ctx, vm.ID, api.Event{}); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("second delete = %v, want not found", err)
	}
	again := newVM(row.Plugin{Plugin: p.Plugin, Digest: mustPlugin(t, s, "hello").Digest}, 1)
	if vm := createVM(t, s, p, again); vm.IPAddress != "10.0.0.0" {
		t.Errorf("address after delete = %s, want the freed 10.0.0.0", vm.IPAddress)
	}
}

func mustPlugin(t *testing.T, s *Store, name string) row.Plugin {
	t.Helper()
	p, err := s.Plugin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestVMs(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p, q := putPlugin(t, s, "hello", "1"), putPlugin(t, s, "other", "1")
	for n := range 6 {
		vm := newVM(p, n)
		if n%2 == 1 {
			vm = newVM(q, n)
		}
		if n >= 4 {
			vm.Status, vm.Desired = api.VMStopped, api.DesiredStopped
		}
		vm.Labels = map[string]string{"n": strconv.Itoa(n)}
		createVM(t, s, p, vm)
	}
	for _, tc := range []struct {
		name  string
		f     api.VMFilter
		want  string
		total int
	}{
		{"all", api.VMFilter{}, "vm0 vm1 vm2 vm3 vm4 vm5", 6},
		{"desc", api.VMFilter{Desc: true}, "vm5 vm4 vm3 vm2 vm1 vm0", 6},
		{"page", api.VMFilter{Limit: 2, Offset: 3}, "vm3 vm4", 6},
		{"offset only", api.VMFilter{Offset: 4}, "vm4 vm5", 6},
		{"plugin", api.VMFilter{Plugin: "other"}, "vm1 vm3 vm5", 3},
		{"status", api.VMFilter{Status: []api.VMState{api.VMStopped, api.VMFailed}}, "vm4 vm5", 2},
		{"query", api.VMFilter{Query: "m3"}, "vm3", 1},
		{"query is no pattern", api.VMFilter{Query: "%"}, "", 0},
		{"selector", api.VMFilter{Selector: api.Selector{{Key: "n", Op: api.SelectNotIn, Values: []string{"1", "4"}}}}, "vm0 vm2 vm3 vm5", 4},
		{"page of a selector", api.VMFilter{Selector: api.Selector{{Key: "n", Op: api.SelectExists}}, Status: []api.VMState{api.VMPending}, Limit: 2, Offset: 1, Desc: true}, "vm2 vm1", 4},
		{"sorted by status", api.VMFilter{Sort: "status", Limit: 3}, "vm0 vm1 vm2", 6},
		{"sorted by creation", api.VMFilter{Sort: "created_at", Desc: true, Limit: 1}, "vm5", 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			vms, total, err := s.VMs(ctx, tc.f)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(vms); got != tc.want || total != tc.total {
				t.Errorf("VMs(%+v) = %q of %d, want %q of %d", tc.f, got, total, tc.want, tc.total)
			}
		})
	}
	if _, _, err := s.VMs(ctx, api.VMFilter{Sort: "id; DROP TABLE vms"}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("odd sort key: %v, want invalid", err)
	}
	active, err := s.ActiveVMs(ctx)
	if err != nil || len(active) != 4 {
		t.Errorf("ActiveVMs = %s, %v; want 4", names(active), err)
	}
	c, err := s.VMCounts(ctx)
	if err != nil || c.ByStatus[api.VMPending] != 4 || c.ByStatus[api.VMStopped] != 2 || c.ByRuntime["hello"] != 3 {
		t.Errorf("VMCounts = %+v, %v", c, err)
	}
	if ns, err := s.VMNames(ctx, 2); err != nil || !slices.Equal(ns, []string{"vm0", "vm1"}) {
		t.Errorf("VMNames = %v, %v", ns, err)
	}
}

func names(vms []row.VM) string {
	var out []string
	for _, v := range vms {
		out = append(out, v.Name)
	}
	return strings.Join(out, " ")
}

// A VM may be called as another's id is; the name wins.
func TestVMNameBeforeID(t *testing.T) {
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	createVM(t, s, p, newVM(p, 1))
	odd := newVM(p, 2)
	odd.Name = "id1"
	createVM(t, s, p, odd)
	vm, err := s.VM(context.Background(), "id1")
	if err != nil || vm.ID != "id2" {
		t.Errorf("VM(id1) = %s, %v; want id2", vm.ID, err)
	}
}

func TestPlugins(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	first := putPlugin(t, s, "hello", "1")
	seq, _ := lastEvent(s)
	putPlugin(t, s, "hello", "1")
	if again, _ := lastEvent(s); again != seq {
		t.Error("installing the same again told of something")
	}
	second := putPlugin(t, s, "hello", "2")
	if second.Digest == first.Digest || !second.InstalledAt.Equal(first.InstalledAt) {
		t.Errorf("upgrade: %+v after %+v", second, first)
	}
	if _, err := s.Manifest(ctx, first.Digest); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("manifest of the old version: %v, want not found", err)
	}
	off := api.Event{Type: api.EventPluginDisabled}
	p, evs, err := s.EnablePlugin(ctx, "hello", false, off)
	if err != nil || p.Enabled || len(evs) != 1 {
		t.Errorf("EnablePlugin = %+v, %v, %v", p, evs, err)
	}
	if _, evs, err = s.EnablePlugin(ctx, "hello", false, off); err != nil || len(evs) != 0 {
		t.Errorf("EnablePlugin again = %v, %v; want no event", evs, err)
	}
	vm := createVM(t, s, p, newVM(second, 1))
	gone := api.Event{Type: api.EventPluginRemoved}
	if _, err := s.RemovePlugin(ctx, "hello", gone); !errors.Is(err, row.ErrInUse) {
		t.Errorf("RemovePlugin in use = %v, want in use", err)
	}
	if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	if refs, err := s.BlobRefs(ctx); err != nil || !slices.Equal(refs, []string{helloBlob}) {
		t.Errorf("BlobRefs = %v, %v", refs, err)
	}
	if _, err := s.RemovePlugin(ctx, "hello", gone); err != nil {
		t.Errorf("RemovePlugin = %v", err)
	}
	if refs, err := s.BlobRefs(ctx); err != nil || len(refs) != 0 {
		t.Errorf("BlobRefs after removal = %v, %v; want none", refs, err)
	}
	if _, err := s.RemovePlugin(ctx, "hello", gone); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("RemovePlugin twice = %v, want not found", err)
	}
	if ps, err := s.Plugins(ctx); err != nil || len(ps) != 0 {
		t.Errorf("Plugins = %v, %v", ps, err)
	}
}

func TestKernels(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	if _, err := s.Kernel(ctx, ""); !errors.Is(err, row.ErrNotFound) {
		t.Errorf("default kernel of none = %v, want not found", err)
	}
	add := func(name, digest string, def bool) (api.Kernel, error) {
		k, _, err := s.CreateKernel(ctx, api.Kernel{Name: name, Version: "6.12", Digest: digest, Size: 9, Default: def}, api.Event{Type: api.EventKernelImported})
		return k, err
	}
	if k, err := add("generic", "sha256:aa", false); err != nil || !k.Default {
		t.Errorf("first kernel = %+v, %v; want it the default", k, err)
	}
	if k, err := add("volant", "sha256:bb", false); err != nil || k.Default {
		t.Errorf("second kernel = %+v, %v; want it no default", k, err)
	}
	seq, _ := lastEvent(s)
	if _, err := add("volant", "sha256:bb", false); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if again, _ := lastEvent(s); again != seq {
		t.Error("importing the same again told of something")
	}
	if _, err := add("volant", "sha256:cc", false); !errors.Is(err, row.ErrExists) {
		t.Errorf("another under the name = %v, want exists", err)
	}
	if _, _, err := s.DefaultKernel(ctx, "volant"); err != nil {
		t.Fatal(err)
	}
	if k, err := s.Kernel(ctx, ""); err != nil || k.Name != "volant" {
		t.Errorf("default = %s, %v; want volant", k.Name, err)
	}
	ks, err := s.Kernels(ctx)
	if err != nil || len(ks) != 2 || ks[0].Default || !ks[1].Default {
		t.Errorf("Kernels = %+v, %v", ks, err)
	}
	p := putPlugin(t, s, "hello", "1")
	vm := newVM(p, 1)
	vm.WantKernel = "generic"
	createVM(t, s, p, vm)
	if _, err := s.RemoveKernel(ctx, "generic", api.Event{Type: api.EventKernelRemoved}); !errors.Is(err, row.ErrInUse) {
		t.Errorf("RemoveKernel wanted = %v, want in use", err)
	}
	if _, err := s.RemoveKernel(ctx, "volant", api.Event{Type: api.EventKernelRemoved}); err != nil {
		t.Errorf("RemoveKernel = %v", err)
	}
}

// lastEvent returns the highest sequence number.
func lastEvent(s *Store) (uint64, error) {
	page, err := s.Events(context.Background(), api.EventFilter{}, 1)
	return page.Newest, err
}

func TestEvents(t *testing.T) {
	ctx := context.Background()
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	now := start
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Now: func() time.Time { return now }})
	p := putPlugin(t, s, "hello", "1") // seq 1
	for n := range 5 {
		now = now.Add(time.Second)
		createVM(t, s, p, newVM(p, n)) // 2 to 6
	}
	seqs := func(f api.EventFilter, limit int) string {
		t.Helper()
		page, err := s.Events(ctx, f, limit)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range page.Events {
			out = append(out, fmt.Sprint(e.Seq))
		}
		return strings.Join(out, " ")
	}
	for _, tc := range []struct {
		name  string
		f     api.EventFilter
		limit int
		want  string
	}{
		{"all", api.EventFilter{}, 100, "1 2 3 4 5 6"},
		{"after", api.EventFilter{After: 4}, 100, "5 6"},
		{"after the end", api.EventFilter{After: 1 << 63}, 100, ""},
		{"limit", api.EventFilter{After: 1}, 2, "2 3"},
		{"of a VM", api.EventFilter{VM: "vm3"}, 100, "5"},
		{"of a plugin's name", api.EventFilter{VM: "hello"}, 100, ""},
		{"of a name", api.EventFilter{Name: "hello"}, 100, "1"},
		{"since", api.EventFilter{Since: start.Add(4 * time.Second)}, 100, "5 6"},
		{"until", api.EventFilter{Until: start.Add(4 * time.Second)}, 100, "1 2 3 4"},
		{"of an hour", api.EventFilter{Since: start.Add(time.Second), Until: start.Add(2 * time.Second)}, 100, "2"},
		{"types", api.EventFilter{Types: []api.EventType{api.EventPluginInstalled, api.EventVMDeleted}}, 100, "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := seqs(tc.f, tc.limit); got != tc.want {
				t.Errorf("Events = %q, want %q", got, tc.want)
			}
		})
	}
	if page, err := s.Events(ctx, api.EventFilter{After: 4}, 1); err != nil || page.Oldest != 1 || page.Newest != 6 {
		t.Errorf("Events = %+v, %v, want the journal's bounds", page, err)
	}
	if n, err := s.PruneEvents(ctx, 100, start.Add(time.Second)); err != nil || n != 1 {
		t.Errorf("PruneEvents by age = %d, %v; want 1", n, err)
	}
	if n, err := s.PruneEvents(ctx, 2, start.Add(time.Second)); err != nil || n != 3 {
		t.Errorf("PruneEvents = %d, %v; want 3", n, err)
	}
	if n, err := s.PruneEvents(ctx, 100, start.Add(time.Hour)); err != nil || n != 1 {
		t.Errorf("PruneEvents of all that is old = %d, %v; want 1, the newest stays", n, err)
	}
	if n, err := s.PruneEvents(ctx, 1, time.Time{}); err != nil || n != 0 {
		t.Errorf("PruneEvents of nothing = %d, %v", n, err)
	}
	createVM(t, s, p, newVM(p, 8)) // 7
	if n, err := s.PruneEvents(ctx, 0, time.Time{}); err != nil || n != 1 {
		t.Errorf("PruneEvents(0) = %d, %v; want 1, the newest stays", n, err)
	}
	createVM(t, s, p, newVM(p, 9))
	if got := seqs(api.EventFilter{}, 9); got != "7 8" {
		t.Errorf("after pruning = %q, want the numbers to go on", got)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := putPlugin(t, s, "hello", "1")
	createVM(t, s, p, newVM(p, 1))
	// No Close: as a killed process leaves it, with a log to be replayed.
	again := open(t, path, Options{})
	if _, err := again.VM(context.Background(), "vm1"); err != nil {
		t.Errorf("VM after reopening: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestMigrations(t *testing.T) {
	ms, err := migrations()
	if err != nil || len(ms) == 0 {
		t.Fatalf("migrations = %d, %v", len(ms), err)
	}
	s := newStore(t)
	if v, err := s.schemaVersion(context.Background()); err != nil || v != len(ms) {
		t.Errorf("schema version = %d, %v; want %d", v, err, len(ms))
	}
	for _, pragma := range []struct{ name, want string }{
		{"journal_mode", "wal"}, {"synchronous", "2"}, {"foreign_keys", "1"}, {"busy_timeout", "5000"},
	} {
		var got string
		if err := s.w.QueryRow("PRAGMA " + pragma.name).Scan(&got); err != nil || got != pragma.want {
			t.Errorf("%s = %s, %v; want %s", pragma.name, got, err, pragma.want)
		}
	}
	if _, err := s.r.Exec(`DELETE FROM events`); err == nil {
		t.Error("a reading connection could write")
	}
}

// A database as version 1 left it keeps all that it has.
func TestMigrateImages(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	raw, err := driver.Open(dsn(path, "journal_mode(wal)"))
	if err != nil {
		t.Fatal(err)
	}
	ms, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		ms[0].sql, `PRAGMA user_version = 1`,
		`INSERT INTO manifests VALUES ('sha256:m', '{"name":"hello","version":"1","resources":{"cpu_cores":1,"memory_mb":128}}', '["` + helloBlob + `"]')`,
		`INSERT INTO plugins VALUES ('hello', '1', 'hello', 1, 'sha256:m', 5, 6)`,
		`INSERT INTO vms VALUES ('a', 'web', 'hello', '1', 'hello', 'sha256:m', 'running', 'running', '', 1, 1, 0, '02:00:00:00:00:01', 7, 2, 256,
			'quiet', 'generic', 'generic', 'qemu', 'tcg', 99, 3, 0, 1, 'boot', 'x.img', 11, 12, 13, 14, '{"labels":{"tier":"web"},"env":{"A":"b"},"stop":{}}')`,
		`INSERT INTO vms VALUES ('b', 'mute', 'hello', '1', 'hello', 'sha256:m', 'stopped', 'stopped', 'why', 0, 0, 1, NULL, 8, 1, 128,
			'', '', '', '', '', 0, 0, 0, 0, '', '', 11, 12, 13, 0, '{"stop":{}}')`,
		`INSERT INTO leases VALUES ('10.0.0.2', 'a')`,
		`INSERT INTO kernels VALUES ('generic', '6.12', 'sha256:k', 5, '', 1, 9)`,
		`INSERT INTO events VALUES (41, 1, 'VM_CREATED', 'web', 'a', 'pending', '10.0.0.2', 0, '')`,
	} {
		if _, err := raw.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}

	s := open(t, path, Options{})
	started := time.Unix(0, 14).UTC()
	want := row.VM{
		VM: api.VM{
			ID: "a", Name: "web", Plugin: "hello", Runtime: "hello", Status: api.VMRunning, Desired: api.DesiredRunning, AgentUp: true, Healthy: true, Health: api.VMHealth{Status: api.HealthHealthy},
			IPAddress: "10.0.0.2", MACAddress: "02:00:00:00:00:01", VsockCID: 7, CPUCores: 2, MemoryMB: 256, KernelCmdline: "quiet", Kernel: "generic", ConfigVersion: 1,
			Hypervisor: "qemu", Accel: "tcg", PID: 99, Incarnation: 3, RestartCount: 1, Labels: map[string]string{"tier": "web"},
			CreatedAt: time.Unix(0, 11).UTC(), UpdatedAt: time.Unix(0, 12).UTC(), StartedAt: &started,
		},
		Manifest: "sha256:m", PluginVersion: "1", WantKernel: "generic", Env: map[string]string{"A": "b"},
		AcceptedAt: time.Unix(0, 13).UTC(), BootID: "boot", Initramfs: "x.img",
	}
	if got, err := s.VM(ctx, "web"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("VM = %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := s.VM(ctx, "mute"); err != nil || got.IPAddress != "" || got.Reason != "why" || !got.Vsock {
		t.Errorf("VM = %+v, %v; want it as it was", got, err)
	}
	if p := mustPlugin(t, s, "hello"); p.Manifest.Name != "hello" {
		t.Errorf("plugin %+v", p)
	}
	refs, err := s.BlobRefs(ctx)
	if slices.Sort(refs); err != nil || !slices.Equal(refs, []string{helloBlob, "sha256:k"}) {
		t.Errorf("blob references %v, %v", refs, err)
	}
	if seq, err := lastEvent(s); err != nil || seq != 41 {
		t.Errorf("last event %d, %v; want 41", seq, err)
	}
	// The constraints are those of the new tables.
	if bad := valueOf(t, s.w, `SELECT count(*) FROM pragma_foreign_key_check`); bad != "0" {
		t.Errorf("%s rows refer to nothing", bad)
	}
	if _, err := s.RemovePlugin(ctx, "hello", api.Event{}); !errors.Is(err, row.ErrInUse) {
		t.Errorf("RemovePlugin of one in use: %v, want in use", err)
	}
	if _, err := s.DeleteVM(ctx, "a", api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	if n := valueOf(t, s.w, `SELECT count(*) FROM leases`); n != "0" {
		t.Errorf("%s leases after their VM's deletion, want none", n)
	}
	if plan := explain(t, s.r, `SELECT id FROM vms WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed')) AND id > ?`); !strings.Contains(plan, "vms_active") {
		t.Errorf("the index of active VMs is not used: %s", plan)
	}
}

// valueOf returns the one value that q selects.
func valueOf(t *testing.T, db *sql.DB, q string) (value string) {
	t.Helper()
	if err := db.QueryRow(q).Scan(&value); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return value
}

// A migration that fails leaves the version and the schema as they were.
func TestMigrationIsAtomic(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "db")
	raw, err := driver.Open("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	// A table in the way of the initial migration's last ones.
	if _, err := raw.Exec(`CREATE TABLE events (x)`); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, path, Options{}); err == nil || !strings.Contains(err.Error(), "0001_initial.sql") {
		t.Fatalf("Open = %v, want the failed migration named", err)
	}
	var tables, version int
	if err := raw.QueryRow(`SELECT count(*) FROM sqlite_schema WHERE type = 'table'`).Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if err := raw.QueryRow(`PRAGMA user_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if tables != 1 || version != 0 {
		t.Errorf("%d tables, version %d after a failed migration; want 1 and 0", tables, version)
	}
	if _, err := raw.Exec(`DROP TABLE events`); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, Options{})
}

func TestOpenRefuses(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		version int
		want    error
		advice  string
	}{
		"newer":        {999, row.ErrNewer, "run that version"},
		"before first": {-1, row.ErrCorrupt, "--recover"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			s, err := Open(ctx, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.w.Exec(fmt.Sprintf(`PRAGMA user_version = %d`, c.version)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(ctx, path, Options{}); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.advice) {
				t.Errorf("Open = %v, want %v, with advice", err, c.want)
			}
		})
	}
	t.Run("no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, []byte(strings.Repeat("this is no database. ", 400)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrCorrupt) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("Open = %v, want corrupt, with advice", err)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		s, err := Open(ctx, path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := putPlugin(t, s, "hello", "1")
		for n := range 50 {
			createVM(t, s, p, newVM(p, n))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 8192; i < len(data); i += 512 {
			copy(data[i:], "garbage garbage garbage")
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrCorrupt) {
			t.Errorf("Open = %v, want corrupt", err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := Open(ctx, filepath.Join(t.TempDir(), "none", "db"), Options{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Open = %v, want it to say that the directory is missing", err)
		}
	})
}

// A full database refuses writes as such, keeps what it had, and goes on when
// there is room again.
func TestDiskFull(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	createVM(t, s, p, newVM(p, 0))
	var pages int
	if err := s.w.QueryRow(`PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if _, err := s.w.Exec(fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)); err != nil {
		t.Fatal(err)
	}
	big := newVM(p, 1)
	big.Labels = map[string]string{"big": strings.Repeat("x", 64<<10)}
	_, _, err := s.CreateVM(ctx, ofPlugin(p, big, nth), api.Event{Type: api.EventVMCreated})
	if !errors.Is(err, row.ErrFull) {
		t.Fatalf("CreateVM on a full disk = %v, want full", err)
	}
	if _, err := s.VM(ctx, "vm0"); err != nil {
		t.Errorf("what was there: %v", err)
	}
	if _, err := s.w.Exec(`PRAGMA max_page_count = 1000000`); err != nil {
		t.Fatal(err)
	}
	createVM(t, s, p, big)
}

func TestConcurrentUse(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	const writers, each = 8, 12
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				vm, _, err := s.CreateVM(ctx, ofPlugin(p, newVM(p, w*each+i), nth), api.Event{Type: api.EventVMCreated})
				if err != nil {
					t.Errorf("CreateVM: %v", err)
					return
				}
				for range 2 {
					if _, _, err := s.ChangeVM(ctx, vm.ID, func(v *row.VM) ([]api.Event, error) {
						v.RestartCount++
						return []api.Event{{Type: api.EventVMStarting}}, nil
					}); err != nil {
						t.Errorf("ChangeVM: %v", err)
					}
				}
			}
		})
		wg.Go(func() {
			for range each {
				vms, total, err := s.VMs(ctx, api.VMFilter{Limit: 1000})
				if err != nil || len(vms) != total {
					t.Errorf("VMs = %d of %d, %v", len(vms), total, err)
				}
			}
		})
	}
	wg.Wait()
	vms, _, err := s.VMs(ctx, api.VMFilter{})
	if err != nil || len(vms) != writers*each {
		t.Fatalf("%d VMs, %v; want %d", len(vms), err, writers*each)
	}
	seen := map[string]bool{}
	for _, vm := range vms {
		if vm.RestartCount != 2 || seen[vm.IPAddress] {
			t.Errorf("%s: restarts %d, address %s taken before: %v", vm.Name, vm.RestartCount, vm.IPAddress, seen[vm.IPAddress])
		}
		seen[vm.IPAddress] = true
	}
	page, err := s.Events(ctx, api.EventFilter{}, 1<<20)
	if err != nil || len(page.Events) != 1+3*writers*each {
		t.Fatalf("%d events, %v", len(page.Events), err)
	}
	for i, ev := range page.Events {
		if ev.Seq != uint64(i+1) {
			t.Fatalf("event %d has seq %d: the journal has a gap", i+1, ev.Seq)
		}
	}
}

// A request that goes away does not take a transaction along that has begun.
func TestCancelledRequest(t *testing.T) {
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	ctx, cancel := context.WithCancel(context.Background())
	_, _, err := s.CreateVM(ctx, ofPlugin(p, newVM(p, 1), func(taken []netip.Addr) (netip.Addr, error) {
		cancel()
		return nth(taken)
	}), api.Event{Type: api.EventVMCreated})
	if err != nil {
		t.Errorf("CreateVM whose caller went away in it = %v, want it done", err)
	}
	if _, _, err := s.CreateVM(ctx, ofPlugin(p, newVM(p, 2), nth), api.Event{}); !errors.Is(err, context.Canceled) {
		t.Errorf("CreateVM whose caller had gone = %v, want canceled", err)
	}
}

func TestManyRows(t *testing.T) {
	need.Long(t)
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	fill(t, s, p, 5000)
	vms, total, err := s.VMs(ctx, api.VMFilter{Limit: 50, Offset: 4000})
	if err != nil || total != 5000 || len(vms) != 50 {
		t.Errorf("VMs = %d of %d, %v", len(vms), total, err)
	}
	// The ways that every request takes must not read whole tables.
	for _, q := range []string{
		selectVM + ` WHERE v.name = ?`,
		selectVM + ` WHERE v.id = ?`,
		`SELECT 1 FROM events WHERE seq > ? ORDER BY seq LIMIT 10`,
		`SELECT 1 FROM events WHERE seq > 1 AND name = ? AND vm <> '' ORDER BY seq LIMIT 10`,
		`SELECT id FROM vms WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed')) AND id > ?`,
	} {
		if plan := explain(t, s.r, q); strings.Contains(plan, "SCAN vms") && !strings.Contains(plan, "vms_active") || strings.Contains(plan, "SCAN events") {
			t.Errorf("%s\nreads a whole table: %s", q, plan)
		}
	}
}

func explain(t *testing.T, db *sql.DB, q string) string {
	t.Helper()
	rows, err := db.Query(`EXPLAIN QUERY PLAN `+q, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		out = append(out, detail)
	}
	return strings.Join(out, "; ")
}

// fill stores n VMs in one transaction, past the public face: 5,000 fsyncs
// would be most of the test.
func fill(t testing.TB, s *Store, p row.Plugin, n int) {
	t.Helper()
	ctx := context.Background()
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for i := range n {
			vm := newVM(p, i)
			vm.CreatedAt = s.now()
			args, err := vmValues(&vm)
			if err != nil {
				return err
			}
			if _, err := tx.StmtContext(ctx, s.stmts.insertVM).Exec(args...); err != nil {
				return err
			}
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			if _, err := tx.StmtContext(ctx, s.stmts.insertLease).Exec(addr.String(), vm.ID); err != nil {
				return err
			}
			vm.IPAddress = addr.String()
			if _, err := s.appendEvent(ctx, tx, vmEvent(&vm, api.Event{Type: api.EventVMCreated})); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
