package roles_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv/cloudhypervisor"
	"github.com/volantvm/volant/testdata/need"
)

// TestVMMUser runs a VMM as nobody, with all that a VM has.
func TestVMMUser(t *testing.T) {
	h := newHost(t)
	if err := os.Chmod(h.dir, 0o711); err != nil { // as /var/lib and /run are
		t.Fatal(err)
	}
	const uid = 65534
	gid := uint32(uid)
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == cloudhypervisor.Name {
		// Its VMM opens /dev/kvm, which mostly is its group's and nobody else's.
		var st syscall.Stat_t
		if err := syscall.Stat("/dev/kvm", &st); err != nil {
			t.Fatal(err)
		}
		switch {
		case st.Mode&0o006 == 0o006:
		case st.Mode&0o060 == 0o060 && st.Gid != 0:
			gid = st.Gid
		default:
			need.Elsewhere(t, "/dev/kvm is root's alone: mode %o, group %d", st.Mode&0o777, st.Gid)
		}
	}
	h.flags = []string{"--vmm-user", fmt.Sprintf("%d:%d", uid, gid)}
	h.start()
	h.install()
	h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy")
	for range 2 { // with what the first start has left
		vm := h.vm("web")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", gid), "CapEff:\t0000000000000000\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("the VMM lacks %q:\n%s", want, status)
			}
		}
		h.answers(vm.IPAddress)
		// It can get at what it was given, and at nothing else.
		for _, path := range []string{"data/state.db", "data/instance", "data/vms/" + vm.ID + "/console.log"} {
			fi, err := os.Stat(filepath.Join(h.dir, path))
			if err != nil || fi.Mode()&0o077 != 0 {
				t.Errorf("%s: %v, %v, want it closed to others", path, fi.Mode(), err)
			}
		}
		h.stop() // another daemon takes it up
		h.start()
		h.volar("vms", "restart", "web", "--wait=healthy")
	}
}

// TestResources looks after what a real VM has of its host: it is stopped in
// time and goes on.
func TestResources(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")

	t.Run("limits", func(t *testing.T) {
		vm := h.vm("web")
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", vm.PID))
		if err != nil {
			t.Fatal(err)
		}
		want := "/volant/" + h.instance() + "/" + vm.ID
		limit := int64(0)
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			dir, file := filepath.Join("/sys/fs/cgroup", f[1], f[2]), "memory.limit_in_bytes"
			if f[0] == "0" {
				dir, file = filepath.Join("/sys/fs/cgroup", f[2]), "memory.max"
			}
			if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil && strings.HasSuffix(f[2], want) {
				fmt.Sscan(string(b), &limit)
			}
		}
		if limit < 128<<20 || limit > 512<<20 {
			t.Errorf("its memory is limited to %d bytes, want some more than the guest's 128 MiB; it is in\n%s", limit, b)
		}
		if out := h.volar("doctor"); !strings.Contains(out, "cgroups: ") || !strings.Contains(out, "memory, pids") || strings.Contains(out, "limits") {
			t.Errorf("doctor says:\n%s", out)
		}
	})

	t.Run("stats", func(t *testing.T) {
		vm := h.vm("web")
		h.answers(vm.IPAddress) // some traffic
		var before, after api.StatsSample
		measure := func(s *api.StatsSample) {
			if err := json.Unmarshal([]byte(h.volar("stats", "--no-stream", "-o", "json")), s); err != nil || len(s.VMs) != 1 {
				t.Fatalf("stats: %v, %+v", err, s)
			}
		}
		measure(&before)
		h.volar("exec", "web", "--", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
		measure(&after)
		a, b := before.VMs[0], after.VMs[0]
		if a.Missing != nil || b.Missing != nil || a.Guest == nil || a.CPUNanos == nil || a.MemoryUsed == nil || a.NetReceived == nil || a.DiskRead == nil || a.Threads == nil {
			t.Fatalf("stats lack something: %+v", a)
		}
		if g := *a.Guest; g.Total < 64<<20 || g.Total > 128<<20 || g.Available < 1<<20 || g.Available > g.Total || g.Agent < 1<<20 || g.Agent > 64<<20 {
			t.Errorf("the guest's memory: %+v", g)
		} else if g.Kernel < 1<<20 || g.Workload < 1<<16 || g.Kernel+g.Workload > g.Total-g.Available {
			t.Errorf("the guest's memory is shared out so: %+v", g)
		}
		if *a.MemoryUsed < 32<<20 || *a.MemoryUsed > 400<<20 || *a.Threads < 2 || a.UptimeSeconds <= 0 || *a.NetReceived == 0 || *a.NetSent == 0 {
			t.Errorf("stats: memory %d, threads %d, up %v, network %d/%d", *a.MemoryUsed, *a.Threads, a.UptimeSeconds, *a.NetReceived, *a.NetSent)
		}
		// It has read its boot configuration, whatever was in the host's cache.
		if *a.DiskRead == 0 {
			t.Error("it has read nothing from its disks")
		}
		took := after.Time.Sub(before.Time)
		if used := time.Duration(*b.CPUNanos - *a.CPUNanos); used <= 0 || used > 3*took {
			t.Errorf("in %v, busy, it used %v of processors", took, used)
		}
		t.Logf("a guest of 128 MiB: VMM %d MiB, kestrel %d KiB, kernel %d KiB, workload %d KiB, guest %d of %d MiB available", *a.MemoryUsed>>20, a.Guest.Agent>>10, a.Guest.Kernel>>10, a.Guest.Workload>>10, a.Guest.Available>>20, a.Guest.Total>>20)
	})

	t.Run("pause", func(t *testing.T) {
		h.volar("vms", "pause", "web")
		begun := time.Now()
		if got := h.try("exec", "web", "--", "true"); got.code != 125 || !strings.Contains(got.stderr, "is paused") || time.Since(begun) > 10*time.Second {
			t.Errorf("exec in a paused VM = %+v after %v, want 125 at once", got, time.Since(begun))
		}
		// The daemon that resumes it is another.
		h.stop()
		h.start()
		if got := h.vm("web"); got.Status != api.VMPaused {
			t.Errorf("a daemon later it is %s, want paused", got.Status)
		}
		time.Sleep(time.Until(begun.Add(3 * time.Second)))
		h.volar("vms", "resume", "web")
		before := time.Now()
		out := h.volar("exec", "web", "--", "busybox", "date", "+%s")
		after := time.Now()
		sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		// The guest says whole seconds, rounded down.
		if guest := time.Unix(sec, 0); guest.Before(before.Add(-2*time.Second)) || guest.After(after.Add(time.Second)) {
			t.Errorf("after a pause of %v the guest's clock says %v, the host's %v to %v", before.Sub(begun), guest, before, after)
		}
		h.answers(h.vm("web").IPAddress)
		if got := h.vm("web"); got.Incarnation != 1 || !got.AgentUp || !got.Healthy {
			t.Errorf("after the pause: %+v", got)
		}
	})

	t.Run("scale", func(t *testing.T) {
		if h.vm("web").Hypervisor == "qemu" {
			if got := h.try("vms", "scale", "web", "--memory", "160"); got.code != 4 || !strings.Contains(got.stderr, "--restart") {
				t.Errorf("scale while it runs = %+v, want it to be told of --restart", got)
			}
		}
		h.volar("vms", "scale", "web", "--cpu", "2", "--memory", "160", "--restart", "--wait=healthy")
		out := h.volar("exec", "web", "--", "sh", "-c", "busybox nproc; busybox grep MemTotal /proc/meminfo")
		var cpus, kib int
		if _, err := fmt.Sscanf(out, "%d\nMemTotal: %d kB", &cpus, &kib); err != nil || cpus != 2 || kib < 128<<10 || kib > 160<<10 {
			t.Errorf("the guest says %q (%v), want 2 processors and some 160 MiB", out, err)
		}
		if got := h.try("vms", "scale", "web", "--memory", "1024g", "--restart"); got.code != 4 || !strings.Contains(got.stderr, "this host has for VMs") {
			t.Errorf("scale beyond the host = %+v, want it refused", got)
		}
	})

	t.Run("stop what is paused", func(t *testing.T) {
		h.volar("vms", "pause", "web")
		h.volar("vms", "stop", "web")
		if got := h.vm("web"); got.Status != api.VMStopped || got.Exit == nil {
			t.Errorf("stopped: %+v, want its workload to have been asked to end", got)
		}
	})
}
