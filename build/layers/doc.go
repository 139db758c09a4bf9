// Package layers turns a stack of OCI image layers into the one tree of files
// that a container of the image would see. It reads headers only: content
// stays in the layers and is read by offset when a disk or an archive is made
// of the tree, so memory grows with the number of files and not with their
// size (about 200 bytes a file).
//
// # What is kept
//
// Owners, modes with setuid, setgid and sticky bits, modification times to the
// nanosecond, hard links (also across layers: the names share one [Inode]),
// symbolic links as they are, device nodes, FIFOs, holes of sparse files, and
// the extended attributes that a Linux file system on disk can hold: user.*,
// trusted.*, security.* and POSIX ACLs. Attributes under trusted.overlay. are
// dropped, because under the guest's overlay they would be orders, not data.
//
// # How layers are applied
//
//   - Layers are applied lowest first, entries of a layer in their order; the
//     last entry of a name wins. A directory over a directory replaces its
//     attributes and keeps what it holds; anything else replaces what was there.
//   - A whiteout hides what lower layers have, never what its own layer has,
//     wherever in the layer it stands.
//   - Directories that no layer mentions are made: root's, mode 0755, time 0.
//   - A name that leads through a symbolic link is resolved as by a process
//     whose root directory is the tree, missing directories being made; so do
//     umoci and containerd. The last component is never followed. A directory
//     entry whose name is a symbolic link replaces the link.
//   - A hard link adds a name and changes nothing in the file it names.
//
// # What is refused
//
// Names with a ".." component, a NUL, a component over 255 bytes or a path
// over 4095; hard links to nothing, to themselves or to directories; a file
// where a directory is needed; unknown entry types; what is cut short; and
// whatever exceeds the [Limits].
//
// # Sources
//
// OCI image specification 1.1, "Image Layer Filesystem Changeset"; POSIX pax,
// "pax Interchange Format" and "ustar Interchange Format"; GNU tar manual,
// "Tar Internals", for its own headers and the four sparse formats.
package layers
