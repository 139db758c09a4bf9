package row

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of the store. They come wrapped with the operation and its subject.
var (
	// ErrNotFound says that no such row exists.
	ErrNotFound = errors.New("not found")
	// ErrExists says that a unique value is taken. The error is an
	// *ExistsError, which says which.
	ErrExists = errors.New("already exists")
	// ErrInUse says that other rows refer to the one to be removed.
	ErrInUse = errors.New("in use")
	// ErrBusy says that another process holds the database for longer than
	// the busy timeout.
	ErrBusy = errors.New("database is busy")
	// ErrFull says that the disk that holds the database is full. Nothing was
	// written; the database is intact.
	ErrFull = errors.New("disk is full")
	// ErrCorrupt says that the database file is damaged, or is none.
	ErrCorrupt = errors.New("database is corrupt")
	// ErrSilent says that a VM was to change its state without an event that
	// tells of it: a fault of the caller.
	ErrSilent = errors.New("a change of state without an event")
	// ErrRecovering says that a recovery of the database was begun, and did not
	// come to its end.
	ErrRecovering = errors.New("its recovery was not finished")
	// ErrStale says that what was to be changed has changed meanwhile.
	ErrStale = errors.New("it has changed meanwhile")
	// ErrNewer says that the database was written by a newer version.
	ErrNewer = errors.New("database was written by a newer version")
)

// ExistsError is an ErrExists that says which column refused the value.
type ExistsError struct {
	Column string // "vms.name", "leases.address"
}

func (e *ExistsError) Error() string { return e.Column + " already exists" }

// Is makes errors.Is(err, ErrExists) hold.
func (e *ExistsError) Is(target error) bool { return target == ErrExists }

// InUseError is an ErrInUse that says by which VMs.
type InUseError struct {
	By []string // names; of many the first
}

func (e *InUseError) Error() string { return "in use by " + strings.Join(e.By, ", ") }

// Is makes errors.Is(err, ErrInUse) hold.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// VolumeBusyError says that a VM which has not ended has the volume.
type VolumeBusyError struct {
	Volume, VM string
}

func (e *VolumeBusyError) Error() string {
	return fmt.Sprintf("volume %s is in use by VM %s", e.Volume, e.VM)
}

// Is makes errors.Is(err, ErrInUse) hold.
func (e *VolumeBusyError) Is(target error) bool { return target == ErrInUse }
