package volar

import (
	"io"
	"slices"
	"strings"

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

type doctorCmd struct{}

// Run has the daemon look at its host. That no hypervisor works is a failure.
func (doctorCmd) Run(c *cli) error {
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	doc, err := cl.Doctor(c.ctx)
	if err != nil {
		return err
	}
	works := false
	names := make([]string, len(doc.Hypervisors))
	for i, h := range doc.Hypervisors {
		names[i] = h.Name
		works = works || h.Chosen && h.Works
	}
	if err := c.print(doc, names, func(w io.Writer) {
		for _, h := range doc.Hypervisors {
			state := "works"
			if !h.Works {
				state = "does not work"
			}
			if h.Chosen {
				state += ", chosen for new VMs"
			}
			row(w, h.Name+":", state)
			if h.Works {
				row(w, "  Found:", h.Version+" ("+h.Accel+"), "+h.Binary)
			}
			if h.Notice != "" {
				row(w, "  Notice:", h.Notice)
			}
			writeFeatures(w, h.Features)
			if h.Problem != "" {
				row(w, "  Problem:", h.Problem)
			}
		}
		row(w, "cgroups:", doc.Limits.Cgroups)
		if doc.Limits.Problem != "" {
			row(w, "  Problem:", doc.Limits.Problem)
		}
	}); err != nil {
		return err
	}
	if !works {
		return api.Errorf(api.CodeUnavailable, "no VM can be started here").WithHint("mend one of the problems above; then: volar doctor")
	}
	return nil
}

// writeFeatures says what a hypervisor can do, and of the rest what it takes.
func writeFeatures(w io.Writer, features []api.Feature) {
	var can []string
	for _, f := range features {
		if f.Works {
			can = append(can, f.Name)
		}
	}
	if len(can) > 0 {
		row(w, "  Can:", strings.Join(can, ", "))
	}
	// What is wanted for the same reason is told once.
	for i, f := range features {
		if f.Works || slices.ContainsFunc(features[:i], func(o api.Feature) bool { return !o.Works && o.Needs == f.Needs }) {
			continue
		}
		names := []string{}
		for _, o := range features[i:] {
			if !o.Works && o.Needs == f.Needs {
				names = append(names, o.Name)
			}
		}
		row(w, "  Cannot:", strings.Join(names, ", ")+": "+f.Needs)
	}
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
