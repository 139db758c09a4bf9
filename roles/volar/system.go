package volar

import (
	"io"
	"slices"

	"github.com/volantvm/volant/client/api"
)

type systemCmd struct {
	Info    infoCmd    `cmd:"" help:"Show what volantd is and runs on."`
	Summary summaryCmd `cmd:"" help:"Count VMs and plugins."`
}

type infoCmd struct{}

// Run shows the daemon.
func (infoCmd) Run(c *cli) error {
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	info, err := cl.SystemInfo(c.ctx)
	if err != nil {
		return err
	}
	return c.print(info, []string{info.Listen}, func(w io.Writer) {
		row(w, "Status:", info.Status)
		row(w, "Version:", info.Version)
		row(w, "Listens on:", info.Listen)
		row(w, "Network:", info.Bridge+" "+info.Subnet+", host "+info.HostIP)
		row(w, "Data:", info.DataDir)
		row(w, "Runtime:", info.RuntimeDir)
		h := info.Hypervisor
		if h.Error != "" {
			row(w, "Hypervisor:", "none: "+h.Error)
			return
		}
		row(w, "Hypervisor:", h.Driver+" "+h.Version+" ("+h.Accel+", agent by "+h.Channel+"), "+h.Binary)
		if h.Notice != "" {
			row(w, "Notice:", h.Notice)
		}
	})
}

type summaryCmd struct{}

// Run counts what there is.
func (summaryCmd) Run(c *cli) error {
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	sum, err := cl.SystemSummary(c.ctx)
	if err != nil {
		return err
	}
	return c.print(sum, nil, func(w io.Writer) {
		row(w, "VMs:", sum.TotalVMs)
		for _, s := range api.VMStates() {
			if n := sum.ByStatus[s]; n > 0 {
				row(w, "  "+string(s)+":", n)
			}
		}
		runtimes := make([]string, 0, len(sum.ByRuntime))
		for r := range sum.ByRuntime {
			runtimes = append(runtimes, r)
		}
		slices.Sort(runtimes)
		for _, r := range runtimes {
			row(w, "  of "+r+":", sum.ByRuntime[r])
		}
		row(w, "Plugins:", sum.TotalPlugins)
		row(w, "  enabled:", sum.EnabledPlugins)
	})
}
