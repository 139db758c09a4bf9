package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// Every pair of states is either in this picture or refused.
func TestMoves(t *testing.T) {
	allowed := map[api.VMState]string{
		api.VMPending:  "starting stopped",
		api.VMStarting: "crashed failed running starting stopped stopping",
		api.VMRunning:  "crashed paused stopped stopping",
		api.VMPaused:   "crashed running stopped stopping",
		api.VMStopping: "stopped",
		api.VMStopped:  "starting",
		api.VMCrashed:  "starting",
		api.VMFailed:   "starting",
	}
	states := api.VMStates()
	if len(allowed) != len(states) || len(moves()) != len(states) {
		t.Fatalf("%d states, %d in the test, %d in the table", len(states), len(allowed), len(moves()))
	}
	for _, m := range moves() {
		var to []string
		for _, s := range m.to {
			to = append(to, string(s))
		}
		slices.Sort(to)
		if got := strings.Join(to, " "); got != allowed[m.from] {
			t.Errorf("from %s to %q, want %q", m.from, got, allowed[m.from])
		}
	}
	for _, from := range states {
		for _, to := range states {
			vm := row.VM{VM: api.VM{Status: from, Reason: "old", PID: 9, AgentUp: true, Healthy: true}, Record: []byte("{}"), Initramfs: "x", WantPaused: true}
			ev, err := enter(&vm, to, "new")
			if want := slices.Contains(strings.Fields(allowed[from]), string(to)); (err == nil) != want {
				t.Errorf("enter(%s, %s) = %v, allowed: %v", from, to, err, want)
			}
			if err != nil {
				continue
			}
			want := "VM_" + strings.ToUpper(string(to))
			if from == api.VMPaused && to == api.VMRunning {
				want = "VM_RESUMED"
			}
			if vm.Status != to || vm.Reason != "new" || string(ev.Type) != want {
				t.Errorf("enter(%s, %s): status %s, reason %q, event %s, want %s", from, to, vm.Status, vm.Reason, ev.Type, want)
			}
			if keep := !vm.Ended() && to != api.VMStarting; vm.WantPaused != keep {
				t.Errorf("enter(%s, %s): wanted paused: %v", from, to, vm.WantPaused)
			}
			if gone := vm.PID == 0 && vm.Record == nil && !vm.AgentUp && !vm.Healthy && vm.Initramfs == ""; gone != vm.Ended() {
				t.Errorf("enter(%s, %s): what belongs to a machine is gone: %v", from, to, gone)
			}
		}
	}
}
