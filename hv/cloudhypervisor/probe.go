package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// install is what to do when there is no usable Cloud Hypervisor.
const install = "put cloud-hypervisor 53 or newer (the file cloud-hypervisor-static of its releases) into PATH"

// versionTimeout bounds --version, which takes milliseconds.
const versionTimeout = 10 * time.Second

// findings is what a probe found out.
type findings struct {
	caps     hv.Capabilities
	traits   traits
	landlock bool // the VMM confines itself
	stamp    stamp
}

// stamp tells one version of a file from another.
type stamp struct {
	mtime time.Time
	size  int64
}

// locate finds Cloud Hypervisor's executable.
func locate(configured string) (path string, s stamp, err error) {
	path = configured
	if path == "" {
		path, err = exec.LookPath("cloud-hypervisor")
		if err != nil {
			return "", stamp{}, fmt.Errorf("cloud-hypervisor: %w: it is not in PATH: %s", hv.ErrUnavailable, install)
		}
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return "", stamp{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", stamp{}, fmt.Errorf("cloud-hypervisor: %w: %w: %s", hv.ErrUnavailable, err, install)
	}
	return path, stamp{fi.ModTime(), fi.Size()}, nil
}

// look asks the binary and the host.
func (d *Driver) look(ctx context.Context, path string) (*findings, error) {
	v, err := askVersion(ctx, path)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("cloud-hypervisor: probe: %w", ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w: %s does not run: %w", hv.ErrUnavailable, path, err)
	}
	if v.major < minMajor {
		return nil, fmt.Errorf("cloud-hypervisor: %w: %s is version %s, want %d or newer: %s", hv.ErrUnavailable, path, v, minMajor, install)
	}
	f := &findings{
		traits:   v.traits(),
		landlock: true,
		caps: hv.Capabilities{
			Driver: Name, Version: v.String(), Binary: path, Accel: hv.AccelKVM, Channel: hv.ChannelVsock,
			Pause: true, PowerButton: true, ResizeCPU: true, ResizeMemory: true, PlugDisk: true, PlugNIC: true,
			Pmem: true, Share: true, Device: true, Balloon: true, Unprivileged: os.Geteuid() == 0,
			MaxVCPUs: maxVCPUs, MaxDisks: maxDisks, MaxNICs: maxNICs,
		},
	}
	notices := []string{f.traits.notice}
	switch err := d.checkKVM(); {
	case err == nil:
	case errors.Is(err, vmm.ErrNoExtensions) && d.config.AnyKVM:
		notices = append(notices, err.Error()+": guests that are not made for this KVM may not run")
	default:
		return nil, fmt.Errorf("cloud-hypervisor: %w: it needs KVM, but %w: enable virtualization in the firmware, or nested virtualization in the hypervisor around this host, and see that /dev/kvm is there; or use --hypervisor qemu, which emulates",
			hv.ErrUnavailable, err)
	}
	kept, err := d.trial(ctx, f)
	if err != nil && ctx.Err() == nil {
		f.landlock = false
		confined := err
		if kept, err = d.trial(ctx, f); err == nil {
			notices = append(notices, fmt.Sprintf("Cloud Hypervisor runs without Landlock, with which its trial machine did not run (%v)", confined))
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("cloud-hypervisor: probe: %w", ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w: a trial machine did not run: %w", hv.ErrUnavailable, err)
	}
	if kept != nil {
		notices = append(notices, fmt.Sprintf("Cloud Hypervisor takes no snapshots here: that of its trial machine failed (%v)", kept))
	}
	f.caps.Notice = joinNotices(notices)
	return f, nil
}

func joinNotices(list []string) string {
	var said []string
	for _, n := range list {
		if n != "" {
			said = append(said, n)
		}
	}
	return strings.Join(said, "; ")
}

// askVersion runs the binary for its version.
func askVersion(ctx context.Context, path string) (version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %.200q", err, vmm.LastLine(exit.Stderr))
		}
		return version{}, err
	}
	return parseVersion(string(out))
}
