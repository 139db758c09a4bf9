package volar

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/volantvm/volant/client/api"
)

type configCmd struct {
	Get     configGetCmd     `cmd:"" help:"Print a VM's configuration."`
	Set     configSetCmd     `cmd:"" help:"Change a VM's configuration."`
	History configHistoryCmd `cmd:"" help:"List the versions of a VM's configuration."`
}

type configGetCmd struct {
	Name    string `arg:"" help:"Name or id of the VM." complete:"vms"`
	Version int    `name:"at" help:"An earlier version (default: the newest)." placeholder:"N"`
}

// Run prints a configuration: in the form that config set --file takes, unless
// -o asks for all that is known of the version.
func (cmd *configGetCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	if cmd.Version < 0 {
		return usagef("--at %d: versions count from 1 on", cmd.Version)
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	v, err := cl.VMConfig(c.ctx, cmd.Name, cmd.Version)
	if err != nil {
		return err
	}
	if c.output != outputTable {
		return c.print(v, []string{strconv.Itoa(v.Version)}, nil)
	}
	if v.Pending {
		c.notef("version %d waits for the next start of %s", v.Version, v.VM)
	}
	return writeYAML(c.stdout, v.Config)
}

type configSetCmd struct {
	Name    string   `arg:"" help:"Name or id of the VM." complete:"vms"`
	Set     []string `arg:"" optional:"" name:"setting" help:"NAME=VALUE, or NAME- to take one away: cpus=2, memory=1g, env.MODE=x, labels.tier-, restart=always, ttl=1h, kernel, kernel_cmdline, workdir, user, hostname, stop_signal, stop_timeout, tty, stdin, auto_remove; and as JSON command, ports and health_check."`
	File    string   `short:"f" help:"File with what changes, as JSON or YAML in the form that config get prints; - for standard input. What is null there is taken away." placeholder:"FILE"`
	Version int      `name:"to" help:"Begin with this earlier version: alone it goes back to that." placeholder:"N"`
	Expect  int      `help:"Refuse unless the present version is this one." placeholder:"N"`
	Restart bool     `help:"Start the VM anew, so that all of it is in effect."`
}

// Run changes a configuration.
func (cmd *configSetCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	if cmd.Version < 0 || cmd.Expect < 0 {
		return usagef("--to and --expect count from 1 on")
	}
	patch := map[string]any{}
	if cmd.File != "" {
		read := func() ([]byte, error) { return c.read(location{dir: cmd.File}, api.MaxManifestSize) }
		if cmd.File == "-" {
			read = func() ([]byte, error) { return c.readStdin(api.MaxManifestSize) }
		}
		data, err := read()
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		if err := yaml.Unmarshal(data, &patch); err != nil { // JSON is YAML
			return usagef("--file %s: %v", cmd.File, err)
		}
	}
	for _, s := range cmd.Set {
		if err := setting(patch, s); err != nil {
			return err
		}
	}
	if len(patch) == 0 && cmd.Version == 0 {
		return usagef("say what is to change: NAME=VALUE, --file or --to")
	}
	in := api.VMConfigChange{Version: cmd.Version, Expect: cmd.Expect, Restart: cmd.Restart}
	if len(patch) > 0 {
		var err error
		if in.Patch, err = json.Marshal(patch); err != nil {
			return err
		}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	v, err := cl.SetVMConfig(c.ctx, cmd.Name, in)
	if err != nil {
		return err
	}
	return c.print(v, []string{strconv.Itoa(v.Version)}, func(w io.Writer) {
		words := fmt.Sprintf("%s has version %d of its configuration", v.VM, v.Version)
		if v.Pending {
			words += ", which waits for its next start"
		}
		row(w, words)
	})
}

// setting takes NAME=VALUE or NAME- into a merge patch.
func setting(patch map[string]any, s string) error {
	name, text, given := strings.Cut(s, "=")
	if !given {
		var ok bool
		if name, ok = strings.CutSuffix(s, "-"); !ok {
			return usagef("%q: give NAME=VALUE, or NAME- to take it away", s)
		}
	}
	group, key, nested := strings.Cut(name, ".")
	if nested && (group == "env" || group == "labels") && key != "" {
		inner, ok := patch[group].(map[string]any)
		if !ok {
			inner = map[string]any{}
			patch[group] = inner
		}
		inner[key] = nil
		if given {
			inner[key] = text
		}
		return nil
	}
	field, value, err := settingValue(name, text)
	if err != nil {
		return err
	}
	if !given {
		value = nil
	}
	patch[field] = value
	return nil
}

// settingValue returns the field of api.VMConfig that a setting is about, and its
// value. An empty text is allowed for a setting that is taken away.
func settingValue(name, text string) (field string, value any, err error) {
	switch name {
	case "cpus", "cpu", "cpu_cores":
		n, err := strconv.Atoi(text)
		if text != "" && (err != nil || n < 1) {
			return "", nil, usagef("%s=%s: give a number of CPUs", name, text)
		}
		return "cpu_cores", n, nil
	case "memory", "memory_mb":
		if text == "" {
			return "memory_mb", nil, nil
		}
		n, err := parseMiB(name, text, api.MaxMemoryMB)
		return "memory_mb", n, err
	case "ttl", "ttl_seconds":
		if text == "" {
			return "ttl_seconds", nil, nil
		}
		n, err := parseTTL(name, text)
		return "ttl_seconds", n, err
	case "stop_timeout", "stop_timeout_ms":
		d, err := time.ParseDuration(text)
		if text != "" && (err != nil || d < time.Millisecond) {
			return "", nil, usagef("%s=%s: give a time such as 30s", name, text)
		}
		return "stop_timeout_ms", d.Milliseconds(), nil
	case "tty", "stdin", "auto_remove":
		b, err := strconv.ParseBool(text)
		if text != "" && err != nil {
			return "", nil, usagef("%s=%s: give true or false", name, text)
		}
		return name, b, nil
	case "kernel", "kernel_cmdline", "workdir", "user", "hostname", "stop_signal":
		return name, text, nil
	case "restart":
		if text != "" && !strings.HasPrefix(text, "{") {
			r, err := parseRestart(name, text)
			return name, r, err
		}
		return jsonSetting(name, text)
	case "command", "ports", "health_check", "env", "labels":
		return jsonSetting(name, text)
	}
	names := []string{
		"cpus", "memory", "ttl", "stop_timeout", "tty", "stdin", "auto_remove", "kernel", "kernel_cmdline", "workdir", "user", "hostname",
		"stop_signal", "restart", "command", "ports", "health_check", "env", "labels",
	}
	usage := &usageError{msg: fmt.Sprintf("%q is no setting of a VM", name), hint: "there are " + strings.Join(names, ", ")}
	if near := api.Nearest(name, names); near != "" {
		usage.hint = "did you mean " + near + "?"
	}
	return "", nil, usage
}

func jsonSetting(name, text string) (string, any, error) {
	if text == "" {
		return name, nil, nil
	}
	if !json.Valid([]byte(text)) {
		return "", nil, usagef("%s: %.80q is not JSON, such as [\"/bin/app\", \"-v\"]", name, text)
	}
	return name, json.RawMessage(text), nil
}

type configHistoryCmd struct {
	Name  string `arg:"" help:"Name or id of the VM." complete:"vms"`
	Limit int    `help:"How many to list at most." placeholder:"N"`
}

// Run lists versions, the newest first.
func (cmd *configHistoryCmd) Run(c *cli) error {
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	if cmd.Limit < 0 {
		return usagef("--limit cannot be negative")
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.VMConfigHistory(c.ctx, cmd.Name, cmd.Limit)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = strconv.Itoa(v.Version)
	}
	return c.print(list, names, func(w io.Writer) {
		row(w, "VERSION", "TIME", "BY", "CHANGED")
		for _, v := range list {
			changed := strings.Join(v.Changed, ", ")
			if v.From > 0 {
				changed = fmt.Sprintf("(from version %d) %s", v.From, changed)
			}
			if v.Pending {
				changed += " (waits for the next start)"
			}
			row(w, v.Version, v.Time.Format(time.RFC3339), dash(v.By), dash(changed))
		}
	})
}

type renameCmd struct {
	Name string `arg:"" help:"Name or id of the VM." complete:"vms"`
	To   string `arg:"" name:"new-name" help:"Its new name."`
}

// Run gives a VM another name.
func (cmd *renameCmd) Run(c *cli) error {
	for _, name := range []string{cmd.Name, cmd.To} {
		if err := api.ValidateName("VM", name); err != nil {
			return err
		}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	vm, err := cl.RenameVM(c.ctx, cmd.Name, cmd.To)
	if err != nil {
		return err
	}
	return c.print(vm, []string{vm.Name}, func(w io.Writer) { row(w, cmd.Name+" is now "+vm.Name) })
}

type labelCmd struct {
	Name   string   `arg:"" help:"Name or id of the VM." complete:"vms"`
	Labels []string `arg:"" name:"label" help:"NAME=VALUE sets one, NAME- takes it away."`
}

// Run changes a VM's labels, which is a version of its configuration too.
func (cmd *labelCmd) Run(c *cli) error {
	set := configSetCmd{Name: cmd.Name}
	for _, l := range cmd.Labels {
		set.Set = append(set.Set, "labels."+l)
	}
	return set.Run(c)
}

// parseTTL reads how long a VM lives, in seconds.
func parseTTL(flag, s string) (int64, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d%time.Second != 0 || d > api.MaxTTLSeconds*time.Second {
		return 0, usagef("%s %q: give a time in whole seconds, such as 90s or 24h", flag, s)
	}
	return int64(d / time.Second), nil
}
