package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeV2 makes what a kernel shows of version 2, as far as files go: the groups
// down to the instance's, with these controllers to give.
func fakeV2(t *testing.T, controllers string) (point string, cfg Config) {
	t.Helper()
	point = t.TempDir()
	cfg = Config{Parent: "machines/volant", Instance: "one", Mountinfo: filepath.Join(t.TempDir(), "mountinfo")}
	dir := point
	for _, part := range []string{"", "machines", "volant", "one"} {
		dir = filepath.Join(dir, part)
		fill(t, dir, map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": ""})
	}
	writeFile(t, cfg.Mountinfo, fmt.Sprintf("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 24 0:26 / %s rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", point))
	return point, cfg
}

func fill(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		writeFile(t, filepath.Join(dir, name), content)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func open(t *testing.T, cfg Config) *Host {
	t.Helper()
	h, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestV2(t *testing.T) {
	point, cfg := fakeV2(t, "cpuset cpu io memory hugetlb pids\n")
	h := open(t, cfg)
	if h.Problem() != "" || h.Words() != "v2 (cpu, io, memory, pids)" {
		t.Errorf("problem %q, %s", h.Problem(), h.Words())
	}
	group := filepath.Join(point, "machines/volant/one/vm1")
	fill(t, group, map[string]string{
		"memory.max": "max", "memory.oom.group": "0", "pids.max": "max", "cpu.weight": "100", "cpu.max": "max 100000",
		"cpu.stat": "usage_usec 1500000\nuser_usec 1\n", "memory.current": "1000000\n", "memory.stat": "anon 1\ninactive_file 400000\n",
		"pids.current": "7\n", "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=9 dios=1\n8:16 rbytes=5 wbytes=6\n",
	})
	dirs, err := h.Make("vm1", Limits{MemoryBytes: 1 << 30, Pids: 300, CPUWeight: 200, CPUPercent: 250})
	if err != nil || !slices.Equal(dirs, []string{group}) {
		t.Fatalf("Make = %v, %v", dirs, err)
	}
	for file, want := range map[string]string{
		"memory.max": "1073741824", "memory.oom.group": "1", "pids.max": "300", "cpu.weight": "200", "cpu.max": "250000 100000",
	} {
		if got := readFile(t, group, file); !strings.HasPrefix(got, want) { // a file of a test is not cut
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
	want := Usage{CPU: 1500e6, Memory: 600000, ReadBytes: 15, WriteBytes: 26, Pids: 7}
	if u, err := h.Usage("vm1"); u != want || err != nil {
		t.Errorf("Usage = %+v, %v, want %+v", u, err, want)
	}
	if ids, err := h.IDs(); !slices.Equal(ids, []string{"vm1"}) || err != nil {
		t.Errorf("IDs = %v, %v", ids, err)
	}
	if u, err := h.Usage("vm2"); u != none() || err != nil {
		t.Errorf("Usage of none = %+v, %v", u, err)
	}
}

// What a host lacks is said once, and is no error.
func TestWithout(t *testing.T) {
	_, partial := fakeV2(t, "cpu io\n")
	none := Config{Parent: "volant", Instance: "one", Mountinfo: filepath.Join(t.TempDir(), "none")}
	writeFile(t, none.Mountinfo, "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	denied := Config{Parent: "volant", Instance: "one", Mountinfo: filepath.Join(t.TempDir(), "denied")}
	writeFile(t, denied.Mountinfo, "30 24 0:26 / /proc/self/fdinfo rw - cgroup2 cgroup2 rw\n")
	missing := none
	missing.Mountinfo = "/nonexistent"
	for what, tt := range map[string]struct {
		cfg  Config
		want string
	}{
		"controllers": {partial, "without limits of memory, pids: this host's cgroups do not offer them"},
		"hierarchies": {none, "without limits of memory, pids, cpu: no cgroups are mounted"},
		"permission":  {denied, "make cgroup: mkdir /proc/self/fdinfo/volant"},
		"mountinfo":   {missing, "no such file"},
	} {
		h := open(t, tt.cfg)
		if !strings.Contains(h.Problem(), tt.want) {
			t.Errorf("without %s: problem %q, want %q in it", what, h.Problem(), tt.want)
		}
		if what == "controllers" {
			continue
		}
		if dirs, err := h.Make("vm1", Limits{MemoryBytes: 1}); len(dirs) > 0 || err != nil {
			t.Errorf("without %s: Make = %v, %v, want nothing", what, dirs, err)
		}
		if err := h.Remove(t.Context(), "vm1"); err != nil {
			t.Errorf("without %s: Remove: %v", what, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	_, cfg := fakeV2(t, "memory\n")
	for _, bad := range []Config{
		{Parent: "", Instance: "one"}, {Parent: "/volant", Instance: "one"}, {Parent: "a/../b", Instance: "one"}, {Parent: "a b", Instance: "one"},
		{Parent: "volant", Instance: ""}, {Parent: "volant", Instance: "../x"},
	} {
		if _, err := Open(bad); err == nil {
			t.Errorf("Open(%+v) succeeded", bad)
		}
	}
	h := open(t, cfg)
	for _, id := range []string{"", ".", "..", "a/b", "../one", "cgroup.procs", strings.Repeat("a", 65)} {
		if _, err := h.Make(id, Limits{}); err == nil {
			t.Errorf("Make(%q) succeeded", id)
		}
		if err := h.Remove(t.Context(), id); err == nil {
			t.Errorf("Remove(%q) succeeded", id)
		}
	}
}

func TestMounts(t *testing.T) {
	const text = `30 24 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/my\040memory rw - cgroup cgroup rw,memory
33 24 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
34 24 0:28 / /elsewhere rw - cgroup cgroup rw,memory
35 24 0:30 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
torn line - cgroup2
`
	var got []string
	for _, m := range parseMounts(text) {
		got = append(got, fmt.Sprintf("%d %s %v", m.version, m.point, m.controllers))
	}
	want := []string{"2 /sys/fs/cgroup/unified []", "1 /sys/fs/cgroup/cpu,cpuacct [cpu cpuacct]", "1 /sys/fs/cgroup/my memory [memory]"}
	if !slices.Equal(got, want) {
		t.Errorf("parseMounts = %q, want %q", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("30 24 0:26 / /sys rw - cgroup2 cgroup2 rw", "8:0 rbytes=1 wbytes=99999999999999999999\n")
	f.Add("", "1 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22")
	f.Fuzz(func(t *testing.T, mounts, stat string) {
		for _, m := range parseMounts(mounts) {
			if m.version != 1 && m.version != 2 {
				t.Errorf("parseMounts(%q) = %+v", mounts, m)
			}
		}
		if u, _, err := parseStat(stat); err != nil && u != none() {
			t.Errorf("parseStat(%q) = %+v, %v", stat, u, err)
		}
	})
}
