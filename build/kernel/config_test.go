package kernel

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// readFragment returns a configuration fragment's options, "CONFIG_X" → value, "n" for
// one that is not set.
func readFragment(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`^(CONFIG_[A-Z0-9_]+)=(y|[0-9]+|-[0-9]+|0x[0-9a-f]+|"[^"]*")$`)
	unset := regexp.MustCompile(`^# (CONFIG_[A-Z0-9_]+) is not set$`)
	options := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		name, value := "", "n"
		if m := set.FindStringSubmatch(line); m != nil {
			name, value = m[1], m[2]
		} else if m := unset.FindStringSubmatch(line); m != nil {
			name = m[1]
		} else {
			if strings.Contains(line, "CONFIG_") || (line != "" && line[0] != '#') {
				t.Errorf("%s:%d: %q is neither an option nor a comment", file, i+1, line)
			}
			continue
		}
		if _, ok := options[name]; ok {
			t.Errorf("%s:%d: %s is there twice", file, i+1, name)
		}
		options[name] = value
	}
	return options
}

// The options that other rooms build upon must not get lost.
func TestFragments(t *testing.T) {
	generic := readFragment(t, "generic.config")
	volant := readFragment(t, "volant.config")
	for name, value := range volant {
		if generic[name] == value {
			t.Errorf("volant.config repeats %s=%s of generic.config", name, value)
		}
	}
	for _, tc := range []struct{ option, value, why string }{
		{"CONFIG_PVH", "y", "VMMs enter the image there"},
		{"CONFIG_MODULES", "n", "kestrel is given no modules for our kernels"},
		{"CONFIG_BLK_DEV_INITRD", "y", "kestrel comes in an initramfs"},
		{"CONFIG_DEVTMPFS", "y", "kestrel mounts /dev"},
		{"CONFIG_SERIAL_8250_PNP", "y", "user space is mute on ttyS0 of microvm without it"},
		{"CONFIG_VIRTIO_MMIO", "y", "QEMU microvm"},
		{"CONFIG_VIRTIO_PCI", "y", "Cloud Hypervisor, QEMU q35"},
		{"CONFIG_VIRTIO_BLK", "y", "the boot config is on a disk"},
		{"CONFIG_VIRTIO_CONSOLE", "y", "the agent channel over virtio-serial"},
		{"CONFIG_VIRTIO_VSOCKETS", "y", "the agent channel over vsock"},
		{"CONFIG_VIRTIO_NET", "y", "the guest's network"},
		{"CONFIG_HW_RANDOM_VIRTIO", "y", "entropy at boot"},
		{"CONFIG_ACPI_BUTTON", "y", "the power button reaches kestrel"},
		{"CONFIG_PVPANIC_MMIO", "y", "a panic reaches QEMU microvm"},
		{"CONFIG_PVPANIC_PCI", "y", "a panic reaches Cloud Hypervisor and q35"},
		{"CONFIG_PANIC_TIMEOUT", "-1", "a guest that panicked must not stand still"},
		{"CONFIG_CGROUPS", "y", "the workload's limits"},
		{"CONFIG_EROFS_FS", "y", "root images"},
		{"CONFIG_OVERLAY_FS", "y", "root images"},
		{"CONFIG_EXT4_FS", "y", "writable disks"},
	} {
		got := generic[tc.option]
		if v, ok := volant[tc.option]; ok && v != tc.value {
			t.Errorf("volant.config: %s=%q, want %s: %s", tc.option, v, tc.value, tc.why)
		}
		if got != tc.value {
			t.Errorf("generic.config: %s=%q, want %s: %s", tc.option, got, tc.value, tc.why)
		}
	}
}
