package hv_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

func sound() hv.Spec {
	return hv.Spec{
		ID: "01jx-web", Dir: "/run/volant/vms/1/1", VCPUs: 1, MemoryMiB: 64, Kernel: "/k", Initramfs: "/i",
		Cmdline: []string{"volant.vm=x", "a=b,c", "d"},
		Disks:   []hv.Disk{{Serial: "volant-config", Path: "/d1"}, {Serial: "root", Path: "/d 2,x", ReadOnly: true}},
		NICs:    []hv.NIC{{Tap: "vtap0.1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}},
		Shares:  []hv.Share{{Tag: "src", Socket: "/s"}},
		Devices: []string{"0000:01:00.0"}, Cgroups: []string{"/sys/fs/cgroup/x"},
		CID: 3, ConsoleLog: "/log",
	}
}

func TestValidate(t *testing.T) {
	s := sound()
	if err := s.Validate(); err != nil {
		t.Fatalf("Validate() of a sound machine = %v", err)
	}
	bare := hv.Spec{ID: "x", Dir: "/d", VCPUs: 1, MemoryMiB: 1, Kernel: "/k", ConsoleLog: "/l"}
	if err := bare.Validate(); err != nil {
		t.Errorf("Validate() of the least machine = %v", err)
	}
	tests := []struct {
		name   string
		change func(*hv.Spec)
		want   string
	}{
		{"no id", func(s *hv.Spec) { s.ID = "" }, "id"},
		{"long id", func(s *hv.Spec) { s.ID = strings.Repeat("a", hv.MaxIDLen+1) }, "id"},
		{"id like an option", func(s *hv.Spec) { s.ID = "-m" }, "id"},
		{"id of other letters", func(s *hv.Spec) { s.ID = "Web" }, "id"},
		{"id that climbs", func(s *hv.Spec) { s.ID = "../x" }, "id"},
		{"relative directory", func(s *hv.Spec) { s.Dir = "run" }, "directory"},
		{"unclean directory", func(s *hv.Spec) { s.Dir = "/run/../etc" }, "directory"},
		{"newline in a path", func(s *hv.Spec) { s.Kernel = "/k\n" }, "control"},
		{"zero byte in a path", func(s *hv.Spec) { s.Initramfs = "/i\x00" }, "control"},
		{"negative vCPUs", func(s *hv.Spec) { s.VCPUs = -1 }, "vCPUs"},
		{"no memory", func(s *hv.Spec) { s.MemoryMiB = 0 }, "memory"},
		{"no kernel", func(s *hv.Spec) { s.Kernel = "" }, "no kernel"},
		{"empty parameter", func(s *hv.Spec) { s.Cmdline = []string{""} }, "parameter"},
		{"parameter with a space", func(s *hv.Spec) { s.Cmdline = []string{"a b"} }, "parameter"},
		{"parameter with a tab", func(s *hv.Spec) { s.Cmdline = []string{"a\tb"} }, "parameter"},
		{"parameter with a quote", func(s *hv.Spec) { s.Cmdline = []string{`a="b`} }, "parameter"},
		{"parameter beyond ASCII", func(s *hv.Spec) { s.Cmdline = []string{"a=é"} }, "parameter"},
		{"end of parameters", func(s *hv.Spec) { s.Cmdline = []string{"--"} }, "parameter"},
		{"no serial", func(s *hv.Spec) { s.Disks[0].Serial = "" }, "serial"},
		{"serial with a comma", func(s *hv.Spec) { s.Disks[0].Serial = "a,b" }, "serial"},
		{"long serial", func(s *hv.Spec) { s.Disks[0].Serial = strings.Repeat("a", hv.MaxDiskSerial+1) }, "serial"},
		{"shared serial", func(s *hv.Spec) { s.Disks[0].Serial = "root" }, "share"},
		{"tap with a slash", func(s *hv.Spec) { s.NICs[0].Tap = "a/b" }, "tap"},
		{"tap with a comma", func(s *hv.Spec) { s.NICs[0].Tap = "a,b" }, "tap"},
		{"long tap", func(s *hv.Spec) { s.NICs[0].Tap = strings.Repeat("a", hv.MaxTapName+1) }, "tap"},
		{"tap twice", func(s *hv.Spec) { s.NICs = append(s.NICs, s.NICs[0]) }, "twice"},
		{"short MAC", func(s *hv.Spec) { s.NICs[0].MAC = s.NICs[0].MAC[:5] }, "MAC"},
		{"group MAC", func(s *hv.Spec) { s.NICs[0].MAC = net.HardwareAddr{1, 0, 0, 0, 0, 0} }, "MAC"},
		{"host's CID", func(s *hv.Spec) { s.CID = 2 }, "context id"},
		{"any CID", func(s *hv.Spec) { s.CID = 1<<32 - 1 }, "context id"},
		{"no console log", func(s *hv.Spec) { s.ConsoleLog = "" }, "console log"},
		{"relative VMM log", func(s *hv.Spec) { s.VMMLog = "vmm.log" }, "VMM log"},
		{"fewer vCPUs at most", func(s *hv.Spec) { s.VCPUs, s.MaxVCPUs = 2, 1 }, "at most 1 vCPUs"},
		{"less memory at most", func(s *hv.Spec) { s.MaxMemoryMiB = 63 }, "at most 63 MiB"},
		{"relative memory file", func(s *hv.Spec) { s.MemoryFile = "ram" }, "memory file"},
		{"memory file with a share", func(s *hv.Spec) { s.MemoryFile = "/ram" }, "no template"},
		{"writable memory", func(s *hv.Spec) { s.Disks[0].Pmem = true }, "read-only"},
		{"share without a tag", func(s *hv.Spec) { s.Shares[0].Tag = "" }, "tag"},
		{"long tag", func(s *hv.Spec) { s.Shares[0].Tag = strings.Repeat("a", hv.MaxShareTag+1) }, "tag"},
		{"tag twice", func(s *hv.Spec) { s.Shares = append(s.Shares, s.Shares[0]) }, "two shares"},
		{"relative share", func(s *hv.Spec) { s.Shares[0].Socket = "s" }, "share socket"},
		{"short PCI address", func(s *hv.Spec) { s.Devices[0] = "01:00.0" }, "PCI"},
		{"PCI address that climbs", func(s *hv.Spec) { s.Devices[0] = "../../01:00." }, "PCI"},
		{"PCI function 8", func(s *hv.Spec) { s.Devices[0] = "0000:01:00.8" }, "PCI"},
		{"PCI device twice", func(s *hv.Spec) { s.Devices = append(s.Devices, s.Devices[0]) }, "twice"},
		{"relative cgroup", func(s *hv.Spec) { s.Cgroups[0] = "x" }, "cgroup"},
		{"negative limit", func(s *hv.Spec) { s.ConsoleLimit = -1 }, "console limit"},
	}
	for _, test := range tests {
		s := sound()
		test.change(&s)
		if err := s.Validate(); !errors.Is(err, hv.ErrInvalidSpec) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Validate() of %s = %v, want ErrInvalidSpec with %q", test.name, err, test.want)
		}
	}
}

func TestGoneError(t *testing.T) {
	var err error = &hv.GoneError{Exit: hv.Exit{Reason: hv.ExitReset, Detail: "the guest reset"}}
	if !errors.Is(err, hv.ErrGone) || errors.Is(err, hv.ErrUnavailable) {
		t.Errorf("%v: is not just ErrGone", err)
	}
	if !strings.Contains(err.Error(), "reset") {
		t.Errorf("Error() = %q, want the reason in it", err)
	}
}
