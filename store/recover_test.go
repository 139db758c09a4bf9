package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// wrecked makes a database with n VMs and damages it. It returns its path.
func wrecked(t *testing.T, n int, damage func(t *testing.T, path string, data []byte) []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, putPlugin(t, s, "hello", "1"), n)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, damage(t, path, data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// garbage overwrites the page that holds text, the last one that does.
func garbage(t *testing.T, data []byte, text string) []byte {
	t.Helper()
	const page = 4096
	at := strings.LastIndex(string(data), text)
	if at < 0 {
		t.Fatalf("no page holds %q", text)
	}
	at = at / page * page
	for i := at; i < at+page; i++ {
		data[i] = byte(i * 7)
	}
	return data
}

func (r *Recovery) saved(name string) SavedTable {
	for _, t := range r.Tables {
		if t.Name == name {
			return t
		}
	}
	return SavedTable{}
}

func TestRecover(t *testing.T) {
	ctx := context.Background()
	const n = 300
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string, data []byte) []byte
		least  int // VMs that are saved
		torn   bool
	}{
		{"a page of VMs is garbage", func(t *testing.T, _ string, data []byte) []byte { return garbage(t, data, `"stop":{`) }, n - 60, true},
		{"the file is cut", func(_ *testing.T, _ string, data []byte) []byte { return data[:len(data)*3/4/4096*4096] }, 1, true},
		{"the middle is zeros", func(_ *testing.T, _ string, data []byte) []byte {
			mid := len(data) / 2 / 4096 * 4096
			clear(data[mid : mid+3*4096])
			return data
		}, 1, true},
		{"the schema is gone", func(_ *testing.T, _ string, data []byte) []byte { clear(data[100:4096]); return data }, 0, true},
		{"no database at all", func(_ *testing.T, _ string, data []byte) []byte {
			return []byte(strings.Repeat("this is no database. ", 999))
		}, 0, true},
		{"not JSON", func(t *testing.T, _ string, data []byte) []byte {
			return []byte(strings.Replace(string(data), `{"labels":{`, `{"lxbels";{`, 1))
		}, n - 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := wrecked(t, n, tc.damage)
			was, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrCorrupt) || !strings.Contains(err.Error(), "volantd --recover") {
				t.Fatalf("Open = %v, want corrupt, with advice", err)
			}
			r, err := Recover(ctx, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			vms := r.saved("vms")
			if r.Sound || vms.Saved < tc.least || vms.Saved > n || vms.Torn != tc.torn {
				t.Errorf("VMs saved: %+v, want %d to %d, torn %v", vms, tc.least, n, tc.torn)
			}
			t.Logf("%+v", r.Tables)
			if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrRecovering) || !strings.Contains(err.Error(), "volantd --recover again") {
				t.Errorf("Open in the middle of a recovery = %v", err)
			}
			kept, err := r.Commit()
			if err != nil {
				t.Fatal(err)
			}
			if now, err := os.ReadFile(kept); err != nil || string(now) != string(was) {
				t.Errorf("the damaged file is kept as %s: %v, changed: %v", kept, err, string(now) != string(was))
			}
			s := open(t, path, Options{})
			list, total, err := s.VMs(ctx, api.VMFilter{})
			if err != nil || total != vms.Saved || len(list) != total {
				t.Errorf("VMs = %d of %d, %v; want %d", len(list), total, err, vms.Saved)
			}
			for _, vm := range list {
				if _, err := s.Manifest(ctx, vm.Manifest); err != nil {
					t.Errorf("VM %s: %v", vm.Name, err)
				}
			}
			p := putPlugin(t, s, "after", "1")
			if _, _, err := s.CreateVM(ctx, ofPlugin(p, newVM(p, n+1), nil), api.Event{Type: api.EventVMCreated}); err != nil {
				t.Error(err)
			}
			left, err := filepath.Glob(path + "*")
			if err != nil || len(left) > 4 { // with -wal and -shm
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// What a sound database, and one that was never made, are recovered to is
// themselves.
func TestRecoverSound(t *testing.T) {
	ctx := context.Background()
	path := wrecked(t, 5, func(_ *testing.T, _ string, data []byte) []byte { return data })
	r, err := Recover(ctx, path, Options{})
	if err != nil || !r.Sound {
		t.Fatalf("Recover = %+v, %v; want sound", r, err)
	}
	if kept, err := r.Commit(); err != nil || kept != "" {
		t.Errorf("Commit = %q, %v", kept, err)
	}
	if _, total, err := open(t, path, Options{}).VMs(ctx, api.VMFilter{}); err != nil || total != 5 {
		t.Errorf("%d VMs, %v; want 5", total, err)
	}

	none := filepath.Join(t.TempDir(), "state.db")
	if r, err = Recover(ctx, none, Options{}); err != nil || r.Sound {
		t.Fatalf("Recover of nothing = %+v, %v", r, err)
	}
	if _, err := r.Commit(); err != nil {
		t.Fatal(err)
	}
	open(t, none, Options{})
	newer := filepath.Join(t.TempDir(), "state.db")
	s := open(t, newer, Options{})
	known, err := s.schemaVersion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.w.Exec(`PRAGMA user_version = 999`); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(ctx, newer, Options{}); !errors.Is(err, row.ErrNewer) {
		t.Errorf("Recover of a newer one = %v", err)
	}
	if _, err := s.w.Exec(fmt.Sprintf(`PRAGMA user_version = %d`, known)); err != nil { // as it was
		t.Fatal(err)
	}
	if recoveryUnderWay(newer) {
		t.Error("a recovery that was refused left its mark")
	}
}

// Labels of events that are no JSON are found at the start, and events can be read
// without them after a recovery.
func TestRecoverEventLabels(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := putPlugin(t, s, "hello", "1")
	fill(t, s, p, 2)
	res, err := s.w.ExecContext(ctx, `UPDATE label_sets SET labels_json = 'none ' || id`)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%d sets of labels, %v, want some", n, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrCorrupt) || !strings.Contains(err.Error(), "label_sets.labels_json") {
		t.Errorf("Open = %v, want corrupt", err)
	}
	r, err := Recover(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Abandon()
	if page, err := r.Events(ctx, api.EventFilter{}, 100); err != nil || len(page.Events) < 2 {
		t.Errorf("%d events, %v", len(page.Events), err)
	}
}

// A log that was not played in yet is part of the database.
func TestRecoverWithLog(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "live.db"), Options{})
	p := putPlugin(t, s, "hello", "1")
	fill(t, s, p, 20)
	path := filepath.Join(dir, "state.db")
	for _, part := range []string{"", "-wal"} { // as a host that lost its power leaves it
		if err := copyFile(filepath.Join(dir, "live.db"+part), path+part); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > 16<<10 {
		t.Fatalf("the database has %d bytes: its log was played in", fi.Size())
	}
	r, err := Recover(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Abandon()
	if _, total, err := r.VMs(ctx, api.VMFilter{}); err != nil || total != 20 {
		t.Errorf("%d VMs, %v; want 20", total, err)
	}
}

// A recovery that is killed anywhere is begun again, or finished, and never lets
// a daemon start with less.
func TestRecoverKilled(t *testing.T) {
	ctx := context.Background()
	damage := func(t *testing.T, _ string, data []byte) []byte { return garbage(t, data, `"stop":{`) }
	want := -1
	for _, stage := range []string{"whole", "marked", "saved", "complete", "kept", "without log"} {
		t.Run(stage, func(t *testing.T) {
			path := wrecked(t, 300, damage)
			if stage != "whole" {
				r, err := Recover(ctx, path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				switch stage {
				case "marked":
					err = os.Truncate(path+recoveringSuffix, 0)
				case "complete", "kept", "without log":
					err = os.Rename(path+recoveringSuffix, path+recoveredSuffix)
				}
				if err == nil && stage == "kept" {
					err = os.Link(path, path+damagedSuffix+"20260101T000000Z")
				}
				if err == nil && stage == "without log" {
					err = os.Remove(path + "-shm")
					if errors.Is(err, os.ErrNotExist) {
						err = nil
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Open(ctx, path, Options{}); !errors.Is(err, row.ErrRecovering) {
					t.Errorf("Open = %v, want that the recovery was not finished", err)
				}
			}
			r, err := Recover(ctx, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Commit(); err != nil {
				t.Fatal(err)
			}
			_, total, err := open(t, path, Options{}).VMs(ctx, api.VMFilter{})
			if err != nil || want >= 0 && total != want {
				t.Errorf("%d VMs, %v; want %d", total, err, want)
			}
			want = total
		})
	}
}

// FuzzRecover wants no damage to make it fail or hang: what it makes opens.
func FuzzRecover(f *testing.F) {
	path := filepath.Join(f.TempDir(), "state.db")
	s, err := Open(context.Background(), path, Options{})
	if err != nil {
		f.Fatal(err)
	}
	fill(f, s, putPlugin(f, s, "hello", "1"), 40)
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(4100), []byte("garbage"), uint16(3))
	f.Add(uint32(100), []byte{0xff, 0, 0xff}, uint16(100))
	f.Fuzz(func(t *testing.T, at uint32, with []byte, times uint16) {
		data := append([]byte(nil), sound...)
		for i := range int(times % 512) {
			if len(with) > 0 {
				copy(data[(int(at)+i*997)%len(data):], with)
			}
		}
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Recover(context.Background(), path, Options{})
		if errors.Is(err, row.ErrNewer) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Commit(); err != nil {
			t.Fatal(err)
		}
		s, err := Open(context.Background(), path, Options{})
		if err != nil {
			t.Fatal(fmt.Errorf("what was recovered: %w", err))
		}
		if _, _, err := s.VMs(context.Background(), api.VMFilter{}); err != nil && !r.Sound {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
