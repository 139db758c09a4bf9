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
	Names []string `arg:"" optional:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	pickFlags
	Wait    waitFlag      `help:"Return once they are running (--wait, the default), healthy (--wait=healthy), or have ended well (--wait=stopped), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run starts VMs.
func (cmd *startCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if err != nil {
		return err
	}
	names, err := c.pick(cmd.Names, cmd.pickFlags, func(vm api.VM) bool { return vm.Desired == api.DesiredStopped })
	if err != nil {
		return err
	}
	return c.change(names, func(cl *client.Client, name string) (api.VM, error) {
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
	Names []string `arg:"" optional:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	pickFlags
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
	names, err := c.pick(cmd.Names, cmd.pickFlags, runsOrWill)
	if err != nil {
		return err
	}
	return c.change(names, func(cl *client.Client, name string) (api.VM, error) {
		return ended(w)(cl.RestartVM(c.ctx, name, how, w))
	})
}

type pauseCmd struct {
	Names   []string      `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	Wait    waitFlag      `help:"Return once they stand still (the default), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run pauses VMs.
func (cmd *pauseCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitPaused)
	if err != nil {
		return err
	}
	return c.change(cmd.Names, func(cl *client.Client, name string) (api.VM, error) { return cl.PauseVM(c.ctx, name, w) })
}

type resumeCmd struct {
	Names   []string      `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	Wait    waitFlag      `help:"Return once they run again (the default), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run resumes VMs.
func (cmd *resumeCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning)
	if err != nil {
		return err
	}
	return c.change(cmd.Names, func(cl *client.Client, name string) (api.VM, error) { return cl.ResumeVM(c.ctx, name, w) })
}

type stopCmd struct {
	Names []string `arg:"" optional:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	pickFlags
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
	names, err := c.pick(cmd.Names, cmd.pickFlags, runsOrWill)
	if err != nil {
		return err
	}
	return c.change(names, func(cl *client.Client, name string) (api.VM, error) {
		return cl.StopVM(c.ctx, name, how, w)
	})
}

// change runs do for every name, with progress.
func (c *cli) change(names []string, do func(*client.Client, string) (api.VM, error)) error {
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
	Names []string `arg:"" optional:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	pickFlags
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
	names, err := c.pick(cmd.Names, cmd.pickFlags, func(vm api.VM) bool { return vm.Desired != api.DesiredAbsent })
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return c.each(names, func(name string) (api.VM, error) {
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
