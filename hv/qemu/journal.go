package qemu

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// maxJournal is how much of the journal is read, from its end, in bytes.
	maxJournal = 256 << 10
	// maxLog is the size at which vmm.log and the journal are cut off.
	maxLog = 1 << 20
)

// exitOf tells from a QMP event that the machine has ended, and how.
func exitOf(event string, data json.RawMessage) (exit hv.Exit, ended bool) {
	switch event {
	case "GUEST_PANICKED":
		return hv.Exit{Reason: hv.ExitPanic, Detail: "the guest's kernel panicked"}, true
	case "SHUTDOWN":
	default:
		return hv.Exit{}, false
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		d.Reason = "unknown"
	}
	switch d.Reason {
	case "guest-shutdown":
		return hv.Exit{Reason: hv.ExitShutdown, Detail: "the guest powered off"}, true
	case "guest-reset":
		return hv.Exit{Reason: hv.ExitReset, Detail: "the guest reset"}, true
	case "guest-panic":
		return hv.Exit{Reason: hv.ExitPanic, Detail: "the guest's kernel panicked"}, true
	case "host-qmp-quit":
		return hv.Exit{Reason: hv.ExitKilled, Detail: "quit by its monitor"}, true
	}
	return hv.Exit{Reason: hv.ExitCrashed, Detail: fmt.Sprintf("QEMU ended itself: %.64q", d.Reason)}, true
}

// readJournal finds in the journal of a directory how the machine ended. The
// guest's own end comes first: the quit that follows it is only the clean-up.
func readJournal(dir string) (hv.Exit, bool) {
	b := vmm.Tail(filepath.Join(dir, journalFile), maxJournal)
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxJournal+1)
	for sc.Scan() {
		var r response
		if json.Unmarshal(sc.Bytes(), &r) != nil {
			continue // cut off at the front, or by a crash at the end
		}
		if exit, ended := exitOf(r.Event, r.Data); ended {
			return exit, true
		}
	}
	return hv.Exit{}, false
}

// cutLogs bounds the files that QEMU appends to.
func cutLogs(dir string) {
	for _, name := range []string{logFile, journalFile} {
		vmm.CutLog(filepath.Join(dir, name), maxLog)
	}
}
