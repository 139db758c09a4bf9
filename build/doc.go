// Package build is fledge: it turns a recipe, fledge.toml, into a bootable
// artifact and the plugin manifest that installs it. The artifact is an archive
// that is the guest's whole root, of mapped programs and files or of an image;
// or a disk, of an image. The image comes from wherever package oci finds one, or
// from a Dockerfile by package dockerfile.
//
// # From an image
//
// The image's layers are flattened into one tree (package layers), the recipe's
// mappings go over it, and what a root needs where the image lacks it: the
// directories dev, etc, proc, root, run, sys and tmp; in an archive also
// /dev/console and /dev/null. Owners, modes and times are the image's; what is
// mapped belongs to root and is of 1970. ConvertImage does the same, without a
// recipe, for the daemon: its disk is fledge's, byte for byte.
//
// The manifest is what api.ImageManifest makes of the image's configuration,
// with the recipe's [manifest] over it.
//
// # From mappings
//
//   - The recipe's mappings, host path to absolute guest path: files, and
//     directories with all they hold. A symbolic link inside a directory stays
//     one; the mapped path itself is followed. Everything belongs to root.
//     Modes do not depend on the building user's umask: directories get 0755
//     (/tmp and /var/tmp 1777, /root 0700); files get 0755 in the directories
//     of executables, for shared objects in the directories of libraries, and
//     where any execute bit is set; else 0644. Setuid bits are not kept, and
//     hard links become files of their own, because neither survives a
//     checkout and equal content must give equal archives.
//   - busybox with links for its common applets, when [source] names one.
//   - For every dynamic ELF file the interpreter and libraries it needs, found
//     as ld.so(8) finds them but by reading the file, never by running
//     anything. What a program loads by dlopen(3) cannot be seen: map it.
//   - /dev with console and null, /proc, /sys, /run, /tmp, /etc, /root, and
//     /etc/passwd, group and hosts that know root, where the mappings have not
//     put something else.
//   - /init by one of three modes, see below.
//
// # Init modes
//
// Of an archive; a disk has none of them.
//
//	recipe                             /init in the archive      initramfs.agent
//	(nothing), [agent] release         none; volantd supplies    host
//	                                   kestrel at boot
//	[agent] local or http              that volant binary        image
//	[init] path = "./my-init"          that file                 none
//	[init] none = true                 a mapping gives it        none
//
// # Promise
//
// Equal inputs give equal bytes, wherever and whenever the build runs: entries
// are sorted, owners and times fixed, downloads pinned by digest. Outputs are
// written whole, to a temporary file that is synced and renamed. Building needs
// no root.
//
// # Sources
//
// System V gABI chapter 5 and elf(5) for dynamic sections, ld.so(8) for the
// order of the search.
package build
