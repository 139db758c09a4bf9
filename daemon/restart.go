package daemon

import (
	"cmp"
	"fmt"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/store/row"
)

// crashLoop is how many ends in a row are a crash loop, of the workload in its
// guest or of the VM.
const crashLoop = 3

// maxRestarts bounds the count that is shown.
const maxRestarts = 1 << 30

// policyOf is a manifest's restart policy.
func policyOf(m *api.Manifest) api.Restart {
	if m.Restart == nil {
		return api.Restart{Policy: api.RestartNever}
	}
	return *m.Restart
}

// guestPolicy is how the guest of a new incarnation restarts its workload, and
// how often: what earlier ones have used up is gone.
func guestPolicy(vm *row.VM, m *api.Manifest) (wire.RestartPolicy, int) {
	switch p := policyOf(m); p.Policy {
	case api.RestartAlways, api.RestartUnlessStopped:
		return wire.RestartAlways, 0
	case api.RestartOnFailure:
		left := p.MaxRetries - vm.RestartCount
		if p.MaxRetries > 0 && left <= 0 {
			return wire.RestartNever, 0
		}
		return wire.RestartOnFailure, max(left, 0)
	}
	return wire.RestartNever, 0
}

// startsAgain reports whether a VM that ended by itself, well or not, is to be
// started again; usedUp says that it is not because it was so often enough.
func startsAgain(vm *row.VM, m *api.Manifest, well bool) (again, usedUp bool) {
	switch p := policyOf(m); p.Policy {
	case api.RestartAlways, api.RestartUnlessStopped:
		return true, false
	case api.RestartOnFailure:
		usedUp = !well && p.MaxRetries > 0 && vm.RestartCount >= p.MaxRetries
		return !well && !usedUp, usedUp
	}
	return false, false
}

// again decides, for a VM that is wanted to run and has ended by itself, whether
// it still is, and when it is started again. why says how it ended.
func (d *Daemon) again(vm *row.VM, m *api.Manifest, well bool, why string) (reason string, evs []api.Event) {
	again, usedUp := startsAgain(vm, m, well)
	if !again {
		vm.Desired = api.DesiredStopped
		if usedUp {
			why += fmt.Sprintf("; it was started again %d times, and is not any more (restart policy %s)", vm.RestartCount, policyOf(m))
		}
		return why, nil
	}
	now := d.cfg.Now().UTC()
	if vm.StartedAt != nil && now.Sub(*vm.StartedAt) > d.t.steady {
		vm.Tries.Streak = 0
	}
	vm.Tries.Streak = min(vm.Tries.Streak+1, maxRestarts)
	vm.Tries.Auto = true
	vm.RestartCount = min(vm.RestartCount+1, maxRestarts)
	pause := d.t.restartMin
	for range min(vm.Tries.Streak-1, 16) {
		pause = min(2*pause, d.t.restartMax)
	}
	at := now.Add(pause).Round(0)
	vm.NextStartAt, vm.AcceptedAt = &at, at
	return why, enterLoop(vm, vm.Tries.Streak, cmp.Or(why, "it ended by itself"))
}

// enterLoop notes that streak ends in a row are a crash loop, unless they are
// too few or it is known.
func enterLoop(vm *row.VM, streak int, why string) []api.Event {
	if vm.CrashLoop || streak < crashLoop {
		return nil
	}
	vm.CrashLoop = true
	return []api.Event{{Type: api.EventVMCrashLoop, Message: fmt.Sprintf("%d times in a row: %s", streak, why)}}
}

// applyRestarts writes into the row what the guest has to tell of its restarts.
func applyRestarts(vm *row.VM, s *wire.Status) []api.Event {
	vm.NextStartAt = nil
	if s.Workload == wire.WorkloadBackoff && s.RetryAt != nil {
		at := guestTime(*s.RetryAt)
		vm.NextStartAt = &at
	}
	why := "the workload ended"
	if vm.Exit != nil {
		why = exitSentence(vm.Exit)
	}
	var evs []api.Event
	if n := min(s.Restarts, maxRestarts) - vm.Tries.Guest; n > 0 {
		vm.Tries.Guest += n
		vm.RestartCount = min(vm.RestartCount+n, maxRestarts)
		evs = append(evs, api.Event{Type: api.EventVMRestarted, Message: fmt.Sprintf("%s, and was started again (restart %d)", why, vm.RestartCount)})
	}
	return append(evs, enterLoop(vm, s.Streak, why)...)
}

// guestTime is a time that a guest tells. What it tells may be beyond what JSON
// can hold (RFC 3339, section 5.6: years of four digits), and is then the zero time.
func guestTime(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// steadyIn is how long a running VM has to run on before its earlier ends are
// forgotten; ok says that there are any. Of a guest that has yet to tell how its
// workload is, it is not known that there are none of late.
func (w *worker) steadyIn(vm *row.VM, s *wire.Status) (wait time.Duration, ok bool) {
	if w.live.agent != nil && s.Seq == 0 || vm.Status != api.VMRunning || vm.StartedAt == nil || vm.Tries.Streak == 0 && !vm.CrashLoop || s.Streak > 0 {
		return 0, false
	}
	return min(vm.StartedAt.Add(w.d.t.steady).Sub(w.d.cfg.Now()), w.d.t.steady), true
}

// settleDown forgets the ends of a VM that has run for a while since.
func (w *worker) settleDown(vm *row.VM, s *wire.Status) []api.Event {
	if wait, ok := w.steadyIn(vm, s); !ok || wait > 0 {
		return nil
	}
	vm.Tries.Streak = 0
	if !vm.CrashLoop {
		return nil
	}
	vm.CrashLoop = false
	return []api.Event{{Type: api.EventVMSteady}}
}

// beginAnew forgets all earlier ends: the operator says start.
func beginAnew(vm *row.VM) {
	vm.RestartCount, vm.CrashLoop, vm.NextStartAt = 0, false, nil
	vm.Tries.Auto, vm.Tries.Streak = false, 0
}

// pauseBefore is how long to wait before the next start. It is counted from the
// first look on a clock that does not jump: a host's clock that is set back by a
// day would make a day of it.
func (w *worker) pauseBefore(vm *row.VM) time.Duration {
	if vm.NextStartAt == nil {
		return 0
	}
	if !vm.NextStartAt.Equal(w.waitsFor) {
		w.waitsFor = *vm.NextStartAt
		w.due = time.Now().Add(min(vm.NextStartAt.Sub(w.d.cfg.Now()), w.d.t.restartMax))
	}
	return time.Until(w.due)
}
