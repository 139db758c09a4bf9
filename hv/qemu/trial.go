package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

const (
	// trialTimeout bounds a trial machine, which is done in under 0.2 s.
	trialTimeout = 20 * time.Second
	// trialPort is where QEMU's isa-debug-exit listens: a write of n ends QEMU
	// with exit status 2n+1.
	trialPort   = 0xf4
	trialValue  = 0x2a
	trialStatus = 2*trialValue + 1
)

// trial runs a guest of ten bytes and wants the exit status that only the
// guest can have caused.
func trial(ctx context.Context, path string, accel hv.Accel) error {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	f, err := os.CreateTemp("", "volant-trial-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(trialKernel())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path,
		"-M", "microvm", "-accel", string(accel), "-m", "16M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", trialPort), "-kernel", f.Name())
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &exit) && exit.ExitCode() == trialStatus:
		return nil
	case err == nil:
		return errors.New("the guest reset")
	}
	return fmt.Errorf("%w: %s", err, vmm.LastLine(stderr.Bytes()))
}

// trialKernel returns a kernel that writes trialValue to trialPort.
func trialKernel() []byte {
	return vmm.PVHKernel([]byte{
		0xb8, trialValue, 0, 0, 0, // mov eax, trialValue
		0xe7, trialPort, // out trialPort, eax
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
}
