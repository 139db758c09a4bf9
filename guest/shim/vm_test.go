package shim_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// vmTimeout is generous: a boot takes a second of CPU under emulation, which may
// have to be shared with many.
const vmTimeout = 120 * time.Second

// boot runs a VM whose first process is the shim, with a disk of this content, as
// persistent memory or not, until it has ended, and returns what it printed.
func boot(t *testing.T, disk []byte, pmem bool) string {
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
	cmdline := "console=ttyS0 quiet panic=-1 " + wire.ParamVM + "=x " + wire.ParamAgent + "=" + agent
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
		out := boot(t, image.Bytes(), true)
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
			out := boot(t, tt.disk, false)
			if !strings.Contains(out, tt.want) || strings.Contains(out, "panic") {
				t.Errorf("the console holds %q, want %q and no panic", out, tt.want)
			}
		})
	}
}
