package api

import "time"

// VMStats is what one VM uses of its host, at one moment. Counters rise while an
// incarnation lives: what it used between two samples is their difference. What
// could not be measured is absent; Missing says why, where somebody should know.
type VMStats struct {
	VM     string    `json:"vm"`
	ID     string    `json:"id"`
	Status VMState   `json:"status"`
	Time   time.Time `json:"timestamp"`
	// Uptime is since the incarnation ran first, pauses included.
	UptimeSeconds float64 `json:"uptime_seconds"`

	VCPUs int `json:"vcpus"`
	// CPUNanos is the processor time of the whole VMM.
	CPUNanos *int64 `json:"cpu_ns,omitempty"`

	// MemoryGiven is the VM's size, MemoryUsed what its VMM really has of the host's
	// memory: what the guest has touched, and the VMM's own.
	MemoryGiven int64  `json:"memory_given_bytes"`
	MemoryUsed  *int64 `json:"memory_used_bytes,omitempty"`
	// Guest is the memory as the guest sees it.
	Guest *GuestMemory `json:"guest,omitempty"`

	// DiskRead and DiskWrite are what the guest has moved, where the hypervisor
	// counts that, else what the host's disks had to do for it.
	DiskRead  *int64 `json:"disk_read_bytes,omitempty"`
	DiskWrite *int64 `json:"disk_write_bytes,omitempty"`
	// NetReceived and NetSent are the VM's, as it sees them.
	NetReceived *int64 `json:"net_received_bytes,omitempty"`
	NetSent     *int64 `json:"net_sent_bytes,omitempty"`
	// Threads are the VMM's.
	Threads *int `json:"threads,omitempty"`

	Missing []string `json:"missing,omitempty"` // "guest: it did not answer in time"
}

// GuestMemory is a guest's own view, in bytes.
type GuestMemory struct {
	Total     int64 `json:"total_bytes"`     // without what its kernel kept for itself
	Available int64 `json:"available_bytes"` // for new programs, without swapping
	Agent     int64 `json:"agent_bytes"`     // resident in kestrel
	// Kernel is what the guest's kernel has taken since it booted, Workload what all
	// programs but kestrel have; what either could drop, such as cached files, is in
	// neither. Absent where the VM's agent is an older one, which does not tell.
	Kernel   int64 `json:"kernel_bytes,omitempty"`
	Workload int64 `json:"workload_bytes,omitempty"`
}

// StatsSample is what GET /stats sends, a line a sample.
type StatsSample struct {
	Time time.Time `json:"timestamp"`
	VMs  []VMStats `json:"vms"` // by name
}

// StatsQuery says which VMs to measure: those named, or all that have a machine.
type StatsQuery struct {
	VMs []string // names or ids
	// Follow goes on with a sample every Interval.
	Follow   bool
	Interval time.Duration
}

// Bounds of StatsQuery.Interval, and what it is when zero.
const (
	MinStatsInterval     = 100 * time.Millisecond
	MaxStatsInterval     = time.Hour
	DefaultStatsInterval = time.Second
)
