package volar

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

type vmsCmd struct {
	Create   createCmd   `cmd:"" help:"Create a VM from a plugin or an image, and start it."`
	List     listCmd     `cmd:"" help:"List VMs."`
	Get      getCmd      `cmd:"" help:"Show one VM."`
	Start    startCmd    `cmd:"" help:"Start VMs."`
	Stop     stopCmd     `cmd:"" help:"Stop VMs."`
	Restart  restartCmd  `cmd:"" help:"Stop VMs and start them again."`
	Pause    pauseCmd    `cmd:"" help:"Let running VMs stand still: processors stop, memory stays."`
	Resume   resumeCmd   `cmd:"" help:"Let paused VMs go on."`
	Scale    scaleCmd    `cmd:"" help:"Change how many vCPUs and how much memory VMs have."`
	Delete   deleteCmd   `cmd:"" help:"Stop and delete VMs with their disks and addresses."`
	Logs     logsCmd     `cmd:"" help:"Print what a VM's workload, console or VMM wrote."`
	Console  consoleCmd  `cmd:"" help:"Watch a VM's console; ctrl-p ctrl-q leaves it."`
	Stats    statsCmd    `cmd:"" help:"Show what VMs use of processors, memory, disks and network."`
	Config   configCmd   `cmd:"" help:"Look at the configuration of a VM, change it, and go back."`
	Label    labelCmd    `cmd:"" help:"Set labels of a VM, and take them away."`
	Rename   renameCmd   `cmd:"" help:"Give a VM another name."`
	Timeline timelineCmd `cmd:"" help:"Show the steps of a VM's last start."`
}

type createCmd struct {
	Name    string   `arg:"" help:"Name of the new VM."`
	Command []string `arg:"" optional:"" passthrough:"partial" help:"What it runs, in place of the image's command, or the arguments of its entrypoint. All that follows is part of it."`
	Plugin  string   `help:"Plugin that it runs." placeholder:"NAME" complete:"plugins"`
	Image   string   `help:"Image that it runs, as run takes it." placeholder:"IMAGE" complete:"images"`
	Runtime string   `help:"Runtime; must be the plugin's." placeholder:"NAME"`
	vmFlags
	imageFlags
	Stopped bool          `help:"Create it without starting it."`
	Wait    waitFlag      `help:"Return once it is running (--wait, the default), healthy (--wait=healthy), or has ended well (--wait=stopped), or at once (--no-wait)." negatable:""`
	Timeout time.Duration `help:"How long to wait at most." default:"2m"`
}

// Run creates the VM and prints its name and address.
func (cmd *createCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	if (cmd.Plugin == "") == (cmd.Image == "") {
		return usagef("say what the VM runs: --plugin NAME or --image IMAGE")
	}
	req, m, err := cmd.request(c, cmd.Name, cmd.Command)
	if err != nil {
		return err
	}
	req.Plugin, req.Runtime, req.Stopped = cmd.Plugin, cmd.Runtime, cmd.Stopped
	w, err := cmd.Wait.resolve(cmd.Timeout, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if err != nil {
		return err
	}
	if cmd.Stopped && cmd.Wait.what != api.WaitNone {
		return usagef("--wait=%s: a VM that is created with --stopped does not get so", cmd.Wait.what)
	}
	if cmd.Stopped {
		w.For = api.WaitNone
	}
	if cmd.Plugin != "" && (cmd.PublishAll || cmd.formFlags != formFlags{}) {
		return usagef("--publish-all, --platform and --initramfs are about images; a plugin's manifest says what it has")
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	if err := c.prepare(cl, &req, m, cmd.Image, cmd.imageFlags); err != nil {
		return err
	}
	vm, err := c.createVM(cl, req, w)
	if err != nil {
		return err
	}
	if err := c.printNew(vm); err != nil {
		return err
	}
	return endError(w, vm)
}

// printNew prints what a user wants to know of a new VM.
func (c *cli) printNew(vm api.VM) error {
	return c.print(vm, []string{vm.Name}, func(w io.Writer) {
		cells := []any{vm.Name, dash(vm.IPAddress)}
		if ports := portWords(vm.Ports); ports != "" {
			cells = append(cells, ports)
		}
		row(w, cells...)
	})
}

type listCmd struct {
	Status []string `help:"Only VMs in these states." placeholder:"STATE"`
	Plugin string   `help:"Only VMs of this plugin." placeholder:"NAME" complete:"plugins"`
	Query  string   `short:"q" help:"Only VMs with this in their name." placeholder:"TEXT"`
	selectFlags
	Limit  int    `help:"How many to list at most." placeholder:"N"`
	Offset int    `help:"How many to skip." placeholder:"N"`
	Sort   string `help:"Order: name (default), created_at, updated_at or status; with a minus in front, the other way round." enum:"name,created_at,updated_at,status,-name,-created_at,-updated_at,-status" default:"name" placeholder:"KEY"`
}

// Run lists VMs.
func (cmd *listCmd) Run(c *cli) error {
	sel, err := cmd.selector()
	if err != nil {
		return err
	}
	f := api.VMFilter{Plugin: cmd.Plugin, Query: cmd.Query, Selector: sel, Limit: cmd.Limit, Offset: cmd.Offset}
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
		// What has no bound stands last, and shifts no column.
		row(w, "NAME", "STATUS", "HEALTH", "IMAGE", "IP", "CPU", "MEM", "AGE", "PORTS")
		for _, vm := range vms {
			row(w, vm.Name, stateWords(vm), health(vm), runs(vm), dash(vm.IPAddress), vm.CPUCores, strconv.Itoa(vm.MemoryMB)+"MiB", age(c.now(), vm.CreatedAt), dash(portWords(vm.Ports)))
		}
	})
}

// runs says what a VM was made from: an image as people write it, or "plugin
// NAME".
func runs(vm api.VM) string {
	if vm.Image != "" {
		return familiar(vm.Image)
	}
	return "plugin " + vm.Plugin
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
		if vm.Plugin != "" {
			row(w, "Plugin:", vm.Plugin)
		}
		if vm.Image != "" {
			row(w, "Image:", vm.Image)
			row(w, "Image ID:", vm.ImageID)
		}
		row(w, "Runtime:", vm.Runtime)
		row(w, "IP:", dash(vm.IPAddress))
		if ports := portWords(vm.Ports); ports != "" {
			row(w, "Ports:", ports)
		}
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
		if vm.Health.Output != "" {
			row(w, "Health:", healthWords(vm.Health))
		}
		row(w, "Starts:", vm.Incarnation)
		for _, d := range vm.DependsOn {
			row(w, "Depends on:", d.VM+", "+d.Wants())
		}
		if vm.Restart != nil {
			row(w, "Restart:", vm.Restart.String())
		}
		if vm.RestartCount > 0 {
			row(w, "Restarts:", vm.RestartCount)
		}
		if at := vm.NextStartAt; at != nil {
			row(w, "Next start:", at.Format(time.RFC3339)+" (in "+max(at.Sub(c.now()), 0).Round(time.Second).String()+")")
		}
		if e := vm.Exit; e != nil {
			row(w, "Exit:", exitWords(*e))
		}
		for _, k := range sortedKeys(vm.Labels) {
			row(w, "Label:", k+"="+vm.Labels[k])
		}
		if vm.ConfigPending {
			row(w, "Config:", fmt.Sprintf("version %d waits for the next start", vm.ConfigVersion))
		}
		row(w, "Created:", vm.CreatedAt.Format(time.RFC3339))
		if vm.ExpiresAt != nil {
			row(w, "Expires:", vm.ExpiresAt.Format(time.RFC3339))
		}
	})
}

// healthWords says how the workload is, and why: "unhealthy, 3 probes failed in a
// row: status 503".
func healthWords(h api.VMHealth) string {
	s := string(h.Status)
	switch {
	case h.FailingStreak == 1:
		s += ", 1 probe failed"
	case h.FailingStreak > 1:
		s += fmt.Sprintf(", %d probes failed in a row", h.FailingStreak)
	}
	return s + ": " + strings.ReplaceAll(printable(h.Output), "\n", "; ")
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
