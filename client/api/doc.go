// Package api is the north contract: the resources, events, error codes and
// routes that volantd serves under /api/v1 and that every client speaks. It is
// imported by both ends and imports the standard library only.
//
// # Resources
//
// A plugin is an installed manifest: what to run and with what. An image is an
// OCI image, its configuration and its tree as a disk; it is pulled or loaded. A
// VM is created from one plugin or image and keeps its address, and the ports of
// the host that it publishes, for its life. A volume is a disk that outlives the
// VMs that mount it. A blob is an artifact's bytes, addressed by digest; a
// manifest names its artifacts by digest, so a blob must be there before a plugin
// that needs it is installed. A kernel is a named pair of blobs. An event is one
// entry of the journal.
//
// # Versions
//
// A published field, event type, error code or route keeps its meaning. Adding
// one is compatible; repurposing or removing one needs a new prefix beside
// /api/v1. Clients ignore fields that they do not know; the server refuses
// them, and names the nearest one it does know.
package api
