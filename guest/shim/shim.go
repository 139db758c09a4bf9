// Package shim holds the first program of a guest whose agent is on a disk of
// its own: a few kilobytes of C that follow the plan of the boot, where there is
// one (package guest/plan), find that disk, mount it and become kestrel (shim.c
// says how). It is all that an initramfs must hold of Volant.
//
// The program is built by go generate with the gcc of the machine, and is kept
// in the repository, so that building Volant needs no C compiler. A test builds
// it again and compares.
package shim

//go:generate sh build.sh shim_amd64

// MaxSize is the budget of the program, in bytes.
const MaxSize = 10 << 10

// Binary is the program, a static ELF file; "" where there is none for this
// architecture.
func Binary() string { return binary }
