// Package kestrel is the command line of kestrel, process 1 of every Volant
// guest. It answers --version and --help anywhere; everything else it does in
// a guest alone, which package guest makes sure of.
package kestrel

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/volantvm/volant/guest"
	"github.com/volantvm/volant/guest/wire"
)

// Exit codes.
const (
	exitRefused = 1
	exitUsage   = 2
)

const usage = `usage: kestrel [--version | --help]

kestrel is process 1 of a Volant guest: it boots the machine, runs its workload
and answers volantd. It is started by the shim that finds it, or by the kernel
as /init, and takes no arguments. Anywhere else it refuses to run.
`

// Main runs kestrel with the arguments after the program's name and returns the
// exit code. As process 1 of a guest it does not return unless the machine could
// not be powered off, which the kernel then answers with a panic.
//
// The kernel passes words of its command line that it does not know as
// arguments to process 1; kestrel takes its own from /proc/cmdline and refuses
// arguments only where it is not process 1.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, version string) int {
	for _, arg := range args {
		switch arg {
		case "--version", "-version":
			fmt.Fprintf(stdout, "kestrel %s\n", version)
			return 0
		case "--help", "-help", "-h":
			fmt.Fprint(stdout, usage)
			return 0
		}
	}
	sys := guest.NewSys()
	if len(args) == 1 && args[0] == guest.InitStep {
		if code, is := guest.Init(sys); is {
			return code
		}
	}
	if len(args) > 0 && sys.Getpid() != 1 {
		fmt.Fprintf(stderr, "kestrel: unknown argument %q\n%s", args[0], usage)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	defer stop()
	if err := guest.Run(ctx, guest.Config{Sys: sys, Version: version, Console: stderr, Shim: os.Getenv(wire.EnvShim)}); err != nil {
		fmt.Fprintf(stderr, "kestrel: %v\n", err)
		return exitRefused
	}
	return 0
}
