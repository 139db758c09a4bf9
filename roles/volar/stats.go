package volar

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/volantvm/volant/client/api"
)

type statsCmd struct {
	Names    []string      `arg:"" optional:"" name:"name" help:"Names or ids of the VMs (default: all that have a machine)." complete:"vms"`
	NoStream bool          `help:"Measure once, and end."`
	Interval time.Duration `help:"How long from one sample to the next." default:"2s" placeholder:"TIME"`
}

// onceInterval lies between the two samples of which --no-stream shows the
// second: the use of processors is a difference.
const onceInterval = 500 * time.Millisecond

// errEnough ends a stream that is not needed any more.
var errEnough = errors.New("enough")

// Run shows what VMs use, again and again: on a terminal in place, else one table
// below the other. With -o json each sample is an object on a line.
func (cmd *statsCmd) Run(c *cli) error {
	if err := checkNames(cmd.Names); err != nil {
		return err
	}
	if cmd.Interval < api.MinStatsInterval || cmd.Interval > api.MaxStatsInterval {
		return usagef("--interval: %v is not from %v to %v", cmd.Interval, api.MinStatsInterval, api.MaxStatsInterval)
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	q := api.StatsQuery{VMs: cmd.Names, Interval: cmd.Interval, Follow: true}
	table := c.output == outputTable
	if cmd.NoStream {
		q.Interval, q.Follow = onceInterval, table
	}
	var before *api.StatsSample
	err = cl.Stats(c.ctx, q, func(s api.StatsSample) error {
		switch {
		case !table && cmd.NoStream:
			names := make([]string, len(s.VMs))
			for i, vm := range s.VMs {
				names[i] = vm.VM
			}
			return c.print(s, names, nil)
		case c.output == outputName:
			return usagef("-o name: prints no samples; give --no-stream too")
		case !table:
			return c.writeItem(s)
		case cmd.NoStream && before == nil:
			before = &s // of which the use of processors is known from the next one on
			return nil
		}
		if err := c.drawStats(s, before); err != nil {
			return err
		}
		before = &s
		if cmd.NoStream {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// clearScreen is ED and CUP of ECMA-48: erase all, and go home.
const clearScreen = "\x1b[2J\x1b[H"

// drawStats prints a table of a sample; before is the one that came before, nil
// for none.
func (c *cli) drawStats(s api.StatsSample, before *api.StatsSample) error {
	if _, ok := terminalWidth(c.stdout); ok && before != nil {
		if _, err := io.WriteString(c.stdout, clearScreen); err != nil {
			return err
		}
	}
	earlier := make(map[string]api.VMStats)
	if before != nil {
		for _, vm := range before.VMs {
			earlier[vm.ID] = vm
		}
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	row(tw, "NAME", "STATUS", "CPU", "MEM USED", "MEM", "GUEST FREE", "WORKLOAD / KERNEL / AGENT", "NET IN / OUT", "DISK READ / WRITTEN", "THREADS", "UP")
	var missing []string
	for _, vm := range s.VMs {
		was, ok := earlier[vm.ID]
		guest, shares := "-", "-"
		if g := vm.Guest; g != nil {
			guest = size(g.Available) + " of " + size(g.Total)
			if g.Kernel > 0 { // no kernel has nothing
				shares = size(g.Workload) + " / " + size(g.Kernel) + " / " + size(g.Agent)
			}
		}
		up := "-"
		if vm.UptimeSeconds > 0 {
			up = age(s.Time, s.Time.Add(-time.Duration(vm.UptimeSeconds*float64(time.Second))))
		}
		row(tw, vm.VM, vm.Status, cpuShare(vm, was, ok), bytesOf(vm.MemoryUsed), size(vm.MemoryGiven), guest, shares,
			bytesOf(vm.NetReceived)+" / "+bytesOf(vm.NetSent), bytesOf(vm.DiskRead)+" / "+bytesOf(vm.DiskWrite), countOf(vm.Threads), up)
		for _, m := range vm.Missing {
			missing = append(missing, vm.VM+": "+m)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, m := range missing {
		c.notef("%s", printable(m))
	}
	return nil
}

// cpuShare says how much of one processor a VM has used since the sample before:
// 200% are two.
func cpuShare(now, was api.VMStats, known bool) string {
	took := now.Time.Sub(was.Time)
	if !known || now.CPUNanos == nil || was.CPUNanos == nil || took <= 0 || *now.CPUNanos < *was.CPUNanos {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(*now.CPUNanos-*was.CPUNanos)/float64(took))
}

func bytesOf(n *int64) string {
	if n == nil {
		return "-"
	}
	return size(*n)
}

func countOf(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
