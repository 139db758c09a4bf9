package vmm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"

	"github.com/volantvm/volant/hv"
)

// LogFile is where, in an incarnation's directory, the VMM's own words are to be
// found.
const LogFile = "vmm.log"

// OpenLog makes LogFile for a VMM to write to: a file, or a link to the one that
// the Spec names, which outlives the directory.
func OpenLog(spec *hv.Spec) (*os.File, error) {
	path := filepath.Join(spec.Dir, LogFile)
	if spec.VMMLog == "" {
		return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	}
	if err := os.Symlink(spec.VMMLog, path); err != nil {
		return nil, err
	}
	return os.OpenFile(spec.VMMLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// CutLog bounds a file that a VMM appends to: of one with more than limit bytes
// the newest half of that is kept, from a line's beginning on. The VMM has it
// open for appending, so that what it writes next follows at the new end; what
// it writes at this very moment may be lost. A file that cannot be cut is left
// for the next look.
func CutLog(path string, limit int64) {
	if fi, err := os.Stat(path); err != nil || fi.Size() <= limit {
		return
	}
	tail := Tail(path, limit/2)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	_, err = f.Write(tail[bytes.IndexByte(tail, '\n')+1:])
	_ = errors.Join(err, f.Close()) // on a full disk they are lost
}
