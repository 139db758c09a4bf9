package volar

import "github.com/volantvm/volant/client/api"

// selectFlags are the flags of commands that list things with labels.
type selectFlags struct {
	Selector string `short:"l" help:"Only those with such labels: app=web,tier!=test,owner,!old,'zone in (a,b)'." placeholder:"SELECTOR"`
}

func (f selectFlags) selector() (api.Selector, error) { return api.ParseSelector(f.Selector) }

// pickFlags are the flags of commands that change several VMs at once.
type pickFlags struct {
	All      bool   `help:"Every VM that it would change: start takes those that are not wanted to run, stop and restart those that run or are wanted to, delete all."`
	Selector string `short:"l" help:"As --all, but only VMs with such labels: app=web,tier!=test,owner,!old,'zone in (a,b)'." placeholder:"SELECTOR"`
}

// pick returns the names of the VMs that a command is about: those given or,
// with --all and --selector, those of which acts says that it would change them.
func (c *cli) pick(names []string, f pickFlags, acts func(api.VM) bool) ([]string, error) {
	ways := 0
	for _, given := range []bool{len(names) > 0, f.All, f.Selector != ""} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return nil, usagef("give the names of the VMs, or --selector, or --all")
	}
	if len(names) > 0 {
		return names, checkNames(names)
	}
	sel, err := api.ParseSelector(f.Selector)
	if err != nil {
		return nil, err
	}
	cl, err := c.daemon()
	if err != nil {
		return nil, err
	}
	vms, total, err := cl.VMs(c.ctx, api.VMFilter{Selector: sel})
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		if acts(vm) {
			names = append(names, vm.Name)
		}
	}
	if len(names) == 0 {
		c.notef("nothing to do: %d VMs are selected, and none of them needs it", total)
	}
	return names, nil
}

// runsOrWill says that there is something to stop.
func runsOrWill(vm api.VM) bool {
	ended := vm.Status == api.VMStopped || vm.Status == api.VMCrashed || vm.Status == api.VMFailed
	return vm.Desired == api.DesiredRunning || vm.Desired != api.DesiredAbsent && !ended
}
