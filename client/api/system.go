package api

// SystemInfo says what this daemon is and runs on.
type SystemInfo struct {
	Status     string     `json:"status"` // "ok"
	Version    string     `json:"version"`
	Listen     string     `json:"api_listen_addr"` // "unix:/run/volant/volantd.sock"
	Bridge     string     `json:"bridge"`
	Subnet     string     `json:"subnet"`  // "192.168.127.0/24"
	HostIP     string     `json:"host_ip"` // the bridge's own address, the guests' gateway
	DataDir    string     `json:"data_dir"`
	RuntimeDir string     `json:"runtime_dir"`
	Hypervisor Hypervisor `json:"hypervisor"`
}

// Hypervisor is the driver that new VMs get.
type Hypervisor struct {
	Driver  string `json:"driver"`
	Version string `json:"version"`
	Binary  string `json:"binary"`
	Accel   string `json:"accel"`
	Channel string `json:"channel"`
	Notice  string `json:"notice,omitempty"` // what an operator must know, such as that isolation is not by hardware
	Error   string `json:"error,omitempty"`  // why none is available
}

// Doctor is what volantd finds when it looks what can run VMs here.
type Doctor struct {
	Hypervisors []HypervisorCheck `json:"hypervisors"` // the one of new VMs first
	Limits      LimitsCheck       `json:"limits"`
}

// LimitsCheck is what keeps a VM from taking more of its host than it was given.
type LimitsCheck struct {
	Cgroups string `json:"cgroups"`           // "v2 (cpu, io, memory, pids)", "none"
	Problem string `json:"problem,omitempty"` // what VMs run without, and why
}

// HypervisorCheck is what is to be said of one hypervisor.
type HypervisorCheck struct {
	Name    string `json:"name"`
	Chosen  bool   `json:"chosen"`            // new VMs get it
	Works   bool   `json:"works"`             // it can run VMs here
	Version string `json:"version,omitempty"` // of its binary
	Binary  string `json:"binary,omitempty"`
	Accel   string `json:"accel,omitempty"`
	Notice  string `json:"notice,omitempty"`  // what an operator must know
	Problem string `json:"problem,omitempty"` // why it does not work, and what to do about it
	// Features is what it can do on this host, where it works.
	Features []Feature `json:"features,omitempty"`
}

// Feature is something that not every hypervisor can do everywhere.
type Feature struct {
	Name  string `json:"name"` // "snapshot", "template", "resize-cpu", "pmem", ...
	Works bool   `json:"works"`
	Needs string `json:"needs,omitempty"` // what it takes to have it
}

// SystemSummary counts what there is.
type SystemSummary struct {
	TotalVMs       int             `json:"total_vms"`
	ByStatus       map[VMState]int `json:"by_status"`
	ByRuntime      map[string]int  `json:"by_runtime"`
	TotalPlugins   int             `json:"total_plugins"`
	EnabledPlugins int             `json:"enabled_plugins"`
}
