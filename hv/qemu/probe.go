package qemu

import (
	"bufio"
	"bytes"
	"cmp"
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
	pkg     string // the version in full
	// readonlyFile says that a machine's own memory can be on top of a file that
	// it cannot write to: since 8.2.
	readonlyFile bool
	stamp        stamp
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
	if !in.has(askMachines, "microvm") {
		return nil, fmt.Errorf("qemu: %w: %s was built without the microvm machine: %s", hv.ErrUnavailable, path, install)
	}
	f := &findings{
		sandbox: sandboxed,
		tscKHz:  tscKHz(),
		pkg:     v.String() + " " + in.pkg,

		readonlyFile: in.has(askMemoryFile, "rom"),
		caps: hv.Capabilities{
			Driver: Name, Version: v.String(), Binary: path, Accel: hv.AccelTCG, Channel: hv.ChannelSerial,
			Pause: true, PowerButton: true, MaxVCPUs: maxVCPUs, MaxDisks: maxDisks, MaxNICs: maxNICs,
			Snapshot: in.has(askMigration, "events"), Template: in.has(askMigration, ignoreShared),
			Share: in.has(askShare, "tag"), Balloon: in.has(askBalloon, "free-page-reporting"),
			// Only root can become another user.
			Unprivileged: os.Geteuid() == 0,
			Merge:        mergesMemory(),
			// microvm takes no vCPUs, memory or devices while it runs, has no place for
			// persistent memory, and no PCI bus.
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
	version version
	pkg     string              // the version as the distribution has it, "" where none has
	names   map[string][]string // by question; none where QEMU refuses the question
}

// The questions of an interview: which machines there are, which capabilities of
// migration, and which properties some types have, by the type.
const (
	askMachines   = "machines"
	askMigration  = "migration"
	askBalloon    = "virtio-balloon-device"
	askShare      = "vhost-user-fs-device"
	askMemoryFile = "memory-backend-file"
)

func questions() string {
	q := `{"execute":"qmp_capabilities"}` +
		`{"execute":"query-machines","id":"` + askMachines + `"}` +
		`{"execute":"query-migrate-capabilities","id":"` + askMigration + `"}` +
		`{"execute":"qom-list-properties","id":"` + askMemoryFile + `","arguments":{"typename":"` + askMemoryFile + `"}}`
	for _, device := range []string{askBalloon, askShare} {
		q += `{"execute":"device-list-properties","id":"` + device + `","arguments":{"typename":"` + device + `"}}`
	}
	return q + `{"execute":"quit"}`
}

func (a *answers) has(question, name string) bool { return slices.Contains(a.names[question], name) }

// interview runs QEMU without a machine and asks what it is.
func interview(ctx context.Context, path string, sandboxed bool) (*answers, error) {
	args := []string{"-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"}
	if sandboxed {
		args = append(args, "-sandbox", sandbox)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(questions())
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %s", err, vmm.LastLine(stderr.Bytes())))
	}
	return parseInterview(out)
}

func parseInterview(out []byte) (*answers, error) {
	a := answers{names: make(map[string][]string)}
	greeted := false
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, maxMessage)
	for sc.Scan() {
		var m struct {
			QMP *struct {
				Version struct {
					QEMU    version `json:"qemu"`
					Package string  `json:"package"`
				} `json:"version"`
			} `json:"QMP"`
			ID     string          `json:"id"`
			Return json.RawMessage `json:"return"`
		}
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return nil, fmt.Errorf("answer %.100q: %w", sc.Bytes(), err)
		}
		if m.QMP != nil {
			greeted, a.version, a.pkg = true, m.QMP.Version.QEMU, m.QMP.Version.Package
		}
		var list []struct {
			Name       string `json:"name"`
			Capability string `json:"capability"`
		}
		if m.ID == "" || json.Unmarshal(m.Return, &list) != nil {
			continue
		}
		for _, l := range list {
			a.names[m.ID] = append(a.names[m.ID], cmp.Or(l.Name, l.Capability))
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
