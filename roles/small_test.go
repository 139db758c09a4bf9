package roles_test

import (
	"testing"

	"github.com/volantvm/volant/client/api"
)

// TestSmallGuest wants an appliance to run in 48 MiB, of which the kernel generic
// takes a third before its first process.
func TestSmallGuest(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()
	installBare(t, h)
	h.volar("vms", "create", "small", "--plugin", "bare", "--memory", "48", "--wait=healthy")
	vm := h.vm("small")
	if left := available(t, vm.IPAddress); left < 8<<10 {
		t.Errorf("%.1f MiB are available in it, want at least 8 for its workload", left/1024)
	} else {
		t.Logf("%.1f MiB are available in it", left/1024)
	}
	h.volar("vms", "stop", "small")
	if vm = h.vm("small"); vm.Status != api.VMStopped {
		t.Errorf("it is %s (%s), want stopped", vm.Status, vm.Reason)
	}
}
