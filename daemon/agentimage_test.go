package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckStatic wants a program with a dynamic loader to be refused before it
// becomes a guest's /init.
func TestCheckStatic(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := checkStatic(script); err != nil {
		t.Errorf("checkStatic(a script) = %v, want nil", err)
	}
	if err := checkStatic("/bin/sh"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("checkStatic(/bin/sh) = %v, want a refusal that says how to build", err)
	}
	if err := checkStatic(filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Error("checkStatic of a missing file = nil, want an error")
	}
}
