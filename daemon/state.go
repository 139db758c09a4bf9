package daemon

import (
	"errors"
	"fmt"
	"slices"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// moves is the table of allowed moves between states. A state changes only
// through it, in the transaction that records the event.
//
//	pending ──> starting ──> running <──> paused
//	   │         │  ↑ │         │           │
//	   │         │  │ └──────┬──┴───────────┤
//	   │         │  │        ↓              │
//	   │         │  │     stopping          │
//	   ↓         ↓  │        ↓              ↓
//	stopped    failed     stopped        crashed
//
// From stopped, crashed and failed a VM can only be started again. starting
// leads to starting when the daemon was killed before the VMM was there: the
// attempt is undone and another incarnation begun.
func moves() []move {
	return []move{
		{api.VMPending, []api.VMState{api.VMStarting, api.VMStopped}},
		{api.VMStarting, []api.VMState{api.VMStarting, api.VMRunning, api.VMStopping, api.VMStopped, api.VMCrashed, api.VMFailed}},
		{api.VMRunning, []api.VMState{api.VMPaused, api.VMStopping, api.VMStopped, api.VMCrashed}},
		{api.VMPaused, []api.VMState{api.VMRunning, api.VMStopping, api.VMStopped, api.VMCrashed}},
		{api.VMStopping, []api.VMState{api.VMStopped}},
		{api.VMStopped, []api.VMState{api.VMStarting}},
		{api.VMCrashed, []api.VMState{api.VMStarting}},
		{api.VMFailed, []api.VMState{api.VMStarting}},
	}
}

type move struct {
	from api.VMState
	to   []api.VMState
}

// errMove says that a move is not in the table: a fault of the daemon.
var errMove = errors.New("no such move")

// enter moves vm to state to and returns the event of it. A VM that has no
// machine in that state loses what belonged to it.
func enter(vm *row.VM, to api.VMState, reason string) (api.Event, error) {
	from := vm.Status
	table := moves()
	i := slices.IndexFunc(table, func(m move) bool { return m.from == from })
	if i < 0 || !slices.Contains(table[i].to, to) {
		return api.Event{}, fmt.Errorf("VM %s: %w: from %s to %s", vm.ID, errMove, from, to)
	}
	vm.Status, vm.Reason = to, reason
	ev := api.Event{Message: reason}
	switch to {
	case api.VMStarting:
		ev.Type = api.EventVMStarting
	case api.VMRunning:
		ev.Type = api.EventVMRunning
		if from == api.VMPaused {
			ev.Type = api.EventVMResumed
		}
	case api.VMPaused:
		ev.Type = api.EventVMPaused
	case api.VMStopping:
		ev.Type = api.EventVMStopping
	case api.VMStopped:
		ev.Type = api.EventVMStopped
	case api.VMCrashed:
		ev.Type = api.EventVMCrashed
	case api.VMFailed:
		ev.Type = api.EventVMFailed
	default:
		return api.Event{}, fmt.Errorf("VM %s: %w: nothing leads to %s yet", vm.ID, errMove, to)
	}
	if to == api.VMStarting || vm.Ended() {
		vm.WantPaused, vm.Has, vm.SizeError = false, row.Size{}, ""
	}
	if vm.Ended() {
		vm.PID, vm.Record, vm.AgentUp, vm.Initramfs, vm.AgentImage = 0, nil, false, "", ""
	}
	if vm.Ended() || to == api.VMStarting {
		resetHealth(vm)
	}
	return ev, nil
}
