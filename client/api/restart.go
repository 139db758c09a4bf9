package api

import "strconv"

// Restart policies.
const (
	RestartNever         = "never"          // what has ended stays so (default)
	RestartOnFailure     = "on-failure"     // unless it ended well, or MaxRetries is reached
	RestartAlways        = "always"         // also after a reboot of the host, when the operator had stopped it
	RestartUnlessStopped = "unless-stopped" // always, but not then
)

// Restart says when what has ended by itself is started again: the workload, by
// its guest, and the VM, when the guest is gone.
type Restart struct {
	Policy string `json:"policy"`
	// MaxRetries is how often it is started again, of workload and VM together,
	// since the operator last started it; 0 for any number of times. For
	// on-failure only.
	MaxRetries int `json:"max_retries,omitempty"`
}

// maxRetries bounds Restart.MaxRetries.
const maxRetries = 1_000_000

// String is the policy as volar run takes it: "on-failure:3".
func (r Restart) String() string {
	if r.MaxRetries > 0 {
		return r.Policy + ":" + strconv.Itoa(r.MaxRetries)
	}
	return r.Policy
}

func validateRestart(field string, r Restart) error {
	if err := oneOf(field+".policy", r.Policy, RestartNever, RestartOnFailure, RestartAlways, RestartUnlessStopped); err != nil {
		return err
	}
	if r.MaxRetries < 0 || r.MaxRetries > maxRetries {
		return fieldErr(field+".max_retries", "is %d; give 0 (no limit) to %d", r.MaxRetries, maxRetries)
	}
	if r.MaxRetries > 0 && r.Policy != RestartOnFailure {
		return fieldErr(field+".max_retries", "stands beside policy %s; only on-failure counts", r.Policy)
	}
	return nil
}
