package roles_test

import (
	"fmt"
	"testing"
	"time"

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
	h.eventually(20*time.Second, "it is idle, and has 8 MiB for its workload", func() error {
		left := available(t, vm.IPAddress)
		t.Logf("%.1f MiB are available in it", left/1024)
		if left < 8<<10 {
			return fmt.Errorf("%.1f MiB are available", left/1024)
		}
		return nil
	})
	h.volar("vms", "stop", "small")
	if vm = h.vm("small"); vm.Status != api.VMStopped {
		t.Errorf("it is %s (%s), want stopped", vm.Status, vm.Reason)
	}
}
