package layers

import (
	"errors"
	"fmt"
)

var (
	// ErrLimit: the layers hold more than the Limits allow.
	ErrLimit = errors.New("over the limit")
	// ErrName: a name that leaves the root, or that no Linux kernel takes.
	ErrName = errors.New("unusable name")
	// ErrFormat: a layer is no tar archive, is damaged, or is cut short.
	ErrFormat = errors.New("damaged layer")
	// ErrChanged: a host file was changed between FromDir and its use.
	ErrChanged = errors.New("the file changed while it was being packed")
)

// Limits bound what a tree may hold, against archives made to exhaust memory
// or disk. A zero field stands for its default.
type Limits struct {
	Entries       int   // headers in all layers, and directories they imply; default 2 Mi
	Bytes         int64 // of file content in all layers, holes included; default 256 GiB
	MetadataBytes int64 // of names, link targets, extended attributes and sparse maps; default 512 MiB
}

// Error is a fault in a layer.
type Error struct {
	Layer string // Layer.Name
	Entry string // name in the archive; empty when the fault is in none
	Err   error
}

func (e *Error) Error() string {
	if e.Entry == "" {
		return fmt.Sprintf("layer %s: %v", e.Layer, e.Err)
	}
	return fmt.Sprintf("layer %s: entry %s: %v", e.Layer, quote(e.Entry), e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// usage counts towards limits.
type usage struct {
	limits          Limits
	entries         int
	bytes, metadata int64
}

func newUsage(l Limits) usage {
	if l.Entries <= 0 {
		l.Entries = 2 << 20
	}
	if l.Bytes <= 0 {
		l.Bytes = 256 << 30
	}
	if l.MetadataBytes <= 0 {
		l.MetadataBytes = 512 << 20
	}
	return usage{limits: l}
}

// entry counts one name and its bytes of metadata.
func (u *usage) entry(metadata int) error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w of %d files", ErrLimit, u.limits.Entries)
	}
	return u.more(int64(metadata))
}

func (u *usage) more(metadata int64) error {
	if u.metadata += metadata; u.metadata > u.limits.MetadataBytes {
		return fmt.Errorf("%w of %d bytes of names, links and attributes", ErrLimit, u.limits.MetadataBytes)
	}
	return nil
}

func (u *usage) content(bytes int64) error {
	if bytes > u.limits.Bytes-u.bytes {
		return fmt.Errorf("%w of %d bytes of content", ErrLimit, u.limits.Bytes)
	}
	u.bytes += bytes
	return nil
}
