// Package cmdline is what the command lines of the roles share: a kong parser
// that writes where it is told and never ends the process.
package cmdline

import (
	"io"

	"github.com/alecthomas/kong"
)

// exit carries an exit status out of kong, which wants to end the process after
// --help and --version.
type exit int

// New returns the parser of a role's grammar. After --help and --version it
// leaves its caller by a panic that a deferred Exit turns into a status.
func New(role, description, version string, grammar any, stdout, stderr io.Writer, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(grammar, append([]kong.Option{
		kong.Name(role),
		kong.Description(description),
		kong.Vars{"version": role + " " + version},
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
	}, options...)...)
}

// Exit, when deferred, ends a parser's panic and sets the status that goes with
// it. Any other panic goes on.
func Exit(status *int) {
	switch p := recover().(type) {
	case nil:
	case exit:
		*status = int(p)
	default:
		panic(p)
	}
}
