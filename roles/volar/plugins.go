package volar

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

type pluginsCmd struct {
	Install  installCmd        `cmd:"" help:"Install a manifest and upload the artifacts it names."`
	List     pluginListCmd     `cmd:"" help:"List plugins."`
	Show     pluginShowCmd     `cmd:"" help:"Show one plugin."`
	Manifest pluginManifestCmd `cmd:"" help:"Print a plugin's manifest."`
	Enable   pluginEnableCmd   `cmd:"" help:"Let new VMs use a plugin."`
	Disable  pluginDisableCmd  `cmd:"" help:"Let no new VMs use a plugin."`
	Remove   pluginRemoveCmd   `cmd:"" help:"Remove a plugin that no VM uses."`
}

type installCmd struct {
	Source   string `arg:"" optional:"" name:"manifest" complete:"files" help:"Manifest: a file, an http(s) URL, or - for standard input. JSON, TOML or YAML."`
	Manifest string `name:"manifest" help:"The same, as a flag." placeholder:"FILE|URL|-"`
	URL      string `name:"url" help:"The same, as a flag." placeholder:"URL" hidden:""`
}

// Run reads the manifest, uploads what it names, and installs it.
func (cmd *installCmd) Run(c *cli) error {
	var sources []string
	for _, s := range []string{cmd.Source, cmd.Manifest, cmd.URL} {
		if s != "" {
			sources = append(sources, s)
		}
	}
	if len(sources) != 1 {
		return usagef("give one manifest: volar plugins install FILE|URL|-")
	}
	m, base, err := c.readManifest(sources[0])
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	if err := c.uploadArtifacts(cl, m, base); err != nil {
		return err
	}
	p, err := cl.InstallPlugin(c.ctx, *m)
	if err != nil {
		return err
	}
	return c.print(p, []string{p.Name}, func(w io.Writer) { row(w, fmt.Sprintf("%s %s installed", p.Name, p.Version)) })
}

type pluginListCmd struct{ selectFlags }

// Run lists plugins.
func (cmd *pluginListCmd) Run(c *cli) error {
	sel, err := cmd.selector()
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.Plugins(c.ctx, sel)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	for i, p := range list {
		names[i] = p.Name
	}
	return c.print(list, names, func(w io.Writer) {
		row(w, "NAME", "VERSION", "ENABLED", "RUNTIME", "CPU", "MEM", "AGE")
		for _, p := range list {
			r := p.Manifest.Resources
			row(w, p.Name, p.Version, yesNo(p.Enabled), p.Runtime, r.CPUCores, strconv.Itoa(r.MemoryMB)+"MiB", age(c.now(), p.InstalledAt))
		}
	})
}

// pluginName is the argument of commands about one plugin.
type pluginName struct {
	Name string `arg:"" help:"Name of the plugin." complete:"plugins"`
}

// open checks the name and returns the client.
func (p pluginName) open(c *cli) (*client.Client, error) {
	if err := api.ValidateName("plugin", p.Name); err != nil {
		return nil, err
	}
	return c.daemon()
}

type pluginShowCmd struct{ pluginName }

// Run shows one plugin.
func (cmd *pluginShowCmd) Run(c *cli) error {
	cl, err := cmd.open(c)
	if err != nil {
		return err
	}
	p, err := cl.Plugin(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	return c.print(p, []string{p.Name}, func(w io.Writer) {
		m := p.Manifest
		row(w, "Name:", p.Name)
		row(w, "Version:", p.Version)
		row(w, "Enabled:", yesNo(p.Enabled))
		row(w, "Runtime:", p.Runtime)
		row(w, "Resources:", fmt.Sprintf("%d CPU, %d MiB", m.Resources.CPUCores, m.Resources.MemoryMB))
		if i := m.Initramfs; i != nil {
			row(w, "Initramfs:", i.URL)
			row(w, "Checksum:", i.Checksum)
		}
		if r := m.Rootfs; r != nil {
			row(w, "Rootfs:", r.URL)
			row(w, "Checksum:", r.Checksum)
		}
		for _, d := range m.Disks {
			row(w, "Disk:", d.Name+" "+d.Source)
		}
		if wl := m.Workload; wl != nil {
			row(w, "Workload:", wl.Type+": "+strings.Join(wl.Entrypoint, " "))
			if wl.BaseURL != "" {
				row(w, "Serves:", wl.BaseURL)
			}
		}
		row(w, "Installed:", p.InstalledAt.Format(time.RFC3339))
	})
}

type pluginManifestCmd struct{ pluginName }

// Run prints the manifest, as JSON unless YAML was asked for.
func (cmd *pluginManifestCmd) Run(c *cli) error {
	cl, err := cmd.open(c)
	if err != nil {
		return err
	}
	m, err := cl.Manifest(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	if c.output == outputTable {
		c.output = outputJSON
	}
	return c.print(m, []string{m.Name}, nil)
}

type pluginEnableCmd struct{ pluginName }

// Run enables the plugin.
func (cmd *pluginEnableCmd) Run(c *cli) error { return cmd.enable(c, true) }

type pluginDisableCmd struct{ pluginName }

// Run disables the plugin.
func (cmd *pluginDisableCmd) Run(c *cli) error { return cmd.enable(c, false) }

func (p pluginName) enable(c *cli, enabled bool) error {
	cl, err := p.open(c)
	if err != nil {
		return err
	}
	got, err := cl.EnablePlugin(c.ctx, p.Name, enabled)
	if err != nil {
		return err
	}
	word := "disabled"
	if got.Enabled {
		word = "enabled"
	}
	return c.print(got, []string{got.Name}, func(w io.Writer) { row(w, got.Name+" "+word) })
}

type pluginRemoveCmd struct{ pluginName }

// Run removes the plugin. With -o json or yaml it prints it as it was.
func (cmd *pluginRemoveCmd) Run(c *cli) error {
	cl, err := cmd.open(c)
	if err != nil {
		return err
	}
	p, err := cl.Plugin(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	if err := cl.RemovePlugin(c.ctx, cmd.Name); err != nil {
		return err
	}
	return c.print(p, []string{p.Name}, func(w io.Writer) { row(w, p.Name+" removed") })
}
