package wire

import "time"

// Routes of the agent API, HTTP/1.1 over the agent channel. Bodies are JSON
// unless said otherwise; an error is a non-2xx status with an Error body.
const (
	PathHello    = "/v1/hello"    // GET: Hello
	PathStatus   = "/v1/status"   // GET ?after=SEQ&wait=DURATION: Status, when its Seq exceeds SEQ or the wait (<= 60s) is over
	PathLogs     = "/v1/logs"     // GET ?after=SEQ&follow=BOOL: LogEntry values, one JSON object a line
	PathShutdown = "/v1/shutdown" // POST Shutdown: 202, then the guest stops its workload and powers off
	PathWake     = "/v1/wake"     // POST Wake: Woken, once everything in it is done; 409 when it comes too late, or before the guest is up
	PathWorkload = "/v1/workload" // any method, PathWorkload + "/x": proxied to WorkloadConfig.BaseURL + "/x", upgrades included
)

// Error is the body of every answer that is not a success.
type Error struct {
	Message string    `json:"message"`
	Code    ErrorCode `json:"code,omitempty"` // on the routes that say so
}

// Hello is the agent's first word.
type Hello struct {
	Protocol    int    `json:"protocol"`
	Version     string `json:"version"`
	VM          string `json:"vm"`
	Incarnation int    `json:"incarnation"`
	Kernel      string `json:"kernel"` // uname -r
	// Epoch is the last Wake's.
	Epoch uint64 `json:"epoch,omitempty"`
	// Timeline is the boot, step by step, in order.
	Timeline []Step `json:"timeline"`
}

// Step is one named step of the guest's boot. Offsets are since the kernel
// started its clock (CLOCK_BOOTTIME).
type Step struct {
	Name  string        `json:"name"`
	Start time.Duration `json:"start_ns"`
	Took  time.Duration `json:"took_ns"`
	Error string        `json:"error,omitempty"` // a step that failed and was survived
}

// WorkloadState is where the workload stands.
type WorkloadState string

const (
	WorkloadStarting WorkloadState = "starting" // not started yet
	WorkloadRunning  WorkloadState = "running"
	WorkloadBackoff  WorkloadState = "backoff" // exited; will be started again
	WorkloadExited   WorkloadState = "exited"  // exited for good
	WorkloadFailed   WorkloadState = "failed"  // could not be started; see Status.Error
)

// Status is the agent's view of its workload. Seq rises with every change.
type Status struct {
	Seq      uint64        `json:"seq"`
	Workload WorkloadState `json:"workload"`
	PID      int           `json:"pid,omitempty"`
	Restarts int           `json:"restarts"`
	// Streak is how often in a row it has ended soon after its start; 0 again once
	// it has run for a while.
	Streak int `json:"streak,omitempty"`
	// RetryAt is when it will be started again, in WorkloadBackoff only.
	RetryAt *time.Time `json:"retry_at,omitempty"`
	// Exit is the last exit of the workload, nil before the first. One that
	// could not be started at all has the code that shells give for that: 127
	// where the command or its interpreter is missing, 126 where it cannot run.
	Exit *WorkloadExit `json:"exit,omitempty"`
	// Error says why the workload could not be started.
	Error string `json:"error,omitempty"`
	// Healthy is nil before the first verdict and without a health check.
	Healthy *bool `json:"healthy,omitempty"`
	// Failure is the latest probe, if that failed; nil after one that succeeded.
	// Probes that fail while the workload comes up are told of once in an interval.
	Failure *ProbeFailure `json:"failure,omitempty"`
	// Timeline repeats Hello.Timeline and grows while the workload comes up
	// ("workload", "ready").
	Timeline []Step `json:"timeline"`
	// Stopping is set once a shutdown has begun.
	Stopping bool `json:"stopping,omitempty"`
	// Epoch is the last Wake's: a status with a lower one than the host has given
	// is of a guest that does not know yet that it was restored.
	Epoch uint64 `json:"epoch,omitempty"`
}

// ProbeFailure is a probe of a health check that failed.
type ProbeFailure struct {
	// Streak is how many have failed in a row, of those that count: none in the
	// start period, and before the first success one in an interval.
	Streak int `json:"streak"`
	// Output says why, and what the command or the server said, in at most
	// MaxProbeOutput bytes of UTF-8.
	Output string    `json:"output"`
	Time   time.Time `json:"time"`
}

// MaxProbeOutput bounds ProbeFailure.Output, in bytes.
const MaxProbeOutput = 1024

// WorkloadExit is how the workload ended: Code, or Signal when a signal did it.
type WorkloadExit struct {
	Code      int       `json:"code"`             // exit status; 128+n when signal n ended it
	Signal    string    `json:"signal,omitempty"` // "SIGKILL"
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Time      time.Time `json:"time"`
}

// LogStream is which stream of the workload a LogEntry came from.
type LogStream string

const (
	Stdout LogStream = "stdout"
	Stderr LogStream = "stderr"
	Agent  LogStream = "agent" // kestrel's own words
)

// MaxLogLine is the longest Data of one LogEntry, in bytes. Longer lines are
// split; the pieces but the last have Partial set.
const MaxLogLine = 16 << 10

// LogEntry is one line of output. Seq has no gaps within one incarnation; a
// reader that asked for entries after Seq n and receives n+5 first has lost
// four to the ring's bound.
type LogEntry struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Stream  LogStream `json:"stream"`
	Data    string    `json:"data"` // without the newline; invalid UTF-8 is replaced
	Partial bool      `json:"partial,omitempty"`
}

// Shutdown asks the guest to stop its workload and power off.
type Shutdown struct {
	// Grace overrides WorkloadConfig.StopTimeout when positive.
	Grace time.Duration `json:"grace_ns,omitempty"`
}

// Wake tells a guest that it was not running for a while: after a resume with
// Epoch as it was, after a restore with a new one. A guest that was restored is
// not ready before it has answered. With a new epoch it ends every other
// connection of before, whose commands get SIGHUP, and asks the workload anew
// whether it is healthy. A Wake that failed may be repeated.
type Wake struct {
	// Epoch counts the restores that lead to this guest, from 0 at its boot. A
	// Wake whose epoch is older than the guest's is refused with a conflict; one
	// that repeats it only sets the clock, so that an answer that was lost can be
	// asked for again.
	Epoch uint64 `json:"epoch"`
	// Time is the host's wall clock; the guest steps its own to it.
	Time time.Time `json:"time"`
	// Seed is entropy for the guest's random pool, 32 to 64 bytes; required with a
	// new epoch, for all that are restored from one snapshot share its pool.
	Seed []byte `json:"seed,omitempty"`
	// Identity is who the guest is from now on; nil leaves it who it was.
	Identity *Identity `json:"identity,omitempty"`
}

// Identity is what tells a guest from others of the same snapshot, as in
// BootConfig.
type Identity struct {
	VM          string `json:"vm"`
	Name        string `json:"name"`
	Incarnation int    `json:"incarnation"`
	Hostname    string `json:"hostname"`
	MachineID   string `json:"machine_id"`
	// Network is for the NIC that the guest has; its MAC address changes too. nil
	// takes that down.
	Network *NetworkConfig `json:"network,omitempty"`
}

// Woken acknowledges a Wake.
type Woken struct {
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"` // the guest's clock now
	// Steps are what was done, as at boot.
	Steps []Step `json:"steps,omitempty"`
}
