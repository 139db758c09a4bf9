package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// trialTimeout bounds a trial machine, which is done in 40 ms.
	trialTimeout = 20 * time.Second
	// restoreTimeout bounds each restore of it, so that the next can be tried.
	restoreTimeout = 6 * time.Second
	trialMiB       = 64
	// trialText is what only a guest that runs can have said.
	trialText = "volant: the trial machine runs\n"
)

// trial launches a machine as Launch does, with all that a real one has but
// disks and NICs, takes a snapshot of it, and wants it to say its text and to power
// off. Then it wants the same of what it restores from the snapshot, and notes in
// f what of that is possible; kept says why nothing is.
func (d *Driver) trial(ctx context.Context, f *findings) (kept, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout, fmt.Errorf("it did not end in %v: %w", trialTimeout, context.DeadlineExceeded))
	defer cancel()
	base, err := os.MkdirTemp("", "volant-trial-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	if err := os.WriteFile(filepath.Join(base, "kernel"), trialKernel(), 0o600); err != nil {
		return nil, err
	}
	snapshots := filepath.Join(base, "snapshot")
	if err := os.Mkdir(snapshots, 0o700); err != nil {
		return nil, err
	}
	spec, err := trialSpec(base, "vm")
	if err != nil {
		return nil, err
	}
	spec.Reach = []string{snapshots}
	m, err := d.launch(ctx, spec, f)
	if err != nil {
		return nil, err
	}
	s, kept := trialSnapshot(ctx, m, snapshots)
	if err := finishTrial(ctx, m, spec); err != nil {
		return nil, err
	}
	if kept == nil {
		kept = d.trialRestore(ctx, f, base, s)
	}
	return kept, nil
}

// trialSpec returns a trial machine in a directory of its own, which it makes.
func trialSpec(base, name string) (*hv.Spec, error) {
	dir := filepath.Join(base, name)
	return &hv.Spec{
		ID: "trial", Dir: dir, VCPUs: 1, MemoryMiB: trialMiB, Kernel: filepath.Join(base, "kernel"), CID: 3,
		ConsoleLog: filepath.Join(base, name+".log"),
	}, os.Mkdir(dir, 0o700)
}

func trialSnapshot(ctx context.Context, m *machine, dir string) (hv.Snapshot, error) {
	if err := m.Pause(ctx); err != nil {
		return hv.Snapshot{}, err
	}
	return m.Snapshot(ctx, dir)
}

// trialRestore restores the trial machine, on demand if the version can: that
// takes a copy's means and userfaultfd(2).
func (d *Driver) trialRestore(ctx context.Context, f *findings, base string, s hv.Snapshot) error {
	able := *f
	able.caps.Snapshot, able.caps.OnDemand = true, true
	var err error
	for _, demand := range []bool{true, false} {
		if demand && !f.traits.onDemand {
			continue
		}
		var spec *hv.Spec
		if spec, err = trialSpec(base, fmt.Sprintf("restored-%t", demand)); err != nil {
			return err
		}
		if err = d.tryRestore(ctx, spec, &able, s, hv.RestoreOptions{OnDemand: demand}); err == nil {
			f.caps.Snapshot, f.caps.Template, f.caps.OnDemand = true, true, demand
			return nil
		}
	}
	return err
}

func (d *Driver) tryRestore(ctx context.Context, spec *hv.Spec, f *findings, s hv.Snapshot, o hv.RestoreOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, restoreTimeout, fmt.Errorf("what was restored did not end in %v: %w", restoreTimeout, context.DeadlineExceeded))
	defer cancel()
	m, err := d.restore(ctx, spec, f, s, o)
	if err != nil {
		return err
	}
	return finishTrial(ctx, m, spec)
}

// finishTrial has a trial machine, paused or not, say its text and power off.
func finishTrial(ctx context.Context, m *machine, spec *hv.Spec) error {
	exit := hv.Exit{}
	err := m.Resume(ctx)
	if err == nil {
		err = m.say("\n")
	}
	if err == nil {
		exit, err = m.Wait(ctx)
	}
	if err != nil {
		killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), vmm.EndTimeout)
		defer cancel()
		return errors.Join(err, m.Kill(killCtx))
	}
	if said := vmm.Tail(spec.ConsoleLog, 1024); !strings.Contains(string(said), trialText) || exit.Reason != hv.ExitShutdown {
		return fmt.Errorf("it ended by %s (%s) having said %.100q, want shutdown and %q", exit.Reason, exit.Detail, said, trialText)
	}
	return nil
}

// trialKernel returns a kernel that waits for a byte on the serial port, writes
// trialText there and powers off: it sets sleep type 5 and its enable bit in the
// port of Cloud Hypervisor's ACPI shutdown device. Without the wait its words
// could be over before version 52 has anybody to tell them to.
func trialKernel() []byte {
	code := []byte{
		0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd: the line status
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1: data ready
		0x74, 0xfb, // jz to the in
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
	}
	for _, c := range []byte(trialText) {
		code = append(code,
			0xb0, c, // mov al, c
			0xee) // out dx, al
	}
	return vmm.PVHKernel(append(code,
		0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
		0xb0, 0x34, // mov al, 5<<2 | 1<<5
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	))
}
