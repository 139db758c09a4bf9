package daemon

import (
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
)

// What is to be said of more than one feature that a driver lacks.
const (
	needsCloudHypervisor = "QEMU's microvm machine has no place for it; Cloud Hypervisor has (hypervisor: cloud-hypervisor)"
	needsRoot            = "volantd has to run as root"
)

// features lists what a driver can do on this host, and what it takes to have what
// it cannot.
func features(c hv.Capabilities) []api.Feature {
	list := []struct {
		name  string
		works bool
		needs string
	}{
		{"pause", c.Pause, "a hypervisor that can stop its virtual CPUs"},
		{"power-button", c.PowerButton, "a hypervisor with an ACPI power button"},
		{"snapshot", c.Snapshot, "a hypervisor whose trial snapshot succeeds; the notice says why it did not"},
		{"template", c.Template, "QEMU 4.0 or newer, or a Cloud Hypervisor that takes snapshots"},
		{"on-demand", c.OnDemand, "Cloud Hypervisor 53 or newer; QEMU reads all memory of what is no template"},
		{"resize-cpu", c.ResizeCPU, needsCloudHypervisor},
		{"resize-memory", c.ResizeMemory, needsCloudHypervisor},
		{"plug-disk", c.PlugDisk, needsCloudHypervisor},
		{"plug-nic", c.PlugNIC, needsCloudHypervisor},
		{"pmem", c.Pmem, needsCloudHypervisor},
		{"vfio", c.Device, needsCloudHypervisor},
		{"shares", c.Share, "a QEMU that was built with vhost-user-fs (Debian's is), or Cloud Hypervisor"},
		{"balloon", c.Balloon, "QEMU 5.1 or newer, built with virtio-balloon, or Cloud Hypervisor"},
		{"merge", c.Merge, "QEMU on a kernel with KSM; Cloud Hypervisor's memory is a shared mapping, which KSM leaves alone"},
		{"unprivileged", c.Unprivileged, needsRoot},
	}
	out := make([]api.Feature, len(list))
	for i, f := range list {
		out[i] = api.Feature{Name: f.name, Works: f.works}
		if !f.works {
			out[i].Needs = f.needs
		}
	}
	return out
}
