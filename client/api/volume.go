package api

import "time"

// Volume is a named disk that outlives the VMs that use it.
type Volume struct {
	Name      string            `json:"name"`
	SizeMB    int               `json:"size_mb"` // MiB, of its file system
	Used      int64             `json:"used"`    // bytes on the host: the disk is sparse
	Labels    map[string]string `json:"labels,omitempty"`
	VMs       []string          `json:"vms,omitempty"`     // names of those that mount it, sorted
	Running   string            `json:"running,omitempty"` // the one that has it now
	CreatedAt time.Time         `json:"created_at"`
}

// VolumeCreate asks for a new volume.
type VolumeCreate struct {
	Name   string            `json:"name"`
	SizeMB int               `json:"size_mb,omitempty"` // MiB; default DefaultVolumeMB
	Labels map[string]string `json:"labels,omitempty"`
}

// VolumeChange changes a volume. Of its labels those that are named here are set
// or, where they are null, taken away.
type VolumeChange struct {
	Labels map[string]*string `json:"labels"`
}

// Sizes of the disks that the daemon makes, in MiB. They are sparse: what is
// not written takes no space on the host.
const (
	DefaultVolumeMB = 10 << 10
	DefaultRootMB   = 10 << 10
	MinDiskMB       = 16
	MaxDiskMB       = 16 << 20
)

// VolumeMount is a disk mounted in a VM.
type VolumeMount struct {
	// Name is a volume, made at the VM's first start when it is not there.
	// Blob is, instead of a name, the digest of a file system image, which is
	// mounted read-only. Without either it is a disk of the VM's own, which goes
	// with the VM.
	Name   string `json:"name,omitempty"`
	Blob   string `json:"blob,omitempty"`
	Target string `json:"target"` // absolute path in the guest
	// SizeMB is that of a volume made for this mount.
	SizeMB   int  `json:"size_mb,omitempty"`
	ReadOnly bool `json:"read_only,omitempty"`
	// NoCopy leaves a new volume empty. Otherwise it is filled with what the
	// image has at Target, owners and modes included.
	NoCopy bool `json:"no_copy,omitempty"`
}

// Tmpfs is a file system in the guest's memory.
type Tmpfs struct {
	Target string `json:"target"`            // absolute path in the guest
	SizeMB int    `json:"size_mb,omitempty"` // MiB; default: half of the guest's memory
	Mode   string `json:"mode,omitempty"`    // octal; default 1777
}

// Protocols of a Port.
const (
	ProtocolTCP = "tcp" // default
	ProtocolUDP = "udp"
)

// Port is a port of the guest. HostPort publishes it on the host.
type Port struct {
	Name string `json:"name,omitempty"`
	// HostIP is the host's address that it is published on; default: all.
	HostIP string `json:"host_ip,omitempty"`
	// HostPort is the host's port. 0 in a manifest: it is not published; 0 in
	// VMCreate: the lowest free one from FirstHostPort on.
	HostPort int    `json:"host_port,omitempty"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol,omitempty"` // "tcp" (default) or "udp"
}

// FirstHostPort is the lowest host port that the daemon gives by itself: the
// first of the dynamic ports of RFC 6335, section 6.
const FirstHostPort = 49152

func (p Port) protocol() string {
	if p.Protocol == "" {
		return ProtocolTCP
	}
	return p.Protocol
}

// Conflicts reports whether both are published and want the same port of the
// host. A port published on all addresses conflicts with any.
func (p Port) Conflicts(o Port) bool {
	if p.HostPort == 0 || p.HostPort != o.HostPort || p.protocol() != o.protocol() {
		return false
	}
	return p.onAll() || o.onAll() || p.HostIP == o.HostIP
}

// onAll reports whether p is published on all addresses.
func (p Port) onAll() bool { return p.HostIP == "" || p.HostIP == "0.0.0.0" }
