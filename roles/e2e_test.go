package roles_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// TestFirstBoot is the life of a VM as its operator sees it.
func TestFirstBoot(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()

	h.volar("vms", "create", "web", "--plugin", "hello", "--cpu", "1", "--memory", "128", "--wait=healthy")
	vm := h.vm("web")
	if vm.IPAddress != "192.168.127.2" {
		t.Errorf("the first VM's address = %q, want 192.168.127.2, the lowest free one", vm.IPAddress)
	}
	if vm.Status != api.VMRunning || !vm.AgentUp || !vm.Healthy {
		t.Errorf("VM = %+v, want running, agent up and healthy", vm)
	}
	if body := h.answers(vm.IPAddress); !strings.Contains(body, "web") {
		t.Errorf("answer = %q, want it to hold the VM's host name", body)
	}

	t.Run("list", func(t *testing.T) {
		if got := h.volar("vms", "list", "-o", "name"); got != "web\n" {
			t.Errorf("vms list -o name = %q, want web", got)
		}
		table := h.volar("vms", "list")
		for _, want := range []string{"NAME", "STATUS", "web", "running", "192.168.127.2"} {
			if !strings.Contains(table, want) {
				t.Errorf("vms list lacks %q:\n%s", want, table)
			}
		}
	})

	t.Run("timeline", func(t *testing.T) {
		var tl api.Timeline
		if err := json.Unmarshal([]byte(h.volar("vms", "timeline", "web", "-o", "json")), &tl); err != nil {
			t.Fatal(err)
		}
		where := map[string]int{}
		for _, s := range tl.Steps {
			where[s.Where]++
			if s.Error != "" {
				t.Errorf("step %s %s failed: %s", s.Where, s.Name, s.Error)
			}
		}
		if where["host"] < 3 || where["guest"] < 5 {
			t.Errorf("timeline has %v steps, want several of host and guest: %+v", where, tl.Steps)
		}
	})

	t.Run("logs", func(t *testing.T) {
		h.eventually(10*time.Second, "the workload's log line", func() error {
			if out := h.volar("vms", "logs", "web"); !strings.Contains(out, "8080") {
				return fmt.Errorf("logs = %q", out)
			}
			return nil
		})
	})

	t.Run("a second VM has the next address", func(t *testing.T) {
		h.volar("vms", "create", "two", "--plugin", "hello", "--stopped")
		if got := h.vm("two").IPAddress; got != "192.168.127.3" {
			t.Errorf("address = %q, want 192.168.127.3", got)
		}
		h.volar("vms", "delete", "two")
	})

	t.Run("stop, start and restart keep the address", func(t *testing.T) {
		h.volar("vms", "stop", "web")
		if got := h.vm("web"); got.Status != api.VMStopped || got.IPAddress != vm.IPAddress {
			t.Errorf("after stop = %s %s, want stopped %s", got.Status, got.IPAddress, vm.IPAddress)
		}
		if pids, devs := h.vmms(), taps(t); len(pids)+len(devs) > 0 {
			t.Errorf("a stopped VM holds VMMs %v and TAPs %v", pids, devs)
		}
		h.volar("vms", "start", "web", "--wait=healthy")
		h.answers(vm.IPAddress)
		h.volar("vms", "restart", "web", "--wait=healthy")
		h.answers(vm.IPAddress)
		if got := h.vm("web"); got.Incarnation != 3 || got.IPAddress != vm.IPAddress {
			t.Errorf("after restart = incarnation %d at %s, want 3 at %s", got.Incarnation, got.IPAddress, vm.IPAddress)
		}
	})

	t.Run("events tell the story, and resume", func(t *testing.T) {
		all := h.volar("events", "--vm", "web", "-o", "json")
		var types []api.EventType
		var seqs []uint64
		dec := json.NewDecoder(strings.NewReader(all))
		for dec.More() {
			var e api.Event
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("%v in %q", err, all)
			}
			types, seqs = append(types, e.Type), append(seqs, e.Seq)
		}
		want := []api.EventType{api.EventVMCreated, api.EventVMStarting, api.EventVMRunning, api.EventVMHealthy, api.EventVMStopping, api.EventVMStopped}
		if len(types) < len(want) || !slices.Equal(types[:len(want)], want) {
			t.Fatalf("events = %v, want them to begin with %v", types, want)
		}
		rest := h.volar("events", "--vm", "web", "-o", "json", "--after", fmt.Sprint(seqs[2]))
		if got, want := strings.Count(rest, `"seq"`), len(seqs)-3; got != want {
			t.Errorf("events after the third = %d, want %d", got, want)
		}
	})

	h.volar("vms", "delete", "web")
	if r := h.try("vms", "get", "web"); r.code != 3 || !strings.Contains(r.stderr, "web") {
		t.Errorf("vms get of a deleted VM = status %d, %q; want 3", r.code, r.stderr)
	}
	h.noLeaks()
}

// TestDaemonKilled wants a VM to outlive volantd's death, and the next volantd
// to take it up.
func TestDaemonKilled(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()
	h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy")
	before := h.vm("web")

	h.kill()
	h.answers(before.IPAddress)
	h.start()
	h.eventually(30*time.Second, "the VM is taken up", func() error {
		if vm := h.vm("web"); vm.Status != api.VMRunning || !vm.AgentUp || vm.PID != before.PID || vm.Incarnation != before.Incarnation {
			return fmt.Errorf("VM = %+v, want pid %d, incarnation %d, agent up", vm, before.PID, before.Incarnation)
		}
		return nil
	})
	h.answers(before.IPAddress)
	if pids := h.vmms(); !slices.Equal(pids, []int{before.PID}) {
		t.Errorf("VMMs = %v, want only %d", pids, before.PID)
	}

	t.Run("orderly stop leaves VMs running too", func(t *testing.T) {
		h.stop()
		h.answers(before.IPAddress)
		h.start()
	})

	t.Run("a VM that died meanwhile is noticed", func(t *testing.T) {
		h.kill()
		syscall.Kill(before.PID, syscall.SIGKILL)
		h.start()
		h.eventually(30*time.Second, "the VM is no longer running", func() error {
			if vm := h.vm("web"); vm.Status != api.VMCrashed {
				return fmt.Errorf("status = %s", vm.Status)
			}
			return nil
		})
	})
	h.volar("vms", "delete", "web")
	h.noLeaks()
}

// TestKillAfterEveryWrite kills volantd after each of its durable writes, and
// wants the next one to finish or undo what was begun, and to leak nothing.
func TestKillAfterEveryWrite(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()
	h.stop()

	// Each operation begins in the state that setup leaves, and must end as
	// settled says, whatever was killed when.
	for _, op := range []struct {
		name    string
		setup   func()
		args    []string
		settled func() error
	}{
		{"create", func() {}, []string{"vms", "create", "web", "--plugin", "hello", "--no-wait"}, func() error {
			// The request either never was, or is carried out to the end.
			if h.try("vms", "get", "web").code == 3 {
				return nil
			}
			vm := h.vm("web")
			if vm.Status != api.VMRunning || !vm.Healthy {
				return fmt.Errorf("status = %s %s", vm.Status, vm.Reason)
			}
			_, err := get(vm.IPAddress)
			return err
		}},
		{"stop", func() { h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy") },
			[]string{"vms", "stop", "web", "--no-wait"}, func() error {
				switch vm := h.vm("web"); {
				case vm.Desired == api.DesiredRunning && vm.Status == api.VMRunning && len(h.vmms()) == 1:
					return nil // killed before the wish was durable
				case vm.Desired == api.DesiredStopped && vm.Status == api.VMStopped && len(h.vmms()) == 0 && len(taps(t)) == 0:
					return nil
				default:
					return fmt.Errorf("desired %s, status %s, VMMs %v", vm.Desired, vm.Status, h.vmms())
				}
			}},
		{"delete", func() { h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy") },
			[]string{"vms", "delete", "web", "--no-wait"}, func() error {
				r := h.try("vms", "get", "web", "-o", "json")
				if r.code == 3 && len(h.vmms()) == 0 && len(taps(t)) == 0 {
					return nil
				}
				if strings.Contains(r.stdout, `"desired": "running"`) && len(h.vmms()) == 1 {
					return nil // killed before the wish was durable
				}
				return fmt.Errorf("vms get = %d %s, VMMs %v", r.code, r.stdout, h.vmms())
			}},
	} {
		t.Run(op.name, func(t *testing.T) {
			for n := 1; ; n++ {
				if n > 40 {
					t.Fatal("still more writes after 40: the operation never settles")
				}
				h.start()
				op.setup()
				h.stop()

				h.startToDie(n)
				h.eventually(20*time.Second, "volantd answers or is dead", func() error {
					if r := h.try("system", "info"); r.code != 0 && !h.dead() {
						return fmt.Errorf("%s", r.stderr)
					}
					return nil
				})
				h.try(op.args...)
				died := h.diesWithin(15*time.Second, op.settled)
				h.start()
				h.eventually(60*time.Second, fmt.Sprintf("settled after the kill at write %d", n), op.settled)
				h.try("vms", "delete", "web")
				h.noLeaks()
				if t.Failed() {
					t.Fatalf("after the kill at write %d", n)
				}
				h.stop()
				if !died {
					t.Logf("%s: killed after each of its first %d writes", op.name, n-1)
					if n == 1 {
						t.Error("the kill never happened: the test shows nothing")
					}
					return
				}
			}
		})
	}
	h.start()
}

// dead reports whether volantd has ended.
func (h *host) dead() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.daemon.Process.Pid))
	if err != nil {
		return true
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return bytes.HasPrefix(after, []byte("Z"))
}

// diesWithin waits until volantd has killed itself, and reports whether it did;
// a volantd that has settled instead is stopped.
func (h *host) diesWithin(limit time.Duration, settled func() error) bool {
	h.t.Helper()
	deadline := time.Now().Add(limit)
	for !h.dead() {
		if time.Now().After(deadline) {
			if err := settled(); err != nil {
				h.t.Fatalf("volantd neither died nor settled: %v", err)
			}
			h.stop()
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.wait(time.Second)
	return true
}

// TestDebianKernel boots Debian's own kernel: a bzImage to unpack, and modules
// to load.
func TestDebianKernel(t *testing.T) {
	h := newHost(t)
	dir := need.Env(t, "VOLANT_TEST_DEBIAN_KERNEL")
	one := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s/%s = %v, %v; want one", dir, pattern, found, err)
		}
		return found[0]
	}
	h.start()
	h.volar("kernels", "import", one("boot/vmlinuz-*"), "--modules", one("lib/modules/*"), "--name", "debian")
	h.volar("plugins", "install", "--manifest", filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
	h.volar("vms", "create", "web", "--plugin", "hello", "--wait=healthy")
	h.answers(h.vm("web").IPAddress)
}

// TestBadInput wants one clear error for each thing that can be wrong, and
// nothing left behind.
func TestBadInput(t *testing.T) {
	h := newHost(t)
	h.start()

	manifest := func(change func(m map[string]any)) string {
		data, err := os.ReadFile(filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		m["initramfs"].(map[string]any)["url"] = filepath.Join(os.Getenv(envHello), "hello.cpio")
		change(m)
		data, err = json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "m.json")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	install := func(change func(m map[string]any)) []string {
		return []string{"plugins", "install", "--manifest", manifest(change)}
	}

	check := func(name string, args []string, code int, words ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			r := h.try(args...)
			if r.code != code {
				t.Errorf("volar %s = status %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
			}
			for _, w := range words {
				if !strings.Contains(r.stderr, w) {
					t.Errorf("volar %s says %q, want it to hold %q", strings.Join(args, " "), r.stderr, w)
				}
			}
			if r.stdout != "" {
				t.Errorf("volar %s printed %q, want nothing on standard output", strings.Join(args, " "), r.stdout)
			}
		})
	}

	check("nothing installed", []string{"vms", "create", "web", "--plugin", "hello"}, 3, "hello")
	h.volar("plugins", "install", "--manifest", filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
	check("no kernel", []string{"vms", "create", "web", "--plugin", "hello"}, 4, "kernel")
	h.install()
	check("unknown field", install(func(m map[string]any) { m["wrokload"] = 1 }), 2, "wrokload", "did you mean workload?")
	check("wrong type", install(func(m map[string]any) { m["resources"] = "big" }), 2, "resources", "an object")
	check("missing artifact", install(func(m map[string]any) { m["initramfs"].(map[string]any)["url"] = "/nonexistent/x.cpio" }), 1, "/nonexistent/x.cpio")
	check("wrong digest", install(func(m map[string]any) {
		m["initramfs"].(map[string]any)["checksum"] = "sha256:" + strings.Repeat("0", 64)
	}), 2, "sha256")
	check("unsupported feature", install(func(m map[string]any) { m["network"] = map[string]any{"mode": "dhcp"} }), 1, "network.mode")
	check("address outside the pool", []string{"vms", "create", "web", "--plugin", "hello", "--ip", "10.0.0.1"}, 2, "10.0.0.1")
	check("the gateway's address", []string{"vms", "create", "web", "--plugin", "hello", "--ip", "192.168.127.1"}, 2, "192.168.127.1")
	check("malformed name", []string{"vms", "create", "../x", "--plugin", "hello"}, 2, `"../x"`)
	check("unknown plugin", []string{"vms", "create", "web", "--plugin", "helo"}, 3, "did you mean hello?")
	check("unknown kernel", []string{"vms", "create", "web", "--plugin", "hello", "--kernel", "nope"}, 3, "nope")
	check("too little memory", []string{"vms", "create", "web", "--plugin", "hello", "--memory", "1"}, 2, "memory")
	check("unknown VM", []string{"vms", "stop", "nope"}, 3, "nope")
	check("unknown flag", []string{"vms", "create", "web", "--plugn", "hello"}, 2, "plugn")
	check("no ELF", []string{"kernels", "import", "/etc/hostname", "--name", "x"}, 1, "hostname")
	check("no PVH", []string{"kernels", "import", os.Getenv(envBinary), "--name", "x"}, 1, "PVH")

	if out := h.volar("vms", "list", "-o", "name"); out != "" {
		t.Errorf("VMs %q are left of failed requests", out)
	}

	h.volar("vms", "create", "web", "--plugin", "hello", "--stopped", "--ip", "192.168.127.9")
	check("name taken", []string{"vms", "create", "web", "--plugin", "hello"}, 4, "web")
	check("address taken", []string{"vms", "create", "web2", "--plugin", "hello", "--ip", "192.168.127.9"}, 4, "192.168.127.9")
	check("plugin in use", []string{"plugins", "remove", "hello"}, 4, "in use")

	t.Run("a second volantd on the same data", func(t *testing.T) {
		second := &host{t: t, dir: h.dir, log: h.log}
		r := second.runVolantd()
		if r.code != 1 || !strings.Contains(r.stdout, "in use") && !strings.Contains(r.stdout, "already") {
			t.Errorf("a second volantd = status %d, %q; want a refusal", r.code, r.stdout)
		}
		h.volar("system", "info")
	})
}

// TestGuestFailures wants each way in which a guest can fail to end in a state
// that says so.
func TestGuestFailures(t *testing.T) {
	h := newHost(t)
	h.start()
	h.install()

	plugin := func(name string, workload map[string]any) {
		t.Helper()
		m := map[string]any{
			"schema_version": "1", "name": name, "version": "1",
			"initramfs": map[string]any{"url": filepath.Join(os.Getenv(envHello), "hello.cpio")},
			"resources": map[string]any{"cpu_cores": 1, "memory_mb": 128},
			"workload":  workload,
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name+".json")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		h.volar("plugins", "install", "--manifest", path)
	}
	program := func(entrypoint ...string) map[string]any {
		return map[string]any{"type": "exec", "entrypoint": entrypoint}
	}
	settles := func(name string, want api.VMState, reason string) {
		t.Helper()
		h.eventually(60*time.Second, name+" is "+string(want), func() error {
			if vm := h.vm(name); vm.Status != want || !strings.Contains(vm.Reason, reason) {
				return fmt.Errorf("status = %s, reason %q, want %s with %q", vm.Status, vm.Reason, want, reason)
			}
			return nil
		})
		if pids, devs := h.vmms(), taps(t); len(pids)+len(devs) > 0 {
			t.Errorf("%s ended, but VMMs %v and TAPs %v are left", name, pids, devs)
		}
		h.volar("vms", "delete", name)
	}

	t.Run("the workload exits at once", func(t *testing.T) {
		plugin("usage", map[string]any{"type": "http", "entrypoint": []string{"/usr/bin/hello", "-nonsense"}, "base_url": "http://127.0.0.1:8080"})
		if r := h.try("vms", "create", "a", "--plugin", "usage", "--wait=healthy"); r.code == 0 || !strings.Contains(r.stderr, "status 2") {
			t.Errorf("create --wait=healthy = %d, %q; want a failure that tells status 2", r.code, r.stderr)
		}
		settles("a", api.VMCrashed, "status 2")
	})
	t.Run("the workload is missing", func(t *testing.T) {
		plugin("missing", program("/usr/bin/nothing"))
		h.try("vms", "create", "b", "--plugin", "missing", "--no-wait")
		settles("b", api.VMFailed, "/usr/bin/nothing")
	})
	t.Run("the workload ends well", func(t *testing.T) {
		plugin("exit0", program("/usr/bin/hello", "-help"))
		h.try("vms", "create", "c", "--plugin", "exit0", "--no-wait")
		settles("c", api.VMStopped, "")
	})
	t.Run("the guest kernel panics", func(t *testing.T) {
		// The kernel hands words that it does not know to /init, which ends by
		// this one: the end of process 1 is a panic.
		h.volar("plugins", "install", "--manifest", helloAsInit(t, "bare", api.AgentNone))
		h.volar("vms", "create", "d", "--plugin", "bare", "--kernel-cmdline=-nonsense", "--no-wait")
		settles("d", api.VMCrashed, "kernel panicked")
	})
	t.Run("the VMM is killed", func(t *testing.T) {
		h.volar("vms", "create", "e", "--plugin", "hello", "--wait=healthy")
		syscall.Kill(h.vm("e").PID, syscall.SIGKILL)
		settles("e", api.VMCrashed, "")
	})
}

// helloAsInit packs the demo's program as /init, so that no agent of Volant's is
// in the guest, and returns the manifest, changed to say what agent is there.
func helloAsInit(t *testing.T, name, agent string) string {
	t.Helper()
	dir := t.TempDir()
	recipe := fmt.Sprintf(`version = "1"
[init]
path = %q
[manifest]
name = %q
version = "1"
[manifest.workload]
type = "exec"
entrypoint = ["/init"]
`, filepath.Join(os.Getenv(envHello), "hello"), name)
	if err := os.WriteFile(filepath.Join(dir, "fledge.toml"), []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(os.Getenv(envBinary), "fledge", "build", "-c", filepath.Join(dir, "fledge.toml"), "-o", filepath.Join(dir, name)).CombinedOutput()
	if err != nil {
		t.Fatalf("fledge build: %v\n%s", err, out)
	}
	file := filepath.Join(dir, name+".manifest.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var m api.Manifest
	if err := api.DecodeStrict(data, &m); err != nil {
		t.Fatal(err)
	}
	if m.Initramfs.Agent != api.AgentNone {
		t.Fatalf("fledge says that the agent is %q, want none", m.Initramfs.Agent)
	}
	m.Initramfs.Agent = agent
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestGuestNeverAnswers wants a deadline, and the console's last words in the
// error.
func TestGuestNeverAnswers(t *testing.T) {
	h := newHost(t)
	h.env = []string{"VOLANT_BOOT_TIMEOUT=8s"}
	h.start()
	h.install()
	// The archive is said to carry the agent, and does not.
	h.volar("plugins", "install", "--manifest", helloAsInit(t, "mute", api.AgentImage))
	r := h.try("vms", "create", "mute", "--plugin", "mute")
	for _, want := range []string{"did not answer within 8s", "listening on"} {
		if r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("create = status %d, %q; want a failure that holds %q", r.code, r.stderr, want)
		}
	}
	if vm := h.vm("mute"); vm.Status != api.VMFailed {
		t.Errorf("status = %s, want failed", vm.Status)
	}
	if pids, devs := h.vmms(), taps(t); len(pids)+len(devs) > 0 {
		t.Errorf("VMMs %v and TAPs %v are left", pids, devs)
	}
}

// TestPoolExhausted wants the last address to be given, and the next request
// to be refused without a trace.
func TestPoolExhausted(t *testing.T) {
	h := newHost(t)
	h.env = []string{"VOLANT_SUBNET=192.168.127.0/30"}
	h.start()
	h.install()
	h.volar("vms", "create", "last", "--plugin", "hello", "--stopped")
	if r := h.try("vms", "create", "none", "--plugin", "hello", "--stopped"); r.code != 4 || !strings.Contains(r.stderr, "192.168.127.0/30") {
		t.Errorf("create in a full pool = status %d, %q; want 4 and the pool", r.code, r.stderr)
	}
	if got := h.volar("vms", "list", "-o", "name"); got != "last\n" {
		t.Errorf("VMs = %q, want last", got)
	}
	h.volar("vms", "delete", "last")
	h.volar("vms", "create", "next", "--plugin", "hello", "--stopped")
}

// TestWithoutQEMU wants volantd to run without a hypervisor and to say so, and
// a VM to be kept, not started.
func TestWithoutQEMU(t *testing.T) {
	h := newHost(t)
	old := filepath.Join(h.dir, "old-qemu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho QEMU emulator version 5.2.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, qemu, want string }{
		{"missing", filepath.Join(h.dir, "nothing"), "nothing"},
		{"too old", old, "5.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.env = []string{"VOLANT_HYPERVISOR=qemu", "VOLANT_QEMU=" + c.qemu}
			h.start()
			h.install()
			if out := h.volar("system", "info"); !strings.Contains(out, c.want) {
				t.Errorf("system info = %q, want it to tell %q", out, c.want)
			}
			r := h.try("vms", "create", "web", "--plugin", "hello")
			if r.code == 0 || !strings.Contains(r.stderr, c.want) {
				t.Errorf("create = status %d, %q; want a failure that tells %q", r.code, r.stderr, c.want)
			}
			h.volar("vms", "delete", "web")
			h.stop()
		})
	}
	h.env = nil
	h.start()
}

// TestDiskFull wants an upload that does not fit to be refused, with what was
// there before still there, and nothing of it left.
func TestDiskFull(t *testing.T) {
	h := newHost(t)
	data := filepath.Join(h.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	// ip netns exec gave this process a mount namespace of its own.
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(data, syscall.MNT_DETACH) })
	h.start()
	h.install()
	before := h.volar("system", "summary", "-o", "json")
	big := filepath.Join(h.dir, "big.cpio")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(128 << 20)
	f.Close()
	manifest := fmt.Sprintf(`{"name": "big", "version": "1", "initramfs": {"url": %q}, "resources": {"cpu_cores": 1, "memory_mb": 128},
		"workload": {"type": "exec", "entrypoint": ["/x"]}}`, big)
	file := filepath.Join(h.dir, "big.json")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	r := h.try("plugins", "install", "--manifest", file)
	if r.code != 4 || !strings.Contains(r.stderr, "space") && !strings.Contains(r.stderr, "full") && !strings.Contains(r.stderr, "free") {
		t.Errorf("install on a full disk = status %d, %q; want 4 and the reason", r.code, r.stderr)
	}
	if after := h.volar("system", "summary", "-o", "json"); after != before {
		t.Errorf("summary = %s, want as before %s", after, before)
	}
	h.volar("vms", "create", "web", "--plugin", "hello", "--stopped")
}
