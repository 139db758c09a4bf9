// Package client talks to volantd from Go, one method per route of the API. It
// imports the standard library and the contract, client/api, only.
//
// Errors that the daemon answers with are *api.Error, and so is the failure to
// reach it (api.CodeUnavailable, with a hint that tells what to do). When the
// caller's context ends, errors wrap context.Canceled or
// context.DeadlineExceeded.
package client
