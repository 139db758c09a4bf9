package volar

import (
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

type scaleCmd struct {
	Names   []string      `arg:"" name:"name" help:"Names or ids of the VMs." complete:"vms"`
	CPU     int           `name:"cpu" help:"How many vCPUs they have." placeholder:"N"`
	Memory  string        `help:"How much memory they have (MiB, or with a unit: 512m, 2g)." placeholder:"SIZE"`
	Restart bool          `help:"Restart those whose hypervisor cannot change it while they run."`
	Wait    waitFlag      `help:"Return once those that were restarted are running (--wait, the default) or healthy (--wait=healthy), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run scales VMs.
func (cmd *scaleCmd) Run(c *cli) error {
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy)
	if err != nil {
		return err
	}
	in := api.VMScale{CPUCores: cmd.CPU, Restart: cmd.Restart}
	if cmd.Memory != "" {
		if in.MemoryMB, err = parseMiB("--memory", cmd.Memory, api.MaxMemoryMB); err != nil {
			return err
		}
	}
	if in.CPUCores < 0 || in.CPUCores == 0 && in.MemoryMB == 0 {
		return usagef("say how many vCPUs or how much memory: --cpu N, --memory SIZE, or both")
	}
	return c.change(cmd.Names, func(cl *client.Client, name string) (api.VM, error) { return cl.ScaleVM(c.ctx, name, in, w) })
}
