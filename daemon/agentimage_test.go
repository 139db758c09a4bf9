package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
)

// TestCheckStatic wants a program with a dynamic loader to be refused before it
// becomes a guest's first process.
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

// agentOf returns the disk of a VM's agent and what is on it.
func (w *world) agentOf(id string) (hv.Disk, string) {
	w.t.Helper()
	disk := w.hv.Machine(id).Spec().Disks[0]
	content, err := os.ReadFile(disk.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	return disk, string(content)
}

func TestAgentDisk(t *testing.T) {
	w := newWorld(t)
	w.hv.SetCapabilities(hv.Capabilities{Driver: hvtest.FakeName, Channel: hv.ChannelSerial, MaxVCPUs: 4, MaxDisks: 4, MaxNICs: 1, Pmem: true})
	d := w.start(options{})
	d.equip()
	if _, err := d.ImportKernel(t.Context(), api.KernelImport{Name: "pmem", Version: "6.12", Digest: d.put(kernelImage("\x00virtio_pmem\x00nd_pfn\x00"))}); err != nil {
		t.Fatal(err)
	}
	a, b := d.createFrom(api.VMCreate{Name: "a", Plugin: "serve", Kernel: "pmem"}), d.create("b", "serve")
	d.must("a", api.WaitHealthy)
	d.must("b", api.WaitHealthy)
	disk, content := w.agentOf(a.ID)
	if !disk.ReadOnly || !disk.Pmem || disk.Serial != wire.AgentSerial {
		t.Errorf("disk = %+v, want read-only persistent memory", disk)
	}
	if want := "image of the agent"; strings.TrimRight(content, "\x00") != want || len(content) != pmemAlign {
		t.Errorf("it holds %.40q and zeros up to %d bytes, want %q and %d", content, len(content), want, pmemAlign)
	}
	if spec := w.hv.Machine(a.ID).Spec(); spec.Cmdline[1] != "volant.agent=/dev/pmem0" {
		t.Errorf("command line %q", spec.Cmdline)
	}
	other, _ := w.agentOf(b.ID)
	if other.Path != disk.Path {
		t.Errorf("two VMs have the agent at %s and %s, want one disk", disk.Path, other.Path)
	}
	// Its kernel would not find it.
	if spec := w.hv.Machine(b.ID).Spec(); other.Pmem || spec.Cmdline[1] != "volant.agent=volant-agent" {
		t.Errorf("with a kernel that has no persistent memory: disk %+v, command line %q", other, spec.Cmdline)
	}
}

// Without a disk the agent is in the initramfs. Either way a kernel's modules are.
func TestAgentInInitramfs(t *testing.T) {
	for _, onDisk := range []bool{true, false} {
		w := newWorld(t)
		d := w.start(options{config: func(c *Config) {
			if !onDisk {
				c.AgentImage = nil
			}
		}})
		d.equip()
		if _, err := d.ImportKernel(t.Context(), api.KernelImport{
			Name: "modular", Version: "6.1", Digest: d.put(kernelImage("modular")), Modules: d.put(archive(t, "modules")),
		}); err != nil {
			t.Fatal(err)
		}
		vm := d.createFrom(api.VMCreate{Name: "a", Plugin: "serve", Kernel: "modular"})
		d.must("a", api.WaitHealthy)
		spec := w.hv.Machine(vm.ID).Spec()
		image, err := os.ReadFile(spec.Initramfs)
		if err != nil {
			t.Fatal(err)
		}
		hasShim := bytes.Contains(image, []byte(shim.Binary()))
		hasAgent := bytes.Contains(bytes.ReplaceAll(image, []byte(shim.Binary()), nil), []byte("the agent"))
		if hasShim != onDisk || hasAgent == onDisk || !bytes.Contains(image, []byte("content of modules")) {
			t.Errorf("agent on a disk %t: the initramfs has the shim %t, the agent %t", onDisk, hasShim, hasAgent)
		}
		if got := strings.Contains(strings.Join(spec.Cmdline, " "), wire.ParamAgent); got != onDisk || len(spec.Disks) == 2 != onDisk {
			t.Errorf("agent on a disk %t: disks %v, command line %q", onDisk, spec.Disks, spec.Cmdline)
		}
	}
}

func TestAgentDiskDamaged(t *testing.T) {
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("a", "serve")
	d.must("a", api.WaitHealthy)
	disk, want := w.agentOf(vm.ID)
	if _, err := d.StopVM(t.Context(), "a", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("a", api.WaitStopped)
	damage(t, disk.Path)
	if _, err := d.StartVM(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	d.must("a", api.WaitHealthy)
	if _, got := w.agentOf(vm.ID); got != want {
		t.Error("a damaged disk was used; want it made again")
	}
}

// TestAgentUpgrade replaces volantd. A VM that runs keeps the agent that it was
// started with for as long as it runs.
func TestAgentUpgrade(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	d.equip()
	vm := d.create("a", "serve")
	d.must("a", api.WaitHealthy)
	d.settle()
	before, _ := w.agentOf(vm.ID)
	d.stop()

	if err := os.WriteFile(filepath.Join(w.root, "agent"), []byte("the next agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	const grace = 2 * time.Second // longer than a start takes, on a host with other work too
	d = w.start(options{timing: func(t *timing) { t.tick, t.grace = 10*time.Millisecond, grace }})
	fresh := d.create("b", "serve")
	d.must("b", api.WaitHealthy)
	if _, content := w.agentOf(fresh.ID); !strings.Contains(content, "the next agent") {
		t.Errorf("a new VM has %.40q, want the next agent", content)
	}
	time.Sleep(grace + 200*time.Millisecond)
	if _, err := os.Stat(before.Path); err != nil {
		t.Errorf("the disk of a VM that runs: %v", err)
	}
	if row, err := d.db.VM(ctx, "a"); err != nil || row.AgentImage != filepath.Base(before.Path) {
		t.Errorf("agent of the VM = %q, %v; want %q", row.AgentImage, err, filepath.Base(before.Path))
	}

	if _, err := d.RestartVM(ctx, "a", api.VMStop{Force: true}); err != nil {
		t.Fatal(err)
	}
	d.must("a", api.WaitHealthy)
	if _, content := w.agentOf(vm.ID); !strings.Contains(content, "the next agent") {
		t.Errorf("a VM that was started again has %.40q, want the next agent", content)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(before.Path); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the disk of the old agent is still there, though no VM uses it")
		}
	}
	w.checkWorld(d.settle())
}

// TestCheckHello takes an agent of another version for what it is, as long as it
// is understood.
func TestCheckHello(t *testing.T) {
	hello := wire.Hello{Version: "of another time", VM: "a", Incarnation: 3}
	for protocol := wire.MinProtocol - 1; protocol <= wire.Protocol+1; protocol++ {
		hello.Protocol = protocol
		want := protocol >= wire.MinProtocol && protocol <= wire.Protocol
		if err := checkHello(hello, "a", 3); (err == nil) != want {
			t.Errorf("an agent that speaks %d: %v, want accepted %t", protocol, err, want)
		}
	}
	hello.Protocol = wire.Protocol
	if checkHello(hello, "b", 3) == nil || checkHello(hello, "a", 4) == nil {
		t.Error("an agent of another VM or incarnation was accepted")
	}
}
