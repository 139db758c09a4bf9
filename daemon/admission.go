package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// admit says whether a VM may have so much memory beside what all others that
// run, or are to, have been promised: refusal is nil or an *api.Error with
// CodeExhausted. Until release is called nobody else is admitted, so that two who
// ask at once do not both get the last of it; the caller has stored the wish by
// then. A VM that was admitted stays so until it has ended: one that is restarted
// after a crash, or taken up after a reboot, is not asked again.
func (d *Daemon) admit(ctx context.Context, id string, wantMiB int) (refusal error, release func(), err error) { //nolint:revive // the refusal is a result, not the call's failure
	if d.cfg.MemoryOvercommit == 0 {
		return nil, func() {}, nil
	}
	select {
	case d.admission <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	release = sync.OnceFunc(func() { <-d.admission })
	budget := d.memoryBudget()
	sum, err := d.store.PromisedMemory(ctx, id)
	if err != nil {
		release()
		return nil, nil, err
	}
	if wantMiB <= budget-sum {
		return nil, release, nil
	}
	e := api.Errorf(api.CodeExhausted, "memory: %d MiB are wanted, but of the %d MiB that this host has for VMs %d are taken", wantMiB, budget, sum)
	if wantMiB > budget {
		return e.WithHint("ask for less, or let volantd promise more than there is: --memory-overcommit, --memory-reserve-mb"), release, nil
	}
	return e.WithHint("%sstop or scale down VMs, or let volantd promise more than there is: --memory-overcommit", d.largest(ctx, id)), release, nil
}

// memoryBudget is how much memory all VMs may have together, in MiB.
func (d *Daemon) memoryBudget() int {
	return max(0, int(float64(d.cfg.HostMemoryMiB)*d.cfg.MemoryOvercommit)-d.cfg.MemoryReserveMiB)
}

// largest names who has the most memory, for a hint.
func (d *Daemon) largest(ctx context.Context, but string) string {
	vms, err := d.store.ActiveVMs(ctx)
	if err != nil {
		return "" // the hint is a courtesy
	}
	vms = slices.DeleteFunc(vms, func(vm row.VM) bool { return vm.ID == but })
	slices.SortFunc(vms, func(a, b row.VM) int {
		if a.MemoryMB != b.MemoryMB {
			return b.MemoryMB - a.MemoryMB
		}
		return strings.Compare(a.Name, b.Name)
	})
	const shown = 3
	var words []string
	for _, vm := range vms[:min(shown, len(vms))] {
		words = append(words, fmt.Sprintf("%s has %d", vm.Name, vm.MemoryMB))
	}
	if len(vms) > shown {
		words = append(words, fmt.Sprintf("%d others less each", len(vms)-shown))
	}
	if len(words) == 0 {
		return ""
	}
	return strings.Join(words, ", ") + "; "
}
