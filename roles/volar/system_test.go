package volar

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// TestDoctorFails: where new VMs cannot run the status says so, whatever else
// works.
func TestDoctorFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := httpapi.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	svc := &httpapitest.Service{Hypervisors: []api.HypervisorCheck{
		{Name: "cloud-hypervisor", Chosen: true, Problem: "it needs KVM"},
		{Name: "qemu", Works: true, Version: "7.2.22", Accel: "tcg", Binary: "/q"},
	}}
	done := make(chan error, 1)
	go func() { done <- httpapi.New(httpapi.Config{Service: svc, Version: "1.2.3"}).Serve(ctx, ln) }()
	defer func() { cancel(); <-done }()
	t.Setenv("VOLANT_HOST", "unix://"+socket)
	status, out, errOut := run(t, "doctor")
	for _, want := range []string{"does not work, chosen for new VMs", "it needs KVM", "7.2.22 (tcg), /q"} {
		if !strings.Contains(out, want) {
			t.Errorf("volar doctor prints\n%swithout %q", out, want)
		}
	}
	if status == 0 || !strings.Contains(errOut, "no VM can be started here") || !strings.Contains(errOut, "hint: ") {
		t.Errorf("volar doctor = %d, %q, want a failure with a hint", status, errOut)
	}
}
