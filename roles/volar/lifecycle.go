package volar

import (
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

func noWait() client.Wait { return client.Wait{} }

// stopFlags say how to stop.
type stopFlags struct {
	Grace time.Duration `help:"How long the workload may take to end before it is killed (default: its own stop timeout)." placeholder:"TIME"`
	Force bool          `short:"f" help:"Kill the VM at once."`
}

func (f stopFlags) how() (api.VMStop, error) {
	if f.Grace < 0 || f.Grace%time.Second != 0 {
		return api.VMStop{}, usagef("--grace: %v is not a number of whole seconds, such as 30s", f.Grace)
	}
	return api.VMStop{GraceSeconds: int(f.Grace / time.Second), Force: f.Force}, nil
}

func checkNames(names []string) error {
	for _, n := range names {
		if err := api.ValidateName("VM", n); err != nil {
			return err
		}
	}
	return nil
}

func statusWords(vm api.VM) string { return string(vm.Status) }

type startCmd struct {
	Names   []string      `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	Wait    waitFlag      `help:"Return once they are running (--wait, the default), healthy (--wait=healthy), or have ended well (--wait=stopped), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run starts VMs.
func (cmd *startCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if err != nil {
		return err
	}
	return c.change(cmd.Names, func(cl *client.Client, name string) (api.VM, error) {
		return ended(w)(cl.StartVM(c.ctx, name, w))
	})
}

// ended adds endError to what a call returned.
func ended(w client.Wait) func(api.VM, error) (api.VM, error) {
	return func(vm api.VM, err error) (api.VM, error) {
		if err == nil {
			err = endError(w, vm)
		}
		return vm, err
	}
}

type restartCmd struct {
	Names []string `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	stopFlags
	Wait    waitFlag      `help:"Return once they are running (--wait, the default), healthy (--wait=healthy), or have ended well (--wait=stopped), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run restarts VMs.
func (cmd *restartCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if err != nil {
		return err
	}
	how, err := cmd.how()
	if err != nil {
		return err
	}
	return c.change(cmd.Names, func(cl *client.Client, name string) (api.VM, error) {
		return ended(w)(cl.RestartVM(c.ctx, name, how, w))
	})
}

type stopCmd struct {
	Names []string `arg:"" optional:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	All   bool     `help:"Stop all VMs."`
	stopFlags
	Wait    waitFlag      `help:"Return once they have stopped (the default), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run stops VMs.
func (cmd *stopCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitStopped)
	if err != nil {
		return err
	}
	how, err := cmd.how()
	if err != nil {
		return err
	}
	if cmd.All == (len(cmd.Names) > 0) {
		return usagef("give the names of the VMs, or --all")
	}
	names := cmd.Names
	if cmd.All {
		if names, err = c.notStopped(); err != nil {
			return err
		}
	}
	return c.change(names, func(cl *client.Client, name string) (api.VM, error) {
		return cl.StopVM(c.ctx, name, how, w)
	})
}

// notStopped returns the names of the VMs that run or want to.
func (c *cli) notStopped() ([]string, error) {
	cl, err := c.daemon()
	if err != nil {
		return nil, err
	}
	vms, _, err := cl.VMs(c.ctx, api.VMFilter{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, vm := range vms {
		ended := vm.Status == api.VMStopped || vm.Status == api.VMCrashed || vm.Status == api.VMFailed
		if vm.Desired == api.DesiredRunning || !ended {
			names = append(names, vm.Name)
		}
	}
	return names, nil
}

// change runs do for every name, with progress.
func (c *cli) change(names []string, do func(*client.Client, string) (api.VM, error)) error {
	if err := checkNames(names); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return c.each(names, func(name string) (vm api.VM, err error) {
		err = c.withProgress(cl, name, func() (err error) {
			vm, err = do(cl, name)
			return err
		})
		return vm, err
	}, statusWords)
}

type deleteCmd struct {
	Names []string `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	stopFlags
	Wait    waitFlag      `help:"Return once they are gone (the default), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run deletes VMs. With -o json or yaml it prints them as they were.
func (cmd *deleteCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitDeleted)
	if err != nil {
		return err
	}
	how, err := cmd.how()
	if err != nil {
		return err
	}
	if err := checkNames(cmd.Names); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return c.each(cmd.Names, func(name string) (api.VM, error) {
		vm, err := cl.VM(c.ctx, name, noWait())
		if err != nil {
			return vm, err
		}
		return vm, c.withProgress(cl, name, func() error { return cl.DeleteVM(c.ctx, name, how, w) })
	}, func(api.VM) string {
		if w.For == api.WaitNone {
			return "is being deleted"
		}
		return "deleted"
	})
}
