// Volant turns workloads into deterministic, hardware-isolated microVMs. This
// one binary wears four faces, chosen by the name it is called by or by its
// first word: volantd, the control plane; volar, the command line; kestrel,
// PID 1 inside the guest; fledge, the image builder.
//
// The rooms of the house, and what each is for:
//
//	roles      which face the binary wears, and each face's command line
//	client     talk to volantd from Go; client/api is the north contract
//	daemon     decides: requests and guest reports become state and steps
//	store      remembers, in SQLite
//	ipam       computes addresses
//	hv         what a hypervisor must do, and the drivers that do it
//	guest      everything that runs inside; guest/wire is the south contract
//	build      from recipe to bootable artifact, and the guest kernels
//	initramfs  the cpio archive format
//
// ARCHITECTURE.md follows one request through them.
package main

import (
	"os"

	"github.com/volantvm/volant/roles"
)

// version is set by the linker: -X main.version=...
var version = "0.0.0-dev"

func main() {
	os.Exit(roles.Main(os.Args, os.Stdin, os.Stdout, os.Stderr, version))
}
