// Package row holds what the store gives and takes: its row types and its
// errors. It stands apart from package store so that the daemon can speak of
// rows without knowing SQL; it opens nothing and imports client/api only.
package row

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/volantvm/volant/client/api"
)

// VM is all that is remembered of one VM: what the API shows, and what only
// the daemon needs.
type VM struct {
	api.VM

	// Manifest is the digest of the manifest that the VM was created with. The
	// plugin may have been upgraded since; the VM stays what it is.
	Manifest      string
	PluginVersion string
	// WantKernel is the kernel asked for by name; "" is the default kernel of
	// the moment. VM.Kernel is the one that was booted last.
	WantKernel string
	// Env is laid over the manifest's. It may hold secrets.
	Env map[string]string
	// Attach is api.VMCreate.Attach.
	Attach bool
	// Vsock is set for a VM without a NIC.
	Vsock bool

	// Stop says how the VM is to be stopped, for a wish that is not yet
	// fulfilled.
	Stop api.VMStop
	// Replace is the incarnation that a restart asked to end, 0 for none; see
	// Replaced.
	Replace int
	// Has is what the machine of the incarnation was given, and may grow to; zero
	// before it is there, and where that is not known. CPUCores and MemoryMB are
	// what it is to have.
	Has Size
	// SizeError says why the machine did not become what it was last asked to be.
	SizeError string
	// SizeBy is who asked for the size that the machine does not have yet.
	SizeBy string
	// WantPaused is the wish that the incarnation stands still. It ends with it.
	WantPaused bool
	// Tries is what lies behind api.VM.RestartCount, CrashLoop and NextStartAt.
	Tries Tries
	// AcceptedAt is when the wish to start was accepted, the origin of the
	// boot timeline.
	AcceptedAt time.Time

	// Next is the newest version of the configuration while the VM, which runs,
	// has not taken it over; nil otherwise.
	Next *NextConfig

	// Record is the driver's record of the current incarnation, an hv.Record
	// in JSON; nil before Launch returned.
	Record json.RawMessage
	// BootID is the host's boot id when the incarnation was begun.
	BootID string
	// Initramfs is the assembled image that the incarnation boots, a file name
	// in the cache.
	Initramfs string
	// AgentImage is the disk that its agent is on, a file name likewise; "" for an
	// agent that is in the initramfs.
	AgentImage string
}

// Tries counts automatic restarts.
type Tries struct {
	// Auto is set while the present start, or the next one, is not the operator's.
	Auto bool `json:"auto,omitempty"`
	// Streak is how often in a row the VM has ended by itself without having run
	// for a while.
	Streak int `json:"streak,omitempty"`
	// Guest is how many restarts by the guest of the present incarnation
	// RestartCount holds.
	Guest int `json:"guest,omitempty"`
}

// Size is the size of a machine, and what it may become while it runs.
type Size struct {
	VCPUs, MemoryMiB       int
	MaxVCPUs, MaxMemoryMiB int
}

// NextConfig is what the next start of a VM takes over.
type NextConfig struct {
	Config   api.VMConfig `json:"config"`
	Manifest string       `json:"manifest"` // digest
	Probed   bool         `json:"probed,omitempty"`
}

// TakeNext puts the newest version of the configuration into effect.
func (v *VM) TakeNext() {
	n := v.Next
	if n == nil {
		return
	}
	c := n.Config
	v.CPUCores, v.MemoryMB, v.KernelCmdline, v.WantKernel = c.CPUCores, c.MemoryMB, c.KernelCmdline, c.Kernel
	v.Env, v.Ports, v.TTY, v.Stdin, v.Restart = c.Env, c.Ports, c.TTY, c.Stdin, c.Restart
	v.Manifest, v.HealthCheck = n.Manifest, n.Probed
	v.Next = nil
}

// SetTTL makes the VM end so long after its creation, 0 for never.
func (v *VM) SetTTL(seconds int64) {
	v.TTLSeconds, v.ExpiresAt = seconds, nil
	if seconds > 0 {
		t := v.CreatedAt.Add(time.Duration(seconds) * time.Second)
		v.ExpiresAt = &t
	}
}

// Expiry is when a VM is to be deleted.
type Expiry struct {
	VM string // id
	At time.Time
}

// ConfigChange is a further version of a VM's configuration.
type ConfigChange struct {
	// First is version 1, which is written with the second.
	First api.VMConfigVersion
	// Version is the new one; its time is filled in.
	Version api.VMConfigVersion
	// Manifest is what the VM runs with it, and Blobs the digests that it names.
	Manifest api.Manifest
	Blobs    []string
	Probed   bool // somebody asks how the workload is
	// Check is given the host's ports that other VMs have.
	Check func(taken []Published) error
	// AtOnce says that no start is needed for it to be in effect.
	AtOnce bool
	// OfVM says that the request is answered with the VM, not with the version.
	OfVM bool
}

// Settled reports whether there is nothing to be done for the VM: it has ended
// and is wanted to stay so.
func (v *VM) Settled() bool { return v.Desired == api.DesiredStopped && v.Ended() }

// Ended reports whether the VM has no machine and none is being made.
func (v *VM) Ended() bool {
	switch v.Status {
	case api.VMStopped, api.VMCrashed, api.VMFailed:
		return true
	}
	return false
}

// NewVM is a VM to be stored, and what chooses of it what nobody else may have.
type NewVM struct {
	VM VM
	// NamePrefix is what a VM whose Name is empty is called by: the prefix, a
	// hyphen and the lowest free number.
	NamePrefix string
	// Manifest is what the VM runs, and Blobs the digests that it names. They are
	// kept once for all VMs that have the same.
	Manifest api.Manifest
	Blobs    []string
	// Lease chooses the address from those that are taken; nil gives none.
	Lease func(taken []netip.Addr) (netip.Addr, error)
	// Publish chooses VM.Ports from those that are taken; nil leaves VM.Ports,
	// of which then none is published. The protocol of each is set, and the
	// host's address empty for all.
	Publish func(taken []Published) ([]api.Port, error)
}

// Published is a port of the host that a VM has.
type Published struct {
	VM   string // its name
	Port api.Port
}

// Image is an image and the sizes of its forms, in bytes.
type Image struct {
	api.Image
	DiskSize, InitramfsSize int64
}

// States of a volume.
const (
	VolumeNew      = "new"      // its disk was not made yet
	VolumeReady    = "ready"    // its disk was made
	VolumeRemoving = "removing" // its disk is to go, or has gone
)

// Volume is a volume; Used is for whoever can see the disk.
type Volume struct {
	api.Volume
	State string
}

// Plugin is an installed plugin and the digest of its manifest.
type Plugin struct {
	api.Plugin
	Digest string // "sha256:" and 64 hex digits, of the manifest as stored
}

// EventPage is a piece of the journal, and how far the journal reached when it
// was read.
type EventPage struct {
	Events         []api.Event // oldest first
	Oldest, Newest uint64      // sequence numbers, 0 for an empty journal
}

// Counts is how many VMs there are.
type Counts struct {
	ByStatus  map[api.VMState]int
	ByRuntime map[string]int
}

// Replaced reports whether a restart asked for the present incarnation to end
// although the VM is wanted to run.
func (v *VM) Replaced() bool { return v.Replace > 0 && v.Incarnation <= v.Replace }
