package qemu

import (
	"net"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/golden"
)

// TestArgv compares whole command lines with golden files: the words of a
// machine change only on purpose.
func TestArgv(t *testing.T) {
	spec := hv.Spec{
		ID: "web-1", Dir: "/run/volant/a,b/1", VCPUs: 2, MemoryMiB: 256, Kernel: "/k/vmlinux,1", Initramfs: "/i/init,rd",
		Cmdline: []string{"volant.vm=web-1", "quiet=no"},
		Disks: []hv.Disk{
			{Serial: "volant-config", Path: "/d/config", ReadOnly: true},
			{Serial: "data", Path: "/d/da,ta"},
		},
		NICs: []hv.NIC{{Tap: "tap7", MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}}},
		CID:  9,
	}
	template, full := spec, spec
	template.MemoryFile, template.Balloon = "/m/me,mory", true
	merged := spec
	merged.MergeMemory = true
	full.Balloon, full.Shares = true, []hv.Share{{Tag: "code", Socket: "/s/sh,are.sock"}}
	tcg := findings{caps: hv.Capabilities{Binary: "/usr/bin/qemu", Accel: hv.AccelTCG, Channel: hv.ChannelSerial}, sandbox: true, tscKHz: 2596120}
	kvm := findings{caps: hv.Capabilities{Binary: "/usr/bin/qemu", Accel: hv.AccelKVM, Channel: hv.ChannelVsock}, tscKHz: 2596120}
	newer := tcg
	newer.readonlyFile = true
	fork := &hv.Snapshot{Dir: "/snap", MemoryFile: "/m/me,mory"}
	tests := []struct {
		name string
		spec hv.Spec
		f    findings
		from *hv.Snapshot
	}{
		{"tcg", spec, tcg, nil},
		{"kvm", spec, kvm, nil},
		{"merged", merged, kvm, nil},
		{"template", template, tcg, nil},
		{"fork", spec, tcg, fork},
		{"fork-newer", spec, newer, fork},
		{"restore", full, tcg, &hv.Snapshot{Dir: "/snap"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := strings.Join(argv(&test.spec, &test.f, test.from), "\n") + "\n"
			golden.Compare(t, "argv-"+test.name+".txt", got)
		})
	}
	spec.CID = 0
	if got := channel(&spec, &kvm); got != hv.ChannelSerial {
		t.Errorf("channel without a CID = %s, want serial", got)
	}
}

func TestLockedDisk(t *testing.T) {
	tests := []struct{ name, said, path string }{
		{"write", "qemu-system-x86_64: -device virtio-blk-device,drive=disk0: Failed to get \"write\" lock\nIs another process using the image [/d/a b]x]?", "/d/a b]x"},
		{"shared write", "qemu-system-x86_64: -drive id=d: Failed to get shared \"write\" lock\nIs another process using the image [/d]?\n", "/d"},
		{"other", "qemu-system-x86_64: -drive id=d: Could not open '/d': Permission denied", ""},
		{"no path", "Failed to get \"write\" lock", ""},
		{"cut", "Failed to get \"write\" lock\nIs another process using the image [/d", ""},
		{"empty", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if path, ok := lockedDisk(test.said); path != test.path || ok != (test.path != "") {
				t.Errorf("lockedDisk(%q) = %q, %v, want %q", test.said, path, ok, test.path)
			}
		})
	}
}
