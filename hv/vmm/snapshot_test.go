package vmm

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

func TestSnapshot(t *testing.T) {
	caps := hv.Capabilities{Driver: "d", Version: "1"}
	spec := hv.Spec{VCPUs: 1, MaxVCPUs: 2, MemoryMiB: 64, CID: 3, Disks: []hv.Disk{{Serial: "a", Path: "/a"}}, NICs: []hv.NIC{{Tap: "t", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}}
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	start, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The process that has our number began at another time.
	ended := hv.Record{PID: os.Getpid(), StartTime: start + 1, BootID: boot}
	alive := func(boot string) func(*testing.T, *hv.Snapshot, *hv.Spec) {
		return func(t *testing.T, s *hv.Snapshot, _ *hv.Spec) {
			if err := errors.Join(os.Remove(filepath.Join(s.Dir, hv.SnapshotFile)), WriteSnapshot(*s, hv.Record{PID: os.Getpid(), StartTime: start, BootID: boot})); err != nil {
				t.Fatal(err)
			}
		}
	}
	take := func(t *testing.T) hv.Snapshot {
		dir, memory := t.TempDir(), filepath.Join(t.TempDir(), "memory")
		for path, text := range map[string]string{filepath.Join(dir, "state"): "state", memory: "memory"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := hv.Snapshot{Driver: "d", Version: "1", Dir: dir, VCPUs: 1, MemoryMiB: 64, Machine: ShapeOf(&spec).Digest(), MemoryFile: memory}
		if err := WriteSnapshot(s, ended); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, c := range map[string]struct {
		change      func(t *testing.T, s *hv.Snapshot, spec *hv.Spec)
		unsupported bool
		want        string // in the error; "" for none
	}{
		"as it was": {change: func(*testing.T, *hv.Snapshot, *hv.Spec) {}},
		"other paths": {change: func(_ *testing.T, _ *hv.Snapshot, spec *hv.Spec) {
			spec.Disks = []hv.Disk{{Serial: "a", Path: "/b"}}
			spec.NICs = []hv.NIC{{Tap: "u", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}}
			spec.CID = 4
		}},
		"moved": {change: func(t *testing.T, s *hv.Snapshot, _ *hv.Spec) {
			dir, memory := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "there")
			if err := errors.Join(os.Rename(s.Dir, dir), os.Rename(s.MemoryFile, memory)); err != nil {
				t.Fatal(err)
			}
			s.Dir, s.MemoryFile = dir, memory
		}},
		"another driver":     {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { s.Driver = "e" }, true, "is of e"},
		"another version":    {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { s.Version = "2" }, true, "is of d 2, this is 1"},
		"more memory":        {func(_ *testing.T, _ *hv.Snapshot, spec *hv.Spec) { spec.MemoryMiB++ }, true, "64 MiB, not 1 and 65"},
		"another disk":       {func(_ *testing.T, _ *hv.Snapshot, spec *hv.Spec) { spec.Disks = []hv.Disk{{Serial: "b"}} }, true, "other devices"},
		"no NIC":             {func(_ *testing.T, _ *hv.Snapshot, spec *hv.Spec) { spec.NICs = nil }, true, "other devices"},
		"another limit":      {func(_ *testing.T, _ *hv.Snapshot, spec *hv.Spec) { spec.MaxVCPUs = 3 }, true, "other devices"},
		"a machine alive":    {alive(boot), false, "runs still"},
		"an earlier boot":    {alive("another"), false, ""},
		"another snapshot":   {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { s.MemoryFile = "" }, false, "another one"},
		"without its file":   {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { os.Remove(filepath.Join(s.Dir, hv.SnapshotFile)) }, false, "not whole"},
		"with a short part":  {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { os.Truncate(filepath.Join(s.Dir, "state"), 4) }, false, "not whole"},
		"with short memory":  {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { os.Truncate(s.MemoryFile, 4) }, false, "not whole"},
		"with a part a link": {func(_ *testing.T, s *hv.Snapshot, _ *hv.Spec) { relink(filepath.Join(s.Dir, "state")) }, false, "not whole"},
	} {
		t.Run(name, func(t *testing.T) {
			s, spec := take(t), spec
			c.change(t, &s, &spec)
			err := CheckSnapshot(&s, &spec, &caps)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || errors.Is(err, hv.ErrUnsupported) != c.unsupported {
				t.Errorf("CheckSnapshot: %v, want %q in it, ErrUnsupported %v", err, c.want, c.unsupported)
			}
		})
	}
}

// relink moves a file and leaves a link to it.
func relink(path string) {
	os.Rename(path, path+".old")
	os.Symlink(path+".old", path)
}

func TestSnapshotDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := CheckEmpty(dir); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := CheckEmpty(dir); err == nil {
		t.Error("CheckEmpty of a directory with something in it: no error")
	}
	if err := WriteSnapshot(hv.Snapshot{Dir: dir}, hv.Record{}); err == nil || !strings.Contains(err.Error(), "no file") {
		t.Errorf("WriteSnapshot with a directory among the parts: %v, want an error", err)
	}
	if err := errors.Join(ClearDir(dir), CheckEmpty(dir)); err != nil {
		t.Error(err)
	}
}
