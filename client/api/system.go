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

// SystemSummary counts what there is.
type SystemSummary struct {
	TotalVMs       int             `json:"total_vms"`
	ByStatus       map[VMState]int `json:"by_status"`
	ByRuntime      map[string]int  `json:"by_runtime"`
	TotalPlugins   int             `json:"total_plugins"`
	EnabledPlugins int             `json:"enabled_plugins"`
}
