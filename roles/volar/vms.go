package volar

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

type vmsCmd struct {
	Create   createCmd   `cmd:"" help:"Create a VM from a plugin, and start it."`
	List     listCmd     `cmd:"" help:"List VMs."`
	Get      getCmd      `cmd:"" help:"Show one VM."`
	Start    startCmd    `cmd:"" help:"Start VMs."`
	Stop     stopCmd     `cmd:"" help:"Stop VMs."`
	Restart  restartCmd  `cmd:"" help:"Stop VMs and start them again."`
	Delete   deleteCmd   `cmd:"" help:"Stop and delete VMs with their disks and addresses."`
	Logs     logsCmd     `cmd:"" help:"Print what a VM's workload wrote."`
	Timeline timelineCmd `cmd:"" help:"Show the steps of a VM's last start."`
}

type createCmd struct {
	Name          string        `arg:"" help:"Name of the new VM."`
	Plugin        string        `help:"Plugin that it runs." required:"" placeholder:"NAME" complete:"plugins"`
	Runtime       string        `help:"Runtime; must be the plugin's." placeholder:"NAME"`
	CPU           int           `name:"cpu" help:"Virtual CPUs (default: the plugin's)." placeholder:"N"`
	Memory        int           `help:"Memory in MiB (default: the plugin's)." placeholder:"MIB"`
	Kernel        string        `help:"Kernel that it boots (default: the plugin's, else the default one)." placeholder:"NAME" complete:"kernels"`
	KernelCmdline string        `help:"Further kernel parameters." placeholder:"TEXT"`
	IP            string        `name:"ip" help:"Address to pin (default: the lowest free one)." placeholder:"ADDR"`
	Env           []string      `help:"Environment variable of the workload; may be repeated." sep:"none" placeholder:"NAME=VALUE"`
	Label         []string      `help:"Label; may be repeated." sep:"none" placeholder:"NAME=VALUE"`
	Stopped       bool          `help:"Create it without starting it."`
	Wait          waitFlag      `help:"Return once it is running (--wait, the default), healthy (--wait=healthy), or has ended well (--wait=stopped), or at once (--no-wait)." negatable:""`
	Timeout       time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run creates the VM and prints its name and address.
func (cmd *createCmd) Run(c *cli) error {
	req := api.VMCreate{
		Name: cmd.Name, Plugin: cmd.Plugin, Runtime: cmd.Runtime, CPUCores: cmd.CPU, MemoryMB: cmd.Memory,
		KernelCmdline: cmd.KernelCmdline, Kernel: cmd.Kernel, IPAddress: cmd.IP, Stopped: cmd.Stopped,
	}
	var err error
	if req.Env, err = pairs("--env", cmd.Env); err != nil {
		return err
	}
	if req.Labels, err = pairs("--label", cmd.Label); err != nil {
		return err
	}
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	if cmd.CPU < 0 || cmd.Memory < 0 {
		return usagef("--cpu and --memory cannot be negative")
	}
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if err != nil {
		return err
	}
	if cmd.Stopped {
		w.For = api.WaitNone
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	var vm api.VM
	err = c.withProgress(cl, cmd.Name, func() (err error) {
		vm, err = cl.CreateVM(c.ctx, req, w)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.print(vm, []string{vm.Name}, func(w io.Writer) { row(w, vm.Name, dash(vm.IPAddress)) }); err != nil {
		return err
	}
	return endError(w, vm)
}

// pairs parses repeated NAME=VALUE flags.
func pairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, usagef("%s %q: give NAME=VALUE", flag, s)
		}
		if _, twice := out[name]; twice {
			return nil, usagef("%s: %s is given twice", flag, name)
		}
		out[name] = value
	}
	return out, nil
}

type listCmd struct {
	Status []string `help:"Only VMs in these states." placeholder:"STATE"`
	Plugin string   `help:"Only VMs of this plugin." placeholder:"NAME" complete:"plugins"`
	Query  string   `short:"q" help:"Only VMs with this in their name." placeholder:"TEXT"`
	Limit  int      `help:"How many to list at most." placeholder:"N"`
	Offset int      `help:"How many to skip." placeholder:"N"`
	Sort   string   `help:"Order: name (default), created_at, updated_at or status; with a minus in front, the other way round." enum:"name,created_at,updated_at,status,-name,-created_at,-updated_at,-status" default:"name" placeholder:"KEY"`
}

// Run lists VMs.
func (cmd *listCmd) Run(c *cli) error {
	f := api.VMFilter{Plugin: cmd.Plugin, Query: cmd.Query, Limit: cmd.Limit, Offset: cmd.Offset}
	f.Sort, f.Desc = strings.TrimPrefix(cmd.Sort, "-"), strings.HasPrefix(cmd.Sort, "-")
	for _, s := range cmd.Status {
		f.Status = append(f.Status, api.VMState(s))
	}
	if cmd.Limit < 0 || cmd.Offset < 0 {
		return usagef("--limit and --offset cannot be negative")
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	vms, total, err := cl.VMs(c.ctx, f)
	if err != nil {
		return err
	}
	names := make([]string, len(vms))
	for i, vm := range vms {
		names[i] = vm.Name
	}
	if shown := len(vms); c.output == outputTable && shown < total {
		defer c.notef("%d of %d VMs shown", shown, total)
	}
	return c.print(vms, names, func(w io.Writer) {
		row(w, "NAME", "STATUS", "HEALTH", "PLUGIN", "IP", "CPU", "MEM", "AGE")
		for _, vm := range vms {
			row(w, vm.Name, vm.Status, health(vm), vm.Plugin, dash(vm.IPAddress), vm.CPUCores, strconv.Itoa(vm.MemoryMB)+"MiB", age(c.now(), vm.CreatedAt))
		}
	})
}

type getCmd struct {
	Name string `arg:"" help:"Name or id of the VM." complete:"vms"`
}

// Run shows one VM.
func (cmd *getCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	vm, err := cl.VM(c.ctx, cmd.Name, noWait())
	if err != nil {
		return err
	}
	return c.print(vm, []string{vm.Name}, func(w io.Writer) {
		row(w, "Name:", vm.Name)
		row(w, "ID:", vm.ID)
		row(w, "Status:", describe(vm))
		row(w, "Plugin:", vm.Plugin)
		row(w, "Runtime:", vm.Runtime)
		row(w, "IP:", dash(vm.IPAddress))
		row(w, "MAC:", dash(vm.MACAddress))
		row(w, "CPU:", vm.CPUCores)
		row(w, "Memory:", strconv.Itoa(vm.MemoryMB)+" MiB")
		row(w, "Kernel:", dash(vm.Kernel))
		if vm.KernelCmdline != "" {
			row(w, "Cmdline:", vm.KernelCmdline)
		}
		if vm.Hypervisor != "" {
			row(w, "Hypervisor:", vm.Hypervisor+" ("+dash(vm.Accel)+")")
		}
		if vm.PID != 0 {
			row(w, "PID:", vm.PID)
		}
		row(w, "Starts:", vm.Incarnation)
		if e := vm.Exit; e != nil {
			row(w, "Exit:", exitWords(*e))
		}
		for _, k := range sortedKeys(vm.Labels) {
			row(w, "Label:", k+"="+vm.Labels[k])
		}
		row(w, "Created:", vm.CreatedAt.Format(time.RFC3339))
	})
}

func exitWords(e api.VMExit) string {
	s := fmt.Sprintf("status %d", e.Code)
	if e.Signal != "" {
		s += ", " + e.Signal
	}
	if e.OOMKilled {
		s += ", out of memory"
	}
	return s + ", at " + e.Time.Format(time.RFC3339)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

type logsCmd struct {
	Name       string `arg:"" help:"Name or id of the VM." complete:"vms"`
	Follow     bool   `short:"f" help:"Go on with new lines as they come."`
	Tail       int    `short:"n" help:"Only the last lines, this many." placeholder:"N"`
	Timestamps bool   `short:"t" help:"Begin each line with its time; the console's lines have none."`
	Console    bool   `help:"The kernel console instead of the workload's output."`
}

// Run prints log lines.
func (cmd *logsCmd) Run(c *cli) error {
	if cmd.Tail < 0 {
		return usagef("--tail cannot be negative")
	}
	if c.output == outputName {
		return usagef("-o name: lines have no names")
	}
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(c.stdout)
	err = cl.VMLogs(c.ctx, cmd.Name, api.LogQuery{Follow: cmd.Follow, Tail: cmd.Tail, Console: cmd.Console}, func(e api.LogEntry) error {
		if c.output != outputTable {
			return c.writeItem(e)
		}
		if cmd.Timestamps && !e.Time.IsZero() {
			_, _ = out.WriteString(e.Time.Format(time.RFC3339Nano) + " ") // Flush meets the error
		}
		_, _ = out.WriteString(e.Line + "\n")
		if cmd.Follow {
			return out.Flush()
		}
		return nil
	})
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	return err
}

type timelineCmd struct {
	Name string `arg:"" help:"Name or id of the VM." complete:"vms"`
}

// Run shows the steps of the last start.
func (cmd *timelineCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	tl, err := cl.VMTimeline(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	names := make([]string, len(tl.Steps))
	for i, s := range tl.Steps {
		names[i] = s.Where + "/" + s.Name
	}
	return c.print(tl, names, func(w io.Writer) {
		row(w, "WHERE", "STEP", "AT", "TOOK", "ERROR")
		end := 0.0
		for _, s := range tl.Steps {
			row(w, s.Where, s.Name, millis(s.StartMS), millis(s.TookMS), dash(s.Error))
			end = max(end, s.StartMS+s.TookMS)
		}
		row(w, "", "total", "", millis(end), "")
	})
}

func millis(ms float64) string { return strconv.FormatFloat(ms, 'f', 1, 64) + " ms" }
