package api

import (
	"strings"

	"github.com/volantvm/volant/client/api/stdio"
)

// Bounds of what an Exec may carry.
const (
	// MaxExecArgs bounds the bytes of all arguments and variables together.
	MaxExecArgs = 128 << 10
	// MaxExecs is how many commands may run in one VM at a time beside its
	// workload.
	MaxExecs = 128
)

// Exec is a command to run in a VM that runs, beside its workload. What is left
// out is as the workload has it.
type Exec struct {
	Args    []string          `json:"args"`              // Args[0] is looked up in PATH when it holds no slash
	Env     map[string]string `json:"env,omitempty"`     // over the workload's
	Workdir string            `json:"workdir,omitempty"` // absolute
	User    string            `json:"user,omitempty"`    // name or uid, with ":" and group or gid
	// TTY runs it on a terminal of Rows and Cols (0 for what terminals have when
	// nobody says) and with Term as $TERM; Stdin passes on what the client sends,
	// else it reads nothing.
	TTY   bool   `json:"tty,omitempty"`
	Stdin bool   `json:"stdin,omitempty"`
	Rows  uint16 `json:"rows,omitempty"`
	Cols  uint16 `json:"cols,omitempty"`
	Term  string `json:"term,omitempty"`
}

// ExitStatus is how a command or workload ended.
type ExitStatus = stdio.ExitStatus

// Validate reports the first thing that no guest could act on; whether there is
// such a program or user is known in the guest only.
func (e *Exec) Validate() error {
	if len(e.Args) == 0 || e.Args[0] == "" {
		return Errorf(CodeInvalid, "args: there is no command")
	}
	size := 0
	for _, s := range e.Args {
		if strings.ContainsRune(s, 0) {
			return Errorf(CodeInvalid, "args: %.80q holds a zero byte", s)
		}
		size += len(s) + 1
	}
	if err := ValidateEnv("env", e.Env); err != nil {
		return err
	}
	for k, v := range e.Env {
		size += len(k) + len(v) + 2
	}
	switch {
	case size > MaxExecArgs:
		return Errorf(CodeTooLarge, "args and env have %d bytes; at most %d are allowed", size, MaxExecArgs).WithHint("send what is long as input")
	case e.Workdir != "" && (e.Workdir[0] != '/' || strings.ContainsRune(e.Workdir, 0)):
		return Errorf(CodeInvalid, "workdir: %.80q is not an absolute path", e.Workdir)
	case strings.ContainsAny(e.User, "\x00\n") || len(e.User) > 256:
		return Errorf(CodeInvalid, "user: %.80q is not a user", e.User)
	case strings.ContainsAny(e.Term, "\x00=/") || len(e.Term) > 64:
		return Errorf(CodeInvalid, "term: %.80q is not a kind of terminal", e.Term)
	}
	return nil
}
