package wire

import (
	"errors"
	"fmt"
	"strings"
)

// Routes that switch the connection to stdio.Protocol (package client/api/stdio),
// which the request asks for by the header Upgrade.
const (
	PathExec   = "/v1/exec"   // POST Exec: runs a command beside the workload, which must be running
	PathAttach = "/v1/attach" // POST: the workload's streams, from the latest that it wrote to its last exit
)

const (
	// MaxExec bounds the body of PathExec, in bytes: JSON makes a byte of an
	// argument six at the worst.
	MaxExec = 1 << 20
	// MaxExecs is how many commands run at a time, MaxAttached how many hosts
	// may be attached; more are answered with 429.
	MaxExecs    = 128
	MaxAttached = 32
)

// Exec is a command to run beside the workload. What is left out is as the
// workload has it.
type Exec struct {
	Args    []string `json:"args"`          // as WorkloadConfig.Args
	Env     []string `json:"env,omitempty"` // NAME=VALUE, over the workload's
	Workdir string   `json:"workdir,omitempty"`
	User    string   `json:"user,omitempty"`
	// TTY runs it on a terminal of Rows and Cols (0: 24 and 80) with Term
	// (default xterm) as TERM. Stdin passes input on; else it is /dev/null.
	TTY   bool   `json:"tty,omitempty"`
	Stdin bool   `json:"stdin,omitempty"`
	Rows  uint16 `json:"rows,omitempty"`
	Cols  uint16 `json:"cols,omitempty"`
	Term  string `json:"term,omitempty"`
}

// Validate reports the first thing that cannot be acted on.
func (e *Exec) Validate() error {
	w := WorkloadConfig{Args: e.Args, Env: e.Env, Workdir: e.Workdir}
	if err := w.validate(); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if strings.ContainsRune(e.Term, 0) {
		return errors.New("exec: term: holds a zero byte")
	}
	return nil
}
