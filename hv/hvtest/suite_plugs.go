package hvtest

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest/guest"
)

// plugTimeout bounds how long a guest may take to follow what is done to its
// machine.
const plugTimeout = 30 * time.Second

// await waits until the guest has followed.
func (r *run) await(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(plugTimeout); !ok(); time.Sleep(20 * time.Millisecond) {
		if r.ctx.Err() != nil || time.Now().After(deadline) {
			r.Fatalf("the guest does not see %s", what)
		}
	}
}

func (r *run) size(vm hv.VM) guest.Size {
	r.Helper()
	var s guest.Size
	if err := json.Unmarshal([]byte(r.get(vm, "/size")), &s); err != nil {
		r.Fatalf("GET /size: %v", err)
	}
	return s
}

// testResize grows a machine to its limits, and not beyond.
func testResize(r *run) {
	spec := r.spec()
	if r.caps.ResizeCPU {
		spec.MaxVCPUs = spec.VCPUs + 1
	}
	if r.caps.ResizeMemory {
		spec.MaxMemoryMiB = spec.MemoryMiB + 512
	}
	vm := r.launch(spec)
	sizer := vm.(hv.Resizer)
	small := r.size(vm)
	if small.VCPUs != spec.VCPUs || small.MemoryMiB > spec.MemoryMiB {
		r.Errorf("the guest finds %+v, want %d vCPUs and at most %d MiB", small, spec.VCPUs, spec.MemoryMiB)
	}
	if err := sizer.Resize(r.ctx, spec.MaxVCPUs, spec.MaxMemoryMiB); err != nil {
		r.Fatalf("Resize: %v", err)
	}
	if err := sizer.Resize(r.ctx, spec.MaxVCPUs, 0); err != nil {
		r.Errorf("Resize to what it is: %v", err)
	}
	if !r.Inert {
		r.await("what it was given", func() bool {
			now := r.size(vm)
			return (!r.caps.ResizeCPU || now.VCPUs == spec.MaxVCPUs) && (!r.caps.ResizeMemory || now.MemoryMiB >= small.MemoryMiB+384)
		})
	}
	for name, err := range map[string]error{
		"vCPUs":      sizer.Resize(r.ctx, max(spec.VCPUs, spec.MaxVCPUs)+1, 0),
		"memory":     sizer.Resize(r.ctx, 0, max(spec.MemoryMiB, spec.MaxMemoryMiB)+128),
		"less of it": sizer.Resize(r.ctx, -1, 0),
	} {
		if !errors.Is(err, hv.ErrInvalidSpec) && !errors.Is(err, hv.ErrUnsupported) {
			r.Errorf("Resize beyond the limit of %s: %v, want ErrInvalidSpec or ErrUnsupported", name, err)
		}
	}
	r.echo(vm, 64)
	if !r.caps.Snapshot {
		return
	}
	// What was plugged is part of the machine that a snapshot is of.
	r.remember(vm, "large")
	s := r.snapshot(vm)
	if err := vm.Kill(r.ctx); err != nil {
		r.Fatalf("Kill: %v", err)
	}
	large := r.spec()
	large.VCPUs, large.MaxVCPUs = max(spec.VCPUs, spec.MaxVCPUs), spec.MaxVCPUs
	large.MemoryMiB, large.MaxMemoryMiB = max(spec.MemoryMiB, spec.MaxMemoryMiB), spec.MaxMemoryMiB
	if note := r.get(r.restore(large, s, hv.RestoreOptions{}), "/note"); note != "large" {
		r.Errorf("the restored guest remembers %q, want %q", note, "large")
	}
}

// testPlugDisk adds a disk to a machine that runs, and removes it.
func testPlugDisk(r *run) {
	spec := r.spec()
	spec.Disks = []hv.Disk{{Serial: "volant-root", Path: r.disk("root"), ReadOnly: true}}
	vm := r.launch(spec)
	r.echo(vm, 64)
	plug := vm.(hv.Plugger)
	d := hv.Disk{Serial: "volant-data", Path: r.disk("data")}
	for range 2 {
		for range 2 {
			if err := plug.AddDisk(r.ctx, d); err != nil {
				r.Fatalf("AddDisk: %v", err)
			}
		}
		r.await("the disk", func() bool {
			b, err := r.call(vm, http.MethodGet, "/disk?serial=volant-data&offset=0&size=4", nil)
			return err == nil && string(b) == "data"
		})
		if err := r.writeDisk(vm, d.Serial, 4096, "written"); err != nil {
			r.Errorf("write to the plugged disk: %v", err)
		}
		other := r.spec()
		other.Disks = []hv.Disk{d}
		if vm, err := r.driver.Launch(r.ctx, other); !errors.Is(err, hv.ErrDiskInUse) {
			r.Errorf("Launch with a plugged disk of another: %v, want ErrDiskInUse", err)
			if err == nil {
				vm.Kill(r.ctx)
			}
		}
		for range 2 {
			if err := plug.RemoveDisk(r.ctx, d.Serial); err != nil {
				r.Fatalf("RemoveDisk: %v", err)
			}
		}
		if _, err := r.call(vm, http.MethodGet, "/disk?serial=volant-data&offset=0&size=4", nil); err == nil {
			r.Error("the guest still reads the removed disk")
		}
		// It is free for another: RemoveDisk has waited until it was let go of.
		if err := r.launch(other).Kill(r.ctx); err != nil {
			r.Errorf("Kill: %v", err)
		}
	}
	if err := plug.RemoveDisk(r.ctx, "never-there"); err != nil {
		r.Errorf("RemoveDisk of one that never was: %v", err)
	}
	if err := plug.AddDisk(r.ctx, hv.Disk{Serial: "x", Path: d.Path + ".missing"}); !errors.Is(err, hv.ErrInvalidSpec) {
		r.Errorf("AddDisk of a missing file: %v, want ErrInvalidSpec", err)
	}
	if got := r.readDisk(vm, "volant-root", 0, 4); got != "root" {
		r.Errorf("the guest reads %q from its first disk, want %q", got, "root")
	}
}

// testPlugNIC adds a NIC to a machine that runs, and removes it.
func testPlugNIC(r *run) {
	vm := r.launch(r.spec())
	plug := vm.(hv.Plugger)
	n := hv.NIC{Tap: r.Tap(r), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x77}}
	has := func() bool { return strings.Contains(r.get(vm, "/nics"), n.MAC.String()) }
	if has() {
		r.Fatalf("the guest has %s before it is plugged", n.MAC)
	}
	for range 2 {
		for range 2 {
			if err := plug.AddNIC(r.ctx, n); err != nil {
				r.Fatalf("AddNIC: %v", err)
			}
		}
		r.await("the NIC", has)
		for range 2 {
			if err := plug.RemoveNIC(r.ctx, n.MAC); err != nil {
				r.Fatalf("RemoveNIC: %v", err)
			}
		}
		r.await("the NIC go", func() bool { return !has() })
	}
	if err := plug.AddNIC(r.ctx, hv.NIC{Tap: "volant-none", MAC: n.MAC}); !errors.Is(err, hv.ErrInvalidSpec) {
		r.Errorf("AddNIC of a missing tap: %v, want ErrInvalidSpec", err)
	}
	r.echo(vm, 64)
}
