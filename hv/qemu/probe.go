package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// The oldest QEMU that was tried: Debian 12 has it.
const (
	minMajor = 7
	minMinor = 2
)

// install is what to do when there is no usable QEMU.
const install = "install QEMU 7.2 or newer (Debian: apt-get install qemu-system-x86)"

// sandbox is QEMU's seccomp filter as narrow as the driver's use allows: no
// new programs, no privileges, no scheduling.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// findings is what a probe found out.
type findings struct {
	caps    hv.Capabilities
	sandbox bool   // this QEMU was built with seccomp
	tscKHz  uint64 // of this host, 0 when unknown
	stamp   stamp
}

// stamp tells one version of a file from another.
type stamp struct {
	mtime time.Time
	size  int64
}

// locate finds QEMU's executable.
func locate(configured string) (path string, s stamp, err error) {
	path = configured
	if path == "" {
		path, err = exec.LookPath("qemu-system-x86_64")
		if err != nil {
			return "", stamp{}, fmt.Errorf("qemu: %w: qemu-system-x86_64 is not in PATH: %s", hv.ErrUnavailable, install)
		}
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return "", stamp{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", stamp{}, fmt.Errorf("qemu: %w: %w: %s", hv.ErrUnavailable, err, install)
	}
	return path, stamp{fi.ModTime(), fi.Size()}, nil
}

// look asks the binary and the host.
func look(ctx context.Context, path string, accel Choice) (*findings, error) {
	in, err := interview(ctx, path, true)
	sandboxed := err == nil
	if err != nil && ctx.Err() == nil {
		in, err = interview(ctx, path, false)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %w: %s does not run: %w", hv.ErrUnavailable, path, err)
	}
	v := in.version
	if v.Major < minMajor || v.Major == minMajor && v.Minor < minMinor {
		return nil, fmt.Errorf("qemu: %w: %s is version %s, want %d.%d or newer: %s", hv.ErrUnavailable, path, v, minMajor, minMinor, install)
	}
	if !slices.Contains(in.machines, "microvm") {
		return nil, fmt.Errorf("qemu: %w: %s was built without the microvm machine: %s", hv.ErrUnavailable, path, install)
	}
	f := &findings{
		sandbox: sandboxed,
		tscKHz:  tscKHz(),
		caps: hv.Capabilities{
			Driver: Name, Version: v.String(), Binary: path, Accel: hv.AccelTCG, Channel: hv.ChannelSerial,
			Pause: true, PowerButton: true, MaxVCPUs: maxVCPUs, MaxDisks: maxDisks, MaxNICs: maxNICs,
		},
	}
	if accel == TCG {
		f.caps.Notice = emulationNotice("as configured")
		return f, nil
	}
	switch err := checkKVM(ctx, path); {
	case err == nil:
		f.caps.Accel = hv.AccelKVM
		if vmm.Opens("/dev/vhost-vsock") == nil {
			f.caps.Channel = hv.ChannelVsock
		}
	case accel == KVM:
		return nil, fmt.Errorf("qemu: %w: KVM was asked for, but %w", hv.ErrUnavailable, err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("qemu: probe: %w", ctx.Err())
	default:
		f.caps.Notice = emulationNotice(err.Error())
	}
	return f, nil
}

func emulationNotice(why string) string {
	return "virtual machines are emulated in software (" + why + "): they are slow, and are not isolated by hardware"
}

// version is QEMU's version as its greeting tells it.
type version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// answers is what a QEMU says of itself.
type answers struct {
	version  version
	machines []string
}

// interview runs QEMU without a machine and asks what it is.
func interview(ctx context.Context, path string, sandboxed bool) (*answers, error) {
	args := []string{"-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"}
	if sandboxed {
		args = append(args, "-sandbox", sandbox)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-machines"}{"execute":"quit"}`)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %s", err, vmm.LastLine(stderr.Bytes())))
	}
	return parseInterview(out)
}

func parseInterview(out []byte) (*answers, error) {
	var a answers
	greeted := false
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, maxMessage)
	for sc.Scan() {
		var m struct {
			QMP *struct {
				Version struct {
					QEMU version `json:"qemu"`
				} `json:"version"`
			} `json:"QMP"`
			Return json.RawMessage `json:"return"`
		}
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return nil, fmt.Errorf("answer %.100q: %w", sc.Bytes(), err)
		}
		if m.QMP != nil {
			greeted, a.version = true, m.QMP.Version.QEMU
		}
		var machines []struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(m.Return, &machines) == nil {
			for _, m := range machines {
				a.machines = append(a.machines, m.Name)
			}
		}
	}
	if !greeted {
		return nil, fmt.Errorf("answer %.100q: no QMP greeting", out)
	}
	return &a, sc.Err()
}

// checkKVM says why KVM cannot be used, or nil: the processor must have the
// extensions, and a guest of a few bytes must have run.
func checkKVM(ctx context.Context, path string) error {
	if err := vmm.CheckKVM(); err != nil {
		return err
	}
	if err := trial(ctx, path, hv.AccelKVM); err != nil {
		return fmt.Errorf("a trial machine did not run with KVM: %w", err)
	}
	return nil
}
