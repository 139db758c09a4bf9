package shim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// vmTimeout is generous: a boot takes a second of CPU under emulation, which may
// have to be shared with many.
const vmTimeout = 120 * time.Second

// boot runs a VM whose first process is the shim, with a disk of this content, as
// persistent memory or not, until it has ended, and returns what it printed. A plan
// that is not nil is on its configuration disk.
func boot(t *testing.T, disk []byte, pmem bool, plan []byte) string {
	t.Helper()
	kernel, qemu := need.Env(t, "VOLANT_TEST_KERNEL"), need.Tool(t, "qemu-system-x86_64")
	dir := t.TempDir()
	var a initramfs.Archive
	if err := a.Add(initramfs.Entry{Name: "init", Mode: 0o755, Data: []byte(shim.Binary())}); err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	if _, err := a.WriteTo(&image); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"initramfs": image.Bytes(), "disk": append(disk, make([]byte, -len(disk)&(2<<20-1))...)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	agent, file := wire.AgentSerial, filepath.Join(dir, "disk")
	machine := []string{"-M", "microvm", "-drive", "id=d,if=none,format=raw,readonly=on,file=" + file, "-device", "virtio-blk-device,drive=d,serial=" + agent}
	if pmem {
		// Where there is PCI and ACPI, as in Cloud Hypervisor.
		agent = wire.AgentDevice
		machine = []string{"-M", "q35", "-object", "memory-backend-file,id=d,share=on,size=2M,mem-path=" + file, "-device", "virtio-pmem-pci,memdev=d", "-m", "slots=1,maxmem=1G"}
	}
	verbosity := "quiet "
	if plan != nil {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, append(plan, make([]byte, -len(plan)&4095)...), 0o600); err != nil {
			t.Fatal(err)
		}
		machine = append(machine, "-drive", "id=c,if=none,format=raw,readonly=on,file="+path, "-device", "virtio-blk-device,drive=c,serial="+wire.ConfigSerial)
		verbosity = fmt.Sprintf("loglevel=7 %s=0,%d ", wire.ParamPlan, len(plan))
	}
	cmdline := "console=ttyS0 panic=-1 " + verbosity + wire.ParamVM + "=x " + wire.ParamAgent + "=" + agent
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	if m := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(cpu); m != nil {
		cmdline += " tsc=reliable tsc_early_khz=" + string(m[1]) + string(m[2]) // else it may not find its clock
	}
	ctx, cancel := context.WithTimeout(t.Context(), vmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append(machine, "-accel", "tcg,tb-size=32", "-cpu", "max", "-m", "128",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-initrd", filepath.Join(dir, "initramfs"), "-append", cmdline)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	return string(out)
}

// TestFails wants a guest that cannot have its agent to say why and to end, and
// not to panic.
func TestFails(t *testing.T) {
	if shim.Binary() == "" {
		need.Elsewhere(t, "there is no shim for this architecture")
	}
	var image bytes.Buffer
	tree := layers.NewTree()
	if err := tree.Add("another", layers.NewFile(0o755, []byte("program"))); err != nil {
		t.Fatal(err)
	}
	if _, err := erofs.Write(t.Context(), &image, tree, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Run("persistent memory", func(t *testing.T) {
		out := boot(t, image.Bytes(), true, nil)
		if want := "volant: shim: cannot execute kestrel of the agent's disk /dev/pmem0: error 2"; !strings.Contains(out, want) || strings.Contains(out, "panic") {
			t.Errorf("the console holds %q, want %q and no panic", out, want)
		}
		// By these the daemon knows that the kernel can: its hasPmem.
		b, err := os.ReadFile(os.Getenv("VOLANT_TEST_KERNEL"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"virtio_pmem", "nd_pfn"} {
			if !bytes.Contains(b, []byte("\x00"+name+"\x00")) {
				t.Errorf("the kernel does not hold the name %s", name)
			}
		}
	})
	for name, tt := range map[string]struct {
		disk []byte
		want string
	}{
		"no file system": {[]byte("nothing of the kind"), "volant: shim: cannot mount the agent's disk /dev/vda: error 22"},
		"no agent on it": {image.Bytes(), "volant: shim: cannot execute kestrel of the agent's disk /dev/vda: error 2"},
	} {
		t.Run(name, func(t *testing.T) {
			out := boot(t, tt.disk, false, nil)
			if !strings.Contains(out, tt.want) || strings.Contains(out, "panic") {
				t.Errorf("the console holds %q, want %q and no panic", out, tt.want)
			}
		})
	}
}

// TestPlanLeft has the shim leave plans that it cannot follow, or not to the end,
// and go on.
func TestPlanLeft(t *testing.T) {
	if shim.Binary() == "" {
		need.Elsewhere(t, "there is no shim for this architecture")
	}
	var image bytes.Buffer
	if _, err := erofs.Write(t.Context(), &image, layers.NewTree(), erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	cfg := wire.BootConfig{
		Protocol: wire.Protocol, VM: "x", Incarnation: 1, Hostname: "x", MachineID: strings.Repeat("0", 32), Time: time.Now(), Seed: make([]byte, 32),
		Workload: wire.WorkloadConfig{Args: []string{"/init"}, Env: []string{"MARK=abcdefgh"}},
	}
	compile := func() []byte {
		p := plan.Compile(cfg)
		if p == nil {
			t.Fatal("there is no plan")
		}
		return p
	}
	damaged := compile()
	damaged[bytes.Index(damaged, []byte("abcdefgh"))]++
	endless := compile()
	binary.LittleEndian.PutUint32(endless[12:], 1<<20) // operations
	sum := fnv.New64a()
	sum.Write(endless[40:])
	binary.LittleEndian.PutUint64(endless[16:], sum.Sum64())
	cfg.Workload.Args[0] = "/missing"
	missing := compile()
	cfg.Network = &wire.NetworkConfig{MAC: "02:00:00:00:00:01", Address: netip.MustParsePrefix("192.168.127.2/24")}
	noNIC := compile()
	cfg.Network, cfg.Root = nil, &wire.RootConfig{Upper: wire.UpperDisk}
	noRoot := compile()
	for name, tt := range map[string]struct {
		plan  []byte
		errno int
	}{
		"a bit is wrong":           {damaged, 74},            // EBADMSG
		"more operations than fit": {endless, 74},            // EBADMSG
		"the program is not there": {missing, 2},             // ENOENT
		"the NIC is not there":     {noNIC, 19},              // ENODEV
		"the root is not there":    {noRoot, 19},             // ENODEV
		"no plan at all":           {make([]byte, 4096), 74}, // EBADMSG
	} {
		t.Run(name, func(t *testing.T) {
			out := boot(t, image.Bytes(), false, tt.plan)
			left := fmt.Sprintf("volant: shim: the plan was left to the agent: error %d", tt.errno)
			if !strings.Contains(out, left) || !strings.Contains(out, "cannot execute kestrel of the agent's disk /dev/v") {
				t.Errorf("the console lacks %q, or the shim did not go on:\n%s", left, out[max(0, len(out)-1500):])
			}
		})
	}
}
