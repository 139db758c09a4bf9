// Package erofs writes a tree of files as an EROFS image: the read-only file
// system that the guests of one OCI image share as their root.
//
// # What it keeps
//
// Everything a [layers.Tree] knows: owners, modes, times to the nanosecond,
// hard links, devices, FIFOs and sockets, symbolic links, extended attributes
// and POSIX ACLs, and the holes of sparse files. Nothing is compressed: VMs
// map the image from the host's page cache, once for all of them.
//
// # Promises
//
// Equal trees and options give equal bytes. The image is written from its
// first byte to its last without seeking, each file's content being read once
// and hashed while it is written. Memory grows with the number of inodes (about
// 25 bytes each beyond the tree's own) and not with content.
//
// # The image
//
//	block 0       superblock at byte 1024, its checksum
//	metadata      inodes, each with its attributes and, where it fits in the
//	              block, its content: small files, directories, symbolic links;
//	              the inodes of one directory side by side
//	attributes    those that several inodes share
//	directories   and symbolic links that are too large for the metadata
//	content       of files, in the order of the inodes
//
// Files of a block or more start at a block of their own, so that they can be
// mapped without copying. Sparse files are chunk-based. It is read by Linux
// 5.15 and newer.
//
// # Sources
//
// The kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h, as
// of Linux 6.12, for the format.
package erofs
