package api

import "time"

// Plugin is an installed manifest.
type Plugin struct {
	Name        string    `json:"name"`
	Version     string    `json:"version"`
	Runtime     string    `json:"runtime"`
	Enabled     bool      `json:"enabled"`
	Manifest    Manifest  `json:"manifest"`
	InstalledAt time.Time `json:"installed_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// PluginEnable switches a plugin on or off for new VMs.
type PluginEnable struct {
	Enabled bool `json:"enabled"`
}

// Blob is an artifact's bytes in the daemon's store.
type Blob struct {
	Digest string `json:"digest"` // "sha256:" and 64 hex digits
	Size   int64  `json:"size"`   // bytes
}
