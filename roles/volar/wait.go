package volar

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/kong"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// maxTimeout is the longest wait that the daemon grants.
const maxTimeout = 10 * time.Minute

// waitFlag is --wait, --wait=WHAT or --no-wait.
type waitFlag struct {
	what api.VMWait
	off  bool
}

// IsBool makes kong take the flag without a value.
func (*waitFlag) IsBool() bool { return true }

// Decode reads the value, if one is attached.
func (w *waitFlag) Decode(ctx *kong.DecodeContext) error {
	*w = waitFlag{}
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	switch v := ctx.Scan.Pop().Value.(type) {
	case bool:
		w.off = !v
	case string:
		w.off = v == "none"
		if !w.off {
			w.what = api.VMWait(v)
		}
	}
	return nil
}

// resolve returns what to wait for, def when the user did not say.
func (w waitFlag) resolve(timeout time.Duration, def api.VMWait, also ...api.VMWait) (client.Wait, error) {
	if timeout <= 0 || timeout > maxTimeout {
		return client.Wait{}, usagef("--timeout: %v is not a duration above 0s and up to %v", timeout, maxTimeout)
	}
	if w.off {
		return client.Wait{}, nil
	}
	out := client.Wait{For: w.what, Timeout: timeout}
	if w.what == api.WaitNone {
		out.For = def
	}
	allowed := append([]api.VMWait{def}, also...)
	for _, a := range allowed {
		if out.For == a {
			return out, nil
		}
	}
	names := make([]string, 0, len(allowed)+1)
	for _, a := range append(allowed, "none") {
		names = append(names, string(a))
	}
	return client.Wait{}, usagef("--wait=%s: give one of %s", w.what, strings.Join(names, ", "))
}

// withProgress runs do, which changes the VM called name, and tells on stderr
// what becomes of the VM when do takes long.
func (c *cli) withProgress(cl *client.Client, name string, do func() error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.progressAfter):
		}
		vm, err := cl.VM(ctx, name, client.Wait{})
		if err != nil {
			return // do meets the error too
		}
		c.notef("%s: waiting; it is %s", name, printable(describe(vm)))
		// Failing to follow is no failure of do: the progress just ends.
		_ = cl.Events(ctx, api.EventFilter{VM: vm.Name}, true, func(e api.Event) error {
			if e.VMID == vm.ID && e.Time.After(vm.UpdatedAt) {
				c.notef("%s: %s", name, printable(eventWords(e)))
			}
			return nil
		})
	})
	err := do()
	cancel()
	wg.Wait()
	return err
}

// endError is the error of having waited, with w, for the end of a VM that did
// not end well; nil if that is not what happened.
func endError(w client.Wait, vm api.VM) error {
	if w.For != api.WaitStopped || vm.Status != api.VMCrashed && vm.Status != api.VMFailed {
		return nil
	}
	return &hintError{fmt.Errorf("VM %s has %s: %s", vm.Name, vm.Status, vm.Reason), "volar vms logs " + vm.Name + " shows what it said"}
}

// eventWords says a VM's event in words: "running", "crashed: kernel panic".
func eventWords(e api.Event) string {
	s := strings.ToLower(strings.TrimPrefix(string(e.Type), "VM_"))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// describe says where a VM stands.
func describe(vm api.VM) string {
	s := string(vm.Status)
	if vm.Status == api.VMRunning {
		s += " (" + health(vm) + ")"
	}
	if vm.CrashLoop {
		s += ", in a crash loop"
	}
	if vm.Reason != "" {
		s += ": " + vm.Reason
	}
	if vm.WaitingFor != "" {
		s += ", waits for " + vm.WaitingFor
	}
	return s
}

// stateWords is where a VM stands, for a table.
func stateWords(vm api.VM) string {
	switch {
	case vm.CrashLoop:
		return string(vm.Status) + " (crash loop)"
	case vm.Status == api.VMRunning && vm.Reason != "":
		return string(vm.Status) + " (impaired)"
	}
	return string(vm.Status)
}

// health is the word for the workload of a running VM.
func health(vm api.VM) string {
	switch {
	case vm.Status != api.VMRunning:
		return "-"
	case !vm.AgentUp:
		return "no agent"
	case vm.Health.Status == api.HealthNone, vm.Health.Status == "":
		return "-"
	}
	return string(vm.Health.Status)
}

// each runs do for every name at once and prints the results of those that
// succeeded, in the order of names.
func (c *cli) each(names []string, do func(name string) (api.VM, error), done func(api.VM) string) error {
	type result struct {
		vm  api.VM
		err error
	}
	results := make([]result, len(names))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i].vm, results[i].err = do(name)
		})
	}
	wg.Wait()
	vms, ok, failed := []api.VM{}, []string{}, manyError(nil)
	for i, r := range results {
		if r.err != nil {
			failed = append(failed, r.err)
			continue
		}
		vms, ok = append(vms, r.vm), append(ok, names[i])
	}
	var err error
	if c.output != outputTable {
		err = c.print(vms, ok, nil)
	} else {
		for i, vm := range vms {
			fmt.Fprintf(c.stdout, "%s %s\n", ok[i], done(vm))
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return err
}
