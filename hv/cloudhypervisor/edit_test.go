package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

// savedConfig is one as Cloud Hypervisor writes it, and as a later version may.
const savedConfig = `{
  "cpus": {"boot_vcpus":1,"max_vcpus":1,"profile":"Host"},
  "memory": {"size":0,"zones":[{"id":"memory","size":67108864,"file":"/old/memory","shared":true,"reserve":false}],"thp":true},
  "payload": {"firmware":null,"kernel":"/old/vmlinux","cmdline":"quiet","initramfs":"/old/initramfs"},
  "disks": [{"path":"/old/disk","readonly":false,"id":"disk-a","serial":"a","rate":18446744073709551615}],
  "pmem": [{"file":"/old/pmem","size":null,"id":"pmem-p","discard_writes":true}],
  "net": [{"tap":null,"mac":"02:00:00:00:00:01","host_mac":"02:ff:00:00:00:01","id":"net-020000000001","fds":[27]}],
  "fs": [{"tag":"src","socket":"/old/fs","id":"fs-src"}],
  "serial": {"mode":"Socket","socket":"/old/console","iommu":false},
  "vsock": {"cid":5,"socket":"/old/agent","iommu":false,"id":"vsock"},
  "landlock_enable": true, "landlock_rules": [{"path":"/old","access":"rw"}],
  "later": {"n" : 1e400, "text": "<&>\u2028", "list":[ 1 ,2]}
}`

// forkSpec is a machine that savedConfig fits.
func forkSpec() hv.Spec {
	return hv.Spec{
		ID: "new", Dir: "/new", VCPUs: 1, MemoryMiB: 64, Kernel: "/new.vmlinux", CID: 6, ConsoleLog: "/new/log",
		Disks:  []hv.Disk{{Serial: "a", Path: "/new.disk"}, {Serial: "p", Path: "/new.pmem", ReadOnly: true, Pmem: true}},
		NICs:   []hv.NIC{{Tap: "tap9", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}},
		Shares: []hv.Share{{Tag: "src", Socket: "/new.fs"}},
	}
}

// TestAdapt wants everything that is the machine's own to be replaced, and
// nothing else to change by a byte.
func TestAdapt(t *testing.T) {
	spec := forkSpec()
	for name, c := range map[string]struct {
		memory string
		zone   string
	}{
		"fork of a template":    {"/new.memory", `[{"id":"memory","size":67108864,"file":"/new.memory","shared":false,"reserve":false}]`},
		"restore of a fork":     {"", `[{"id":"memory","size":67108864,"shared":true,"reserve":false}]`},
		"fork, moved elsewhere": {"/x/y", `[{"id":"memory","size":67108864,"file":"/x/y","shared":false,"reserve":false}]`},
	} {
		got, nics, err := adapt([]byte(savedConfig), &spec, &findings{landlock: true}, c.memory)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := []netFD{{ID: "net-020000000001", FDs: 1}}; !reflect.DeepEqual(nics, want) {
			t.Errorf("%s: NICs %+v, want %+v", name, nics, want)
		}
		want := `{"cpus":{"boot_vcpus":1,"max_vcpus":1,"profile":"Host"},` +
			`"memory":{"size":0,"zones":` + c.zone + `,"thp":true},` +
			`"payload":{"firmware":null,"kernel":"/new.vmlinux","cmdline":"quiet"},` +
			`"disks":[{"path":"/new.disk","readonly":false,"id":"disk-a","serial":"a","rate":18446744073709551615}],` +
			`"pmem":[{"file":"/new.pmem","size":null,"id":"pmem-p","discard_writes":true}],` +
			`"net":[{"tap":null,"mac":"02:00:00:00:00:09","id":"net-020000000001","fds":[27]}],` +
			`"fs":[{"tag":"src","socket":"/new.fs","id":"fs-src"}],` +
			`"serial":{"mode":"Socket","socket":"/new/io/console.sock","iommu":false},` +
			`"vsock":{"cid":6,"socket":"/new/io/agent.sock","iommu":false,"id":"vsock"},` +
			`"landlock_enable":true,"landlock_rules":[{"path":"/new/io","access":"rw"}],` +
			`"later":{"n" : 1e400, "text": "<&>\u2028", "list":[ 1 ,2]}}`
		if string(got) != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestAdaptRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*hv.Spec)
		config string
		want   string
	}{
		"another disk":     {func(s *hv.Spec) { s.Disks[0].Serial = "b" }, savedConfig, `disk "disk-a" is none`},
		"fewer disks":      {func(s *hv.Spec) { s.Disks = s.Disks[1:] }, savedConfig, `disk "disk-a" is none`},
		"no pmem":          {func(s *hv.Spec) { s.Disks = s.Disks[:1] }, savedConfig, `disk "pmem-p" is none`},
		"fewer NICs":       {func(s *hv.Spec) { s.NICs = nil }, savedConfig, "is none"},
		"another share":    {func(s *hv.Spec) { s.Shares[0].Tag = "dst" }, savedConfig, `share "src" is none`},
		"no JSON":          {func(*hv.Spec) {}, savedConfig[:100], "no JSON"},
		"more than JSON":   {func(*hv.Spec) {}, savedConfig + "{}", "no JSON"},
		"a list":           {func(*hv.Spec) {}, "[]", "want a JSON object"},
		"disks no list":    {func(*hv.Spec) {}, `{"disks":{}}`, "disks"},
		"a disk no object": {func(*hv.Spec) {}, `{"disks":["a"]}`, "want a JSON object"},
		"a field twice":    {func(*hv.Spec) {}, `{"vsock":{},"vsock":{}}`, "there twice"},
		"another zone":     {func(*hv.Spec) {}, `{"memory":{"zones":[{"id":"x"}]}}`, `zone "x"`},
	} {
		spec := forkSpec()
		c.change(&spec)
		if out, _, err := adapt([]byte(c.config), &spec, &findings{}, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s, %v, want %q", name, out, err, c.want)
		}
	}
}

// FuzzObject wants an object that nothing was changed in to be what it was.
func FuzzObject(f *testing.F) {
	f.Add([]byte(savedConfig))
	f.Add([]byte(`{"":{},"a":[1e99,{"b":"\ud800"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !json.Valid(b) {
			return
		}
		got, err := changed(b, func(o *object) error {
			return o.change("memory", func(*object) error { return nil })
		})
		if err != nil {
			return // no object, or one with a field twice
		}
		var was, is bytes.Buffer
		if err := json.Compact(&is, got); err != nil {
			t.Fatalf("changed(%q) = %q: %v", b, got, err)
		}
		if err := json.Compact(&was, b); err != nil {
			t.Fatal(err)
		}
		var x, y any
		if json.Unmarshal(was.Bytes(), &x) == nil && (json.Unmarshal(is.Bytes(), &y) != nil || !reflect.DeepEqual(x, y)) {
			t.Errorf("changed(%q) = %q", b, got)
		}
	})
}
