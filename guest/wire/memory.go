package wire

// PathMemory is GET: Memory.
const PathMemory = "/v1/memory"

// Memory is what memory the guest has, in bytes.
type Memory struct {
	Total     int64 `json:"total"`     // MemTotal of proc_meminfo(5)
	Available int64 `json:"available"` // MemAvailable
	Agent     int64 `json:"agent"`     // what kestrel has resident, VmRSS of proc_pid_status(5)
	// Kernel is what the guest's kernel has taken since it booted and cannot drop:
	// SUnreclaim, KernelStack, PageTables and Percpu of proc_meminfo(5). Workload is
	// what programs other than kestrel cannot drop: AnonPages and Shmem, less
	// kestrel's RssAnon and RssShmem. Absent from older agents.
	Kernel   int64 `json:"kernel,omitempty"`
	Workload int64 `json:"workload,omitempty"`
}
