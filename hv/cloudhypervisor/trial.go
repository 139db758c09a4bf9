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
	trialMiB     = 64
	// trialText is what only a guest that runs can have said.
	trialText = "volant: the trial machine runs\n"
)

// trial launches a machine as Launch does, with all that a real one has but
// disks and NICs, and wants it to say its text and to power off.
func (d *Driver) trial(ctx context.Context, f *findings) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout, fmt.Errorf("it did not end in %v: %w", trialTimeout, context.DeadlineExceeded))
	defer cancel()
	base, err := os.MkdirTemp("", "volant-trial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	kernel, dir := filepath.Join(base, "kernel"), filepath.Join(base, "vm")
	if err := os.WriteFile(kernel, trialKernel(), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	spec := hv.Spec{
		ID: "trial", Dir: dir, VCPUs: 1, MemoryMiB: trialMiB, Kernel: kernel, CID: 3, ConsoleLog: filepath.Join(base, "console.log"),
	}
	m, err := d.launch(ctx, &spec, f)
	if err != nil {
		return err
	}
	exit := hv.Exit{}
	if err = m.say("\n"); err == nil {
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
