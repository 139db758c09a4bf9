package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"syscall"
)

// Kinds of failure, for errors.Is. The message of an error that is one of them
// says what, where and what to do.
var (
	ErrReference    = errors.New("not an image reference")
	ErrNotFound     = errors.New("no such image")
	ErrUnauthorized = errors.New("access refused")
	ErrUnavailable  = errors.New("cannot be reached")
	ErrDigest       = errors.New("does not have its digest")
	ErrTruncated    = errors.New("ends too early")
	ErrPlatform     = errors.New("not for this platform")
	ErrLimit        = errors.New("over a limit")
	ErrInvalid      = errors.New("not a usable image")
	ErrNoSpace      = errors.New("no space left")
	ErrBusy         = errors.New("staging folder in use")
)

// fault is an error of a kind whose message does not repeat the kind's.
type fault struct {
	kind error
	err  error
}

func (f *fault) Error() string   { return f.err.Error() }
func (f *fault) Unwrap() []error { return []error{f.kind, f.err} }

func errorf(kind error, format string, args ...any) error {
	return &fault{kind, fmt.Errorf(format, args...)}
}

// stagingError says where the disk is full, and leaves other errors alone.
func stagingError(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errorf(ErrNoSpace, "the disk of %s is full: make room, then try again: %w", dir, err)
	}
	return err
}

// isLocal reports whether err is this machine's and not the far end's, so that
// asking another end will not help.
func isLocal(err error) bool {
	var pe *fs.PathError
	return errors.Is(err, ErrNoSpace) || errors.As(err, &pe)
}

// clip shortens and quotes what a stranger wrote, for a message.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}
