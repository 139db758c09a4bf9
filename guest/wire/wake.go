package wire

import (
	"errors"
	"fmt"
)

// Identity is who the guest is at its boot.
func (c *BootConfig) Identity() Identity {
	return Identity{
		VM: c.VM, Name: c.Name, Incarnation: c.Incarnation, Hostname: c.Hostname, MachineID: c.MachineID, Network: c.Network,
	}
}

// Validate reports the first thing that no guest could act on. Whether a seed is
// needed is known in the guest only.
func (w *Wake) Validate() error {
	if w.Time.Unix() <= 0 {
		return errors.New("time: is missing or before 1970")
	}
	if w.Seed != nil {
		if err := validSeed(w.Seed); err != nil {
			return fmt.Errorf("seed: %w", err)
		}
	}
	if w.Identity != nil {
		if err := w.Identity.validate(); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return nil
}

func (id *Identity) validate() error {
	switch {
	case id.VM == "":
		return errors.New("vm: is empty")
	case id.Incarnation < 1:
		return fmt.Errorf("incarnation: is %d, counts from 1", id.Incarnation)
	case !validHostname(id.Hostname):
		return fmt.Errorf("hostname: %q is not a host name", id.Hostname)
	case !lowerHex(id.MachineID, 32):
		return fmt.Errorf("machine_id: %q is not 32 lower-case hex digits", id.MachineID)
	}
	if id.Network != nil {
		if err := id.Network.validate(); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	return nil
}

func validSeed(seed []byte) error {
	if len(seed) < 32 || len(seed) > 64 {
		return fmt.Errorf("has %d bytes, takes 32 to 64", len(seed))
	}
	return nil
}
