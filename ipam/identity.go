package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"slices"
)

// vsock context ids (vsock(7)): 0 is the hypervisor, 1 is loopback, 2 the host, and 2^32-1 means any.
const (
	// MinCID is the lowest vsock context id that a guest can have.
	MinCID uint32 = 3
	// MaxCID is the highest.
	MaxCID uint32 = 1<<32 - 2
)

// ErrNoCID: every vsock context id is taken.
var ErrNoCID = errors.New("no free vsock context id")

// MAC returns the Ethernet address of the VM with the given identity: locally administered, unicast (IEEE 802, bits 1 and 0
// of the first octet are 1 and 0), the other 46 bits a hash.
//
// Two of 5,000 VMs share one with a probability of 2 in 10 million. The caller records MACs as unique, so that such a pair is
// refused when the second VM is made and not found later as a network that works by turns.
func MAC(id string) net.HardwareAddr {
	h := derive("mac", id)
	mac := net.HardwareAddr(h[:6:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// CID returns the vsock context id for the VM with the given identity, MinCID to MaxCID: a hash of the identity, or, if another VM
// has that one, the lowest that is not in taken. taken may be in any order. The caller stores the result: after a collision it
// depends on what was taken at that moment. Fails with ErrNoCID alone.
func CID(id string, taken []uint32) (uint32, error) {
	h := derive("cid", id)
	cid := MinCID + uint32(binary.BigEndian.Uint64(h[:8])%uint64(MaxCID-MinCID+1))
	if !slices.Contains(taken, cid) {
		return cid, nil
	}
	return lowestCID(taken)
}

// lowestCID returns the lowest context id that is not in taken.
func lowestCID(taken []uint32) (uint32, error) {
	used := newBitmap(min(uint64(len(taken))+1, uint64(MaxCID-MinCID)+1))
	for _, c := range taken {
		if c >= MinCID {
			used.set(uint64(c - MinCID))
		}
	}
	n, ok := used.firstClear()
	if !ok {
		return 0, ErrNoCID
	}
	return MinCID + uint32(n), nil
}

// MachineID returns the content of /etc/machine-id for the VM with the given identity: 32 lower-case hexadecimal digits without
// a newline, in the form of a version 4 UUID as machine-id(5) describes it.
func MachineID(id string) string {
	h := derive("machine-id", id)
	h[6] = h[6]&0x0f | 0x40
	h[8] = h[8]&0x3f | 0x80
	return hex.EncodeToString(h[:16])
}

// derive hashes an identity under a label. The length of the label keeps ("a", "bc") and ("ab", "c") apart. The result is part
// of what users see (addresses in their configuration), so it never changes: see TestIdentityIsStable.
func derive(label, id string) [sha256.Size]byte {
	b := make([]byte, 0, 16+len(label)+len(id))
	b = append(b, "volant."...)
	b = append(b, byte(len(label)))
	b = append(b, label...)
	b = append(b, id...)
	return sha256.Sum256(b)
}
