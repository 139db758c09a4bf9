// Package volar is the command line of Volant: it parses, calls package client
// and prints. It decides nothing that the daemon could decide, and needs no
// rights of its own but that of opening the daemon's socket.
//
// Results go to stdout, all else to stderr: errors as "volar: …" with "hint: …"
// lines below, and progress of whatever takes longer than two seconds. What
// -o json and -o yaml print is the API's own form.
package volar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/kong"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/roles/cmdline"
)

// grammar is the whole command line.
type grammar struct {
	Host    string           `help:"Address of volantd, as unix:///path (default: unix:///run/volant/volantd.sock)." env:"VOLANT_HOST" placeholder:"ADDR"`
	API     string           `help:"Earlier name of --host." name:"api" env:"VOLANT_API_BASE" hidden:""`
	Output  string           `help:"How to print: ${enum}." short:"o" enum:"table,json,yaml,name" default:"table" placeholder:"FORM"`
	Version kong.VersionFlag `help:"Print the version and exit."`

	Run     runCmd     `cmd:"" help:"Run an image as a microVM."`
	VMs     vmsCmd     `cmd:"" name:"vms" help:"Create, run and look at VMs."`
	Images  imagesCmd  `cmd:"" help:"Get and manage images that VMs are made from."`
	Volumes volumesCmd `cmd:"" help:"Make and manage disks that outlive VMs."`
	Plugins pluginsCmd `cmd:"" help:"Install and manage what VMs run."`
	Kernels kernelsCmd `cmd:"" help:"Import and manage guest kernels."`
	Events  eventsCmd  `cmd:"" help:"Show what happened."`
	System  systemCmd  `cmd:"" help:"Show what volantd is and holds."`

	PS    listCmd      `cmd:"" name:"ps" help:"List VMs (vms list)."`
	Stop  stopCmd      `cmd:"" help:"Stop VMs (vms stop)."`
	RM    deleteCmd    `cmd:"" name:"rm" help:"Delete VMs (vms delete)."`
	Logs  logsCmd      `cmd:"" help:"Print what a VM's workload, console or VMM wrote (vms logs)."`
	Stats statsCmd     `cmd:"" help:"Show what VMs use of processors, memory, disks and network (vms stats)."`
	Pull  imagePullCmd `cmd:"" help:"Get images from their registries (images pull)."`
	RMI   imageRMCmd   `cmd:"" name:"rmi" help:"Remove images (images rm)."`

	Exec   execCmd   `cmd:"" help:"Run a command in a VM."`
	Attach attachCmd `cmd:"" help:"Connect with a VM's workload; ctrl-p ctrl-q leaves it, ctrl-c twice too, of which the first is the workload's."`
	CP     cpCmd     `cmd:"" name:"cp" help:"Copy files between this machine and a VM."`

	Doctor     doctorCmd     `cmd:"" help:"Look what can run VMs here, and what is missing."`
	Completion completionCmd `cmd:"" help:"Print a completion script for a shell."`
	Ver        versionCmd    `cmd:"" name:"version" help:"Print the versions of volar and volantd."`
}

// cli is what commands work with. It belongs to one call of Main.
type cli struct {
	ctx            context.Context // of the whole command line; a field because kong calls Run
	stdin          io.Reader
	stdout, stderr io.Writer
	version        string
	output         string
	host           string
	now            func() time.Time
	lookupEnv      func(string) (string, bool)
	notify         func(chan<- os.Signal) (stop func()) // of signals for a workload in the foreground
	progressAfter  time.Duration                        // how long something may take in silence
	model          *kong.Application
	opened         *client.Client
	noteMu         sync.Mutex // held while a line is written to stderr
	drawn          bool       // guarded by noteMu: a line stands on the terminal, see redraw
}

// defaultProgressAfter is when a user begins to wonder.
const defaultProgressAfter = 2 * time.Second

// Main runs volar with args, which do not include the program's name, and
// returns its exit status; see exitCode. It blocks until done or ctx ends.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, version string) int {
	c := &cli{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, version: version, now: time.Now, lookupEnv: os.LookupEnv, notify: notifyForeground, progressAfter: defaultProgressAfter}
	return c.run(args)
}

func (c *cli) run(args []string) (status int) {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Fprintf(c.stdout, "volar %s\n", c.version) // without building the grammar
		return exitOK
	}
	defer cmdline.Exit(&status)
	var g grammar
	parser, err := cmdline.New("volar", "volar runs workloads as microVMs, by way of volantd.\n\n"+exitHelp(),
		c.version, &g, c.stdout, c.stderr,
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Bind(c),
	)
	if err != nil {
		return c.fail(err)
	}
	c.model = parser.Model
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if args[0] == "-a" { // the earlier short form of --api; behind cp it is cp's own
		args = append([]string{"--api"}, args[1:]...)
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		command, err := usageOf(err)
		return c.end(command, err)
	}
	c.output, c.host = g.Output, g.Host
	if c.host == "" {
		c.host = g.API
	}
	defer func() {
		if c.opened != nil {
			c.opened.Close()
		}
	}()
	if err := kctx.Run(); err != nil {
		command, _, _ := strings.Cut(kctx.Command(), " ")
		return c.end(command, err)
	}
	return exitOK
}

// usageOf makes a usage error of kong's parse error, with the command's help as
// hint, and returns the first word of the command too.
func usageOf(err error) (command string, usage error) {
	path := "volar"
	var pe *kong.ParseError
	if errors.As(err, &pe) {
		for _, p := range pe.Context.Path {
			if p.Command == nil {
				continue
			}
			if command == "" {
				command = p.Command.Name
			}
			path += " " + p.Command.Name
		}
	}
	return command, &usageError{msg: err.Error(), hint: path + " --help shows what it takes"}
}

// daemon returns the client of the daemon that the command line names.
func (c *cli) daemon() (*client.Client, error) {
	if c.opened == nil {
		cl, err := client.New(client.Config{Addr: c.host, Version: c.version, OnVersion: c.compareVersion})
		if err != nil {
			return nil, err
		}
		c.opened = cl
	}
	return c.opened, nil
}

// compareVersion warns when the daemon is of another version: the API is the
// same, but newer commands may not be there.
func (c *cli) compareVersion(daemon string) {
	if daemon != c.version {
		c.notef("volantd is version %s, volar is %s", printable(daemon), c.version)
	}
}

// notef prints a line for people.
func (c *cli) notef(format string, args ...any) {
	c.noteMu.Lock()
	defer c.noteMu.Unlock()
	prefix := "volar: "
	if c.drawn {
		c.drawn, prefix = false, eraseLine+prefix
	}
	fmt.Fprintf(c.stderr, prefix+format+"\n", args...)
}

// printable replaces what could steer a terminal: texts come from guests too.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (r >= 0x20 && r != 0x7f && (r < 0x80 || r > 0x9f)) {
			return r
		}
		return '\uFFFD'
	}, s)
}

type versionCmd struct{}

// Run prints both versions; that the daemon does not answer is no failure.
func (versionCmd) Run(c *cli) error {
	var v struct {
		Volar   string `json:"volar"`
		Volantd string `json:"volantd,omitempty"`
	}
	v.Volar = c.version
	cl, err := client.New(client.Config{Addr: c.host, Version: c.version})
	if err != nil {
		return err
	}
	defer cl.Close()
	info, err := cl.SystemInfo(c.ctx)
	switch {
	case err == nil:
		v.Volantd = info.Version
	case api.CodeOf(err) == api.CodeUnavailable:
		c.notef("%v", err)
	default:
		return err
	}
	return c.print(v, []string{v.Volar}, func(w io.Writer) {
		row(w, "volar "+v.Volar)
		if v.Volantd != "" {
			row(w, "volantd "+v.Volantd)
		}
	})
}
