// Package oci gets OCI images from wherever they are: registries, layout
// folders, archives as `docker save`, skopeo and buildah write them, and the
// image store of a running Docker or Podman. What it returns is an Image: its
// configuration, and its layers as verified, uncompressed tar files that can be
// read at any offset. It does not look inside layers; flattening them into one
// tree is package build/layers.
//
// # Trust
//
// Registries, mirrors and archives are hostile. Every document read has a
// limit, every blob must have the digest and the size that its parent names,
// and every layer the diff ID of the configuration: from a reference pinned by
// digest, everything down to the last byte follows. Names from an archive are
// keys of a table and never paths. Nothing is spoken to without TLS but what
// Registry.PlainHTTP names, and credentials go to the registry they belong to
// and to the token server that it names, never to a mirror.
//
// # Staging
//
// Work happens in a folder of the caller's, one Pull or Load at a time. Files
// are written as NAME.part, synced and renamed: <hex>.blob is a layer as the
// registry has it, <hex>.tar the same uncompressed, named by digest and by diff
// ID. A pull that was interrupted goes on from what it finds there. The caller
// removes the folder when the image is converted; until then the Image reads
// from it.
//
// # Memory
//
// Nothing grows with an image's size: documents are limited, layers are copied
// through fixed buffers. A zstd layer may ask for a window of up to 64 MiB.
//
// # Sources
//
// OCI image specification 1.1 and distribution specification 1.1; Docker's
// image specification v1.2 (manifest.json) and Engine API (GET
// /images/{name}/get); docker-credential-helpers for the helper protocol;
// containers-auth.json(5).
package oci
