package cloudhypervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// TestClings: the guest lets go of nothing. It is asked once, by whoever waits for
// it: version 52 ends when it is asked again.
func TestClings(t *testing.T) {
	d, binary := probed(t, script{Version: "v52.0", Clings: true})
	disk := hv.Disk{Serial: "data", Path: filepath.Join(t.TempDir(), "disk")}
	if err := os.WriteFile(disk.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := nicSpec(t)
	spec.Disks = []hv.Disk{disk}
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	for _, who := range []string{"first", "second", "after a restart"} {
		if who == "after a restart" {
			if err := vm.Detach(); err != nil {
				t.Fatal(err)
			}
			if vm, err = d.Attach(t.Context(), vm.Record()); err != nil {
				t.Fatal(err)
			}
		}
		plug := vm.(hv.Plugger)
		for what, err := range map[string]error{
			"RemoveDisk": plug.RemoveDisk(brief(), disk.Serial),
			"RemoveNIC":  plug.RemoveNIC(brief(), spec.NICs[0].MAC),
			"AddDisk":    plug.AddDisk(brief(), disk),
			"AddNIC":     plug.AddNIC(brief(), spec.NICs[0]),
		} {
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hv.ErrGone) {
				t.Errorf("%s %s: %v, want DeadlineExceeded", who, what, err)
			}
		}
	}
	if n := strings.Count(requests(t, binary), "vm.remove-device"); n != 2 {
		t.Errorf("it was asked %d times, want once for each device", n)
	}
	if state, err := vm.State(t.Context()); state != hv.StateRunning || err != nil {
		t.Errorf("State() = %s, %v, want running", state, err)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	wantNothing(t, spec, false)
}

// TestRestoredNIC: the NIC of a restored machine keeps its id and has another
// address; who asks for the one that it had gets another NIC.
func TestRestoredNIC(t *testing.T) {
	d, _ := probed(t, script{})
	s := taken(t, d)
	spec := nicSpec(t)
	was := spec.NICs[0]
	spec.NICs[0].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	vm, err := d.Restore(t.Context(), spec, s, hv.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	m := vm.(*machine)
	if err := errors.Join(m.Resume(t.Context()), m.AddNIC(t.Context(), spec.NICs[0]), m.AddNIC(t.Context(), was)); err != nil {
		t.Fatal(err)
	}
	i, err := m.ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(i.Config.Net) != 2 || i.Config.Net[0].ID != "net-020000000001" || i.Config.Net[0].MAC != "02:00:00:00:00:09" || i.Config.Net[1].ID != "net-020000000001-2" || i.Config.Net[1].MAC != was.MAC.String() {
		t.Errorf("NICs = %+v", i.Config.Net)
	}
	for _, mac := range []net.HardwareAddr{spec.NICs[0].MAC, was.MAC} {
		if err := m.RemoveNIC(t.Context(), mac); err != nil {
			t.Error(err)
		}
	}
	if i, err = m.ask(t.Context()); err != nil || len(i.Config.Net) != 0 || len(i.Devices) != 0 {
		t.Errorf("what is left: %+v, %v", i, err)
	}
}

// TestKinds launches a machine of every kind of device but those of the host, and
// refuses what cannot be.
func TestKinds(t *testing.T) {
	d, _ := probed(t, script{})
	base := t.TempDir()
	pmem, odd := filepath.Join(base, "pmem"), filepath.Join(base, "odd")
	if err := errors.Join(os.WriteFile(pmem, nil, 0o600), os.Truncate(pmem, pmemAlign), os.WriteFile(odd, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(base, "fs"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	full := func() hv.Spec {
		spec := nicSpec(t)
		spec.MaxVCPUs, spec.Balloon = 4, true
		spec.Disks = []hv.Disk{{Serial: "p", Path: pmem, ReadOnly: true, Pmem: true}, {Serial: "d", Path: odd}}
		spec.Shares = []hv.Share{{Tag: "src", Socket: filepath.Join(base, "fs")}}
		return spec
	}
	spec := full()
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	i, err := vm.(*machine).ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := i.Config.shape(), vmm.ShapeOf(&spec); !reflect.DeepEqual(got, want) {
		t.Errorf("the shape of the machine is %+v, of its Spec %+v", got, want)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	template := func() hv.Spec {
		spec := full()
		spec.Shares, spec.MemoryFile = nil, filepath.Join(base, "memory")
		return spec
	}
	spec = template()
	if vm, err = d.Launch(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(spec.MemoryFile); err != nil || fi.Size() != int64(spec.MemoryMiB)<<20 || fi.Mode().Perm() != 0o600 {
		t.Errorf("the memory file: %v, %v", fi, err)
	}
	if err := vm.(hv.Resizer).Resize(t.Context(), 0, spec.MemoryMiB+128); !errors.Is(err, hv.ErrInvalidSpec) {
		t.Errorf("Resize of memory that is a file: %v, want ErrInvalidSpec", err)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(spec.MemoryFile); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*hv.Spec){
		"pmem of an odd size":     func(s *hv.Spec) { s.Disks[0].Path = odd },
		"memory file there":       func(s *hv.Spec) { *s = template(); s.MemoryFile = odd },
		"memory file that grows":  func(s *hv.Spec) { *s = template(); s.MaxMemoryMiB = s.MemoryMiB + plugMiB },
		"odd limit of memory":     func(s *hv.Spec) { s.MaxMemoryMiB = s.MemoryMiB + 100 },
		"PCI device without VFIO": func(s *hv.Spec) { s.Devices = []string{"ffff:ff:1f.7"} },
		"too many vCPUs at last":  func(s *hv.Spec) { s.MaxVCPUs = maxVCPUs + 1 },
		"too many devices":        func(s *hv.Spec) { s.Shares = manyShares(maxDevices) },
		"reach that is no path":   func(s *hv.Spec) { s.Reach = []string{"here"} },
		"NIC of a missing device": func(s *hv.Spec) { s.NICs[0].Tap = "volant-none" },
	} {
		spec := full()
		change(&spec)
		if _, err := d.Launch(t.Context(), spec); !errors.Is(err, hv.ErrInvalidSpec) {
			t.Errorf("Launch with %s: %v, want ErrInvalidSpec", name, err)
		}
		wantNothing(t, spec, true)
	}
	// A launch that fails late takes its memory file with it.
	spec = full()
	spec.Shares[0].Socket += ".missing"
	if _, err := d.Launch(t.Context(), spec); err == nil {
		t.Error("Launch with a share that nobody serves: no error")
	}
	wantNothing(t, spec, true)
	spec = template()
	d.openTap = func(string) (*os.File, error) { return nil, unix.EBUSY }
	if _, err := d.Launch(t.Context(), spec); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Launch without its TAP: %v, want EBUSY", err)
	}
	if _, err := os.Stat(spec.MemoryFile); !os.IsNotExist(err) {
		t.Errorf("the memory file of a failed launch: %v, want it gone", err)
	}
	wantNothing(t, spec, true)
}

func manyShares(n int) []hv.Share {
	var list []hv.Share
	for i := range n {
		list = append(list, hv.Share{Tag: strings.Repeat("s", i+1), Socket: "/s"})
	}
	return list
}
