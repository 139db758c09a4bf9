package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/volantvm/volant/hv"
)

// CheckHost wants the devices that a Spec names to be there, and its directory to
// hold none of the files own, which the driver makes. Its errors wrap
// hv.ErrInvalidSpec.
func CheckHost(spec *hv.Spec, own []string) error {
	if err := CheckDir(spec.Dir, own); err != nil {
		return err
	}
	return CheckDevices(spec)
}

// CheckDevices wants the disks, TAPs and PCI devices that a Spec names to be there.
// Its errors wrap hv.ErrInvalidSpec.
func CheckDevices(spec *hv.Spec) error {
	for _, d := range spec.Disks {
		mode := os.O_RDWR
		if d.ReadOnly {
			mode = os.O_RDONLY
		}
		if err := CheckFile("disk", d.Path, mode); err != nil {
			return err
		}
	}
	for _, n := range spec.NICs {
		// VMMs make a TAP that is not there, attached to nothing.
		if _, err := net.InterfaceByName(n.Tap); err != nil {
			return fmt.Errorf("%w: tap %s: %w", hv.ErrInvalidSpec, n.Tap, err)
		}
	}
	for _, d := range spec.Devices {
		driver, err := os.Readlink("/sys/bus/pci/devices/" + d + "/driver")
		if err != nil || filepath.Base(driver) != "vfio-pci" {
			return fmt.Errorf("%w: PCI device %s is not there, or not bound to vfio-pci", hv.ErrInvalidSpec, d)
		}
	}
	return nil
}

// CheckBoot wants the kernel and the initramfs that a Spec names to be there and
// such that a VMM can start them. Its errors wrap hv.ErrInvalidSpec.
func CheckBoot(spec *hv.Spec) error {
	if err := CheckKernel(spec.Kernel); err != nil {
		return err
	}
	if spec.Initramfs == "" {
		return nil
	}
	return CheckFile("initramfs", spec.Initramfs, os.O_RDONLY)
}

// Spawn starts argv as the VMM of spec and remembers it: rec, which holds what
// the driver knows, gets what names the machine and the process, and is written
// to the machine's directory. The process has the user and the cgroups that the
// spec asks for, and files from descriptor FirstFile on, which stay the
// caller's. A process that is returned with an error is the caller's to end.
func Spawn(spec *hv.Spec, rec *hv.Record, argv []string, files ...*os.File) (*Process, error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	rec.ID, rec.Dir, rec.BootID, rec.ArgvSHA256 = spec.ID, spec.Dir, boot, HashArgv(argv)
	rec.ConsoleLog, rec.ConsoleLimit, rec.CID = spec.ConsoleLog, spec.ConsoleLimit, spec.CID
	env, err := Environment(*rec)
	if err != nil {
		return nil, err
	}
	if err := shareDir(spec.Dir, spec.User); err != nil {
		return nil, err
	}
	log, err := OpenLog(spec)
	if err != nil {
		return nil, err
	}
	proc, err := Start(argv, Setting{Env: env, Log: log, Files: files, User: spec.User, Cgroups: spec.Cgroups})
	if err = errors.Join(err, log.Close()); err != nil {
		return proc, err
	}
	rec.PID, rec.StartTime = proc.PID(), proc.StartTime()
	return proc, WriteRecord(*rec)
}

// EndTimeout bounds the wait for a process that got SIGKILL.
const EndTimeout = 10 * time.Second

// End kills the process of a launch that failed, waits until it has ended, and
// for over, where that is not nil: whoever watched it has seen that and let go
// of everything. It has a time limit of its own, since the launch's may be over.
func (p *Process) End(over <-chan struct{}) error {
	defer p.Close()
	err := p.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), EndTimeout)
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("process %d did not end after SIGKILL", p.PID()))
	}
	if over != nil {
		select {
		case <-over:
		case <-ctx.Done():
		}
	}
	return err
}
