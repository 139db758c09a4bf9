package cloudhypervisor

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

func TestProbe(t *testing.T) {
	noKVM := func() error { return errors.New("open /dev/kvm: permission denied") }
	foreign := func() error { return vmm.ErrNoExtensions }
	tests := []struct {
		name     string
		script   script
		config   Config
		kvm      func() error
		err      string // in an ErrUnavailable
		notice   string // in the notice; empty: there is none
		landlock bool
	}{
		{name: "good", landlock: true},
		{name: "floor", script: script{Version: "v52.0"}, notice: "53 or newer is better", landlock: true},
		{name: "newer than known", script: script{Version: "v99.3"}, notice: "treated as 54", landlock: true},
		{name: "too old", script: script{Version: "v51.1"}, err: "version 51.1, want 52 or newer: put cloud-hypervisor 53"},
		{name: "no version", script: script{Version: "x"}, err: "no version of Cloud Hypervisor"},
		{name: "no KVM", kvm: noKVM, err: "it needs KVM, but open /dev/kvm: permission denied: enable"},
		{name: "KVM of another kind", kvm: foreign, err: "neither vmx nor svm"},
		{name: "KVM of another kind, taken", kvm: foreign, config: Config{AnyKVM: true}, notice: "not made for this KVM", landlock: true},
		{name: "no KVM, taken", kvm: noKVM, config: Config{AnyKVM: true}, err: "permission denied"},
		{name: "no Landlock", script: script{Confine: true}, notice: "runs without Landlock"},
		{name: "no boot", script: script{Refuse: map[string]refusal{opBoot: {http.StatusInternalServerError, `["no","vCPU"]`}}}, err: `a trial machine did not run: vm.boot: status 500: "no: vCPU"`},
		{name: "does not start", script: script{Broken: "no such option"}, err: "no such option"},
		{name: "missing", config: Config{Binary: "/nonexistent/cloud-hypervisor"}, err: "put cloud-hypervisor 53"},
		{name: "no Cloud Hypervisor", config: Config{Binary: "/bin/false"}, err: "does not run: exit status 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.config.Binary == "" {
				test.config.Binary = installScript(t, test.script)
			}
			d := New(test.config)
			d.checkKVM = test.kvm
			if test.kvm == nil {
				d.checkKVM = func() error { return nil }
			}
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
			if !strings.Contains(f.caps.Notice, test.notice) || (f.caps.Notice == "") != (test.notice == "") || f.landlock != test.landlock {
				t.Errorf("probe() = %+v, want landlock %v and notice %q", f, test.landlock, test.notice)
			}
			if f.caps.Accel != hv.AccelKVM || f.caps.Channel != hv.ChannelVsock || f.caps.Binary != test.config.Binary {
				t.Errorf("probe() = %+v", f.caps)
			}
		})
	}
}

func TestProbeNotInPath(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Config{}).Probe(t.Context()); !errors.Is(err, hv.ErrUnavailable) || !strings.Contains(err.Error(), "into PATH") {
		t.Errorf("Probe: %v, want ErrUnavailable and what to do", err)
	}
}

// TestProbeIsKept also looks whether trial machines leave anything behind.
func TestProbeIsKept(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	binary := installScript(t, script{})
	d := scriptedDriver(binary)
	trials := func() int { return strings.Count(requests(t, binary), opCreate) }
	for range 3 {
		if _, err := d.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := trials(); n != 1 {
		t.Errorf("%d trial machines for 3 probes, want 1", n)
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "volant-*")); err != nil || len(left) > 0 {
		t.Errorf("the trial left %q, %v", left, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Another binary: a copy, for the time of a link is that of its target.
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(binary), os.WriteFile(binary, b, 0o700), os.Chtimes(binary, time.Now(), time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := trials(); n != 2 {
		t.Errorf("%d trial machines after the binary changed, want 2", n)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := scriptedDriver(binary).Probe(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Probe with a cancelled context: %v, want Canceled", err)
	}
}

// TestTrialHangs wants a trial whose guest never says a word to end.
func TestTrialHangs(t *testing.T) {
	binary := installScript(t, script{Silent: []string{opBoot}})
	d := scriptedDriver(binary)
	d.budget = func(string) time.Duration { return 100 * time.Millisecond }
	if _, err := d.Probe(t.Context()); !errors.Is(err, hv.ErrUnavailable) || !strings.Contains(err.Error(), "vm.boot: no answer in 100ms") {
		t.Errorf("Probe: %v, want ErrUnavailable and that vm.boot did not answer", err)
	}
}
