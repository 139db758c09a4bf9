package vmm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// TestSpawnUser runs a VMM as nobody: it can make its sockets, has no group of
// ours, and cannot pass itself off as another process.
func TestSpawnUser(t *testing.T) {
	need.Root(t, "to become another user")
	dir, err := os.MkdirTemp("", "volant-vmm-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	spec := hv.Spec{ID: "one", Dir: dir, User: &hv.User{UID: 65534, GID: 65534}}
	rec := hv.Record{Driver: "test"}
	const script = `
grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\t ' ' '
echo mine >qmp.sock && ls qmp.sock
while [ ! -e record.json ]; do sleep 0.01; done
rm -f record.json 2>/dev/null || echo stays
mv qmp.sock record.json 2>/dev/null || echo stays
echo forged 2>/dev/null >>record.json || echo stays
echo '{"reason":"shutdown"}' >exit.json
echo "fd 3: $(cat <&3)"`
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, []byte("inherited"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := vmm.Spawn(&spec, &rec, []string{"/bin/sh", "-c", "cd " + dir + script}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wait(t, p)
	got := string(vmm.Tail(filepath.Join(dir, vmm.LogFile), 4096))
	for _, want := range []string{"Uid: 65534 65534 65534 65534\n", "Gid: 65534 65534 65534 65534\n", "Groups: \n", "qmp.sock\nstays\nstays\nstays\nfd 3: inherited\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("it says %q, want %q in it", got, want)
		}
	}
	if back, err := vmm.ReadRecord(dir); back != rec || err != nil {
		t.Errorf("ReadRecord() = %+v, %v, want %+v", back, err, rec)
	}
	if exit, err := vmm.ReadExit(dir); err == nil {
		t.Errorf("ReadExit() = %+v, which the VMM wrote itself", exit)
	}
}
