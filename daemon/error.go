package daemon

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store/row"
)

// publicError is the one place where errors of the rooms below become errors
// of the API. An *api.Error passes through; what is not known here becomes
// "internal" and is logged, since it must not be shown.
func (d *Daemon) publicError(op string, err error) error {
	if err == nil {
		return nil
	}
	if e := translate(err); e != nil {
		return e
	}
	d.log.Error("internal error", keyOp, op, keyErr, err)
	if free, freeErr := freeBytes(d.cfg.DataDir); freeErr == nil && free < fullBelow {
		return diskFull() // SQLite calls it an I/O error where it meets it in a mapped file
	}
	return api.Errorf(api.CodeInternal, "%s: internal error", op).WithHint("the log of volantd says more")
}

// fullBelow is how many free bytes a disk has that may count as full: less than
// one transaction's pages.
const fullBelow = 1 << 20

func diskFull() *api.Error {
	return api.Errorf(api.CodeExhausted, "the disk of volantd is full").WithHint("free some space below the data directory; nothing was changed")
}

// translate returns nil for an error it has no word for.
func translate(err error) *api.Error {
	var e *api.Error
	var exists *row.ExistsError
	var busy *row.VolumeBusyError
	var used *row.InUseError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &busy):
		return api.Errorf(api.CodeConflict, "volume %s is in use by VM %s", busy.Volume, busy.VM).
			WithHint("stop %s first; VMs share a volume only when all of them mount it read-only", busy.VM)
	case errors.As(err, &used):
		return inUse("it", used)
	case errors.As(err, &exists):
		return existsError(exists)
	case errors.Is(err, row.ErrNotFound):
		return api.Errorf(api.CodeNotFound, "%v", err)
	case errors.Is(err, row.ErrInUse):
		return api.Errorf(api.CodeConflict, "it is in use")
	case errors.Is(err, row.ErrFull), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return diskFull()
	case errors.Is(err, row.ErrBusy):
		return api.Errorf(api.CodeUnavailable, "the database is held by another process").WithHint("try again, or end the program that has it open")
	case errors.Is(err, row.ErrCorrupt):
		return api.Errorf(api.CodeInternal, "the database is damaged").WithHint("restore it from a backup; the log of volantd says more")
	case errors.Is(err, ipam.ErrExhausted):
		return api.Errorf(api.CodeExhausted, "%v", err).WithHint("delete VMs that are not needed, or give volantd a larger subnet")
	case errors.Is(err, ipam.ErrTaken):
		return api.Errorf(api.CodeExists, "%v", err).WithHint("choose another address, or leave it out to get the lowest free one")
	case errors.Is(err, ipam.ErrOutside), errors.Is(err, ipam.ErrReserved), errors.Is(err, ipam.ErrFamily):
		return api.Errorf(api.CodeInvalid, "ip_address: %v", err).WithHint("leave the address out to get the lowest free one")
	case errors.Is(err, ErrPortInUse):
		return api.Errorf(api.CodeConflict, "%v", err).WithHint("choose another host port, or end what has this one")
	case errors.Is(err, ErrNoAddress):
		return api.Errorf(api.CodeInvalid, "%v", err).WithHint("publish on an address that the host has, or on all by leaving it out")
	case errors.Is(err, hv.ErrUnavailable):
		return api.Errorf(api.CodeUnavailable, "%v", err)
	case errors.Is(err, hv.ErrUnsupported):
		return api.Errorf(api.CodeUnsupported, "%v", err)
	case errors.Is(err, hv.ErrDiskInUse):
		return api.Errorf(api.CodeConflict, "%v", err).WithHint("stop the VM that uses it first")
	case errors.Is(err, hv.ErrInvalidSpec):
		return api.Errorf(api.CodeInvalid, "%v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeTimeout, "not done in time")
	case errors.Is(err, context.Canceled):
		return api.Errorf(api.CodeUnavailable, "the request was cancelled")
	}
	return nil
}

func existsError(e *row.ExistsError) *api.Error {
	switch e.Column {
	case "vms.name":
		return api.Errorf(api.CodeExists, "a VM of that name exists").WithHint("choose another name, or delete that VM first")
	case "leases.address":
		return api.Errorf(api.CodeExists, "that address is taken").WithHint("choose another address, or leave it out to get the lowest free one")
	case "volumes.name":
		return api.Errorf(api.CodeExists, "a volume of that name exists").WithHint("choose another name, or remove that volume first")
	case "kernels.name":
		return api.Errorf(api.CodeExists, "another kernel has that name").WithHint("choose another name, or remove that kernel first")
	}
	return api.Errorf(api.CodeExists, "%s is taken", e.Column)
}

// inUse is the error for something that VMs use.
func inUse(what string, used *row.InUseError) *api.Error {
	return api.Errorf(api.CodeConflict, "%s is in use by VMs: %s", what, strings.Join(used.By, ", ")).WithHint("delete them first: volar vms delete %s", used.By[0])
}

// notFound makes the error for an unknown name, with the nearest known one.
func notFound(what, name string, known []string) *api.Error {
	e := api.Errorf(api.CodeNotFound, "there is no %s %.80q", what, name)
	if near := api.Nearest(name, known); near != "" {
		return e.WithHint("did you mean %s?", near)
	}
	return e
}
