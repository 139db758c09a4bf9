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
		{"CONFIG_VIRTIO_PMEM", "y", "the agent's disk, on Cloud Hypervisor"},
		{"CONFIG_BLK_DEV_PMEM", "y", "the agent's disk, on Cloud Hypervisor"},
		{"CONFIG_NVDIMM_PFN", "y", "/dev/pmem0 is there only with what it selects, ND_CLAIM"},
		{"CONFIG_HW_RANDOM_VIRTIO", "y", "entropy at boot"},
		{"CONFIG_ACPI_BUTTON", "y", "the power button reaches kestrel"},
		{"CONFIG_PVPANIC_MMIO", "y", "a panic reaches QEMU microvm"},
		{"CONFIG_PVPANIC_PCI", "y", "a panic reaches Cloud Hypervisor and q35"},
		{"CONFIG_PANIC_TIMEOUT", "-1", "a guest that panicked must not stand still"},
		{"CONFIG_CGROUPS", "y", "the workload's limits"},
		{"CONFIG_EROFS_FS", "y", "root images"},
		{"CONFIG_EROFS_FS_XATTR", "y", "file capabilities of root images"},
		{"CONFIG_EROFS_FS_SECURITY", "y", "file capabilities of root images"},
		{"CONFIG_EROFS_FS_POSIX_ACL", "y", "access lists of root images"},
		{"CONFIG_SQUASHFS", "y", "root images"},
		{"CONFIG_SQUASHFS_XATTR", "y", "file capabilities of root images"},
		{"CONFIG_SQUASHFS_ZLIB", "y", "mksquashfs's default"},
		{"CONFIG_SQUASHFS_ZSTD", "y", "root images"},
		{"CONFIG_OVERLAY_FS", "y", "root images"},
		{"CONFIG_EXT4_FS", "y", "writable disks"},
		{"CONFIG_EXT4_FS_SECURITY", "y", "file capabilities on writable disks"},
		{"CONFIG_EXT4_FS_POSIX_ACL", "y", "access lists on writable disks"},
		{"CONFIG_TMPFS_XATTR", "y", "upper layers in memory: overlay keeps its marks in xattrs"},
		{"CONFIG_TMPFS_POSIX_ACL", "y", "access lists on upper layers in memory"},
		{"CONFIG_UNIX98_PTYS", "y", "workloads on a terminal"},
		{"CONFIG_POSIX_MQUEUE", "y", "/dev/mqueue"},
		{"CONFIG_SYSVIPC", "y", "databases"},
		{"CONFIG_MEMCG", "y", "cgroup v2 as containers see it"},
		{"CONFIG_CGROUP_PIDS", "y", "cgroup v2 as containers see it"},
		{"CONFIG_CFS_BANDWIDTH", "y", "cgroup v2 as containers see it"},
		{"CONFIG_CPUSETS", "y", "cgroup v2 as containers see it"},
		{"CONFIG_BLK_CGROUP", "y", "cgroup v2 as containers see it"},
		{"CONFIG_SECCOMP_FILTER", "y", "sandboxes in workloads"},
		{"CONFIG_USER_NS", "y", "sandboxes in workloads"},
	} {
		got := generic[tc.option]
		if v, ok := volant[tc.option]; ok && v != tc.value {
			t.Errorf("volant.config: %s=%q, want %s: %s", tc.option, v, tc.value, tc.why)
		}
		if got != tc.value {
			t.Errorf("generic.config: %s=%q, want %s: %s", tc.option, got, tc.value, tc.why)
		}
	}
	for _, tc := range []struct{ option, value, why string }{
		{"CONFIG_NF_TABLES", "y", "container networks"},
		{"CONFIG_NFT_NAT", "y", "container networks"},
		{"CONFIG_NFT_MASQ", "y", "container networks"},
		{"CONFIG_NFT_CT", "y", "container networks"},
		{"CONFIG_NFT_FIB_IPV4", "y", "published ports in guests"},
		{"CONFIG_NFT_COMPAT", "y", "iptables-nft, which container engines call"},
		{"CONFIG_NETFILTER_XT_MATCH_ADDRTYPE", "y", "published ports in guests"},
		{"CONFIG_NETFILTER_XT_MATCH_CONNTRACK", "y", "container networks"},
		{"CONFIG_NF_CT_NETLINK", "y", "published ports in guests"},
		{"CONFIG_BRIDGE", "y", "container networks"},
		{"CONFIG_BRIDGE_NETFILTER", "y", "container networks"},
		{"CONFIG_VETH", "y", "container networks"},
		{"CONFIG_TUN", "y", "VPNs and rootless container networks"},
		{"CONFIG_OVERLAY_FS_REDIRECT_DIR", "y", "directories of the image can be renamed"},
		{"CONFIG_SQUASHFS_XZ", "y", "root images"},
		{"CONFIG_BLK_DEV_LOOP", "y", "images in guests"},
		{"CONFIG_KEYS", "y", "container engines"},
		{"CONFIG_IA32_EMULATION", "y", "32-bit programs of images"},
		{"CONFIG_X86_VSYSCALL_EMULATION", "y", "programs with a glibc below 2.14"},
		{"CONFIG_LEGACY_VSYSCALL_XONLY", "y", "programs with a glibc below 2.14"},
	} {
		if got := volant[tc.option]; got != tc.value {
			t.Errorf("volant.config: %s=%q, want %s: %s", tc.option, got, tc.value, tc.why)
		}
	}
}
