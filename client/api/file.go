package api

import (
	"strings"
	"time"
)

// MaxPath bounds a path in a VM, in bytes.
const MaxPath = 4096

// TrailerError is the trailer of an archive that could not be completed: an Error
// in JSON. Such an archive is no whole one either.
const TrailerError = "Volant-Error"

// File describes a file in a VM.
type File struct {
	Name    string    `json:"name"` // what it is called in an archive of it
	Path    string    `json:"path"` // where the path that was asked for leads, without links
	Type    FileType  `json:"type"`
	Mode    uint32    `json:"mode"` // permissions, and the set-id and sticky bits: 07777 at most
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Size    int64     `json:"size"` // bytes
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symbolic link
}

// FileType is the kind of a File.
type FileType string

const (
	FileRegular FileType = "file"
	FileDir     FileType = "dir"
	FileSymlink FileType = "symlink"
	FileOther   FileType = "other" // a device, pipe or socket
)

// ValidatePath checks a path in a VM.
func ValidatePath(path string) error {
	switch {
	case path == "" || path[0] != '/' || strings.ContainsRune(path, 0):
		return Errorf(CodeInvalid, "path: %.80q is not an absolute path", path)
	case len(path) > MaxPath:
		return Errorf(CodeTooLarge, "path: it has %d bytes; at most %d are allowed", len(path), MaxPath)
	}
	return nil
}
