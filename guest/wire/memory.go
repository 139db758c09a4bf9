package wire

// PathMemory is GET: Memory.
const PathMemory = "/v1/memory"

// Memory is what memory the guest has, in bytes.
type Memory struct {
	Total     int64 `json:"total"`     // MemTotal of proc_meminfo(5)
	Available int64 `json:"available"` // MemAvailable
	Agent     int64 `json:"agent"`     // what kestrel has resident, VmRSS of proc_pid_status(5)
}
