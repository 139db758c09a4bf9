package volar

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

type volumesCmd struct {
	Create  volumeCreateCmd  `cmd:"" help:"Make an empty volume."`
	List    volumeListCmd    `cmd:"" default:"1" help:"List volumes (also without the word list)."`
	Inspect volumeInspectCmd `cmd:"" help:"Show one volume."`
	Label   volumeLabelCmd   `cmd:"" help:"Set labels of a volume, or take them away."`
	RM      volumeRMCmd      `cmd:"" name:"rm" aliases:"remove,delete" help:"Remove volumes that no VM mounts, with what they hold."`
}

type volumeCreateCmd struct {
	Name  string   `arg:"" help:"Name of the new volume."`
	Size  string   `help:"How much it can hold: 20g; a plain number is MiB (default: 10g). What is not written takes no space on the host." placeholder:"SIZE"`
	Label []string `short:"l" help:"Label; may be repeated." sep:"none" placeholder:"NAME=VALUE"`
}

// Run makes a volume.
func (cmd *volumeCreateCmd) Run(c *cli) (err error) {
	in := api.VolumeCreate{Name: cmd.Name}
	if err := api.ValidateName("volume", cmd.Name); err != nil {
		return err
	}
	if cmd.Size != "" {
		if in.SizeMB, err = parseMiB("--size", cmd.Size, api.MaxDiskMB); err != nil {
			return err
		}
		if in.SizeMB < api.MinDiskMB {
			return usagef("--size %q: a volume has at least %d MiB", cmd.Size, api.MinDiskMB)
		}
	}
	if in.Labels, err = labels(cmd.Label); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	v, err := cl.CreateVolume(c.ctx, in)
	if err != nil {
		return err
	}
	return c.print(v, []string{v.Name}, func(w io.Writer) { row(w, fmt.Sprintf("%s created, %s", v.Name, mib(v.SizeMB))) })
}

// mib writes an amount that is given in MiB.
func mib(n int) string { return size(int64(n) << 20) }

type volumeListCmd struct{ selectFlags }

// Run lists volumes.
func (cmd *volumeListCmd) Run(c *cli) error {
	sel, err := cmd.selector()
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.Volumes(c.ctx, sel)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.Name
	}
	return c.print(list, names, func(w io.Writer) {
		row(w, "NAME", "SIZE", "USED", "AGE", "VMS")
		for _, v := range list {
			row(w, v.Name, mib(v.SizeMB), size(v.Used), age(c.now(), v.CreatedAt), users(v))
		}
	})
}

// users names the VMs that mount a volume, and says which one has it now.
func users(v api.Volume) string {
	names := make([]string, len(v.VMs))
	for i, name := range v.VMs {
		names[i] = name
		if name == v.Running {
			names[i] += " (running)"
		}
	}
	return dash(strings.Join(names, ", "))
}

type volumeInspectCmd struct {
	Name string `arg:"" help:"Name of the volume." complete:"volumes"`
}

// Run shows one volume.
func (cmd *volumeInspectCmd) Run(c *cli) error {
	if err := api.ValidateName("volume", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	v, err := cl.Volume(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	return c.print(v, []string{v.Name}, func(w io.Writer) {
		row(w, "Name:", v.Name)
		row(w, "Size:", mib(v.SizeMB))
		row(w, "Used:", size(v.Used))
		row(w, "VMs:", users(v))
		for _, k := range sortedKeys(v.Labels) {
			row(w, "Label:", k+"="+v.Labels[k])
		}
		row(w, "Created:", v.CreatedAt.Format(time.RFC3339))
	})
}

type volumeLabelCmd struct {
	Name   string   `arg:"" help:"Name of the volume." complete:"volumes"`
	Labels []string `arg:"" name:"label" help:"NAME=VALUE sets one, NAME- takes it away."`
}

// Run changes a volume's labels.
func (cmd *volumeLabelCmd) Run(c *cli) error {
	if err := api.ValidateName("volume", cmd.Name); err != nil {
		return err
	}
	in := api.VolumeChange{Labels: make(map[string]*string)}
	for _, l := range cmd.Labels {
		if key, value, given := strings.Cut(l, "="); given {
			in.Labels[key] = &value
		} else if key, ok := strings.CutSuffix(l, "-"); ok {
			in.Labels[key] = nil
		} else {
			return usagef("%q: give NAME=VALUE, or NAME- to take it away", l)
		}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	v, err := cl.LabelVolume(c.ctx, cmd.Name, in)
	if err != nil {
		return err
	}
	return c.print(v, []string{v.Name}, func(w io.Writer) {
		words := make([]string, 0, len(v.Labels))
		for _, k := range sortedKeys(v.Labels) {
			words = append(words, k+"="+v.Labels[k])
		}
		row(w, v.Name+" has the labels "+dash(strings.Join(words, ", ")))
	})
}

type volumeRMCmd struct {
	Names []string `arg:"" name:"name" help:"Names of the volumes." complete:"volumes"`
}

// Run removes volumes. With -o json or yaml it prints them as they were.
func (cmd *volumeRMCmd) Run(c *cli) error {
	for _, name := range cmd.Names {
		if err := api.ValidateName("volume", name); err != nil {
			return err
		}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return inTurn(c, cmd.Names, func(name string) (api.Volume, error) { return removeVolume(c, cl, name) },
		func(v api.Volume) string { return v.Name }, func(v api.Volume) string { return v.Name + " removed" })
}

func removeVolume(c *cli, cl *client.Client, name string) (api.Volume, error) {
	v, err := cl.Volume(c.ctx, name)
	if err == nil {
		err = cl.RemoveVolume(c.ctx, name)
	}
	return v, err
}

// inTurn runs do for one argument after the other, whatever becomes of each, and
// prints the results of those that succeeded: name and words are what it prints
// of one.
func inTurn[T any](c *cli, args []string, do func(string) (T, error), name, words func(T) string) error {
	done, names, failed := []T{}, []string{}, manyError(nil)
	for _, arg := range args {
		one, err := do(arg)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		done, names = append(done, one), append(names, name(one))
	}
	err := c.print(done, names, func(w io.Writer) {
		for _, one := range done {
			row(w, words(one))
		}
	})
	if len(failed) > 0 {
		return failed
	}
	return err
}
