package oci

import "time"

// Hurry makes retries wait for d at first in place of half a second.
func (r *Registry) Hurry(d time.Duration) { r.pause = d }
