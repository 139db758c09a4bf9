package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/need"
)

// scripted makes a QEMU that greets with a version and knows some machines. It
// refuses to run when an argument equals refuse.
func scripted(t *testing.T, major, minor int, machines, refuse string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	script := fmt.Sprintf(`#!/bin/sh
for a; do [ "$a" = %q ] && { echo "qemu: $a: not supported" >&2; exit 1; }; done
echo '{"QMP": {"version": {"qemu": {"micro": 3, "minor": %d, "major": %d}, "package": "x"}, "capabilities": []}}'
echo '{"return": {}}'
echo '{"id": "machines", "return": [%s]}'
echo '{"id": "migration", "return": [{"state": false, "capability": "events"}, {"state": false, "capability": "x-ignore-shared"}]}'
echo '{"id": "virtio-balloon-device", "return": [{"name": "free-page-reporting", "type": "bool"}]}'
echo '{"id": "vhost-user-fs-device", "error": {"class": "DeviceNotFound", "desc": "not found"}}'
echo run >> "$0.runs"
`, refuse, minor, major, machines)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const someMachines = `{"name": "pc", "cpu-max": 255}, {"name": "microvm"}`

func TestProbe(t *testing.T) {
	tests := []struct {
		name    string
		binary  string
		version string
		sandbox bool
		err     string // in an ErrUnavailable
	}{
		{"floor", scripted(t, 7, 2, someMachines, ""), "7.2.3", true, ""},
		{"newer", scripted(t, 10, 0, someMachines, ""), "10.0.3", true, ""},
		{"no seccomp", scripted(t, 7, 2, someMachines, "-sandbox"), "7.2.3", false, ""},
		{"too old", scripted(t, 7, 1, someMachines, ""), "", false, "version 7.1.3, want 7.2 or newer: install"},
		{"much too old", scripted(t, 6, 9, someMachines, ""), "", false, "version 6.9.3"},
		{"no microvm", scripted(t, 8, 0, `{"name": "pc"}`, ""), "", false, "without the microvm machine"},
		{"does not run", scripted(t, 8, 0, "", "-M"), "", false, "not supported"},
		{"no QEMU", "/bin/echo", "", false, "does not run"},
		{"missing", "/nonexistent/qemu", "", false, "install QEMU 7.2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := New(Config{Binary: test.binary, Accel: TCG})
			f, err := d.probe(t.Context())
			if test.err != "" {
				if !errors.Is(err, hv.ErrUnavailable) || !strings.Contains(err.Error(), test.err) {
					t.Errorf("probe: %v, want ErrUnavailable with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.caps.Version != test.version || f.sandbox != test.sandbox || f.caps.Accel != hv.AccelTCG || !strings.Contains(f.caps.Notice, "not isolated by hardware") {
				t.Errorf("probe() = %+v, want version %s, sandbox %v", f, test.version, test.sandbox)
			}
			// What it says it has, and nothing of what microvm has not.
			if c := f.caps; !c.Snapshot || !c.Template || !c.Balloon || c.Share || c.Pmem || c.Device || c.PlugDisk || c.PlugNIC || c.ResizeCPU || c.ResizeMemory || c.OnDemand {
				t.Errorf("capabilities = %+v, want snapshots, templates and a balloon", c)
			}
			if f.pkg != test.version+" x" || f.readonlyFile {
				t.Errorf("package = %q, files below private memory %v, want %q, false", f.pkg, f.readonlyFile, test.version+" x")
			}
		})
	}
}

func TestInterview(t *testing.T) {
	for name, c := range map[string]struct {
		out  string
		want bool // the property rom of memory files
		fail bool
	}{
		"8.2":        {`{"QMP": {"version": {}}}` + "\n" + `{"id": "memory-backend-file", "return": [{"name": "rom", "type": "OnOffAuto"}]}`, true, false},
		"7.2":        {`{"QMP": {"version": {}}}` + "\n" + `{"id": "memory-backend-file", "return": [{"name": "readonly"}]}`, false, false},
		"other type": {`{"QMP": {"version": {}}}` + "\n" + `{"id": "vhost-user-fs-device", "return": [{"name": "rom"}]}`, false, false},
		"refused":    {`{"QMP": {"version": {}}}` + "\n" + `{"id": "memory-backend-file", "error": {"class": "GenericError"}}`, false, false},
		"odd":        {`{"QMP": {"version": {}}}` + "\n" + `{"id": "memory-backend-file", "return": {"name": "rom"}}`, false, false},
		"no id":      {`{"QMP": {"version": {}}}` + "\n" + `{"return": [{"name": "rom"}]}`, false, false},
		"cut":        {`{"QMP": {"version": {}}}` + "\n" + `{"id": "memo`, false, true},
		"silent":     {``, false, true},
	} {
		a, err := parseInterview([]byte(c.out))
		if (err != nil) != c.fail || err == nil && a.has(askMemoryFile, "rom") != c.want {
			t.Errorf("%s: parseInterview() = %+v, %v, want %v", name, a, err, c.want)
		}
	}
}

func TestProbeNotInPath(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Config{}).Probe(t.Context()); !errors.Is(err, hv.ErrUnavailable) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("Probe: %v, want ErrUnavailable and what to install", err)
	}
}

func TestProbeChoice(t *testing.T) {
	if _, err := New(Config{Accel: "hvf"}).Probe(t.Context()); err == nil || errors.Is(err, hv.ErrUnavailable) {
		t.Errorf("Probe with an unknown accelerator: %v, want an error that is not ErrUnavailable", err)
	}
	path := scripted(t, 7, 2, someMachines, "")
	_, kvm := New(Config{Binary: path, Accel: KVM}).Probe(t.Context())
	auto, err := New(Config{Binary: path}).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The scripted QEMU runs no guest, so KVM is refused with or without it.
	if !errors.Is(kvm, hv.ErrUnavailable) || !strings.Contains(kvm.Error(), "KVM was asked for") {
		t.Errorf("Probe for KVM: %v, want ErrUnavailable", kvm)
	}
	if auto.Accel != hv.AccelTCG || auto.Notice == "" {
		t.Errorf("Probe() = %+v, want emulation with a notice", auto)
	}
}

func TestProbeIsKept(t *testing.T) {
	path := scripted(t, 7, 2, someMachines, "")
	runs := func() int {
		b, err := os.ReadFile(path + ".runs")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "run")
	}
	d := New(Config{Binary: path, Accel: TCG})
	for range 3 {
		if _, err := d.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := runs(); n != 1 {
		t.Errorf("%d runs for 3 probes, want 1", n)
	}
	if err := os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := runs(); n != 2 {
		t.Errorf("%d runs after the binary changed, want 2", n)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(Config{Binary: path, Accel: TCG}).Probe(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Probe with a cancelled context: %v, want Canceled", err)
	}
}

// TestTrial runs the trial guest under emulation, which proves the guest; what
// KVM makes of it is what the probe wants to know.
func TestTrial(t *testing.T) {
	path := need.Tool(t, "qemu-system-x86_64")
	if err := trial(t.Context(), path, hv.AccelTCG); err != nil {
		t.Errorf("trial: %v", err)
	}
	if err := trial(t.Context(), path, "none"); err == nil {
		t.Error("trial with an accelerator that does not exist succeeded")
	}
}

func TestTSC(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		need.Elsewhere(t, "no time stamp counter")
	}
	a, b := tscKHz(), tscKHz()
	if diff := int64(a) - int64(b); diff*diff > int64(a/1000)*int64(a/1000) {
		t.Errorf("tscKHz() = %d, then %d: want them within 0.1 %%", a, b)
	}
	if a < 100_000 || a > 20_000_000 {
		t.Errorf("tscKHz() = %s MHz, want that of a processor", strconv.FormatUint(a/1000, 10))
	}
}
