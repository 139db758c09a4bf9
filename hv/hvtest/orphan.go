package hvtest

import (
	"context"
	"encoding/json"
	"errors"
	"github.com/volantvm/volant/hv"
	"io"
	"os/exec"
	"testing"
	"time"
)

// orphanTimeout bounds the launch by a daemon that will be killed.
const orphanTimeout = 2 * time.Minute

// Orphan launches a machine from the process cmd, which calls BeDaemon, kills
// that process with SIGKILL once the machine runs, and returns the record.
func Orphan(t testing.TB, cmd *exec.Cmd, spec hv.Spec) hv.Record {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(spec); err != nil {
		t.Error(err)
	}
	limit := time.AfterFunc(orphanTimeout, func() { cmd.Process.Kill() })
	defer limit.Stop()
	var rec hv.Record
	if err := json.NewDecoder(out).Decode(&rec); err != nil {
		t.Errorf("the daemon's answer: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait() // reports the signal that was just sent
	if t.Failed() {
		t.FailNow()
	}
	return rec
}

// BeDaemon is the daemon for Orphan: it reads a Spec, launches it, writes the
// record, and does nothing more until it is killed.
func BeDaemon(d hv.Driver, in io.Reader, out io.Writer) error {
	var spec hv.Spec
	if err := json.NewDecoder(in).Decode(&spec); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), orphanTimeout)
	defer cancel()
	vm, err := d.Launch(ctx, spec)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(vm.Record()); err != nil {
		return err
	}
	time.Sleep(orphanTimeout)
	return errors.New("nobody killed the daemon")
}
