package wire

import "time"

// Routes for files of the guest. Paths are absolute; links in them are followed,
// but for the last name unless follow is set. Their errors have codes.
const (
	PathStat = "/v1/stat" // GET ?path=PATH&follow=BOOL: FileInfo
	// PathArchive is, for GET ?path=PATH&follow=BOOL, a stream of package
	// client/api/archive with the file and all below it, under FileInfo.Name, or
	// with what is in it, under "." when PATH ends in "/." or is "/". An error
	// after its beginning is in the trailer TrailerError.
	//
	// PUT ?path=PATH&keep=BOOL unpacks the body into the directory PATH: 204.
	// With keep files belong to whom the archive says, else to root.
	PathArchive = "/v1/archive"
)

// TrailerError is the trailer of a body that its sender could not complete: an
// Error in JSON.
const TrailerError = "Volant-Error"

// MaxArchives is how many archives are packed and unpacked at a time; more are
// answered with 429.
const MaxArchives = 8

// ErrorCode says what an Error is about, where its status does not.
type ErrorCode string

const (
	ErrorInvalid  ErrorCode = "invalid"   // the request, or the archive that it brings
	ErrorNotFound ErrorCode = "not_found" // there is no such file
	ErrorConflict ErrorCode = "conflict"  // what is there does not allow it
	ErrorBusy     ErrorCode = "busy"      // MaxArchives
	ErrorNoSpace  ErrorCode = "no_space"
	ErrorFailed   ErrorCode = "failed" // the guest's file system, or the guest
)

// FileInfo describes a file of the guest.
type FileInfo struct {
	Name    string    `json:"name"` // the last of the path that was asked for, or of Path where that has none
	Path    string    `json:"path"` // where that leads
	Type    FileType  `json:"type"`
	Mode    uint32    `json:"mode"` // permissions, and the bits above them: st_mode & 07777
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Size    int64     `json:"size"` // bytes
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symbolic link
}

// FileType is the kind of a file.
type FileType string

const (
	FileRegular FileType = "file"
	FileDir     FileType = "dir"
	FileSymlink FileType = "symlink"
	FileOther   FileType = "other" // a device, pipe or socket
)
