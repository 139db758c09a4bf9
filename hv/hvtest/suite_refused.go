package hvtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

func testRefused(r *run) {
	caps, err := r.driver.Probe(r.ctx)
	if err != nil {
		r.Fatalf("Probe: %v", err)
	}
	tests := map[string]func(*hv.Spec){
		"no id":              func(s *hv.Spec) { s.ID = "" },
		"id with a slash":    func(s *hv.Spec) { s.ID = "../x" },
		"no vCPU":            func(s *hv.Spec) { s.VCPUs = 0 },
		"too many vCPUs":     func(s *hv.Spec) { s.VCPUs = caps.MaxVCPUs + 1 },
		"no memory":          func(s *hv.Spec) { s.MemoryMiB = 0 },
		"relative kernel":    func(s *hv.Spec) { s.Kernel = "vmlinux" },
		"missing kernel":     func(s *hv.Spec) { s.Kernel += ".missing" },
		"missing initramfs":  func(s *hv.Spec) { s.Initramfs = s.Kernel + ".missing" },
		"missing disk":       func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: s.Kernel + ".missing"}} },
		"long disk serial":   func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: strings.Repeat("a", 21), Path: s.Kernel}} },
		"same disk serials":  func(s *hv.Spec) { s.Disks = []hv.Disk{{Serial: "a", Path: s.Kernel}, {Serial: "a", Path: s.Kernel}} },
		"too many disks":     func(s *hv.Spec) { s.Disks = manyDisks(s.Kernel, caps.MaxDisks+1) },
		"missing tap":        func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "volant-none", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}} },
		"malformed tap":      func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "a,script=x", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}} },
		"group MAC":          func(s *hv.Spec) { s.NICs = []hv.NIC{{Tap: "lo", MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}}} },
		"reserved CID":       func(s *hv.Spec) { s.CID = 2 },
		"missing directory":  func(s *hv.Spec) { s.Dir += "/missing" },
		"long directory":     func(s *hv.Spec) { s.Dir = longDir(r, s.Dir) },
		"parameter of two":   func(s *hv.Spec) { s.Cmdline = []string{"a b"} },
		"end of parameters":  func(s *hv.Spec) { s.Cmdline = []string{"--"} },
		"relative log":       func(s *hv.Spec) { s.ConsoleLog = "console.log" },
		"negative log limit": func(s *hv.Spec) { s.ConsoleLimit = -1 },
	}
	refuse := func(name string, spec hv.Spec) {
		before := names(r, spec.Dir)
		vm, err := r.driver.Launch(r.ctx, spec)
		if err == nil {
			vm.Kill(r.ctx)
		}
		if !errors.Is(err, hv.ErrInvalidSpec) {
			r.Errorf("Launch of %s: %v, want ErrInvalidSpec", name, err)
		}
		if after := names(r, spec.Dir); !slices.Equal(before, after) {
			r.Errorf("Launch of %s left the files %q, before %q", name, after, before)
		}
	}
	for name, change := range tests {
		spec := r.spec()
		change(&spec)
		refuse(name, spec)
	}
	if r.Broken != nil {
		for name, spec := range r.Broken(r) {
			refuse(name, spec)
		}
	}
}

func manyDisks(path string, n int) []hv.Disk {
	var disks []hv.Disk
	for i := range n {
		disks = append(disks, hv.Disk{Serial: fmt.Sprintf("disk%d", i), Path: path, ReadOnly: true})
	}
	return disks
}

// longDir makes a directory in dir whose path leaves no room for a socket's.
// It is removed with dir's parent.
func longDir(t testing.TB, dir string) string {
	t.Helper()
	dir = filepath.Join(dir, strings.Repeat("d", hv.MaxSocketPath))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
