package daemon

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store"
)

// recover does what volantd --recover does, in a world whose daemon is dead.
func (w *world) recover() (Recovered, error) {
	w.t.Helper()
	ctx := context.Background()
	path := filepath.Join(w.root, "state.db")
	rec, err := store.Recover(ctx, path, store.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	pool, err := ipam.NewPool(netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.9.0.1"))
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := New(Config{
		Store: rec.Store, Driver: w.hv, Pool: pool, DataDir: filepath.Join(w.root, "data"), RuntimeDir: filepath.Join(w.root, "run"), BootID: w.bootID(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.Close()
	out, err := d.Recover(ctx)
	if err != nil {
		if aerr := rec.Abandon(); aerr != nil {
			w.t.Error(aerr)
		}
		return out, err
	}
	if _, err := rec.Commit(); err != nil {
		w.t.Fatal(err)
	}
	return out, nil
}

// whole is what of VMs a recovery brings back.
func whole(t *testing.T, d *instance) map[string]api.VM {
	t.Helper()
	vms, _, err := d.VMs(context.Background(), api.VMFilter{})
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]api.VM)
	for _, vm := range vms {
		vm.CreatedAt, vm.UpdatedAt, vm.StartedAt, vm.Exit = time.Time{}, time.Time{}, nil, nil
		if vm.Status == api.VMStopped {
			vm.Hypervisor, vm.Accel = "", "" // that it had
		}
		out[vm.Name] = vm
	}
	return out
}

// A database that is lost, wholly or in part, is made again from what the host
// proves: every machine runs on, untouched, under its name and address.
func TestRecover(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name   string
		damage func(data []byte) []byte // nil removes the file
	}{
		{"no file", nil},
		{"no database", func([]byte) []byte { return []byte(strings.Repeat("no database. ", 999)) }},
		{"sound", func(data []byte) []byte { return data }},
		{"garbage in every other page", func(data []byte) []byte {
			for at := 4096; at < len(data); at += 2 * 4096 {
				copy(data[at:at+4096], bytes.Repeat([]byte("garbage "), 512))
			}
			return data
		}},
		{"no VMs", func(data []byte) []byte { return bytes.ReplaceAll(data, []byte(`"stop":{`), []byte(`"stop";{`)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.start(options{})
			d.equip()
			d.pullOf("nginx")
			d.createWithVolume("db")
			d.createFrom(api.VMCreate{Name: "web", Image: "nginx", Ports: []api.Port{{Port: 80}}, Labels: map[string]string{"tier": "web"}, Env: map[string]string{"KEY": "secret"}})
			d.must("web", api.WaitRunning)
			d.create("off", "serve")
			d.must("off", api.WaitHealthy)
			if _, err := d.StopVM(ctx, "off", api.VMStop{}); err != nil {
				t.Fatal(err)
			}
			d.must("off", api.WaitStopped)
			d.settle()
			want := whole(t, d)
			machines := len(w.hv.Running())
			d.stop()
			path := filepath.Join(w.root, "state.db")
			data, err := os.ReadFile(path)
			if err == nil && tc.damage == nil {
				err = os.Remove(path)
			} else if err == nil {
				err = os.WriteFile(path, tc.damage(data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}

			out, err := w.recover()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", out)
			if n := len(w.hv.Running()); n != machines {
				t.Errorf("%d machines run after the recovery, want %d", n, machines)
			}
			if tc.name != "sound" && (len(out.Running) != 2 || len(out.Stopped) != 1) && !strings.HasPrefix(tc.name, "garbage") || len(out.Lost) > 0 {
				t.Errorf("recovered: %+v, want two that run and one that does not", out)
			}
			d = w.start(options{})
			w.checkWorld(d.settle())
			d.checkVolumes(t)
			if got := whole(t, d); !reflect.DeepEqual(got, want) {
				t.Errorf("VMs are\n%+v, want\n%+v", got, want)
			}
			if vm := mustVM(t, d, "web"); vm.Env["KEY"] != "secret" {
				t.Errorf("environment %v", vm.Env)
			}
			// They are not only there: they can be used.
			if _, err := d.RestartVM(ctx, "web", api.VMStop{Force: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := d.StartVM(ctx, "off"); err != nil {
				t.Fatal(err)
			}
			d.must("off", api.WaitHealthy)
			for _, name := range []string{"web", "db", "off"} {
				if err := d.DeleteVM(ctx, name, api.VMStop{Force: true}); err != nil {
					t.Fatal(err)
				}
				d.must(name, api.WaitDeleted)
			}
			w.checkWorld(d.settle())
		})
	}
}

// What nothing can be made of is neither ended nor deleted.
func TestRecoverUnknown(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	web := d.create("web", "serve")
	d.must("web", api.WaitHealthy)
	off := d.create("off", "serve")
	d.must("off", api.WaitHealthy)
	if _, err := d.StopVM(ctx, "off", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("off", api.WaitStopped)
	d.settle()
	d.stop()
	for _, path := range []string{filepath.Join(w.root, "state.db"), filepath.Join(d.dataDir(off.ID), originFile)} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	origin := filepath.Join(d.dataDir(web.ID), originFile)
	good, err := os.ReadFile(origin)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(origin); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; it may hold secrets", origin, fi.Mode(), err)
	}
	for _, bad := range []string{"", "{}", "null", strings.Replace(string(good), `"id":"`+web.ID, `"id":"another`, 1), strings.Replace(string(good), `"name":"web"`, `"name":"../web"`, 1)} {
		if err := os.WriteFile(origin, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := w.recover(); err == nil || !strings.Contains(err.Error(), "end that process, or move") {
			t.Errorf("Recover with %.30q = %v, want a refusal with advice", bad, err)
		}
		if len(w.hv.Running()) != 1 {
			t.Fatal("the machine was ended")
		}
	}
	if err := os.WriteFile(origin, good, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := w.recover()
	if err != nil || len(out.Running) != 1 || len(out.Lost) != 1 {
		t.Fatalf("Recover = %+v, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(w.root, "data", lostDir, off.ID)); err != nil {
		t.Errorf("what is left of VM off: %v", err)
	}
	d = w.start(options{})
	w.checkWorld(d.settle())
	if vm := mustVM(t, d, "web"); vm.Incarnation != 1 {
		t.Errorf("incarnation %d, want the first", vm.Incarnation)
	}
}

// A recovery in which a driver cannot say whether a machine runs ends, and
// nothing is changed.
func TestRecoverDriverFails(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	d.create("web", "serve")
	d.settle()
	d.stop()
	if err := os.Remove(filepath.Join(w.root, "state.db")); err != nil {
		t.Fatal(err)
	}
	w.hv.Fail("find", hv.ErrUnavailable)
	if _, err := w.recover(); err == nil {
		t.Error("Recover succeeds though nobody knows what runs")
	}
	w.hv.Fail("find", nil)
	if _, err := w.recover(); err != nil {
		t.Fatal(err)
	}
	w.checkWorld(w.start(options{}).settle())
}
