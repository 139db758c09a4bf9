package api

import "time"

// LogName names one of a VM's logs.
type LogName string

const (
	LogWorkload LogName = "workload" // what the workload writes, among the agent's own words
	LogConsole  LogName = "console"  // what the guest's kernel and /init write on the first serial port
	LogVMM      LogName = "vmm"      // what the hypervisor process says, of the last two starts
)

// LogNames returns every name, the default first.
func LogNames() []LogName { return []LogName{LogWorkload, LogConsole, LogVMM} }

// Values of LogEntry.Stream.
const (
	StreamStdout  = "stdout"
	StreamStderr  = "stderr"
	StreamAgent   = "agent" // the agent's own words
	StreamConsole = "console"
	StreamVMM     = "vmm"
	// StreamVolant is of entries that no guest wrote: they tell what the log
	// lacks.
	StreamVolant = "volant"
)

// LogEntry is one line of a log. The numbers of the workload's log are lasting,
// go on from one start of the VM to the next, and have no gaps: where lines are
// missing there is an entry that says so. Those of the other logs are counted
// from the oldest line that is kept.
type LogEntry struct {
	Seq uint64 `json:"seq"`
	// Incarnation is the start of the VM that the line is of; the console's
	// lines do not tell.
	Incarnation int       `json:"incarnation,omitempty"`
	Time        time.Time `json:"time,omitzero"` // by the guest's clock; only the workload's log has it
	Stream      string    `json:"stream"`
	Line        string    `json:"line"`
	// Partial says that the line goes on in the next entry of its stream: it
	// was too long for one, or its end is not written yet.
	Partial bool `json:"partial,omitempty"`
	// Lost is how many lines are missing here, where that is known; Line says
	// it in words. It is more than the numbers that are left out where lines are
	// gone that told themselves of lost ones.
	Lost uint64 `json:"lost,omitempty"`
}

// TailNone is the LogQuery.Tail that leaves out all that is there already.
const TailNone = -1

// LogQuery selects log lines.
type LogQuery struct {
	Log   LogName   // "" for LogWorkload
	After uint64    // entries with a greater Seq
	Tail  int       // only the last n; 0 for all that are kept
	Since time.Time // only lines of this time and later; LogWorkload only
	Until time.Time // only lines before this time, when following ends too; LogWorkload only
	// Follow goes on with new lines, across restarts of the VM, until it has
	// ended for good.
	Follow bool
}
