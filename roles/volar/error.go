package volar

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// Exit statuses. Scripts depend on them; see exitCodes for the words.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitTimeout     = 6
	exitInterrupted = 130
)

// exitCode is one row of the table of exit statuses.
type exitCode struct {
	status int
	doc    string
	codes  []api.Code
}

// exitCodes returns the table: which status stands for what, and for which
// codes of the API.
func exitCodes() []exitCode {
	return []exitCode{
		{exitOK, "done", nil},
		{exitFailed, "failed", []api.Code{api.CodeInternal, api.CodeDenied, api.CodeTooLarge, api.CodeUnsupported}},
		{exitUsage, "wrong usage, or a request that is refused as invalid", []api.Code{api.CodeInvalid}},
		{exitNotFound, "the named thing does not exist", []api.Code{api.CodeNotFound}},
		{exitConflict, "taken, used up, or not in the state for it", []api.Code{api.CodeExists, api.CodeConflict, api.CodeExhausted}},
		{exitUnavailable, "volantd cannot be reached, or cannot do it now", []api.Code{api.CodeUnavailable}},
		{exitTimeout, "not done within the time allowed; it may still happen", []api.Code{api.CodeTimeout}},
		{exitInterrupted, "interrupted", nil},
	}
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit status:")
	for i, e := range exitCodes() {
		if i > 0 {
			b.WriteString(";")
		}
		fmt.Fprintf(&b, " %d %s", e.status, e.doc)
	}
	return b.String() + "."
}

// usageError is a fault of the command line.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{msg: fmt.Sprintf(format, args...)}
}

// hintError is a failure of volar's own with what to do about it.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// manyError is the failure of a command on some of its names.
type manyError []error

func (e manyError) Error() string { return fmt.Sprintf("%d failed", len(e)) }

// end prints err, with which the command of that name ended, and returns the
// exit status that stands for it. All statuses of run but those of Volant's
// failures are its workload's, so these have one, as docker has it.
func (c *cli) end(command string, err error) int {
	var fixed *statusError
	if command == "run" && !errors.As(err, &fixed) {
		err = &statusError{stdio.CodeFailed, err}
	}
	return c.fail(err)
}

// fail prints err and returns the exit status that stands for it.
func (c *cli) fail(err error) int {
	var many manyError
	if errors.As(err, &many) {
		status := exitOK
		for _, e := range many {
			if s := c.fail(e); status == exitOK {
				status = s
			}
		}
		return status
	}
	var fixed *statusError
	if errors.As(err, &fixed) {
		if fixed.err != nil && c.fail(fixed.err) == exitInterrupted {
			return exitInterrupted
		}
		return fixed.status
	}
	status, hint := exitFailed, ""
	var apiErr *api.Error
	var usage *usageError
	var hinted *hintError
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted // who pressed the key knows
	case errors.As(err, &usage):
		status, hint = exitUsage, usage.hint
	case errors.As(err, &apiErr):
		status, hint = statusOf(apiErr.Code), apiErr.Hint
	case errors.Is(err, context.DeadlineExceeded):
		status = exitTimeout
	}
	if errors.As(err, &hinted) {
		hint = hinted.hint
	}
	c.notef("%s", printable(err.Error()))
	if hint != "" {
		fmt.Fprintf(c.stderr, "hint: %s\n", printable(hint))
	}
	return status
}

func statusOf(code api.Code) int {
	for _, row := range exitCodes() {
		for _, c := range row.codes {
			if c == code {
				return row.status
			}
		}
	}
	return exitFailed
}
