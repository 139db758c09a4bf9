package api

import "time"

// VMState is where a VM stands. The allowed moves are in daemon/state.go.
type VMState string

const (
	VMPending  VMState = "pending"  // accepted; nothing was started yet
	VMStarting VMState = "starting" // being prepared and booted, until its agent answers
	VMRunning  VMState = "running"
	VMPaused   VMState = "paused"
	VMStopping VMState = "stopping"
	VMStopped  VMState = "stopped" // ended as asked, or its workload exited with status 0
	VMCrashed  VMState = "crashed" // ended by itself: panic, reset, killed, workload failure
	VMFailed   VMState = "failed"  // could not be started; Reason says why
)

// VMStates returns every state, in the order of a VM's life.
func VMStates() []VMState {
	return []VMState{VMPending, VMStarting, VMRunning, VMPaused, VMStopping, VMStopped, VMCrashed, VMFailed}
}

// VMDesired is what the operator wants of a VM; the daemon works towards it.
type VMDesired string

const (
	DesiredRunning VMDesired = "running"
	DesiredStopped VMDesired = "stopped"
	DesiredAbsent  VMDesired = "absent" // being deleted
)

// VM is one virtual machine.
type VM struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Plugin  string    `json:"plugin,omitempty"` // empty for a VM made from an image
	Image   string    `json:"image,omitempty"`  // the reference that it was made from
	ImageID string    `json:"image_id,omitempty"`
	Runtime string    `json:"runtime"`
	Status  VMState   `json:"status"`
	Desired VMDesired `json:"desired"`
	// Reason says why the VM crashed or failed, why it is paused when nobody asked
	// for that, what one that runs lacks until it is restarted, or that nobody knows
	// how one that has stopped came to it; empty otherwise.
	Reason string `json:"reason,omitempty"`
	// AgentUp is set while the agent in the guest answers, Healthy once the
	// workload passed its probe. Both are flags beside Status, not states.
	AgentUp bool `json:"agent_up"`
	Healthy bool `json:"healthy"`
	// HealthCheck is set for a VM whose workload is probed at all; without it
	// Healthy says nothing.
	HealthCheck bool `json:"health_check,omitempty"`
	// Health says more than Healthy.
	Health VMHealth `json:"health"`
	// Restart is when it is started again by itself, RestartCount how often it
	// was since the operator last started it: its workload by its guest, and it
	// itself.
	Restart      *Restart `json:"restart,omitempty"`
	RestartCount int      `json:"restart_count,omitempty"`
	// CrashLoop is set while it ends again and again soon after its start.
	CrashLoop bool `json:"crash_loop,omitempty"`
	// NextStartAt is when it, or the workload in it, is started again; nil when
	// that is under way or not to be.
	NextStartAt *time.Time   `json:"next_start_at,omitempty"`
	DependsOn   []Dependency `json:"depends_on,omitempty"`
	// WaitingFor says, while it is to be started, what has to be up before and is
	// not: "VM db to be healthy: it is starting".
	WaitingFor string `json:"waiting_for,omitempty"`
	// Exit is the workload's last exit in this incarnation.
	Exit *VMExit `json:"exit,omitempty"`

	IPAddress  string `json:"ip_address,omitempty"` // "192.168.127.2"; kept for the VM's life
	Ports      []Port `json:"ports,omitempty"`      // those of the guest; published where HostPort is set
	MACAddress string `json:"mac_address,omitempty"`
	VsockCID   uint32 `json:"vsock_cid,omitempty"`

	CPUCores      int               `json:"cpu_cores"`
	MemoryMB      int               `json:"memory_mb"` // MiB, under the name earlier clients know
	KernelCmdline string            `json:"kernel_cmdline,omitempty"`
	Kernel        string            `json:"kernel,omitempty"`      // name of the kernel it boots
	Hypervisor    string            `json:"hypervisor,omitempty"`  // driver of the current incarnation
	Accel         string            `json:"accel,omitempty"`       // "kvm" or "tcg"
	PID           int               `json:"pid,omitempty"`         // of the VMM
	Incarnation   int               `json:"incarnation"`           // how often it was started
	AutoRemove    bool              `json:"auto_remove,omitempty"` // it is deleted once it has ended
	TTY           bool              `json:"tty,omitempty"`         // as in Workload, for those who attach
	Stdin         bool              `json:"stdin,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	// ConfigVersion is the newest version of its configuration, ConfigPending set
	// while that waits for the next start.
	ConfigVersion int  `json:"config_version,omitempty"`
	ConfigPending bool `json:"config_pending,omitempty"`

	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"updated_at"`
	StartedAt *time.Time `json:"started_at,omitempty"`
	// ExpiresAt is when it is deleted: TTLSeconds after its creation.
	TTLSeconds int64      `json:"ttl_seconds,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
}

// VMExit is how a workload ended.
type VMExit struct {
	Code      int       `json:"code"` // exit status; 128+n when signal n ended it
	Signal    string    `json:"signal,omitempty"`
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Time      time.Time `json:"time"`
}

// VMCreate asks for a new VM. What is left out comes from the plugin's
// manifest or from the image, then from the defaults. Lists that are given
// replace those of the plugin or image, except that Volumes, Tmpfs and Ports are added to them.
type VMCreate struct {
	// Name is the VM's; "" for one of the daemon's choice, made of the plugin's or
	// image's name and the lowest free number.
	Name   string `json:"name,omitempty"`
	Plugin string `json:"plugin,omitempty"` // either this
	Image  string `json:"image,omitempty"`  // or this: reference or ID of an image that the daemon holds
	// Form is how an image is booted.
	Form          ImageForm         `json:"form,omitempty"`
	Runtime       string            `json:"runtime,omitempty"` // earlier clients send it; must match the plugin's when given
	CPUCores      int               `json:"cpu_cores,omitempty"`
	MemoryMB      int               `json:"memory_mb,omitempty"` // MiB
	KernelCmdline string            `json:"kernel_cmdline,omitempty"`
	Kernel        string            `json:"kernel,omitempty"`
	Hypervisor    string            `json:"hypervisor,omitempty"` // as Manifest.Hypervisor
	IPAddress     string            `json:"ip_address,omitempty"` // pins one; default: the lowest free
	Env           map[string]string `json:"env,omitempty"`        // over the manifest's
	Labels        map[string]string `json:"labels,omitempty"`
	// Stopped creates the VM without starting it.
	Stopped bool `json:"stopped,omitempty"`

	// Entrypoint and Command are Docker's: an Entrypoint that is given drops
	// the image's Cmd too. nil leaves what there is; an empty list clears it.
	Entrypoint  *[]string `json:"entrypoint,omitempty"`
	Command     *[]string `json:"command,omitempty"`
	Workdir     string    `json:"workdir,omitempty"`
	User        string    `json:"user,omitempty"`
	StopSignal  string    `json:"stop_signal,omitempty"`
	StopTimeout int       `json:"stop_timeout_ms,omitempty"` // milliseconds
	TTY         bool      `json:"tty,omitempty"`
	Stdin       bool      `json:"stdin,omitempty"`
	Init        bool      `json:"init,omitempty"` // as Workload.Init

	Hostname    string        `json:"hostname,omitempty"`
	NetworkMode string        `json:"network_mode,omitempty"` // as Network.Mode
	Root        *Root         `json:"root,omitempty"`
	Volumes     []VolumeMount `json:"volumes,omitempty"`
	Tmpfs       []Tmpfs       `json:"tmpfs,omitempty"`
	Ports       []Port        `json:"ports,omitempty"`
	// HealthCheck may say only how often to ask, or Disable what there is.
	HealthCheck *HealthCheck `json:"health_check,omitempty"`
	Restart     *Restart     `json:"restart,omitempty"`
	DependsOn   []Dependency `json:"depends_on,omitempty"`
	AutoRemove  bool         `json:"auto_remove,omitempty"`
	// TTLSeconds is after how long the VM is deleted, running or not, counted from
	// its creation; 0 for never.
	TTLSeconds int64 `json:"ttl_seconds,omitempty"`
	// Attach says that the client is about to attach to the workload and wants
	// all that it writes: the VM's first start waits a while for the client
	// rather than lose the beginning.
	Attach bool `json:"attach,omitempty"`
	// Wait is what whoever asks is going to wait for (the query parameter wait): a
	// VM that could never become so is refused before it is made.
	Wait VMWait `json:"-"`
}

// VMScale changes the size of a VM. What is 0 stays as it is.
type VMScale struct {
	CPUCores int `json:"cpu_cores,omitempty"`
	MemoryMB int `json:"memory_mb,omitempty"` // MiB
	// Restart allows a VM to be restarted for it, where its hypervisor cannot change
	// it while it runs.
	Restart bool   `json:"restart,omitempty"`
	By      string `json:"-"` // who asks, for the history of the configuration
}

// VMFilter selects VMs. Zero values select all.
type VMFilter struct {
	Status []VMState
	Plugin string
	Query  string // substring of the name
	// Selector looks at the VMs' labels.
	Selector Selector
	Limit    int // 0: no limit
	Offset   int
	Sort     string // "name" (default), "created_at", "updated_at", "status"
	Desc     bool
}

// VMWait is what a caller waits for; see the wait query parameter of the
// mutating VM routes.
type VMWait string

const (
	WaitNone    VMWait = ""
	WaitRunning VMWait = "running" // the agent answers
	WaitHealthy VMWait = "healthy" // the workload answers too
	WaitPaused  VMWait = "paused"  // the VM stands still
	WaitStopped VMWait = "stopped" // the VM has ended
	WaitDeleted VMWait = "deleted" // the VM is no more
)

// VMStop says how to stop a VM.
type VMStop struct {
	// GraceSeconds is how long the workload may take to end, at most an hour, 0 for
	// the workload's own stop timeout. The VM is killed when the grace is over.
	GraceSeconds int `json:"grace_seconds,omitempty"`
	// Force kills the VM at once.
	Force bool `json:"force,omitempty"`
}

// Validate checks how to stop. Its error has CodeInvalid.
func (s VMStop) Validate() error {
	const maxGrace = 60 * 60
	if s.GraceSeconds < 0 || s.GraceSeconds > maxGrace {
		return fieldErr("grace_seconds", "is %d; give 0 to %d", s.GraceSeconds, maxGrace)
	}
	return nil
}

// TimelineStep is one step of a VM's way from the request to a healthy
// workload, measured on the host's clock.
type TimelineStep struct {
	Where   string  `json:"where"` // "host" or "guest"
	Name    string  `json:"name"`
	StartMS float64 `json:"start_ms"` // since the start was accepted
	TookMS  float64 `json:"took_ms"`
	Error   string  `json:"error,omitempty"`
}

// Timeline is the current incarnation's boot.
type Timeline struct {
	VM          string         `json:"vm"`
	Incarnation int            `json:"incarnation"`
	Steps       []TimelineStep `json:"steps"`
}
