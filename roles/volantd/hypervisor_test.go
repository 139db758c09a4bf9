package volantd

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChooseDriver(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "old")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho cloud-hypervisor v40.0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none")
	tests := []struct {
		hypervisor, binary, want, other, log string
	}{
		{"", none, "qemu", "cloud-hypervisor", "no such file"},
		{"auto", none, "qemu", "cloud-hypervisor", "no such file"},
		{"auto", old, "qemu", "cloud-hypervisor", "version 40.0, want 52 or newer"},
		{"qemu", old, "qemu", "cloud-hypervisor", ""},
		{"cloud-hypervisor", none, "cloud-hypervisor", "qemu", ""},
	}
	for _, test := range tests {
		var log bytes.Buffer
		chosen, others := chooseDriver(t.Context(), Options{
			Hypervisor: test.hypervisor, CloudHypervisor: test.binary, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if chosen.Name() != test.want || len(others) != 1 || others[0].Name() != test.other {
			t.Errorf("--hypervisor %q, binary %s: %s and %v, want %s and %s", test.hypervisor, test.binary, chosen.Name(), others, test.want, test.other)
		}
		if said := log.String(); !strings.Contains(said, test.log) || (said == "") != (test.log == "") {
			t.Errorf("--hypervisor %q, binary %s: logged %q, want %q", test.hypervisor, test.binary, said, test.log)
		}
	}
}

func TestCheckHypervisor(t *testing.T) {
	for name, ok := range map[string]bool{"": true, "auto": true, "qemu": true, "cloud-hypervisor": true, "xen": false, "QEMU": false} {
		if err := checkHypervisor(name); (err == nil) != ok {
			t.Errorf("checkHypervisor(%q) = %v, want ok %v", name, err, ok)
		}
	}
}
