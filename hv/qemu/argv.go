package qemu

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// Names of the files in an incarnation's directory, beside those of vmm.
const (
	qmpSocket     = "qmp.sock"
	debugSocket   = "debug.sock"
	consoleSocket = "console.sock"
	agentSocket   = "agent.sock"
	journalFile   = "events.log"
	machineFile   = "machine.json"
	resumedFile   = "resumed"
	logFile       = vmm.LogFile
)

// longestSocket is the longest of the socket names.
const longestSocket = consoleSocket

// maxCmdline is COMMAND_LINE_SIZE of x86 Linux less the terminating zero byte.
const maxCmdline = 2047

// check wants a machine that this driver can run on this host; from is the
// snapshot that it goes on from, or nil. It starts nothing and changes nothing.
func check(spec *hv.Spec, f *findings, from *hv.Snapshot) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if err := checkKinds(spec, f); err != nil {
		return err
	}
	if n := len(spec.Dir) + 1 + len(longestSocket); n > hv.MaxSocketPath {
		return fmt.Errorf("%w: directory %s is too long: its sockets would have paths of %d bytes, at most %d are possible",
			hv.ErrInvalidSpec, spec.Dir, n, hv.MaxSocketPath)
	}
	balloons := 0
	if spec.Balloon {
		balloons = 1
	}
	limits := []struct {
		what     string
		got, max int
	}{
		{"vCPUs", spec.VCPUs, f.caps.MaxVCPUs},
		{"disks", len(spec.Disks), f.caps.MaxDisks},
		{"NICs", len(spec.NICs), f.caps.MaxNICs},
		{"disks, NICs, shares and balloons in all", len(spec.Disks) + len(spec.NICs) + len(spec.Shares) + balloons, maxDevices},
		{"bytes of kernel command line", len(cmdline(spec, f)), maxCmdline},
	}
	for _, l := range limits {
		if l.got > l.max {
			return fmt.Errorf("%w: %d %s, at most %d are possible", hv.ErrInvalidSpec, l.got, l.what, l.max)
		}
	}
	if spec.MemoryMiB < minMemoryMiB {
		return fmt.Errorf("%w: %d MiB of memory, at least %d are needed", hv.ErrInvalidSpec, spec.MemoryMiB, minMemoryMiB)
	}
	if err := vmm.CheckHost(spec, ownFiles()); err != nil {
		return err
	}
	if from != nil {
		return nil
	}
	return vmm.CheckBoot(spec)
}

// checkKinds wants nothing that the capabilities say this driver has not.
func checkKinds(spec *hv.Spec, f *findings) error {
	for _, k := range []struct {
		what  string
		asked bool
		can   bool
	}{
		{"vCPUs that come later", spec.MaxVCPUs > spec.VCPUs, f.caps.ResizeCPU},
		{"memory that comes later", spec.MaxMemoryMiB > spec.MemoryMiB, f.caps.ResizeMemory},
		{"persistent memory", slices.ContainsFunc(spec.Disks, func(d hv.Disk) bool { return d.Pmem }), f.caps.Pmem},
		{"host devices", len(spec.Devices) > 0, f.caps.Device},
		{"shares", len(spec.Shares) > 0, f.caps.Share},
		{"a balloon", spec.Balloon, f.caps.Balloon},
		{"memory that is merged", spec.MergeMemory, f.caps.Merge},
		{"a memory file", spec.MemoryFile != "", f.caps.Template},
		{"a user of its own", spec.User != nil, f.caps.Unprivileged},
	} {
		if k.asked && !k.can {
			return fmt.Errorf("%w: %s (see its capabilities)", hv.ErrUnsupported, k.what)
		}
	}
	return nil
}

// cmdline returns the kernel's command line: what the machine needs, then the
// Spec's own parameters, which therefore win.
func cmdline(spec *hv.Spec, f *findings) string {
	// A guest that panics or cannot power off must end, not hang: panic=-1
	// resets at once, and reboot=t by triple fault, which needs no device.
	p := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=t"}
	if f.caps.Accel == hv.AccelTCG {
		if f.tscKHz != 0 {
			p = append(p, "tsc_early_khz="+strconv.FormatUint(f.tscKHz, 10), "tsc=reliable")
		}
		// Each patch of the kernel's text throws translated code away: 0.07 s
		// of a boot.
		p = append(p, "noreplace-smp", "cryptomgr.notests")
	}
	return strings.Join(append(p, spec.Cmdline...), " ")
}

// channel says how the agent of this machine is reached.
func channel(spec *hv.Spec, f *findings) hv.Channel {
	if f.caps.Channel == hv.ChannelVsock && spec.CID == 0 {
		return hv.ChannelSerial
	}
	return f.caps.Channel
}

// argv returns the whole command that runs the machine, stopped before its
// first instruction, or before the first one after the snapshot from. What makes
// up the machine comes in the same order either way, for QEMU numbers devices by
// it. A kernel is not needed again: the firmware has read it.
func argv(spec *hv.Spec, f *findings, from *hv.Snapshot) []string {
	socket := func(id, name string) string {
		return "socket,id=" + id + ",path=" + escape(filepath.Join(spec.Dir, name)) + ",server=on,wait=off"
	}
	// The boot of an appliance translates 51 MB of code. With 32 all of it was thrown
	// away once, and 15,000 of 90,000 blocks were translated again. What is not used
	// takes no memory of the host.
	accel, cpu := "tcg,tb-size=64", "max"
	if f.caps.Accel == hv.AccelKVM {
		accel, cpu = "kvm", "host"
	}
	merge := "off" // QEMU's default is to let the kernel merge all memory
	if spec.MergeMemory {
		merge = "on"
	}
	a := []string{
		f.caps.Binary,
		"-name", "volant-" + spec.ID,
		"-M", "microvm,acpi=on,mem-merge=" + merge + ",memory-backend=" + memoryID,
		"-object", memory(spec, f, from),
		// Devices of virtio 1.0: virtiofsd serves no others.
		"-global", "virtio-mmio.force-legacy=false",
		"-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(spec.VCPUs),
		"-m", strconv.Itoa(spec.MemoryMiB) + "M",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", "-no-shutdown", "-S",
		"-device", "pvpanic",
		"-chardev", driverMonitor(spec.Dir), "-mon", "chardev=qmp,mode=control",
		"-chardev", socket("debug", debugSocket) + ",logfile=" + escape(filepath.Join(spec.Dir, journalFile)) + ",logappend=on", "-mon", "chardev=debug,mode=control",
		"-chardev", socket("console", consoleSocket), "-serial", "chardev:console",
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng",
	}
	if f.sandbox {
		a = append(a, "-sandbox", sandbox)
	}
	switch channel(spec, f) {
	case hv.ChannelVsock:
		a = append(a, "-device", "vhost-vsock-device,guest-cid="+strconv.FormatUint(uint64(spec.CID), 10))
	default:
		// Without max_ports the guest sets up 31 ports, in 12 MB of its memory.
		a = append(a, "-chardev", socket("agent", agentSocket),
			"-device", "virtio-serial-device,max_ports=2",
			"-device", "virtserialport,nr=1,chardev=agent,name="+wire.SerialPort)
	}
	for i, d := range spec.Disks {
		id := "disk" + strconv.Itoa(i)
		a = append(a, "-drive", drive(id, d), "-device", "virtio-blk-device,drive="+id+",serial="+d.Serial)
	}
	for i, n := range spec.NICs {
		id := "net" + strconv.Itoa(i)
		a = append(a, "-netdev", "tap,id="+id+",fd="+strconv.Itoa(vmm.FirstFile+i)+",vhost=off",
			"-device", "virtio-net-device,netdev="+id+",mac="+n.MAC.String())
	}
	for i, sh := range spec.Shares {
		id := "share" + strconv.Itoa(i)
		a = append(a, "-chardev", "socket,id="+id+",path="+escape(sh.Socket),
			"-device", "vhost-user-fs-device,queue-size=1024,chardev="+id+",tag="+sh.Tag)
	}
	if spec.Balloon {
		a = append(a, "-device", balloon(spec, from))
	}
	if from != nil {
		return append(a, "-incoming", "defer")
	}
	a = append(a, "-kernel", spec.Kernel)
	if spec.Initramfs != "" {
		a = append(a, "-initrd", spec.Initramfs)
	}
	return append(a, "-append", cmdline(spec, f))
}

// drive returns the argument for a disk's back end.
//
// The host's page cache is used (writeback): it holds a read-only root once for
// all machines, and O_DIRECT, which goes around it, is refused by tmpfs. The
// guest's flushes are fdatasync calls. The locks are those of one open file
// (F_OFD_SETLK of fcntl(2)), and end with the process. Read-only disks are not
// held against each other.
func drive(id string, d hv.Disk) string {
	s := "id=" + id + ",if=none,format=raw,file=" + escape(d.Path) + ",file.locking=on,cache=writeback"
	if d.ReadOnly {
		return s + ",readonly=on"
	}
	// What the guest trims leaves the file, and zeros do not enter it: disks are
	// sparse, and stay so.
	return s + ",discard=unmap,detect-zeroes=unmap"
}

// driverMonitor is the argument that no other process has: Find knows the
// machine of a directory by it.
func driverMonitor(dir string) string {
	return "socket,id=qmp,path=" + escape(filepath.Join(dir, qmpSocket)) + ",server=on,wait=off"
}

// escape doubles the commas of a value in QEMU's option syntax.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
