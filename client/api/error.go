package api

import (
	"errors"
	"fmt"
)

// Code says what a caller should do next. The list only grows: clients and
// scripts depend on it.
type Code string

const (
	CodeInvalid     Code = "invalid"     // 400: mend the request; retrying it cannot help
	CodeDenied      Code = "denied"      // 403: ask for the right
	CodeNotFound    Code = "not_found"   // 404: the named thing does not exist
	CodeExists      Code = "exists"      // 409: the name or address is taken; choose another
	CodeConflict    Code = "conflict"    // 409: the thing's state does not allow it; change the state first
	CodeExhausted   Code = "exhausted"   // 409: a pool is used up (addresses, disk); free some
	CodeTooLarge    Code = "too_large"   // 413: the request exceeds a limit
	CodeUnsupported Code = "unsupported" // 501: this version or host cannot do it
	CodeUnavailable Code = "unavailable" // 503: try again later, or mend the host as the hint says
	CodeTimeout     Code = "timeout"     // 504: not done within the time asked for; it may still happen
	CodeInternal    Code = "internal"    // 500: a fault in Volant; the daemon's log has the request id
)

// Error is the only error that crosses the API. Message says what is wrong and
// where, Hint what to do about it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// ErrorBody is the body of every response that is not a success.
type ErrorBody struct {
	Error Error `json:"error"`
}

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e with the hint set.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// CodeOf returns the code of the first *Error in err's chain, CodeInternal for
// any other error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
