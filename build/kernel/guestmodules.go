package kernel

// Wanted is a module that guests use.
type Wanted struct {
	Name     string // with underscores or dashes
	Optional bool   // a guest runs without it, so a kernel may lack it
}

// ApplianceModules lists what a guest needs that runs from its initramfs: virtio over
// PCI and MMIO, disk, network, both agent channels, entropy, balloon, power button,
// panic report, the agent's file system. Every module costs about 15 ms of an emulated boot, so nothing else is
// in it. The slice is the caller's.
func ApplianceModules() []Wanted {
	return []Wanted{
		// Either transport suffices: Cloud Hypervisor and q35 have PCI, microvm has MMIO.
		{Name: "virtio_pci", Optional: true},
		{Name: "virtio_mmio", Optional: true},
		// The boot config is on a disk.
		{Name: "virtio_blk"},
		{Name: "virtio_console", Optional: true},
		{Name: "vmw_vsock_virtio_transport", Optional: true},
		{Name: "virtio_net"},
		{Name: "virtio_rng", Optional: true},
		{Name: "virtio_balloon", Optional: true},
		{Name: "button", Optional: true},
		{Name: "pvpanic_mmio", Optional: true},
		{Name: "pvpanic_pci", Optional: true},
		// The agent is on a disk too, an erofs. libcrc32c, on which that depends, asks the
		// crypto layer for crc32c by an alias, which no dependency names.
		{Name: "crc32c_generic", Optional: true},
		{Name: "erofs"},
	}
}

// RootfsModules lists what a guest needs that runs from a root image: ApplianceModules
// and the file systems and devices such a root and its volumes are on. The slice is the
// caller's.
func RootfsModules() []Wanted {
	return append(ApplianceModules(),
		Wanted{Name: "crc32c_intel", Optional: true},
		Wanted{Name: "squashfs", Optional: true},
		Wanted{Name: "ext4", Optional: true},
		Wanted{Name: "overlay", Optional: true},
		Wanted{Name: "fuse", Optional: true},
		Wanted{Name: "virtiofs", Optional: true},
		Wanted{Name: "virtio_pmem", Optional: true},
		Wanted{Name: "nd_pmem", Optional: true},
		Wanted{Name: "loop", Optional: true},
	)
}
