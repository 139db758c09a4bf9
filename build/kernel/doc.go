// Package kernel turns Linux kernels as they are distributed into what a microVM
// boots: an uncompressed x86_64 ELF image with a PVH entry, and the few modules a
// guest needs of a kernel that has drivers as modules.
//
// [Import] takes a vmlinuz (bzImage) or a vmlinux and writes the ELF image once, so
// that no guest spends its boot decompressing. [SelectModules] takes modules and
// what they depend on from a distribution's module tree. Both are pure functions on
// files: where kernels are kept and what they are called is the daemon's business,
// and packing modules into an archive is the caller's.
//
// The folder also holds the configuration of Volant's own kernels (generic.config,
// volant.config) and build-kernel.sh, which builds them.
//
// Sources: Documentation/arch/x86/boot.rst in the Linux source for the bzImage
// header; the ELF specification (TIS 1.2) and gABI for program headers and notes;
// Xen's elfnote.h for the PVH note; the xz file format 1.2.1 and the LZ4 frame
// format's legacy frame. An image is input like any other: every offset, length and
// decompressed size in it is checked and bounded.
package kernel
