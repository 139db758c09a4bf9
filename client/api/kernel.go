package api

import "time"

// Kernel is a guest kernel that VMs can boot: an uncompressed ELF image with a
// PVH entry note, and the modules a guest needs of it, if any.
type Kernel struct {
	Name    string `json:"name"`    // "generic", "volant", "debian"
	Version string `json:"version"` // as the image says: "6.12.107-volant-generic"
	Digest  string `json:"digest"`  // blob of the ELF image
	Size    int64  `json:"size"`    // bytes
	// Modules is the blob of an initramfs segment with the modules that kestrel
	// loads, empty for kernels that have everything built in.
	Modules   string    `json:"modules,omitempty"`
	Default   bool      `json:"default"`
	CreatedAt time.Time `json:"created_at"`
}

// KernelImport adds a kernel whose blobs were uploaded before.
type KernelImport struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
	Modules string `json:"modules,omitempty"`
	// Default makes it the kernel of VMs that name none. The first kernel
	// becomes the default in any case.
	Default bool `json:"default,omitempty"`
}
