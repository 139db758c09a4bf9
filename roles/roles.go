// Package roles decides which face the binary wears, and nothing else: by the
// name it was called by, else by its first word. Each face's command line is a
// package below; they parse, wire and print.
package roles

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/volantvm/volant/roles/fledge"
	"github.com/volantvm/volant/roles/kestrel"
	"github.com/volantvm/volant/roles/volantd"
	"github.com/volantvm/volant/roles/volar"
)

// Exit statuses that all roles share. A role's own page lists further ones.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// face is one role's entry point. args leaves out the word or name that chose
// the role. The context ends on SIGINT and SIGTERM, but for kestrel, which owns
// the signals of a whole guest.
type face func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, version string) int

// lookup returns the face called name, nil when there is none. The kernel
// starts its first process as /init, which is kestrel.
func lookup(name string) face {
	switch name {
	case "volar":
		return volar.Main
	case "volantd":
		return volantd.Main
	case "fledge":
		return fledge.Main
	case "kestrel", "init":
		return kestrel.Main
	}
	return nil
}

// linkNames are the names that `volant install` makes links for. kestrel is
// not among them: it has no business on a host.
func linkNames() []string { return []string{"volar", "volantd", "fledge"} }

// Main runs the face that args ask for and returns the process's exit status.
// args[0] is the name the program was called by.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, version string) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return ExitUsage
	}
	name, rest := filepath.Base(args[0]), args[1:]
	f := lookup(name)
	if f == nil && len(rest) > 0 {
		name = rest[0]
		if f = lookup(name); f != nil {
			rest = rest[1:]
		}
	}
	if f == nil {
		return volant(rest, stdout, stderr, version)
	}
	if only(rest, "--version") {
		fmt.Fprintf(stdout, "%s %s\n", name, version)
		return ExitOK
	}
	ctx := context.Background()
	if name != "kestrel" && name != "init" {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends the process at once
	}
	return f(ctx, rest, stdin, stdout, stderr, version)
}

// only reports whether args are the single word want.
func only(args []string, want string) bool { return len(args) == 1 && args[0] == want }

// volant is the binary under its own name: it tells of itself and makes links.
func volant(args []string, stdout, stderr io.Writer, version string) int {
	switch {
	case len(args) == 0:
		fmt.Fprint(stderr, usage)
		return ExitUsage
	case only(args, "--version"), only(args, "version"):
		fmt.Fprintf(stdout, "volant %s\n", version)
		return ExitOK
	case only(args, "--help"), only(args, "-h"), only(args, "help"):
		fmt.Fprint(stdout, usage)
		return ExitOK
	case args[0] == "install":
		return install(args[1:], stdout, stderr)
	}
	fmt.Fprintf(stderr, "volant: %q is neither a role nor a command\nhint: volant --help lists both\n", args[0])
	return ExitUsage
}

const usage = `Usage: volant ROLE [ARGUMENT ...]
       volant install [--dir DIR]
       volant --version | --help

Volant turns workloads into microVMs. One binary, four roles, chosen by the
name it is called by or by the first word:

  volantd   the control plane: runs and watches the microVMs of this host
  volar     the command line: talks to volantd
  fledge    the image builder: makes bootable artifacts of programs, images, Dockerfiles
  kestrel   the agent, PID 1 inside a guest; refuses to run anywhere else

volant install links the first three names to this binary, in the folder of
the binary or in DIR. Each role has its own --help.
`
