package api

import "time"

// EventType names what happened. The list only grows.
type EventType string

const (
	EventVMCreated   EventType = "VM_CREATED"
	EventVMStarting  EventType = "VM_STARTING"
	EventVMRunning   EventType = "VM_RUNNING" // the agent answers; Message says what the boot took, by its longer steps
	EventVMHealthy   EventType = "VM_HEALTHY" // the workload answers
	EventVMUnhealthy EventType = "VM_UNHEALTHY"
	EventVMPaused    EventType = "VM_PAUSED"
	EventVMResumed   EventType = "VM_RESUMED"
	EventVMScaled    EventType = "VM_SCALED" // Message says from what to what
	EventVMStopping  EventType = "VM_STOPPING"
	EventVMStopped   EventType = "VM_STOPPED"
	EventVMCrashed   EventType = "VM_CRASHED"
	EventVMFailed    EventType = "VM_FAILED"
	EventVMDeleted   EventType = "VM_DELETED"
	EventVMAdopted   EventType = "VM_ADOPTED"    // found running after the daemon restarted
	EventVMRestarted EventType = "VM_RESTARTED"  // the guest has started the workload again
	EventVMCrashLoop EventType = "VM_CRASH_LOOP" // it ended again and again, soon after its start
	EventVMSteady    EventType = "VM_STEADY"     // it has run for a while after that
	// EventVMDisconnected: its network device was removed under it by somebody
	// else; it has no network until it is started again. EventVMImpaired: so was
	// something else that only a start gives back.
	EventVMDisconnected EventType = "VM_DISCONNECTED"
	EventVMImpaired     EventType = "VM_IMPAIRED"
	EventVMWaiting      EventType = "VM_WAITING" // its start waits for another VM

	EventVMConfigured EventType = "VM_CONFIGURED" // its configuration has a new version
	EventVMRenamed    EventType = "VM_RENAMED"    // OldName says what it was called
	EventVMExpired    EventType = "VM_EXPIRED"    // its time is over: it is being deleted

	EventPluginInstalled EventType = "PLUGIN_INSTALLED"
	EventPluginRemoved   EventType = "PLUGIN_REMOVED"
	EventPluginEnabled   EventType = "PLUGIN_ENABLED"
	EventPluginDisabled  EventType = "PLUGIN_DISABLED"
	EventKernelImported  EventType = "KERNEL_IMPORTED"
	EventKernelRemoved   EventType = "KERNEL_REMOVED"
	EventKernelDefault   EventType = "KERNEL_DEFAULT"
	EventImagePulled     EventType = "IMAGE_PULLED"  // or loaded; an image, a form of it, or a reference is new
	EventImageRemoved    EventType = "IMAGE_REMOVED" // a reference, or the image with its last one
	EventVolumeCreated   EventType = "VOLUME_CREATED"
	EventVolumeRemoved   EventType = "VOLUME_REMOVED"
	EventVolumeLabeled   EventType = "VOLUME_LABELED"
)

// EventsLost is no entry of the journal: it stands in a stream for entries that
// the reader asked for but that are not kept any more. Event.Lost says how many,
// of whatever kind, and Seq is that of the last of them.
const EventsLost EventType = "EVENTS_LOST"

// EventTypes returns every type of the journal, in the order of their declaration.
func EventTypes() []EventType {
	return []EventType{
		EventVMCreated, EventVMStarting, EventVMRunning, EventVMHealthy, EventVMUnhealthy, EventVMPaused, EventVMResumed, EventVMScaled, EventVMStopping,
		EventVMStopped, EventVMCrashed, EventVMFailed, EventVMDeleted, EventVMAdopted, EventVMRestarted, EventVMCrashLoop, EventVMSteady, EventVMDisconnected, EventVMImpaired, EventVMWaiting,
		EventVMConfigured, EventVMRenamed, EventVMExpired,
		EventPluginInstalled, EventPluginRemoved, EventPluginEnabled, EventPluginDisabled,
		EventKernelImported, EventKernelRemoved, EventKernelDefault,
		EventImagePulled, EventImageRemoved, EventVolumeCreated, EventVolumeRemoved, EventVolumeLabeled,
	}
}

// Event is one entry of the journal, written in the transaction of the change
// that it tells of.
type Event struct {
	Seq       uint64    `json:"seq"` // rises by one with each event
	Time      time.Time `json:"timestamp"`
	Type      EventType `json:"type"`
	Name      string    `json:"name"`               // of the VM, plugin, kernel or volume; a reference or ID of the image
	OldName   string    `json:"old_name,omitempty"` // of EventVMRenamed
	VMID      string    `json:"vm_id,omitempty"`    // when it is about a VM
	Status    VMState   `json:"status,omitempty"`
	IPAddress string    `json:"ip_address,omitempty"`
	PID       int       `json:"pid,omitempty"`
	Message   string    `json:"message,omitempty"`
	Lost      uint64    `json:"lost,omitempty"` // of EventsLost
	// Labels are those that it had then.
	Labels map[string]string `json:"labels,omitempty"`
}

// EventFilter selects events.
type EventFilter struct {
	After uint64 // events with a greater Seq
	VM    string // name of a VM; empty for all
	Name  string // of whatever they are about; empty for all
	Types []EventType
	// Selector looks at the labels that what an event is about had at the time.
	Selector Selector
	// Since and Until select events of that time and later, and of earlier than
	// that time, by the daemon's clock; zero for no limit.
	Since, Until time.Time
}
